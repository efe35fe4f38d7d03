"""What every row of `POLICIES` promises, whatever its order: a new row is held to it without a line here.

*Plain* worlds know nothing, *informed* ones have profiles of three of their applications, and oracles the truth. Both
are small and full of bad luck; `SimulatedWorld` is for what can be accounted for to the second.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random

import pytest

from llmsched.catalogue import installed_applications
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Command,
    Dispatch,
    ExecutorJoined,
    JobClass,
    JobSubmitted,
    Outcome,
    Reveal,
    TaskRef,
)
from llmsched.model.job import Job, Stage, Task, TaskState
from llmsched.model.latency import LatencyCurve
from llmsched.model.recording import Recording
from llmsched.policies import POLICIES
from llmsched.policies import make_policy as make
from llmsched.policies.base import Policy, View
from llmsched.profiler import Curves, Knowledge, Profile, Truth, fit
from llmsched.scheduler import Scheduler
from llmsched.simulator import Setup
from llmsched.simulator import World as SimulatedWorld
from llmsched.simulator.experiment import Comparison, Sizing, parse_policies
from llmsched.simulator.world import job_name
from llmsched.workloads import Arrival, Workload
from tests.unit.learned import PLANNED, REPAIR, VOTE, llm, planned, repair, repairs
from tests.unit.world import BACKOFF, Luck, World, make_policy, random_job

#: A token takes 10 ms however many are decoded beside it, and prompts cost nothing: work is time.
FLAT = LatencyCurve("flat", 1e12, ((1, 0.01),))
CURVES = Curves(default=FLAT)
LEARNED = {"repair": REPAIR, "planned": PLANNED, "vote": VOTE}

every_policy = pytest.mark.parametrize("name", POLICIES)


# ----------------------------------------------------------------------------------------- policies that know something


def learnable(rng: Random) -> tuple[Application, Recording]:
    """A job of an application that `informed` policies know."""
    match rng.randrange(3):
        case 0:
            return REPAIR, repair("r#1", rng.randint(50, 300), rng.choice((0, 100)), prompt=rng.randint(50, 300))
        case 1:
            return PLANNED, planned("p#1", rng.randint(50, 300), rng.randint(0, 3), rng.randint(0, 2))
        case _:
            return VOTE, Recording("vote", "v#1", (llm("vote", *(rng.randint(20, 200) for _ in range(5))),))


@cache
def profiles() -> tuple[Profile, ...]:
    rng = Random(1)
    jobs: dict[str, list[Recording]] = {"repair": repairs(40)}
    for k in range(150):
        application, recording = learnable(rng)
        if application is not REPAIR:
            jobs.setdefault(application.name, []).append(replace(recording, job_id=f"q{k}#1"))
    return tuple(fit(LEARNED[name], listed, curves=CURVES) for name, listed in jobs.items())


def informed(name: str, recordings: Mapping[str, Recording]) -> Policy:
    """A fresh policy that has learned what it can, and an oracle that sees these jobs, by id."""
    return make(name, knowledge=Knowledge(profiles(), CURVES), truth=Truth(recordings, CURVES))


class InformedWorld(World):
    """A small world whose first policy has learned."""

    def _start_scheduler(self, policy: str) -> None:
        super()._start_scheduler(policy)
        recordings = {job.id: job.recording for job in self.jobs.values()}
        self.scheduler = Scheduler(informed(policy, recordings), backoff=BACKOFF, seed=self._seed)


def world(name: str, seed: int, *, is_informed: bool) -> World:
    """A world before its first moment, with more work than slots."""
    rng = Random(seed)
    jobs = [_job(rng, is_informed) for _ in range(rng.randint(6, 12))]
    luck = Luck(failing=0.15, losing=0.1, resizing=0.1, cancelling=0.3, tick=rng.choice((0.0, 0.5)))
    return (InformedWorld if is_informed else World)(jobs, policy=name, luck=luck, seed=seed)


def _job(rng: Random, is_learnable: bool) -> tuple[Application, Recording, float]:
    """Of an application that can be known in two of three cases, if any."""
    draw = learnable if is_learnable and rng.random() < 2 / 3 else random_job
    return *draw(rng), rng.choice((0.0, 0.0, 1.0, 5.0))


def finish(world: World) -> list[list[Command]]:
    """What was ordered, batch by batch, until nothing is left to happen."""
    while world.advance():
        pass
    return [commands for _, commands in world.journal]


def order(policy: Policy, view: View) -> dict[str, list[TaskRef]]:
    """Everything the policy would start, by pool."""
    policy.begin(view)
    return {pool: [pick.task.ref for pick in policy.picks(pool, view)] for pool in view.ready}


# ------------------------------------------------------------------------------------------------------------- an order


@every_policy
@pytest.mark.parametrize("is_informed", [False, True])
def test_every_policy_orders_all_that_is_ready_and_only_looks(name: str, is_informed: bool) -> None:
    """At every third batch of two stories: two dozen views."""
    for seed in (16, 19):
        story = world(name, seed, is_informed=is_informed)
        for _ in range(12):
            for _ in range(3):
                story.advance()
            check_order(story.scheduler.policy, story.scheduler.view)


def check_order(policy: Policy, view: View) -> None:
    before = pickle.dumps(view)

    picked = order(policy, view)

    assert pickle.dumps(view) == before, "the view and its jobs are as they were"
    for pool, stages in view.ready.items():
        ready = [s.tasks[i].ref for s in stages.values() if s.tasks for i in s.ready]
        assert sorted(picked[pool]) == sorted(ready), "every ready task once, and nothing else"
        tasks = [pick.task for pick in policy.picks(pool, view)]
        assert all(t.state is TaskState.READY and t.pool == pool for t in tasks)
        if policy.keeps_classes:
            classes = [t.job.job_class for t in tasks]
            assert classes == sorted(classes)


@every_policy
def test_every_policy_has_nothing_to_say_about_an_empty_view(name: str) -> None:
    policy = make_policy(name)
    policy.begin(View())

    assert list(policy.picks("llm", View())) == []


@every_policy
def test_every_policy_prefers_earlier_classes(name: str) -> None:
    template = Application.parse({"name": "app", "stages": [{"name": "a", "kind": "llm"}]})
    scheduler = Scheduler(make_policy(name))
    reveals = (Reveal(template["a"], (0,)),)
    jobs = [JobSubmitted(c.label, n, template, 0.0, reveals, job_class=c) for n, c in enumerate(reversed(JobClass))]

    commands = scheduler.handle(Batch(0.0, (*jobs, ExecutorJoined("e", "llm", 9))))

    assert [c.task.job for c in commands if isinstance(c, Dispatch)] == ["interactive", "standard", "batch"]


@every_policy
def test_every_policy_says_what_it_is(name: str) -> None:
    info = POLICIES[name]

    assert info.line
    assert info.source
    assert info.make.__doc__


# --------------------------------------------------------------------------------------- the same story, the same order


def told(name: str) -> list[list[Command]]:
    return finish(world(name, 19, is_informed=True))


@cache
def digest(name: str) -> str:
    """Of all that a policy orders in the story, the first time."""
    return sha256(repr(told(name)).encode()).hexdigest()


def digests() -> dict[str, str]:
    return {name: digest(name) for name in POLICIES}


@every_policy
def test_every_policy_orders_the_same_again(name: str) -> None:
    assert sha256(repr(told(name)).encode()).hexdigest() == digest(name)


def test_no_order_depends_on_how_strings_are_hashed() -> None:
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = "from tests.unit.test_policy_checks import digests; print(digests())"

    elsewhere = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert literal_eval(elsewhere.stdout) == digests()


@every_policy
@pytest.mark.parametrize("is_informed", [False, True])
def test_every_policy_goes_on_from_a_pickle(name: str, is_informed: bool) -> None:
    begun = world(name, 5, is_informed=is_informed)
    stored = []
    for _ in range(2):
        for _ in range(7):
            begun.advance()
        stored.append(pickle.dumps(begun))

    told_to_the_end = finish(begun)

    assert [finish(pickle.loads(twin)) for twin in stored] == [told_to_the_end] * 2


# --------------------------------------------------------------------------------------------------- comings and goings


@every_policy
@pytest.mark.parametrize("seed", [5, 12])
def test_every_policy_can_take_over_in_the_middle(name: str, seed: int) -> None:
    begun = world("fcfs", seed, is_informed=False)
    for _ in range(12):
        begun.advance()
    scheduler = begun.scheduler
    ready = {p: sorted(refs) for p, refs in order(scheduler.policy, scheduler.view).items()}

    scheduler.use_policy(make_policy(name))

    assert any(ready.values())
    assert {p: sorted(refs) for p, refs in order(scheduler.policy, scheduler.view).items()} == ready
    finish(begun)
    assert all(job.outcome for job in begun.jobs.values())
    assert mentioned(scheduler.policy) == []


@every_policy
@pytest.mark.parametrize("is_informed", [False, True])
def test_every_policy_ends_all_jobs_and_forgets_them(name: str, is_informed: bool) -> None:
    """Executors are lost and change their slots, attempts fail, jobs are cancelled while they run."""
    story = world(name, 19, is_informed=is_informed)

    finish(story)

    outcomes = {job.outcome for job in story.jobs.values()}
    assert {Outcome.COMPLETED, Outcome.CANCELLED} <= outcomes
    assert None not in outcomes
    assert sum(story.losses.values())
    policy = story.scheduler.policy
    assert mentioned(policy) == []
    assert is_informed or len(pickle.dumps(policy)) < 4_000


class Finder(pickle.Pickler):
    """Finds jobs, their parts and their ids in all that an object holds on to, but what an oracle was told."""

    def __init__(self) -> None:
        super().__init__(BytesIO())
        self.found: list[object] = []

    def persistent_id(self, thing: object) -> str | None:
        if isinstance(thing, Truth):
            return "truth"  # and nothing of it
        if isinstance(thing, Job | Stage | Task) or (isinstance(thing, str) and thing.startswith("job-")):
            self.found.append(thing)
        return None


def mentioned(policy: Policy) -> list[object]:
    """What a policy still knows of jobs."""
    finder = Finder()
    finder.dump(policy)
    return finder.found


# ----------------------------------------------------------------------------------------------- accounts to the second


def simulated(name: str, jobs: list[Recording], setup: Setup) -> SimulatedWorld:
    arrivals = [Arrival(0.7 * k, recording) for k, recording in enumerate(jobs)]
    policy = informed(name, {job_name(k): recording for k, recording in enumerate(jobs)})
    return SimulatedWorld(Scheduler(policy), arrivals, LEARNED, setup, gantt=len(jobs)).run()


@every_policy
def test_slot_time_is_the_work_of_the_jobs_under_every_policy(name: str) -> None:
    """Each task takes as long as was recorded, and so does a pool: a policy moves work and never changes it.

    Slices cost nothing here, since prompts do not and a batch does not slow down.
    """
    rng = Random(5)
    jobs = [learnable(rng)[1] for _ in range(12)]
    work = {
        (k, stage.name, i): FLAT.reference(task.prompt_tokens, task.output_tokens) or task.duration
        for k, job in enumerate(jobs)
        for stage in job.stages
        for i, task in enumerate(stage.tasks)
    }

    run = simulated(name, jobs, Setup(engines=(2, 1), workers={"cpu": 1}, curve=FLAT))

    assert {f.outcome for f in run.finished} == {Outcome.COMPLETED}
    spent = dict.fromkeys(work, 0.0)
    for span in run.spans:
        spent[span.job, span.stage, span.task] += span.ended_at - span.started_at
    assert spent == pytest.approx(work, abs=1e-6)
    assert sum(run.busy.values()) == pytest.approx(sum(work.values()), abs=1e-6)


@every_policy
def test_a_job_alone_takes_as_long_under_every_policy(name: str) -> None:
    """One pool with a slot for each task: 5 calls, the longest of 2.5 s. Slices follow each other without a gap."""
    alone = Recording("vote", "v#1", (llm("vote", 20, 250, 100, 40, 200),))

    run = simulated(name, [alone], Setup(engines=(5,), curve=FLAT))

    assert [f.completion_time for f in run.finished] == [pytest.approx(2.5, abs=1e-6)]


def test_a_seed_gives_every_policy_the_same_jobs() -> None:
    choices = parse_policies(",".join(POLICIES))
    sizing = Sizing((4,), {"cpu": 2}, 1.0, None)
    comparison = Comparison(
        Workload.load("chain"), choices, (sizing,), (0, 1), 4, installed_applications(), FLAT, failures=0.1
    )

    def jobs(seed: int) -> set[tuple[object, ...]]:
        runs = [comparison.run((0, k, seed), comparison.arrivals(0, seed)) for k in range(len(choices))]
        return {
            (*run.alone, *(application for application, _ in run.jobs), *(at for at, _ in run.lives)) for run in runs
        }

    assert len(jobs(0)) == len(jobs(1)) == 1
    assert jobs(0) != jobs(1)
