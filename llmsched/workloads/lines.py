"""Lines of a text file, plain or gzip, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from llmsched.errors import InvalidInput

#: A line longer than this is no line of ours, and not worth the memory.
MAX_LINE_BYTES = 64 * 2**20


def read_lines(path: Path, error: type[InvalidInput]) -> Iterator[tuple[str, bytes]]:
    """Every line that is not blank, without its line end, as (`file.name:17`, bytes).

    A name that ends in `.gz` is unpacked. Raises `error` for a file that cannot be read, is broken or is empty.
    """
    at, empty = f"{path.name}:1", True
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            for number in range(1, 1 << 62):
                at = f"{path.name}:{number}"
                line = file.readline(MAX_LINE_BYTES + 1)
                if len(line) > MAX_LINE_BYTES:
                    raise error(
                        f"{at}: the line is longer than {MAX_LINE_BYTES} bytes; put each record on its own line"
                    )
                if not line:
                    break
                if stripped := line.strip():
                    empty = False
                    yield at, stripped
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise error(f"{at}: the gzip data is broken ({cause}); fetch or write the file again") from cause
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}; give the path of a readable file") from cause
    if empty:
        raise error(f"{path.name} is empty; it must have at least one line")
