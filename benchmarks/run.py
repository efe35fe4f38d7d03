"""Runs the benchmarks of the service and prints one table: figure, value, goal, verdict, and the conditions.

    python benchmarks/run.py [--quick] [--only NAME,NAME]

Puts the figures on record (docs/benchmarks.md). Exit status 1 if a goal is missed. --quick takes a tenth of the work:
to see that everything runs, not to quote, and not for the record.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import added_latency
import core
import in_flight
import record
import restart
import rig
import throughput
from rig import Figure

#: name -> (what the benchmark is called in the table, full run, quick run)
BENCHMARKS: dict[str, tuple[str, Callable[[], list[Figure]], Callable[[], list[Figure]]]] = {
    "core": ("Decisions", core.measure, lambda: core.measure(500)),
    "added_latency": (
        "Added latency, 100 calls of 500 ms a second",
        lambda: rig.run(added_latency.measure()),
        lambda: rig.run(added_latency.measure(1.0, 1)),
    ),
    "throughput": (
        "Throughput, instant engines, durable SQLite",
        lambda: rig.run(throughput.measure()),
        lambda: rig.run(throughput.measure(400, 1)),
    ),
    "in_flight": (
        "2,000 jobs in flight",
        lambda: rig.run(in_flight.measure()),
        lambda: rig.run(in_flight.measure(200)),
    ),
    "restart": (
        "Restart with 2,000 unfinished jobs",
        lambda: rig.run(restart.measure()),
        lambda: rig.run(restart.measure(200)),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help=f"comma list of {', '.join(BENCHMARKS)}")
    options = parser.parse_args()
    missed = 0
    print(rig.versions())
    for name in options.only.split(","):
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        title, full, quick = BENCHMARKS[name]
        began, conditions = time.perf_counter(), record.conditions()
        figures = (quick if options.quick else full)()
        if not options.quick:
            record.save(name, title, f"python benchmarks/run.py --only {name}", figures, conditions)
        missed += sum(not figure.is_met for figure in figures)
        print(f"\n{title} ({time.perf_counter() - began:.0f} s, load before {conditions['load']:g})")
        rig.show(figures)
    print(f"\n{missed} goals missed" if missed else "\nevery goal met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
