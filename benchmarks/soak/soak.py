"""Steady load on a real service while everything around it breaks: does it keep what it promises?

    python benchmarks/soak/soak.py [--seconds N] [--seed N] [--store sqlite|postgres|URL] [--json FILE] …

Engines, service and clients are processes of their own on this machine. When the load is over and everything has come
to rest, what clients, engines and the store know of every job is held against the promises of docs/architecture.md
(`verdict.py`). Exit status 1 and a list of the broken ones if there are any. docs/soak.md explains the report.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import orjson
import psutil

sys.path.append(str(Path(__file__).resolve().parents[1]))

import faults
import record
import rig
import verdict
from load import ATTEMPT_S, Load, seen
from processes import Engine, Service, adopt_orphans, reap, until
from rig import Figure
from verdict import Broken, Evidence, Rest, Stored

from llmsched.store.store import Store

#: Clients of each kind before the load, so that the process at rest afterwards is compared with one that has worked.
REHEARSAL = 6
#: Seconds after which a service without work has closed its connections to engines, and given back memory.
QUIET_S = 6.0
#: Seconds after which a run of an agent that did not say so is over.
IDLE_S = 4.0
#: Seconds that the last jobs and calls may take when nothing goes wrong any more, and profiles that are just learned.
DRAIN_S = 300.0
#: Newest jobs that a profile is made of. Of the usual 2,000 profiles would grow all the time, as they should.
LEARN_FROM_JOBS = 60
#: Without these the soak has shown nothing.
WANTED = (
    *("recorded job", "live job", "cancelled job", "job followed"),
    *("call answered", "call left", "gateway fault", "engine fault", "worker fault"),
)


class Gauges:
    """Resident memory and processor time of the service, once a second, over all its lives."""

    def __init__(self, service: Service) -> None:
        #: (seconds, life, MB)
        self.memory: list[tuple[float, int, float]] = []
        self.cpu_s = 0.0
        self.seconds = 0.0
        self.most_fds = 0
        self._service = service

    async def sample(self) -> None:
        last: tuple[int, float] = (0, 0.0)
        while True:
            began = time.monotonic()
            with suppress(psutil.Error):
                if (process := self._service.process) is not None:
                    times = process.cpu_times()
                    used = times.user + times.system
                    self.memory.append((began, self._service.lives, process.memory_info().rss / 1e6))
                    self.most_fds = max(self.most_fds, process.num_fds())
                    self.cpu_s += used - (last[1] if last[0] == process.pid else 0.0)
                    last = (process.pid, used)
            reap({p for p in (self._service.pid,) if p})
            await asyncio.sleep(1.0)
            self.seconds += time.monotonic() - began


class Soak:
    """One run. `evidence` fills as it goes."""

    def __init__(self, options: argparse.Namespace, folder: Path, store: str) -> None:
        self.options = options
        self.evidence = Evidence(workers=options.workers, idle=IDLE_S)
        self.store = store
        self.engines = [Engine(k + 1, folder, options.speed) for k in range(options.engines)]
        settings = {
            "store": store,
            "engines": [{"url": e.url, "name": e.name} for e in self.engines],
            "policy": options.policy,
            "speed": options.speed,
            "workers": options.workers,
            "probe_interval": 0.5,
            "token_timeout": 5,  # of an engine that stalls, at ten times the usual speed
            "first_token_timeout": 20,
            "request_timeout": ATTEMPT_S,  # of an answer in one piece, which nothing else ends
            "observed_idle": IDLE_S,
            "grace": 5,
            "learn_from_jobs": LEARN_FROM_JOBS,
        }
        self.service = Service(folder, settings, self.complain)
        self.rng = Random(options.seed)
        self.faults = faults.Faults(self.engines, self.service, Random(self.rng.getrandbits(64)))
        self.load = Load(self.service.url, Random(self.rng.getrandbits(64)), self.complain)
        self.gauges = Gauges(self.service)
        self.status: int | None = None
        #: What runs below us already: an embedded database.
        self._others = {p.pid for p in psutil.Process().children()}

    def complain(self, sentence: str) -> None:
        say(f"!! {sentence}")
        self.evidence.complaints.append(sentence)

    async def run(self) -> None:
        for engine in self.engines:
            engine.start()
        try:
            await self.service.start()
            keeping = asyncio.create_task(self.service.keep())
            sampling = asyncio.create_task(self.gauges.sample())
            try:
                async with self.load:
                    await self._loaded()
                    self.evidence.after = await self._at_rest("after the load")
            finally:
                await _ended(keeping, sampling)
            await self._again()
        finally:
            if self.service.pid is not None:
                self.service.kill()
            for engine in self.engines:
                engine.stop()
        await self._collect()

    async def _loaded(self) -> None:
        """From the rehearsal to the end of the last job."""
        load, seconds = self.load, self.options.seconds
        await self._ready()
        for _ in range(REHEARSAL):
            for kind in ("recorded", "live", "alone", "agent"):
                load.arrive(kind)
            await asyncio.sleep(0.5)
        await load.done(DRAIN_S)
        self.evidence.before = await self._at_rest("before the load")
        planned = faults.plan(seconds, Random(self.rng.getrandbits(64)))
        self.began = time.monotonic()
        breaking = asyncio.create_task(self.faults.run(planned))
        arriving = asyncio.create_task(load.run(seconds, self.options.rate))
        while not arriving.done():
            await asyncio.wait((arriving,), timeout=30.0)
            self._progress()
        await breaking
        self.ended = time.monotonic()
        await self.faults.heal()
        await self._ready()
        await load.done(DRAIN_S)
        await self._all_over()

    def _progress(self) -> None:
        jobs, calls = len(self.load.submissions), len(self.load.calls)
        rss = f"{self.gauges.memory[-1][2]:.0f} MB" if self.gauges.memory else "?"
        kills = sum(f.kind == "gateway" for f in self.faults.done)
        say(
            f"{time.monotonic() - self.began:4.0f} s: {jobs} jobs, {calls} calls, {self.load.open} clients open,"
            f" {len(self.faults.done)} faults, {kills} kills of the service, which holds {rss}"
        )

    async def _ready(self) -> None:
        """Every engine takes work. A complaint if that takes long."""

        async def ready() -> bool:
            engines = (await self.load._ask("GET", "/v1/engines", expected=(200,)))["items"]
            return all(e["healthy"] for e in engines)

        try:
            await until(ready, DRAIN_S, "the health of every engine")
        except TimeoutError as error:
            self.complain(str(error))

    async def _all_over(self) -> None:
        """No job is active any more, groups without a call included. A complaint if that takes long."""

        async def idle() -> bool:
            async with self.load._session.get("/metrics") as response:
                lines = (await response.text()).splitlines()
            gauges = ("llmsched_jobs_active{", "llmsched_running_tasks{", "llmsched_ready_tasks{")
            return not any(float(line.rpartition(" ")[2]) for line in lines if line.startswith(gauges))

        try:
            await until(idle, DRAIN_S, "the end of every job")
        except TimeoutError as error:
            self.complain(str(error))

    async def _at_rest(self, when: str) -> Rest:
        """What the service holds when nobody wants anything of it."""
        await self._all_over()
        await self.load.__aexit__()
        await asyncio.sleep(QUIET_S)
        with suppress(TimeoutError):  # a profile may be learned just now
            await until(self._no_fit, DRAIN_S, "the end of learning")
        rest = await self.service.rest()
        say(
            f"at rest {when}: {sum(rest.files.values())} file descriptors {dict(rest.files)},"
            f" {rest.connections} connections, {sum(rest.tasks.values())} tasks, children {dict(rest.children)},"
            f" {rest.rss_mb:.0f} MB"
        )
        await self.load.__aenter__()
        return rest

    async def _no_fit(self) -> bool:
        return "fit" not in (await self.service.rest()).children

    async def _again(self) -> None:
        """Stops the service in order, and asks the next one for every job: results do not change."""
        self.status = await self._stop()
        await self.service.start()
        async with self.load as load:
            await self._ready()
            for job in self.load.submissions:
                if job.id is not None:
                    view = await load._ask("GET", f"/v1/jobs/{job.id}", expected=(200,))
                    load.looked.setdefault(job.id, []).append(seen(view))
        await self._stop()

    async def _stop(self) -> int | None:
        try:
            status = await self.service.terminate()
        except TimeoutError as error:
            self.complain(str(error))
            return None
        if status != 0:
            self.complain(f"the service ended with status {status} after SIGTERM")
        self.evidence.left_over += left_over(self._others | {e.pid for e in self.engines if e.pid})
        return status

    async def _collect(self) -> None:
        """Everything that can be known, now that nothing runs any more."""
        found, load = self.evidence, self.load
        found.left_over += left_over(self._others)
        found.submissions, found.calls, found.told, found.looked = load.submissions, load.calls, load.told, load.looked
        found.faults, found.away = self.faults.done, self.service.away
        found.heard = sorted(heard for engine in self.engines for heard in engine.requests())
        found.errors, self.warnings = self.service.said()
        found.memory = self._steady()
        async with await Store.open(self.store, create=False) as store:
            before: int | None = None
            while page := await store.jobs(before=before, limit=500):
                for job in page:
                    events = await store.events(job.id, limit=100_000)
                    found.stored.append(Stored(job, events, await store.stages(job.id)))
                before = page[-1].number

    def _steady(self) -> list[tuple[float, float]]:
        """Memory of the process that lived through the second half, after its first part, which warms up."""
        life = self.service.lives - 1  # the last one only answers for results
        half = self.options.seconds / 2
        born = min((at for at, of, _ in self.gauges.memory if of == life), default=0.0)
        since = max(self.began + half, born) + min(60.0, half / 4)
        return [(at - self.began, mb) for at, of, mb in self.gauges.memory if of == life and since <= at <= self.ended]


def left_over(known: set[int], seconds: float = 10.0) -> list[str]:
    """Descendants of ours that do not end within some seconds; they are ended then.

    known: children of ours that may live, and what is below them.
    """
    deadline = time.monotonic() + seconds
    while True:
        reap(known)
        living = []
        for child in psutil.Process().children():
            if child.pid not in known:
                with suppress(psutil.Error):
                    living += [child, *child.children(recursive=True)]
        if not living or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    lines = []
    for process in living:
        with suppress(psutil.Error):
            lines.append(f"process {process.pid} is still there: {' '.join(process.cmdline())[:200]}")
            process.kill()
    return lines


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------- the report


def report(soak: Soak, broken: Sequence[Broken]) -> dict[str, Any]:
    """Everything worth keeping of a run, as JSON."""
    found, gauges = soak.evidence, soak.gauges
    mine = {s.id: s for s in found.submissions}
    outcomes: dict[str, Counter[str]] = {}
    for stored in found.stored:
        kind = mine[stored.job.id].kind if stored.job.id in mine else "observed"
        outcomes.setdefault(f"{kind} {stored.job.application}", Counter())[stored.job.status.value] += 1
    failed = [s.job.error for s in found.stored if s.job.id in mine and s.job.status.value == "failed"]
    memory = found.memory
    return {
        "seed": soak.options.seed,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(soak.options).items()},
        "machine": {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
        "counts": verdict.counts(found),
        "jobs": {name: dict(count) for name, count in sorted(outcomes.items())},
        "failed": failed,
        "engine_requests": len(found.heard),
        "events": sum(len(s.events) for s in found.stored),
        "stages": sum(len(s.stages) for s in found.stored),
        "engine_restarts": soak.faults.restarts,
        "service_lives": soak.service.lives,
        "service_start_s": [round(s, 2) for s in soak.service.starts],
        "disconnects": soak.load.disconnects,
        "streams_resumed": soak.load.resumed,
        "exit_status": soak.status,
        "cpu_share": round(gauges.cpu_s / gauges.seconds, 3) if gauges.seconds else None,
        "memory": {
            "mb_per_minute": round(verdict.growth(memory), 3) if len(memory) > 1 else None,
            "at_most": round(verdict.flat(memory), 3) if len(memory) > 1 else None,
            "window_s": round(memory[-1][0] - memory[0][0]) if memory else 0,
            "first_mb": round(memory[0][1], 1) if memory else None,
            "last_mb": round(memory[-1][1], 1) if memory else None,
            "peak_mb": round(max((mb for _, _, mb in gauges.memory), default=0.0), 1),
            "lives": [[round(at - soak.began, 1), life, round(mb, 1)] for at, life, mb in gauges.memory],
        },
        "most_fds": gauges.most_fds,
        "rest": {name: _rest(rest) for name, rest in (("before", found.before), ("after", found.after))},
        "warnings": dict(soak.warnings),
        "broken": [b._asdict() for b in broken],
    }


def figures(told: dict[str, Any]) -> list[Figure]:
    """What the record keeps of a report."""
    counts, memory, rest = told["counts"], told["memory"], told["rest"]
    found = [
        Figure("promises broken", len(told["broken"]), "", 0),
        Figure("jobs submitted", counts["recorded job"] + counts["live job"], ""),
        Figure(
            "calls through the OpenAI-compatible door", sum(n for k, n in counts.items() if k.startswith("call ")), ""
        ),
    ]
    faults = {kind.removesuffix(" fault"): n for kind, n in counts.items() if kind.endswith(" fault")}
    names = {"gateway": "kill -9 of the service", "engine": "engines killed", "worker": "workers killed"}
    found += [Figure(name, faults.pop(kind, 0), "") for kind, name in names.items()]
    found.append(Figure("errors, garbage, half answers and silence of engines", sum(faults.values()), ""))
    found.append(Figure("clients that went away in mid-stream", told["disconnects"], ""))
    if memory["mb_per_minute"] is not None:
        found.append(Figure("growth of resident memory", memory["mb_per_minute"], "MB/min", memory["at_most"]))
        found.append(Figure("resident memory at its peak", memory["peak_mb"], "MB"))
    if rest["before"] and rest["after"]:
        for what in ("tasks", "files"):
            before, after = (sum(rest[when][what].values()) for when in ("before", "after"))
            found.append(
                Figure(
                    f"{'asyncio tasks' if what == 'tasks' else 'open files'} at rest, after less before",
                    after - before,
                    "",
                )
            )
    return found


def _rest(rest: Rest | None) -> dict[str, Any] | None:
    return None if rest is None else {n: getattr(rest, n) for n in rest.__slots__}


def summary(told: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    yield f"seed {told['seed']}, {told['settings']['seconds']:g} s of load, store {told['settings']['store']}"
    yield ""
    for name, outcomes in told["jobs"].items():
        yield f"  {name:<32} " + ", ".join(f"{n} {status}" for status, n in sorted(outcomes.items()))
    yield ""
    yield "  " + ", ".join(f"{n} x {what}" for what, n in sorted(told["counts"].items()))
    yield (
        f"  {told['engine_requests']:,} requests at engines, {told['stages']:,} stages, {told['events']:,} events;"
        f" {told['disconnects']} clients went away, {told['streams_resumed']} streams were resumed"
    )
    yield (
        f"  {told['service_lives']} lives of the service, up after {max(told['service_start_s']):.1f} s at most;"
        f" {told['engine_restarts']} restarts of engines; {told['cpu_share']:.0%} of a core"
    )
    memory, before, after = told["memory"], told["rest"]["before"], told["rest"]["after"]
    if memory["mb_per_minute"] is not None:
        yield (
            f"  memory {memory['mb_per_minute']:+.2f} MB a minute over {memory['window_s']} s (at most"
            f" {memory['at_most']:.2f}): {memory['first_mb']:.0f} to {memory['last_mb']:.0f} MB,"
            f" peak {memory['peak_mb']:.0f} MB"
        )
    if before and after:
        files, tasks = ([sum(rest[what].values()) for rest in (before, after)] for what in ("files", "tasks"))
        yield (
            f"  at rest before and after: {files[0]} and {files[1]} file descriptors, {before['connections']}"
            f" and {after['connections']} connections, {tasks[0]} and {tasks[1]} asyncio tasks, children"
            f" {sum(before['children'].values())} and {sum(after['children'].values())}"
        )
    yield ""
    if not told["broken"]:
        yield "every promise was kept"
        return
    yield f"{len(told['broken'])} BROKEN PROMISES"
    for promise, stories in _grouped(told["broken"]).items():
        yield f"  {promise}:"
        yield from (f"    {story}" for story in stories[:10])
        if len(stories) > 10:
            yield f"    … and {len(stories) - 10} more"


def _grouped(broken: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in broken:
        found.setdefault(each["promise"], []).append(each["story"])
    return found


def say(line: str) -> None:
    print(line, flush=True)


# ---------------------------------------------------------------------------------------------- the command


@contextmanager
def database(name: str, folder: Path) -> Iterator[str]:
    """URL of an empty store. name: sqlite, postgres (an embedded server, as the tests use) or a URL."""
    if name == "sqlite":
        yield f"sqlite:///{folder}/jobs.db"
    elif name == "postgres":
        with rig.database() as url:
            yield url
    else:
        yield name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of load; rest and checks add about 40")
    parser.add_argument("--seed", type=int, default=None, help="of every random choice; default: drawn, and printed")
    parser.add_argument("--store", default="sqlite", help="sqlite, postgres (embedded) or the URL of an empty database")
    parser.add_argument("--rate", type=float, default=4.0, help="new clients a second")
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--speed", type=float, default=10.0, help="engines and recorded tools run so many times faster")
    parser.add_argument("--policy", default="llmsched-pool")
    parser.add_argument("--json", type=Path, help="write the whole report there")
    parser.add_argument("--record", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--keep", type=Path, help="copy store, log and requests there in the end")
    options = parser.parse_args(argv)
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
    say(f"seed {options.seed}")
    conditions = record.conditions()
    adopt_orphans()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmsched-soak-")))
        store = stack.enter_context(database(options.store, folder))
        soak = Soak(options, folder, store)
        try:
            asyncio.run(soak.run())
            broken = verdict.judge(soak.evidence, wanted=WANTED)
            told = report(soak, broken)
        finally:
            if options.keep is not None:
                shutil.copytree(folder, options.keep, dirs_exist_ok=True)
    if options.json is not None:
        options.json.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
    if options.record:
        command = f"python benchmarks/soak/soak.py --seconds {options.seconds:g} --store {options.store} --record"
        record.save("soak", "Soak: everything around the service breaks", command, figures(told), conditions)
    print(*summary(told), sep="\n", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
