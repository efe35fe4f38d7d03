"""What is said about running jobs: ETAs while they run, errors when they are over, and the switch to means and back."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import pytest

from llmsched.catalogue import installed_applications
from llmsched.model.job import Job
from llmsched.model.recording import Recording
from llmsched.profiler import Curves, Knowledge, Profile, Truth, fit
from llmsched.profiler.done import work_done
from llmsched.profiler.walk import walk
from llmsched.runtime.learning import foresight as module
from llmsched.runtime.learning.foresight import Foresight
from llmsched.runtime.observer import Silent
from llmsched.workloads import generate

NAME = "sequence_sorting"
APPLICATION = installed_applications()[NAME]
RECORDINGS = [generate(NAME, Random(seed)) for seed in range(60)]


class Listener(Silent):
    def __init__(self) -> None:
        self.ratios: list[float] = []

    def estimated(self, application: str, ratio: float) -> None:
        assert application == NAME
        self.ratios.append(ratio)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fit(APPLICATION, RECORDINGS, learned_at=1.0, estimator="history")


@pytest.fixture(autouse=True)
def _without_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE", 1e9)


def live(foresight: Foresight, recording: Recording, id: str, began: float = 0.0, pace: float = 1.0) -> None:
    """The job from submission to end, alone on an engine `pace` times as slow as its curve says."""
    job: Job | None = None
    for job in walk(APPLICATION, recording, id):
        foresight.look(job, began + pace * work_done(job, foresight.knowledge.curves))
    assert job is not None
    foresight.ended(id, began + pace * work_done(job, foresight.knowledge.curves), completed=True)


def test_work_done_is_what_the_truth_no_longer_sees() -> None:
    curves = Curves()
    for recording in RECORDINGS[:5]:
        truth = Truth({"job": recording}, curves)
        sums = [
            work_done(job, curves) + sum(w.total for w in truth.remaining(job).values())
            for job in walk(APPLICATION, recording)
        ]
        assert sums == pytest.approx([sums[0]] * len(sums))


def test_nothing_is_said_about_an_application_nothing_was_learned_of() -> None:
    foresight = Foresight(Knowledge())
    job = next(walk(APPLICATION, RECORDINGS[0]))
    assert foresight.look(job, 0.0) is None
    assert foresight.eta("job", 0.0) is None
    foresight.ended("job", 1.0, completed=True)


def test_an_eta_is_kept_until_the_next_stage_and_never_lies_in_the_past(profile: Profile) -> None:
    foresight = Foresight(Knowledge([profile]))
    job = next(walk(APPLICATION, RECORDINGS[0]))
    eta = foresight.look(job, 100.0)
    assert eta is not None
    assert 100.0 < eta.p50 <= eta.p90
    assert foresight.eta("job", 100.5) == eta
    assert foresight.eta("job", eta.p90 + 5.0) == (eta.p90 + 5.0, eta.p90 + 5.0)
    foresight.ended("job", 110.0, completed=False)
    assert foresight.eta("job", 111.0) is None


@pytest.mark.parametrize("pace", [1.0, 6.0])
def test_predictions_are_told_with_their_error_and_become_right(pace: float, profile: Profile) -> None:
    listener = Listener()
    foresight = Foresight(Knowledge([profile]), observer=listener)
    for k, recording in enumerate(RECORDINGS):
        live(foresight, recording, f"job{k}", pace=pace)
    first, last = listener.ratios[:20], sorted(listener.ratios[-100:])
    if pace == 6.0:
        assert sorted(first)[10] == pytest.approx(1 / 6, rel=0.2), "at first, six times too optimistic"
    assert last[50] == pytest.approx(1.0, abs=0.1)


def test_emulated_engines_are_as_much_faster_from_the_first_job_on(profile: Profile) -> None:
    job = next(walk(APPLICATION, RECORDINGS[0]))
    slow, fast = Foresight(Knowledge([profile])), Foresight(Knowledge([profile]), speed=50.0)
    one, other = slow.look(job, 0.0), fast.look(job, 0.0)
    assert one is not None
    assert other is not None
    assert other.p50 == pytest.approx(one.p50 / 50.0)


class Stubborn:
    """Believes that ten hours are left, whatever happens."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge

    def remaining(self, job: Job, running: object = None) -> object:
        left = self._knowledge.mean_remaining(job)
        return {pool: work._replace(fixed=work.fixed + 36_000.0) for pool, work in left.items()}

    def outlook(self, job: Job, running: object = None) -> object:
        outlook = self._knowledge.estimator(job.application, "mean").outlook(job)
        return type(outlook)(outlook.pools, outlook.weights, outlook.fixed + 36_000.0, outlook.decode)


def test_belief_that_became_worse_is_set_aside_until_a_new_profile_is_learned(
    profile: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    knowledge = Knowledge([profile])
    knowledge._made[NAME, APPLICATION.version, "history"] = Stubborn(knowledge)  # type: ignore[assignment]
    foresight = Foresight(knowledge)
    revision = knowledge.revision
    for k, recording in enumerate(RECORDINGS):
        live(foresight, recording, f"job{k}")
        if foresight.has_drifted(NAME):
            break
    assert knowledge.estimator_of(NAME) == "mean"
    assert knowledge.revision > revision, "policies have to sort again"
    assert "belief is worse than the mean, which is used from now on" in caplog.text

    foresight.look(next(walk(APPLICATION, RECORDINGS[0], "over the swap")), 0.0)
    knowledge.put(replace(profile, learned_at=2.0))
    foresight.learned(NAME)
    assert not foresight.has_drifted(NAME)
    assert knowledge.estimator_of(NAME) == "history"
    foresight.ended("over the swap", 10.0, completed=True)
    assert foresight._guards[NAME].errors == (0.0, 0.0), "what an old profile said is not held against the new one"


def test_belief_that_is_as_good_again_is_used_again(profile: Profile) -> None:
    knowledge = Knowledge([profile])
    foresight = Foresight(knowledge)
    knowledge._made[NAME, APPLICATION.version, "history"] = Stubborn(knowledge)  # type: ignore[assignment]
    for k, recording in enumerate(RECORDINGS):
        live(foresight, recording, f"job{k}")
        if foresight.has_drifted(NAME):
            break
    assert knowledge.estimator_of(NAME) == "mean"
    # `use` has thrown the stubborn one away: from here on belief is what the profile says.
    for k, recording in enumerate(RECORDINGS * 2):
        live(foresight, recording, f"again{k}")
        if not foresight.has_drifted(NAME):
            break
    assert knowledge.estimator_of(NAME) == "history"


def test_a_job_that_failed_teaches_nothing(profile: Profile) -> None:
    listener = Listener()
    foresight = Foresight(Knowledge([profile]), observer=listener)
    foresight.look(next(walk(APPLICATION, RECORDINGS[0])), 0.0)
    foresight.ended("job", 500.0, completed=False)
    assert listener.ratios == []


def test_notes_keep_to_their_budget(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE", 0.05)
    foresight = Foresight(Knowledge([profile]))
    job = next(walk(APPLICATION, RECORDINGS[0]))
    began, spent, looked = time.perf_counter(), 0.0, 0
    while (elapsed := time.perf_counter() - began) < 0.6:
        before = time.thread_time()
        if foresight.look(job, 0.0) is not None:
            looked += 1
            spent += time.thread_time() - before
    assert looked > 20
    assert spent < module.SAVINGS + 0.1 * elapsed  # 5 %, and as much again for a busy machine
