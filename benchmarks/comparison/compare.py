"""Compares every policy on identical jobs and writes docs/comparison.md with its pictures.

    python benchmarks/comparison/compare.py [--traces DIR] [--full] [--again POLICY,…] [--only-page]

Without --traces jobs are generated; with it the public traces are compared too. What
`benchmarks/results/comparison.json` holds is not run again, so that an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import charts
import page
from cells import COMPARED, LOAD, MORE_LOADS, ORACLES, WORKLOADS, Cell, read, run

from llmsched.errors import LlmschedError

sys.path.append(str(Path(__file__).parents[1]))
import record
from rig import Figure

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found = os.environ.get("LLMSCHED_TRACES")
    parser.add_argument("--traces", type=Path, default=Path(found) if found else None, help="folder of traces")
    parser.add_argument(
        "--full", action="store_true", help=f"loads {', '.join(map(str, MORE_LOADS))} and more seeds too"
    )
    parser.add_argument("--policies", default=",".join((*COMPARED, *ORACLES)), help="a comma list; default: all")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="a comma list; default: all")
    parser.add_argument("--sources", default="traces,generator", help="a comma list; default: both, traces if given")
    parser.add_argument("--again", default="", help="run these policies again, a comma list: their code has changed")
    parser.add_argument("--only-page", action="store_true", help="run nothing, write the page from what is there")
    parser.add_argument("--parallel", type=int, help="processes; default: as many as there are processors")
    parser.add_argument("--seconds", type=float, help="begin no new run after so many seconds")
    parser.add_argument("--out", type=Path, default=ROOT, help="where benchmarks/results and docs are written")
    given = parser.parse_args(argv)
    results = given.out / "benchmarks" / "results" / "comparison.json"
    docs = given.out / "docs"
    sources = [s for s in given.sources.split(",") if s == "generator" or given.traces is not None]
    loads = (LOAD, *MORE_LOADS) if given.full else (LOAD,)
    cells = [Cell(s, w, load) for load in loads for s in sources for w in given.workloads.split(",")]
    try:
        if given.only_page:
            founds = read(results)
        else:
            founds = run(
                cells,
                given.policies.split(","),
                results,
                given.traces,
                full=given.full,
                again=[name for name in given.again.split(",") if name],
                parallel=given.parallel,
                seconds=given.seconds,
            )
    except LlmschedError as error:
        parser.error(str(error))
    founds = {cell: found for cell, found in founds.items() if any(found.runs.values())}
    images = {s: charts.draw(founds, s, docs / "images") for s in {c.source for c in founds}}
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "comparison.md").write_text(page.page(founds, images, docs, _conditions()))
    print(f"written: {docs / 'comparison.md'}")
    if given.out == ROOT:
        figures = [Figure(*told) for told in page.headline(founds)]
        title = f"Mean completion time of the default policy, simulated, load {LOAD:g}"
        record.save("comparison", title, "make bench", figures, record.conditions(results))
    return 0


def _conditions() -> str:
    return f"Runs were made with Python {platform.python_version()} on {os.cpu_count()} processors."


if __name__ == "__main__":
    raise SystemExit(main())
