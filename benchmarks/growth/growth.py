"""What growing costs: leaders that die, PostgreSQL, gateways that follow, Ray, and the page for operators.

    python benchmarks/growth/growth.py [--only failover,postgres,ray,page] [--quick]

Each part puts its figures on record (docs/benchmarks.md). `ray` needs the extra of that name (`make test-ray` installs
it), `page` a Chromium; without it a part says so and is left out. `--quick` shows that everything runs and records
nothing. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[2]))

import cluster
import failover
import postgres
import record
import rig
import views
from rig import Figure

Part = Callable[[bool], Coroutine[Any, Any, list[Figure]]]

#: Title and measurement, by name.
PARTS: dict[str, tuple[str, Part]] = {
    "failover": ("Several gateways: leaders that are killed and frozen", failover.measure),
    "postgres": ("PostgreSQL, and gateways that follow", postgres.measure),
    "ray": ("Regular tasks on Ray", cluster.measure),
    "page": ("The page for operators", views.measure),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma list of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a little of everything, recorded nowhere")
    options = parser.parse_args()
    missed = 0
    for name in options.only.split(","):
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; there are {', '.join(PARTS)}")
        title, measure = PARTS[name]
        conditions = record.conditions()
        figures = rig.run(measure(options.quick))
        if not figures:
            print(f"\n{title}: left out, what it needs is not installed")
            continue
        print(f"\n{title} (load before {conditions['load']:g})")
        rig.show(figures)
        if not options.quick:
            record.save(name, title, f"python benchmarks/growth/growth.py --only {name}", figures, conditions)
        missed += sum(not figure.is_met for figure in figures)
    print(f"\n{missed} goals missed" if missed else "\nevery goal met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
