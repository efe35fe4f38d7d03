"""What the scheduler promises, in worlds where nearly everything goes wrong (see `world.py` for what is checked)."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.model.events import Outcome
from llmsched.policies import POLICIES
from tests.unit.world import HORIZON, Luck, World, random_job

CHANCE = st.sampled_from([0.0, 0.1, 0.4])
RATE = st.sampled_from([0.0, 0.05, 0.3])
LUCK = st.builds(
    Luck,
    failing=CHANCE,
    fatal=st.sampled_from([0.0, 0.2]),
    echo=st.sampled_from([0.0, 0.5, 1.0]),
    unusable=st.sampled_from([0.0, 0.05]),
    cancelling=CHANCE,
    withdrawing=CHANCE,
    foretelling=st.sampled_from([0.0, 0.5, 1.0]),
    losing=RATE,
    resizing=RATE,
    swapping=st.sampled_from([0.0, 0.1]),
    crashing=st.sampled_from([0.0, 0.05]),
    tick=st.sampled_from([0.0, 0.3, 2.0]),
)


def world(luck: Luck, seed: int, jobs: int, policy: str) -> World:
    rng = Random(seed)
    arrivals = [rng.choice((0.0, 1.0, rng.uniform(0, HORIZON))) for _ in range(jobs)]
    return World([(*random_job(rng), at) for at in arrivals], policy=policy, luck=luck, seed=seed)


@settings(max_examples=150, deadline=None)
@given(LUCK, st.integers(0, 2**32), st.integers(1, 12), st.sampled_from(sorted(POLICIES)))
def test_promises_hold_whatever_happens(luck: Luck, seed: int, jobs: int, policy: str) -> None:
    world(luck, seed, jobs, policy).run()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from(sorted(POLICIES)))
def test_every_job_completes_in_a_kind_world(seed: int, jobs: int, policy: str) -> None:
    kind = world(Luck(), seed, jobs, policy)
    kind.run()

    assert {job.outcome for job in kind.jobs.values()} == {Outcome.COMPLETED}
    assert kind.scheduler.stats.dispatches == sum(job.recording.n_tasks for job in kind.jobs.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_crashes_cost_no_job_its_completion(seed: int, jobs: int) -> None:
    crashing = world(Luck(crashing=0.3, losing=0.05, tick=0.3), seed, jobs, "fcfs")
    crashing.run()

    assert {job.outcome for job in crashing.jobs.values()} <= {Outcome.COMPLETED, Outcome.FAILED}
    lost = [job for job in crashing.jobs.values() if job.outcome is Outcome.FAILED]
    assert not lost or crashing.luck.losing
