"""Numbers for the record: each benchmark's figures as JSON in results/figures, and docs/benchmarks.md made of them all.

    python benchmarks/record.py        # writes the page anew from what results/figures holds

A section says where it was measured: the machine and its load before, the command, the date and the commit, and
whether the tree had changes on top of it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import marks
from rig import Figure

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).parent / "results" / "figures"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = marks.begin("benchmarks/record.py")

#: Sections in the order of the page, and the page that says more; others follow by name.
PAGES = {
    "comparison": "comparison.md",
    "testbed": "testbed.md",
    "fidelity": "testbed.md",
    "peers": "peers.md",
    "scale": "scale.md",
    "soak": "soak.md",
    "decisions": "policies.md",
    "failover": "replicas.md",
    "postgres": "replicas.md",
    "ray": "scaling.md",
    "page": "ui.md",
}


def save(name: str, title: str, command: str, figures: Sequence[Figure], conditions: Mapping[str, Any]) -> None:
    """Puts the figures of one benchmark on record, in place of earlier ones, and writes the page.

    command: what makes them, as a reader would type it. conditions: `conditions()`, taken before the benchmark ran.
    """
    FIGURES.mkdir(parents=True, exist_ok=True)
    section = {"title": title, "command": command, **conditions, "figures": [_to_json(f) for f in figures]}
    (FIGURES / f"{name}.json").write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n")
    write_page()


def conditions(results: Path | None = None) -> dict[str, Any]:
    """Where and when: machine, interpreter, load of the last minute, date and commit.

    results: a committed file that has the runs; while it is unchanged, date and commit are those at which it came in.
    """
    date, commit = datetime.now(UTC).strftime("%Y-%m-%d"), _git("rev-parse", "--short=10", "HEAD")
    if results is not None and not _git("status", "--porcelain", str(results)):
        date, commit = _git("log", "-1", "--format=%cs %h", "--abbrev=10", "--", str(results)).split()
    elif _git("status", "--porcelain", "--untracked-files=no", "llmsched", "benchmarks/*.py"):
        commit += " with changes"
    return {
        "machine": f"{os.cpu_count()} CPUs ({processor()}), Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "date": date,
        "commit": commit,
    }


def processor() -> str:
    """The processor's own name, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def write_page(page: Path = PAGE, figures: Path = FIGURES) -> None:
    """Replaces what stands between the two marks of the page. Raises ValueError where a mark is missing."""
    sections = {path.stem: json.loads(path.read_text()) for path in figures.glob("*.json")}
    marks.put(text(sections), page, BEGIN)


def text(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """All sections, in order, after a sentence that says how many goals are met."""
    ranks = {name: rank for rank, name in enumerate(PAGES)}
    names = sorted(sections, key=lambda name: (ranks.get(name, len(ranks)), name))
    figures = [Figure(*f) for name in names for f in sections[name]["figures"]]
    held = [f for f in figures if f.goal is not None]
    met = sum(f.is_met for f in held)
    return "\n\n".join([f"{met} of {len(held)} goals are met.", *(_section(name, sections[name]) for name in names)])


def _section(name: str, section: Mapping[str, Any]) -> str:
    lines = [f"## {section['title']}", ""]
    where = f"{section['machine']}, load {section['load']:g} before; {section['date']}, commit {section['commit']}."
    more = f" More: [{PAGES[name]}]({PAGES[name]})." if name in PAGES else ""
    lines += [f"`{section['command']}`: {where}{more}", ""]
    lines += ["| figure | value | goal | |", "| --- | ---: | ---: | --- |"]
    lines += [_row(Figure(*figure)) for figure in section["figures"]]
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    value, goal, verdict = figure.cells()
    goal = goal.replace("<=", "≤").replace(">=", "≥")
    return f"| {figure.name} | {value} | {goal} | {'**missed**' if verdict == 'MISSED' else verdict} |"


def _to_json(figure: Figure) -> list[Any]:
    return [figure.name, figure.value, figure.unit, figure.goal, figure.at_most]


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    write_page()
