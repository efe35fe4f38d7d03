"""Profiles as bytes and files: they come back as they were, and what is no profile gets one sentence."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llmsched.catalogue import installed_applications
from llmsched.errors import InvalidInput, InvalidSetting, ProfileError
from llmsched.model.application import Application
from llmsched.profiler import Profile, fit
from llmsched.runtime.learning.profiles import pack, profile_files, read_document, unpack, write_profile
from llmsched.workloads import generate

NAME = "web_search"


def application(name: str = NAME) -> Application:
    return installed_applications()[name]


@pytest.fixture(scope="module")
def profile() -> Profile:
    random = Random(0)
    return fit(application(), [generate(NAME, random) for _ in range(30)], learned_at=12.5, estimator="mean")


def test_a_packed_profile_comes_back(profile: Profile) -> None:
    again = unpack(pack(profile), application())
    assert again.to_json() == profile.to_json()
    assert (again.application, again.jobs, again.learned_at, again.estimator) == (NAME, 30, 12.5, "mean")


def test_a_written_profile_comes_back(profile: Profile, tmp_path: Path) -> None:
    file = write_profile(tmp_path / "new" / "folder", profile)
    assert file == tmp_path / "new" / "folder" / f"{NAME}.json.gz"
    assert profile_files(file.parent) == {NAME: file}
    assert Profile.from_json(read_document(file), application()).to_json() == profile.to_json()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    first = file.read_bytes()
    assert write_profile(file.parent, profile).read_bytes() == first, "the same profile gives the same bytes"


@pytest.mark.parametrize(
    "damage", [lambda body: body[:-20], lambda body: b"", lambda body: body[:40] + b"\0" + body[41:]]
)
def test_damaged_bytes_get_one_sentence(damage: Callable[[bytes], bytes], profile: Profile) -> None:
    with pytest.raises(ProfileError, match=rf"the profile of '{NAME}' is damaged \(.*\); fit it again"):
        unpack(damage(pack(profile)), application())


def test_a_profile_of_another_application_or_version_gets_one_sentence(profile: Profile) -> None:
    with pytest.raises(ProfileError, match="is of application 'web_search', not of 'sequence_sorting'"):
        unpack(pack(profile), application("sequence_sorting"))
    other = Application.parse({"name": NAME, "stages": [{"name": "only", "kind": "llm"}]}, version=2)
    with pytest.raises(ProfileError, match="learned from other stages than version 2 has"):
        unpack(pack(profile), other)
    assert unpack(zlib.compress(json.dumps(profile.to_json()).encode()), application()).jobs == 30


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no gzip", "cannot be read: Not a gzipped file"),
        (gzip.compress(b"{'not': 'json'}", mtime=0), "is damaged (unexpected character"),
        (gzip.compress(b'{"a": 1}' * 200, mtime=0)[:-9], "is damaged (Compressed file ended"),
        (b"", "is damaged (Input is a zero-length, empty document"),
    ],
)
def test_a_file_that_is_no_profile_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / f"{NAME}.json.gz"
    file.write_bytes(content)
    with pytest.raises(ProfileError) as error:
        read_document(file)
    assert str(file) in str(error.value)
    assert why in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"x\.json\.gz cannot be read: No such file or directory"):
        read_document(tmp_path / "x.json.gz")
    with pytest.raises(InvalidSetting, match=r"profiles is '.*nope', which is no folder; make one with llmsched fit"):
        profile_files(tmp_path / "nope")


def test_a_folder_that_cannot_be_written_gets_one_sentence(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"the profile '.*' cannot be written: "):
        write_profile(tmp_path / "file", profile)


def a_document(**changes: Any) -> dict[str, Any]:
    return {"format": 1, "application": NAME} | changes


@pytest.mark.parametrize("document", [None, [], {"format": 99}, a_document(), a_document(history={})])
def test_json_that_is_no_profile_gets_one_sentence(document: Any) -> None:
    with pytest.raises(ProfileError) as error:
        unpack(zlib.compress(json.dumps(document).encode()), application())
    assert "fit it again" in str(error.value)
