"""Runs the testbed of the LLMSched paper (its Figure 8 and Table I), holds the simulator against it, writes the page.

    python benchmarks/testbed/testbed.py --traces DIR                          # emulated engines
    python benchmarks/testbed/testbed.py --traces DIR --vllm-python .venv-vllm/bin/python   # a real vLLM
    python benchmarks/testbed/testbed.py --only-page

Every run is a fresh service with the same jobs at the same moments. What `benchmarks/results/testbed.json` holds is not
run again, so that an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import charts
import figures
import page
import record
from bed import POLICIES, WORKLOADS, Bed, Scale, make_bed
from engine import ROOT, between, calibrate, vllm
from live import Measured, emulated, real
from results import EMULATED, REAL, Found, Key, overhead, read, shortened, write

from llmsched.errors import LlmschedError
from llmsched.model.kinds import StageKind
from llmsched.model.latency import LatencyCurve
from llmsched.runtime.emulator.settings import read_latency_curve
from llmsched.simulator.experiment import prepare

RESULTS = ROOT / "benchmarks" / "results" / "testbed.json"
LATENCY = "generic-7b"
#: Jobs of a run in the paper.
JOBS = 300
#: The two workloads whose prompts a model on a CPU reads in seconds, and the slots its engine gets for each.
REAL_SLOTS = {"chain": 8, "planning": 4}
#: The model says a token in 2 ms: with more tokens a call lasts as long as one on a GPU.
REAL_SCALE = Scale(prompt=4.0, output=0.25)


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    founds = read(given.results)
    for found in founds.values():  # runs end in any order where there are lanes
        found.runs = {policy: found.runs[policy] for policy in (*POLICIES, *found.runs) if policy in found.runs}
    if not given.only_page:
        if given.traces is None:
            _parser().error("give the folder of traces with --traces or LLMSCHED_TRACES")
        try:
            with tempfile.TemporaryDirectory(prefix="llmsched-testbed-") as folder:
                runner = Runner(given, founds, Path(folder))
                if given.simulate_again:
                    runner.simulate_again()
                else:
                    asyncio.run(runner.real() if given.vllm_python else runner.emulated())
        except LlmschedError as fault:
            print(fault)
            return 1
    if given.results == RESULTS and any(found.runs for found in founds.values()):
        page.write(record.conditions(RESULTS), founds)
        charts.draw(founds)
        figures.save(founds, RESULTS)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    named = os.environ.get("LLMSCHED_TRACES")
    add = parser.add_argument
    add("--traces", type=Path, default=Path(named) if named else None, help="folder of traces")
    add("--vllm-python", help="run on one real vLLM, with this interpreter, instead of emulated engines")
    add("--workloads", help="a comma list; default: all four, with vLLM " + ", ".join(REAL_SLOTS))
    add("--policies", default=",".join(POLICIES), help="a comma list")
    add("--loads", default="1.0", help="a comma list of offered loads")
    add("--jobs", type=int, default=JOBS, help="jobs of a run")
    add("--speed", type=float, default=2.5, help="of emulated engines: emulated seconds per second")
    add("--lanes", type=int, default=1, help="runs at once, on emulated engines")
    add("--most", type=int, default=10_000, help="stop after so many runs, on emulated engines")
    add("--repeats", type=int, default=5, help="of the calibration of a real engine")
    add("--simulate-again", action="store_true", help="run only the simulator again: it has changed")
    add("--results", type=Path, default=RESULTS, help="file of another series of runs, which makes no page")
    add("--only-page", action="store_true", help="run nothing, write the page from what is there")
    return parser


class Runner:
    """Runs what is missing and saves after each run."""

    def __init__(self, given: argparse.Namespace, founds: dict[Key, Found], folder: Path) -> None:
        self._given = given
        self._founds = founds
        self._folder = folder
        self._policies: list[str] = given.policies.split(",")
        self._loads = [float(load) for load in given.loads.split(",")]

    async def emulated(self) -> None:
        """What is missing on emulated engines, in lanes."""
        workloads = self._given.workloads.split(",") if self._given.workloads else list(WORKLOADS)
        keys = [Key(EMULATED, workload, load) for load in self._loads for workload in workloads]
        todo = [(key, p) for key in keys for p in self._policies if p not in self._of(key).runs][: self._given.most]
        curve, speed = read_latency_curve(LATENCY), self._given.speed
        beds = {}
        for key in dict.fromkeys(key for key, _ in todo):
            found = self._of(key)
            jobs = found.about.setdefault("jobs", self._given.jobs)
            found.about.setdefault("speed", speed)
            beds[key] = self._bed(key, jobs, curve, {})
        simulated = {(key, p): beds[key].simulate(p).jobs for key, p in todo}  # first: it would disturb the others
        lanes = asyncio.Semaphore(self._given.lanes)

        async def one(key: Key, policy: str) -> None:
            async with lanes:
                began = os.getloadavg()[0]
                measured = await emulated(beds[key], policy, self._founds[key].about["speed"], LATENCY)
                self._keep(key, policy, measured, simulated[key, policy], began)

        async with asyncio.TaskGroup() as group:
            for key, policy in todo:
                group.create_task(one(key, policy))
        for key, bed in beds.items():
            self._simulate(self._founds[key], bed)

    async def real(self) -> None:
        """What is missing on a real engine, workload by workload, calibrated before and after each run."""
        workloads = self._given.workloads.split(",") if self._given.workloads else list(REAL_SLOTS)
        for key in [Key(REAL, workload, load) for workload in workloads for load in self._loads]:
            if any(policy not in self._of(key).runs for policy in self._policies):
                self._founds[key] = Found(key)  # another calibration, another rate: nothing of it can be gone on with
                await self._on_vllm(key, self._policies)

    async def _on_vllm(self, key: Key, policies: Sequence[str]) -> None:
        slots, found = REAL_SLOTS[key.workload], self._of(key)
        prompt = _mean_prompt(key.workload, self._given.traces)
        curve_file = self._folder / "tiny-cpu.json"
        log = self._folder / "vllm.log"
        with vllm(self._given.vllm_python, slots, log) as engine:

            async def calibrated() -> LatencyCurve:
                return await calibrate(engine.url, slots, prompt, curve_file, self._given.repeats)

            before = await calibrated()
            found.about.setdefault("jobs", self._given.jobs)
            bed = self._bed(key, found.about["jobs"], before, {"slots": slots, "scale": REAL_SCALE})
            for policy in policies:
                began = os.getloadavg()[0]
                measured = await real(bed, policy, engine.url, str(curve_file))
                after = await calibrated()
                curve = between(before, after)
                self._keep(key, policy, measured, bed.on(curve).simulate(policy).jobs, began, curve)
                before = after
        self._simulate(found, bed)

    def simulate_again(self) -> None:
        """The simulated times of every run that is there."""
        for key, found in self._founds.items():
            if not found.runs:
                continue
            curve = LatencyCurve.from_json(found.about["curve"])
            options = {} if key.engine == EMULATED else {"slots": REAL_SLOTS[key.workload], "scale": REAL_SCALE}
            self._simulate(found, self._bed(key, found.about["jobs"], curve, options))

    def _simulate(self, found: Found, bed: Bed) -> None:
        """Simulated times of all runs of a bed: as they are, and with the service's part in a call."""
        for policy, run in found.runs.items():
            run["overhead"] = overhead(found, policy)
            then = bed.on(LatencyCurve.from_json(run["curve"])) if "curve" in run else bed
            for which, seconds in (("simulated", 0.0), ("with_overhead", run["overhead"])):
                run[which] = shortened([time for _, time in then.simulate(policy, seconds).jobs])
        write(self._founds, self._given.results)

    def _of(self, key: Key) -> Found:
        return self._founds.setdefault(key, Found(key))

    def _bed(self, key: Key, jobs: int, curve: LatencyCurve, options: dict[str, Any]) -> Bed:
        bed = make_bed(key.workload, key.load, jobs, curve, self._given.traces, self._folder, **options)
        self._of(key).about |= {"machines": str(bed.sizing), "rate": bed.sizing.rate, "curve": curve.to_json()}
        print(f"{key}: {bed.sizing}", flush=True)
        return bed

    def _keep(
        self,
        key: Key,
        policy: str,
        measured: Measured,
        simulated: Sequence[tuple[str, float | None]],
        load_before: float,
        curve: LatencyCurve | None = None,
    ) -> None:
        about: dict[str, Any] = {
            "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "load_before": round(load_before, 1),
        }
        if curve is not None:
            about["curve"] = curve.to_json()
        found = self._founds[key]
        times = shortened([seconds for _, seconds in simulated])
        found.runs[policy] = measured.to_json() | {"simulated": times, "with_overhead": times} | about
        write(self._founds, self._given.results)
        print(f"  {policy}: {page.line(found, policy)}", flush=True)


def _mean_prompt(workload: str, traces: Path) -> int:
    """Mean prompt of a call as the real engine gets it, tokens."""
    jobs = [
        job for recordings in (prepare(workload, traces, None).workload.traces or {}).values() for job in recordings
    ]
    return round(fmean(t.prompt_tokens for job in jobs for t in REAL_SCALE.of(job).tasks(StageKind.LLM)))


if __name__ == "__main__":
    raise SystemExit(main())
