"""Where one service process saturates, and how the simulator grows.

    python benchmarks/scale/scale.py [--quick] [--only live,growth,profile,simulator] [--before CHECKOUT [--rounds N]]

The service is a process of its own, its engines another, this client a third. Writes benchmarks/results/scale.json
(the parts that were measured; others stay) and, from it, the numbers in docs/scale.md. `--before` measures another
checkout of llmsched beside this one, in turns. `--quick` shows that everything runs and writes nothing. Exit status 1
if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import live
import page
import profiled
import record
import rig
import simulated
from rig import Figure

from llmsched.policies import DEFAULT_POLICY

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """series: (policy, active jobs, engines). simulated: (policy, jobs, engines). drain: (jobs, engines)."""

    series: Sequence[tuple[str, int, Sequence[int]]]
    window: float
    simulated: Sequence[tuple[str, int, int]]
    growing: int
    drain: tuple[int, int]


ENGINES = (1, 4, 16, 64)
FULL = Plan(
    series=[
        *((DEFAULT_POLICY, jobs, ENGINES) for jobs in (100, 1_000, 10_000)),
        *((policy, jobs, (16,)) for policy in ("fcfs", "llmsched") for jobs in (100, 1_000, 10_000)),
    ],
    window=6.0,
    simulated=[
        *(("fcfs", 10_000, engines) for engines in (1, 4, 16, 64, 256)),
        *(("fcfs", jobs, 256) for jobs in (1_000, 100_000)),
        *((DEFAULT_POLICY, jobs, 256) for jobs in (1_000, 10_000)),
    ],
    growing=1_000,
    drain=(600, 64),
)
QUICK = Plan(
    series=[(DEFAULT_POLICY, 100, (1, 16)), ("fcfs", 300, (16,))],
    window=2.0,
    simulated=[("fcfs", 300, 4), ("fcfs", 600, 4)],
    growing=100,
    drain=(100, 16),
)


def measured_live(plan: Plan, inputs: live.Inputs) -> Any:
    found = []
    for policy, jobs, engines in plan.series:
        filling, points = rig.run(live.measure(policy, jobs, engines, plan.window, inputs))
        print(f"  {policy}, {jobs:,} jobs: {filling.memory_per_job:,.0f} bytes of memory each", flush=True)
        found.append(live.to_json(filling, points))
    return found


def measured_growth(plan: Plan, inputs: live.Inputs) -> Any:
    return rig.run(live.growth(plan.growing, inputs))


def measured_profile(plan: Plan, inputs: live.Inputs) -> Any:
    if not profiled.is_there():
        print("  py-spy is not on the path, so there is no profile")
        return None
    jobs = 1_000 if plan is FULL else 100
    return [rig.run(live.profile(policy, jobs, 16, 2 * plan.window, inputs)) for policy in (DEFAULT_POLICY, "fcfs")]


def measured_simulator(plan: Plan, inputs: live.Inputs) -> Any:
    found = []
    for policy, jobs, engines in plan.simulated:
        run = simulated.measure(policy, jobs, engines)
        print(
            f"  {policy}, {jobs:,} jobs, {engines} engines: {run.jobs_per_s:,.0f} jobs/s,"
            f" {run.per_task * 1e6:.0f} us per task, {run.rss_peak / 1e6:,.0f} MB",
            flush=True,
        )
        found.append(asdict(run))
    return found


def compared(plan: Plan, inputs: live.Inputs, checkout: Path, rounds: int) -> Any:
    """The same jobs run to their end by another checkout and by this one, in turns; each round in the other order."""
    jobs, engines = plan.drain
    found: dict[str, Any] = {"jobs": jobs, "engines": engines, "policies": {}, "simulator": []}
    for count in (16, 64, 256):
        costs: dict[str, Any] = {"jobs": 4 * jobs, "engines": count, "before": [], "after": []}
        for number in range(rounds):
            for side in ("before", "after") if number % 2 == 0 else ("after", "before"):
                run = simulated.measure("fcfs", 4 * jobs, count, checkout if side == "before" else None)
                costs[side].append(run.per_task)
        print(f"  simulator, {count} engines: {costs}", flush=True)
        found["simulator"].append(costs)
    for policy in (DEFAULT_POLICY, "fcfs"):
        sides: dict[str, list[Any]] = {"before": [], "after": []}
        for number in range(rounds):
            for side in ("before", "after") if number % 2 == 0 else ("after", "before"):
                drained = rig.run(live.drain(policy, jobs, engines, inputs, checkout if side == "before" else None))
                sides[side].append(asdict(drained))
                print(
                    f"  {policy}, {side}: {drained.tasks_per_s:,.0f} tasks/s,"
                    f" {drained.processor_per_task * 1e6:,.0f} us of processor per task,"
                    f" lag p50 {drained.lag_p50 * 1e3:.1f}, p99 {drained.lag_p99 * 1e3:.1f} ms",
                    flush=True,
                )
        found["policies"][policy] = sides
    return found


PARTS: dict[str, Callable[[Plan, live.Inputs], Any]] = {
    "live": measured_live,
    "growth": measured_growth,
    "profile": measured_profile,
    "simulator": measured_simulator,
}


def conditions(command: str, plan: Plan) -> dict[str, Any]:
    return record.conditions() | {"command": command, "versions": rig.versions(), "window_s": plan.window}


def figures(document: Mapping[str, Any]) -> list[Figure]:
    """Event-loop lag and memory beside their goals, and how many tasks a second each point did."""
    found = []
    for series in document["live"]["measured"]:
        for p in series["points"]:
            where = f"{p['policy']}, {p['jobs']:,} jobs, {p['engines']} engines"
            found.append(Figure(f"LLM tasks: {where}", p["tasks_per_s"], "/s"))
            found.append(Figure(f"event-loop lag p99: {where}", p["lag_p99"] * 1e3, "ms", page.LAG * 1e3))
        filling = series["filling"]
        if filling["jobs"] >= page.MANY:
            where = f"{filling['policy']}, {filling['jobs']:,} jobs"
            found.append(Figure(f"memory per job: {where}", filling["memory_per_job"] / 1e3, "kB", page.MEMORY / 1e3))
    if growth := document.get("growth"):
        found.append(Figure("database growth per job", growth["measured"]["per_job"] / 1e3, "kB"))
    for m in (document.get("simulator") or {"measured": []})["measured"]:
        where = f"{m['policy']}, {m['jobs']:,} jobs, {m['engines']} engines"
        found.append(Figure(f"simulator: {where}", m["jobs"] / m["seconds"], "jobs/s"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a little of everything, written nowhere")
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma list of {', '.join(PARTS)}; empty: none")
    parser.add_argument("--before", type=Path, help="another checkout, to be compared with this one")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    names = [name for name in options.only.split(",") if name]
    for name in names:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; there are {', '.join(PARTS)}")
    document: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    command = "python benchmarks/scale/scale.py"
    with tempfile.TemporaryDirectory(prefix="llmsched-scale-") as folder:
        inputs = live.Inputs.make(Path(folder))
        work: dict[str, Callable[[], Any]] = {name: lambda name=name: PARTS[name](plan, inputs) for name in names}
        if options.before:
            work["comparison"] = lambda: compared(plan, inputs, options.before.resolve(), options.rounds)
        for name, measure in work.items():
            print(f"{name} (load {os.getloadavg()[0]:.1f})", flush=True)
            asked = f" --only {name}" if name in PARTS else f" --only '' --before CHECKOUT --rounds {options.rounds}"
            told = conditions(command + asked, plan)
            document[name] = {"conditions": told, "measured": measure()}
            if not options.quick:
                RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    if options.quick:
        print(page.text(document))
        return 0
    page.write(document)
    if "live" in document:
        told = {key: document["live"]["conditions"][key] for key in ("machine", "load", "date", "commit")}
        title = "Scale: where one process saturates"
        record.save("scale", title, "make bench-scale", figures(document), told)
    missed = page.missed(document)
    print("\n".join(f"MISSED: {sentence}" for sentence in missed) or "every goal met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
