"""What every experiment's script takes, and where it writes: JSON, pictures, and its own section of the page.

Without `--out` these are benchmarks/results/, docs/images/ and docs/reproduction.md; with it everything goes into that
folder. A section stands between the comments `<!-- NAME -->` and `<!-- /NAME -->`; the rest of the page is written by
hand.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Places:
    """results: folder of JSON. images: folder of pictures. page: the document."""

    results: Path
    images: Path
    page: Path

    @classmethod
    def of(cls, out: Path | None) -> Places:
        if out is None:
            return cls(ROOT / "benchmarks/results", ROOT / "docs/images", ROOT / "docs/reproduction.md")
        out.mkdir(parents=True, exist_ok=True)
        return cls(out, out, out / "reproduction.md")

    def image(self, name: str) -> Path:
        return self.images / f"reproduction-{name}.png"

    def link(self, name: str, text: str) -> str:
        """The picture, as the page shows it."""
        path = self.image(name)
        return f"![{text}]({path.relative_to(self.page.parent).as_posix()})"

    def write(self, name: str, text: str) -> None:
        """Replaces a section of the page, or appends it."""
        page = self.page.read_text() if self.page.exists() else "# Reproduction\n"
        section = f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->"
        pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
        is_there = pattern.search(page) is not None
        self.page.write_text(pattern.sub(lambda _: section, page) if is_there else f"{page.rstrip()}\n\n{section}\n")


@dataclass(frozen=True)
class Options:
    """What was asked for. seeds: None: those of the script. load: None: the paper's 0.85."""

    places: Places
    traces: Path | None
    seeds: int | None
    load: float
    fresh: bool
    again: tuple[str, ...]
    parallel: int | None

    def seeded(self, own: int) -> int:
        return own if self.seeds is None else self.seeds


def options(doc: str | None, argv: Sequence[str] | None = None) -> Options:
    """Reads the command line. Exits with a sentence where it makes no sense."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    found = os.environ.get("LLMSCHED_TRACES")
    parser.add_argument("--traces", type=Path, default=Path(found) if found else None, help="folder of traces")
    parser.add_argument("--seeds", type=int, help="runs per policy; by default what the machine can afford")
    parser.add_argument("--load", type=float, default=0.85, help="offered load of the LLM pool (default 0.85)")
    parser.add_argument("--out", type=Path, help="folder for everything; by default the project's own places")
    parser.add_argument("--fresh", action="store_true", help="run again what the results hold already")
    parser.add_argument("--again", default="", help="run these policies again, a comma list: their code has changed")
    parser.add_argument("--parallel", type=int, help="processes")
    given = parser.parse_args(argv)
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds is {given.seeds}; it must be 1 or more")
    if given.traces is not None and not given.traces.is_dir():
        parser.error(f"{given.traces} is not a folder of traces")
    again = tuple(policy for policy in given.again.split(",") if policy)
    return Options(Places.of(given.out), given.traces, given.seeds, given.load, given.fresh, again, given.parallel)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers.

    >>> print(table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    rule = "|---|" + "--:|" * (len(header) - 1)
    return "\n".join([_row(header), rule, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def percent(value: float, interval: Sequence[float] | None, *, sign: bool = False) -> str:
    """`12 % (10 … 14)`; never "-0".

    >>> percent(12.34, [10.0, 14.2])
    '12 % (10 … 14)'
    """
    shown = f"{whole(value, sign=sign)} %"
    if interval is None:
        return shown
    return f"{shown} ({whole(interval[0], sign=sign)} … {whole(interval[1], sign=sign)})"


def whole(value: float, *, sign: bool = False) -> str:
    """A whole number with a real minus; one decimal below 1."""
    places = 0 if abs(value) >= 0.95 or value == 0 else 1
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")
