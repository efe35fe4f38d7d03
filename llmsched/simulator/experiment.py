"""Compares policies in simulated time: the same jobs, arriving at the same moments, once per policy, load and seed.

```
prepare ──▶ jobs to run, jobs to learn from (never the same query) ──learn──▶ Knowledge
size    ──▶ machines and arrival rate of an offered load
Comparison ──compare──▶ runs, in a pool of processes ──to_json──▶ the document of `simulate`
```

What a run gives depends on (policy, load, seed) alone, not on where or beside what it ran; only the time its decisions
took is measured, and differs.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from itertools import product
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from llmsched.errors import BackendError, InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.events import Outcome
from llmsched.model.kinds import StageKind
from llmsched.model.latency import LatencyCurve
from llmsched.model.recording import Recording
from llmsched.model.unfolding import pool_of
from llmsched.policies import POLICIES, make_policy, options_of
from llmsched.policies.base import Policy, reads_prompts
from llmsched.profiler import Curves, Knowledge, Truth, fit
from llmsched.profiler.lengths import Model
from llmsched.scheduler import Scheduler
from llmsched.simulator.statistics import Run, samples_of, summary
from llmsched.simulator.world import EngineLoss, Setup, Span, World, job_name
from llmsched.workloads import Arrival, Prompts, Workload, arrival_times, generate, read_traces

#: Share of the queries of a trace that is simulated, in thousandths; profiles learn from the others.
HELD_OUT = 300
#: Generated jobs of an application that profiles learn from, and that stand for its average.
SAMPLE = 1000
#: A single engine has at most so many slots; a larger load gets engines of `ENGINE_SLOTS`.
MOST_SLOTS = 64
ENGINE_SLOTS = 16
#: Workers are this much less loaded than engines.
WORKER_SLACK = 0.85
#: Seconds between two losses of one engine, on average, and until it is back.
LOSS_EVERY, LOSS_DOWN = 300.0, 30.0


# ------------------------------------------------------------------------------------------------------ policies


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy with options. label: as it was written, `llmsched:eps=0.1`."""

    label: str
    name: str
    options: Mapping[str, int | float | bool | str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Choice:
        """`name` or `name:option=value:option=value`; numbers, true and false are recognised.

        Raises UnknownName for a policy or an option that does not exist, InvalidInput for anything else.

        >>> Choice.parse("sjf").name
        'sjf'
        """
        name, *parts = text.strip().split(":")
        if name not in POLICIES:
            raise UnknownName.of("policy", name, POLICIES, field="policy")
        known = options_of(name)
        options: dict[str, int | float | bool | str] = {}
        for part in parts:
            option, equals, value = (piece.strip() for piece in part.partition("="))
            if not (option and equals and value):
                raise InvalidInput(f"policy {text!r}: {part!r} is no option; write option=value", field="policy")
            if option not in known:
                raise UnknownName.of(f"option of policy {name!r}", option, known, field="policy")
            options[option] = _value(value)
        return cls(text.strip(), name, options)

    @property
    def learns(self) -> bool:
        """Whether it is handed what profiles know."""
        return "knowledge" in signature(POLICIES[self.name].make).parameters

    @property
    def predicts(self) -> bool:
        """Whether it goes by predicted lengths of answers, and so by what prompts are like. Raises what `make` does."""
        return reads_prompts(self.make(Knowledge(), Truth({}), 0))

    def make(self, knowledge: Knowledge, truth: Truth, seed: int, lengths: Model | None = None) -> Policy:
        """A fresh policy; `seed` is that of its own random numbers, unless its options say another.

        Raises InvalidInput for a value it cannot use.
        """
        options: dict[str, Any] = dict(self.options)
        if "seed" in signature(POLICIES[self.name].make).parameters:
            options.setdefault("seed", seed)
        try:
            return make_policy(self.name, knowledge=knowledge, truth=truth, lengths=lengths, **options)
        except (TypeError, ValueError) as cause:
            raise InvalidInput(f"policy {self.label!r} cannot be made: {cause}", field="policy") from cause


def parse_policies(text: str) -> tuple[Choice, ...]:
    """A comma list of policies. Raises InvalidInput if one stands there twice, and what `Choice.parse` raises."""
    choices = tuple(Choice.parse(part) for part in text.split(","))
    labels = [choice.label for choice in choices]
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidInput(f"policy {label!r} is listed twice; name it once", field="policy")
    return choices


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


# ---------------------------------------------------------------------------------- jobs to run, jobs to learn from


@dataclass(frozen=True, slots=True)
class Source:
    """workload: of the jobs that run. training: application -> jobs that profiles learn from, maybe none.

    split: where both come from, for people. overlap: share of the traced jobs to run whose query was learned from.
    """

    workload: Workload
    training: Mapping[str, Sequence[Recording]]
    split: str
    overlap: float = 0.0


def is_held_out(application: str, job_id: str) -> bool:
    """Whether a traced job is simulated rather than learned from: decided by its query, so that its runs stay together.

    The public traces are what was left after a hash of "application|query" took its part; this one is salted.
    """
    digest = hashlib.sha256(f"llmsched simulate|{application}|{query_of(job_id)}".encode()).hexdigest()
    return int(digest, 16) % 1000 < HELD_OUT


def query_of(job_id: str) -> str:
    """Several recorded runs of one query share what stands before the `#`."""
    return job_id.partition("#")[0]


def prepare(name: str, traces: Path | None, train: Path | None, *, learns: bool = True) -> Source:
    """Reads or generates the jobs of a workload and those to learn from.

    With `traces` alone they are split by query; with `train` all traced jobs run and profiles learn from that folder.
    Without traces jobs are generated, those to learn from by random numbers of their own. learns: False if nobody will.
    Raises UnknownName, InvalidRecording, or InvalidInput if no job of an application is left to run.
    """
    workload = Workload.load(name, traces)
    training: Mapping[str, Sequence[Recording]] = {}
    if train is not None:
        if learns:
            training = read_traces(train, workload.applications)
        return Source(workload, training, f"profiles from {train}", _overlap(workload, training))
    if workload.traces is None:
        if learns:
            training = {a: _generated(a, workload.parameters) for a in workload.applications}
        return Source(workload, training, f"profiles from {SAMPLE} other generated jobs of each application")
    run: dict[str, list[Recording]] = {}
    learn: dict[str, list[Recording]] = {}
    for application, jobs in workload.traces.items():
        run[application] = [job for job in jobs if is_held_out(application, job.job_id)]
        learn[application] = [job for job in jobs if not is_held_out(application, job.job_id)]
        if not run[application]:
            raise InvalidInput(
                f"none of the {len(jobs)} traced jobs of {application!r} falls into the part that is simulated;"
                " give the jobs to learn from with --train"
            )
    held_out = replace(workload, traces=run)
    return Source(held_out, learn, f"profiles from {1000 - HELD_OUT} of 1000 queries, jobs of the others")


def _generated(application: str, parameters: str) -> list[Recording]:
    rng = Random(f"llmsched/training/{application}")
    return [generate(application, rng, parameters) for _ in range(SAMPLE)]


def _overlap(workload: Workload, training: Mapping[str, Sequence[Recording]]) -> float:
    jobs = [(job, a) for a, listed in (workload.traces or {}).items() for job in listed]
    known = {a: {query_of(job.job_id) for job in listed} for a, listed in training.items()}
    both = sum(query_of(job.job_id) in known.get(a, ()) for job, a in jobs)
    return both / len(jobs) if jobs else 0.0


def learn(
    training: Mapping[str, Sequence[Recording]], applications: Mapping[str, Application], curve: LatencyCurve
) -> Knowledge:
    """Profiles of these jobs, for engines like `curve`. Raises ProfileError where they teach nothing."""
    curves = Curves(default=curve)
    return Knowledge([fit(applications[name], jobs, curves=curves) for name, jobs in training.items()], curves)


# -------------------------------------------------------------------------------------------- machines for a load


@dataclass(frozen=True, slots=True)
class Sizing:
    """Machines, and how fast jobs arrive. engines: slots of each. workers: slots by pool.

    rate: jobs per second, None where recorded arrivals keep their own. load: LLM work that arrives over what the
    engines can do with every slot taken; None where no rate is known.
    """

    engines: tuple[int, ...]
    workers: Mapping[str, int]
    rate: float | None
    load: float | None
    llm_pool: str = "llm"

    def __str__(self) -> str:
        slots = " + ".join(map(str, dict.fromkeys(self.engines)))
        engines = f"{len(self.engines)} engine{'s' if len(self.engines) > 1 else ''} of {slots} slots"
        workers = ", ".join(f"{n} {pool} worker{'s' if n != 1 else ''}" for pool, n in self.workers.items())
        rate = "recorded arrivals" if self.rate is None else f"{self.rate:.3g} jobs/s"
        load = "" if self.load is None else f", offered load {self.load:.3g}"
        return f"{engines}, {workers or 'no workers'}, {rate}{load}"


@dataclass(frozen=True, slots=True)
class Work:
    """Mean reference work of one job, seconds. llm_pool: the one pool of its LLM calls. regular: by pool."""

    llm: float
    llm_pool: str
    regular: Mapping[str, float]

    @classmethod
    def of(cls, workload: Workload, applications: Mapping[str, Application], curve: LatencyCurve) -> Work:
        """Over the jobs of the workload, its applications weighted equally, as they are drawn.

        Raises UnknownName for an application that is not installed, InvalidInput for more than one LLM pool.
        """
        llm: dict[str, float] = {}
        regular: dict[str, float] = {}
        for name in workload.applications:
            if name not in applications:
                raise UnknownName.of("application", name, applications)
            jobs = workload.traces[name] if workload.traces is not None else _sample(workload, name)
            each = 1.0 / (len(jobs) * len(workload.applications))
            for stage in (stage for job in jobs for stage in job.stages):
                pool = pool_of(applications[name], stage)
                if stage.kind is StageKind.LLM:
                    work = sum(curve.reference(t.prompt_tokens, t.output_tokens) for t in stage.tasks)
                    llm[pool] = llm.get(pool, 0.0) + work * each
                elif stage.kind is StageKind.REGULAR:
                    regular[pool] = regular.get(pool, 0.0) + sum(t.duration for t in stage.tasks) * each
        if len(llm) > 1:
            raise InvalidInput(f"these jobs use the LLM pools {', '.join(sorted(llm))}; only one can be simulated")
        pool, seconds = next(iter(llm.items()), ("llm", 0.0))
        return cls(seconds, pool, dict(sorted(regular.items())))


def _sample(workload: Workload, application: str) -> list[Recording]:
    """The generated jobs that `Workload.reference_seconds` takes for its average."""
    alone = replace(workload, applications=(application,))
    return [arrival.recording for arrival in alone.arrivals(SAMPLE, 1.0, 0)]


def size(work: Work, rate: float, load: float, curve: LatencyCurve) -> Sizing:
    """The machines on which jobs that arrive at about `rate` offer exactly this load.

    One engine of B slots, B the smallest fixed point of max(2, round(rate × W × l(B)/l(1) / load)), W the mean LLM work
    of a job; several engines of 16 where B would pass 64. The rate is then set so that the load is exact, and every
    regular pool has ceil(work per second / (0.85 load)) workers. Raises InvalidInput.
    """
    if not 0.01 <= load <= 100:
        raise InvalidInput(f"load is {load:g}; it must be from 0.01 to 100 (1: as much as the engines can do)")
    if not 1e-6 <= rate <= 1e6:
        raise InvalidInput(f"rate is {rate:g}; it must be a positive number of jobs per second", field="rate")
    if work.llm <= 0:
        raise InvalidInput("these jobs have no LLM work; give --engines, --slots and --workers instead of a load")

    def slots(b: int) -> float:
        return rate * work.llm * slowdown(curve, b) / load

    b, before = 2, 0
    while before < b <= MOST_SLOTS:  # l never falls, so neither does b
        before, b = b, max(2, round(slots(b)))
    engines = (b,) if b <= MOST_SLOTS else (ENGINE_SLOTS,) * max(1, round(slots(ENGINE_SLOTS) / ENGINE_SLOTS))
    exact = load * sum(engines) / (work.llm * slowdown(curve, engines[0]))
    workers = {pool: max(1, ceil(exact * seconds / (WORKER_SLACK * load))) for pool, seconds in work.regular.items()}
    return Sizing(engines, workers, exact, load, work.llm_pool)


def fixed(
    work: Work, rate: float | None, curve: LatencyCurve, *, engines: int = 1, slots: int = 16, workers: int = 4
) -> Sizing:
    """Machines as they were asked for, and the load they are offered. workers: of each regular pool."""
    offered = None if rate is None else rate * work.llm * slowdown(curve, slots) / (engines * slots)
    return Sizing((slots,) * engines, dict.fromkeys(work.regular, workers), rate, offered, work.llm_pool)


def slowdown(curve: LatencyCurve, b: int) -> float:
    """How much longer a token takes in a batch of b: l(b) / l(1)."""
    alone = curve.decode(1)
    return curve.decode(b) / alone if alone else 1.0


# ------------------------------------------------------------------------------------------------------- deadlines


@dataclass(frozen=True, slots=True)
class Deadlines:
    """A share of the jobs, drawn at random, has to be over in `factor` times what jobs of its application take alone.

    That is the mean over the jobs of the run, so that long jobs of an application have as long as short ones.
    """

    factor: float
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Deadlines:
        """`FACTOR` or `FACTOR:SHARE`. Raises InvalidInput.

        >>> Deadlines.parse("3:0.5")
        Deadlines(factor=3.0, share=0.5)
        """
        factor, _, share = text.partition(":")
        try:
            found = cls(float(factor), float(share or 1.0))
        except ValueError:
            raise InvalidInput(f"deadlines are {text!r}; write FACTOR or FACTOR:SHARE, 3:0.5 for example") from None
        if not (0 < found.factor <= 1e6 and 0 < found.share <= 1):
            raise InvalidInput(f"deadlines are {text!r}; the factor must be positive and the share up to 1")
        return found

    def given_to(self, arrivals: Sequence[Arrival], curve: LatencyCurve, seed: int) -> list[Arrival]:
        """The same arrivals, those that were drawn with their deadline."""
        alone: dict[str, list[float]] = {}
        for arrival in arrivals:
            alone.setdefault(arrival.recording.application, []).append(arrival.recording.alone_seconds(curve))
        seconds = {name: self.factor * sum(each) / len(each) for name, each in alone.items()}
        rng = Random(f"llmsched/{seed}/deadlines")
        return [
            replace(a, deadline_s=seconds[a.recording.application]) if rng.random() < self.share else a
            for a in arrivals
        ]


# ------------------------------------------------------------------------------------------------------------ runs


@dataclass(slots=True)
class SimulatedRun(Run):
    """What one simulated run measured, at which offered load; `spans` of the first jobs where they were asked for."""

    load: float | None = None
    spans: list[Span] = field(default_factory=list)
    #: Arrival times of the jobs in `spans`, and when they were over.
    lives: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that runs share; it is sent to every process once. process: what `arrival_times` takes.

    knowledge: what profiles know, None: nothing. lengths: predicts the lengths of answers, None: the model that ships.
    prompts: what policies may see of the jobs' prompts. failures: probability that an attempt fails. losses: whether
    engines are lost. shared_prefixes: whether prompts of one stage begin alike and engines cache that. overhead:
    seconds that a call holds its slot beyond what its engine needs. gantt: of how many first jobs the first seed of
    each load keeps its spans. deadlines: which jobs have one.
    """

    workload: Workload
    policies: tuple[Choice, ...]
    sizings: tuple[Sizing, ...]
    seeds: tuple[int, ...]
    jobs: int
    applications: Mapping[str, Application]
    curve: LatencyCurve
    knowledge: Knowledge | None = None
    process: str | Sequence[float] = "poisson"
    failures: float = 0.0
    losses: bool = False
    shared_prefixes: bool = False
    overhead: float = 0.0
    gantt: int = 0
    lengths: Model | None = None
    prompts: Prompts | None = None
    deadlines: Deadlines | None = None

    def check(self) -> None:
        """Makes every policy once, knowing nothing, and draws the moments of arrival.

        Raises InvalidInput for an option with a bad value, and for arrivals that cannot be.
        """
        for choice in self.policies:
            choice.make(Knowledge(), Truth({}), 0)
        for sizing in self.sizings:
            arrival_times(self.process, sizing.rate, self.jobs, Random(0))

    def knowing(self, knowledge: Knowledge) -> Comparison:
        """The same comparison by policies that know this."""
        return replace(self, knowledge=knowledge)

    @property
    def cases(self) -> list[tuple[int, int, int]]:
        """Positions (load, policy, seed) of every run, in the order of the document."""
        return list(product(range(len(self.sizings)), range(len(self.policies)), range(len(self.seeds))))

    def arrivals(self, sizing: int, seed: int) -> list[Arrival]:
        arrivals = self.workload.arrivals(self.jobs, self.sizings[sizing].rate, self.seeds[seed], self.process)
        return arrivals if self.deadlines is None else self.deadlines.given_to(arrivals, self.curve, self.seeds[seed])

    def setup(self, sizing: Sizing, seed: int, span: float) -> Setup:
        """The machines of a run whose last job arrives after `span` seconds."""
        losses = _losses(seed, len(sizing.engines), 4 * span + 3600) if self.losses else ()
        return Setup(
            sizing.engines,
            sizing.workers,
            self.curve,
            sizing.llm_pool,
            losses,
            failures=self.failures,
            shared_prefixes=self.shared_prefixes,
            overhead=self.overhead,
            seed=seed,
        )

    def run(
        self, case: tuple[int, int, int], arrivals: Sequence[Arrival], ended: Callable[[], object] = lambda: None
    ) -> SimulatedRun:
        """One of the `cases`, on its arrivals. `ended` is called at the end of each job."""
        sizing, choice, seed = self.sizings[case[0]], self.policies[case[1]], self.seeds[case[2]]
        knowledge = self._known()
        truth = Truth({job_name(k): arrival.recording for k, arrival in enumerate(arrivals)}, knowledge.curves)
        policy = choice.make(knowledge, truth, seed, self.lengths)
        prompts = self.prompts if reads_prompts(policy) else None
        gantt = self.gantt if case[2] == 0 else 0
        setup = self.setup(sizing, seed, arrivals[-1].at if arrivals else 0.0)
        scheduler = Scheduler(policy, seed=seed)
        world = World(scheduler, arrivals, self.applications, setup, gantt=gantt, prompts=prompts).run(ended)
        run = measured(world, choice.label, seed, sizing.load, gantt)
        run.alone = [arrival.recording.alone_seconds(self.curve) for arrival in arrivals]
        if self.deadlines is not None:
            run.deadlines = [arrival.deadline_s for arrival in arrivals]
        return run

    def _known(self) -> Knowledge:
        """What is known at the start of a run, without answers of another one, and warm, as a service is."""
        if self.knowledge is None:
            return Knowledge(curves=Curves(default=self.curve))
        fresh = Knowledge(self.knowledge.profiles.values(), self.knowledge.curves)
        for name in fresh.profiles:
            fresh.estimator(self.applications[name])
        return fresh


def measured(world: World, policy: str, seed: int, load: float | None = None, gantt: int = 0) -> SimulatedRun:
    """The figures of a world that has run."""
    ends = sorted(world.finished)
    run = SimulatedRun(policy, seed, load=load, makespan=world.makespan, utilisation=world.utilisation())
    for end in ends:
        completed = end.outcome is Outcome.COMPLETED
        run.jobs.append((end.application, end.completion_time if completed else None))
    seconds = np.array(world.decision_seconds)
    run.decisions = len(seconds)
    if len(seconds):
        p50, p99 = np.percentile(seconds, [50, 99]).tolist()
        run.decision_ms = {"mean": float(seconds.mean()) * 1000, "p50": p50 * 1000, "p99": p99 * 1000}
    run.mean_request = float(np.mean(world.request_seconds)) if world.request_seconds else None
    run.spans = world.spans
    run.lives = [(end.arrived_at, end.finished_at) for end in ends[:gantt]]
    return run


def _losses(seed: int, engines: int, until: float) -> tuple[EngineLoss, ...]:
    """When engines are lost: the same for every policy of a seed."""
    losses = []
    for engine in range(engines):
        rng = Random(f"llmsched/{seed}/losses/{engine}")
        at = rng.expovariate(1 / LOSS_EVERY)
        while at < until:
            losses.append(EngineLoss(at, engine, LOSS_DOWN))
            at += LOSS_DOWN + rng.expovariate(1 / LOSS_EVERY)
    return tuple(losses)


def compare(
    comparison: Comparison, *, parallel: int | None = None, progress: Callable[[int], object] = lambda done: None
) -> list[SimulatedRun]:
    """Every run, in the order of `Comparison.cases`.

    parallel: processes, by default as many as there are processors; 1: this one. progress: called now and then with the
    number of jobs that are over, all runs together.
    Raises what a run raises; BackendError if a process dies. Whatever ends it, no process is left behind.
    """
    cases = comparison.cases
    processes = min(parallel or os.cpu_count() or 1, len(cases))
    if processes <= 1:
        return _compare_here(comparison, cases, progress)
    context = multiprocessing.get_context("spawn")
    ended = context.Value("q", 0)
    leash, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _start, (comparison, ended, leash))
    try:
        # Runs on the same arrivals stand side by side, so that a process draws them once.
        ordered = sorted(cases, key=lambda case: (case[0], case[2], case[1]))
        with _deaf():
            futures = {case: pool.submit(_run, case) for case in ordered}
        pending: set[Future[SimulatedRun]] = set(futures.values())
        while pending:
            done, pending = wait(pending, 0.1, FIRST_EXCEPTION)
            for future in done:
                future.result()
            progress(ended.value)
        pool.shutdown()
        return [futures[case].result() for case in cases]
    except BrokenProcessPool as cause:
        raise BackendError("a process died while it simulated; with less memory taken, try --parallel 1") from cause
    finally:
        ours.close()  # ends every process that is still there, as our own end does
        pool.shutdown(cancel_futures=True)
        leash.close()


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start meanwhile hear no Ctrl-C (they inherit what is blocked): it is ours, and we stop them."""
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _compare_here(
    comparison: Comparison, cases: Sequence[tuple[int, int, int]], progress: Callable[[int], object]
) -> list[SimulatedRun]:
    over = 0

    def ended() -> None:
        nonlocal over
        over += 1
        progress(over)

    arrivals = _Arrivals(comparison)
    runs = {case: comparison.run(case, arrivals.of(case), ended) for case in sorted(cases, key=lambda c: (c[0], c[2]))}
    return [runs[case] for case in cases]


class _Arrivals:
    """The arrivals of a run; kept while the next runs have the same."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._of: tuple[int, int] | None = None
        self._drawn: list[Arrival] = []

    def of(self, case: tuple[int, int, int]) -> list[Arrival]:
        key = case[0], case[2]
        if key != self._of:
            self._of, self._drawn = key, self._comparison.arrivals(*key)
        return self._drawn


class _Process:
    """What one process of the pool works with, from its start on."""

    comparison: Comparison
    arrivals: _Arrivals
    ended: Any


def _start(comparison: Comparison, ended: Any, leash: Connection) -> None:
    _Process.comparison, _Process.ended = comparison, ended
    _Process.arrivals = _Arrivals(comparison)
    threading.Thread(target=_end_with_parent, args=(leash,), daemon=True).start()


def _end_with_parent(leash: Connection) -> None:
    """Nothing is ever sent; the other end is closed when nobody wants our runs any more, or its process is gone."""
    leash.poll(None)
    os._exit(1)


def _run(case: tuple[int, int, int]) -> SimulatedRun:
    return _Process.comparison.run(case, _Process.arrivals.of(case), _count)


def _count() -> None:
    with _Process.ended.get_lock():
        _Process.ended.value += 1


# -------------------------------------------------------------------------------------------------------- document


def to_json(settings: dict[str, Any], runs: Sequence[SimulatedRun]) -> dict[str, Any]:
    """The document of the contract. With several loads every run and every entry of the summary carries its `load`."""
    loads = list(dict.fromkeys(run.load for run in runs))
    if len(loads) < 2:
        return {"settings": settings, "runs": [r.to_json() for r in runs], "summary": summary(samples_of(runs))}
    entries = []
    for load in loads:
        samples = samples_of([run for run in runs if run.load == load])
        entries += [{"policy": entry["policy"], "load": load} | entry for entry in summary(samples)]
    return {
        "settings": settings,
        "runs": [{"policy": r.policy, "load": r.load} | r.to_json() for r in runs],
        "summary": entries,
    }
