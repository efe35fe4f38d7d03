"""Numbers in a page: what stands between two marks of it is written by a program, all else by people."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end of what was measured -->"


def begin(program: str) -> str:
    """The mark after which the numbers of a program stand. program: its path, as a reader would start it."""
    return f"<!-- measured: written by {program} -->"


def put(text: str, page: Path, mark: str) -> None:
    """Replaces what stands between the mark and the end. Raises ValueError where one of them is missing."""
    before, found, rest = page.read_text().partition(mark)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"{page} lacks {mark} or {END}, between which the numbers go")
    page.write_text(f"{before}{mark}\n\n{text}\n\n{END}{after}")
