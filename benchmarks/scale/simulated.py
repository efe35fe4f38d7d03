"""The simulator at scale: how many jobs a second, how much memory, and what grows faster than the jobs do.

    python benchmarks/scale/simulated.py POLICY JOBS ENGINES

One point, in a process of its own, printed as JSON. Generated jobs of the six applications arrive as fast as keeps the
engines' slots `LOAD` busy.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import psutil

from llmsched.catalogue import installed_applications
from llmsched.model.latency import GENERIC_7B
from llmsched.policies import make_policy
from llmsched.profiler import Knowledge
from llmsched.scheduler import Scheduler
from llmsched.simulator.world import Setup, World
from llmsched.workloads.workload import Workload

SLOTS, LOAD = 16, 0.9


@dataclass(frozen=True, slots=True)
class Run:
    """Processor seconds of this process, so that whatever else the machine does matters little; memory in bytes."""

    policy: str
    jobs: int
    engines: int
    seconds: float
    dispatches: int
    #: Slots of engines in use, on average.
    utilisation: float
    #: Resident before any job was there, with all of them generated, and at the peak.
    rss_before: float
    rss_generated: float
    rss_peak: float

    @property
    def jobs_per_s(self) -> float:
        return self.jobs / self.seconds

    @property
    def per_task(self) -> float:
        """Seconds."""
        return self.seconds / self.dispatches


def run(policy: str, jobs: int, engines: int) -> Run:
    rss = psutil.Process().memory_info
    before = rss().rss
    workload = Workload.load("mixed")
    work = workload.reference_seconds(GENERIC_7B)
    # Reference seconds of decoding that a full engine does in a second, as if all of the work were decoding.
    speed = SLOTS * GENERIC_7B.decode(1) / GENERIC_7B.decode(SLOTS)
    rate = LOAD * engines * speed / work["llm"]
    arrivals = workload.arrivals(jobs, rate, seed=6)
    workers = ceil(rate * work["regular"] / LOAD) + 1
    generated = rss().rss
    scheduler = Scheduler(make_policy(policy, knowledge=Knowledge()))
    world = World(
        scheduler, arrivals, installed_applications(), Setup(engines=(SLOTS,) * engines, workers={"cpu": workers})
    )
    began = time.process_time()
    world.run()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(
        policy, jobs, engines, seconds, scheduler.stats.dispatches, world.utilisation()["llm"], before, generated, peak
    )


def measure(policy: str, jobs: int, engines: int, checkout: Path | None = None) -> Run:
    """The same in a process of its own. checkout: folder of another llmsched than this one."""
    command = [sys.executable, __file__, policy, str(jobs), str(engines)]
    environment = os.environ | ({} if checkout is None else {"PYTHONPATH": str(checkout)})
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return Run(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
