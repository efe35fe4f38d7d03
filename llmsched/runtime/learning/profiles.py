"""Profiles as bytes: zlib-compressed JSON in the store, `<application>.json.gz` in a folder.

Reading one costs milliseconds of processor time, so the service does it in a thread.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import orjson

from llmsched.errors import InvalidInput, InvalidSetting, ProfileError
from llmsched.model.application import Application
from llmsched.profiler import Profile

_SUFFIX = ".json.gz"
#: No profile comes near it; whatever is larger was not meant to be one.
MAX_BYTES = 256 << 20


def pack(profile: Profile) -> bytes:
    """The profile as the store keeps it."""
    return zlib.compress(orjson.dumps(profile.to_json()), 6)


def unpack(body: bytes, application: Application) -> Profile:
    """Reads what `pack` made. Raises ProfileError for what is damaged or does not fit this version."""
    try:
        document = orjson.loads(zlib.decompress(body))
    except (zlib.error, orjson.JSONDecodeError) as error:
        raise ProfileError(f"the profile of {application.name!r} is damaged ({error}); fit it again") from None
    return Profile.from_json(document, application)


def write_profile(folder: Path, profile: Profile) -> Path:
    """The file in `folder`, which is made if need be; it appears when it is complete.

    Raises InvalidInput if it cannot be written.
    """
    file = folder / f"{profile.application}{_SUFFIX}"
    unfinished = file.with_name(f".{file.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(gzip.compress(orjson.dumps(profile.to_json()), mtime=0))
        unfinished.replace(file)
    except OSError as error:
        raise InvalidInput(f"the profile {str(file)!r} cannot be written: {error.strerror}") from None
    return file


def profile_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by application. Raises InvalidSetting if it is no folder."""
    if not folder.is_dir():
        raise InvalidSetting(
            f"profiles is {str(folder)!r}, which is no folder; make one with llmsched fit --out", field="profiles"
        )
    return {path.name.removesuffix(_SUFFIX): path for path in sorted(folder.glob(f"*{_SUFFIX}"))}


def read_document(file: Path) -> Any:
    """The JSON of a profile file. Raises ProfileError, naming the file, if there is none in it."""
    try:
        with gzip.open(file) as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ProfileError(f"{file} unpacks to more than {MAX_BYTES >> 20} MiB, so it is no profile")
        return orjson.loads(text)
    except OSError as error:  # of gzip, too
        raise ProfileError(f"{file} cannot be read: {error.strerror or error}; fit it again") from None
    except (EOFError, zlib.error, orjson.JSONDecodeError) as error:
        raise ProfileError(f"{file} is damaged ({error}); fit it again") from None
