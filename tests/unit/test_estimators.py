"""What estimators believe is left, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llmsched.model.application import Application
from llmsched.model.events import TaskRef, TaskResult
from llmsched.model.job import Job, TaskState
from llmsched.model.recording import Recording
from llmsched.profiler.bayesnet import BayesEstimator
from llmsched.profiler.cases import CasesEstimator, MeanEstimator, Tables
from llmsched.profiler.ceiling import Ceiling
from llmsched.profiler.declared import DeclaredEstimator
from llmsched.profiler.estimator import Estimator, Outlook, Work
from llmsched.profiler.history import History
from llmsched.profiler.kernel import HistoryEstimator, ridge
from llmsched.profiler.stages import learn_stages
from llmsched.profiler.truth import Truth
from tests.unit.learned import CURVES, PLANNED, REPAIR, VOTE, job_at, llm, planned, repair, repairs


def tables(application: Application, recordings: list[Recording]) -> Tables:
    return Tables(History.of(application, recordings), CURVES)


def bayes(application: Application, recordings: list[Recording], **options: int) -> BayesEstimator:
    read = tables(application, recordings)
    network = learn_stages(read, **options)  # type: ignore[arg-type]
    assert network is not None
    return BayesEstimator(read, network)


def left(estimator: Estimator, job: Job, pool: str = "llm") -> float:
    return round(estimator.remaining(job)[pool].total, 4)


# ------------------------------------------------------------------------------------------------------------ mean

TWO = [repair("a#1", draft=100), repair("b#1", draft=300, fix=200)]


def test_the_mean_of_every_stage_counts_zeros_where_it_did_not_run() -> None:
    estimator = MeanEstimator(tables(REPAIR, TWO))
    job = repair("x", draft=500, fix=500)

    # draft (1 + 3) / 2, fix (0 + 2) / 2; check 1, recheck 1 / 2
    assert left(estimator, job_at(REPAIR, job, 0)) == 3.0
    assert left(estimator, job_at(REPAIR, job, 0), "cpu") == 1.5
    assert left(estimator, job_at(REPAIR, job, 1)) == 1.0
    # the fix runs for sure now, and whoever ran it took 2 s
    assert left(estimator, job_at(REPAIR, job, 2)) == 2.0


def test_tasks_that_are_done_tell_what_the_others_of_their_stage_will_be_like() -> None:
    jobs = [
        Recording("vote", f"q{i}", (llm("vote", *(k for _ in range(5))),)) for i, k in enumerate((100, 100, 200, 200))
    ]
    read = tables(VOTE, jobs)
    estimator = MeanEstimator(read)
    job = job_at(VOTE, Recording("vote", "x", (llm("vote", *(500 for _ in range(5))),)), 0)

    assert left(estimator, job) == 7.5  # five tasks of 1.5 s
    assert read.kappa == [0.0]  # tasks of one stage are all alike
    finish(job, "vote", 0, TaskResult(5.0, 100, 500))
    assert left(estimator, job) == 20.0  # so the other four will be like the first


def finish(job: Job, stage: str, index: int, result: TaskResult) -> None:
    task = (job.stages[stage].tasks or ())[index]
    task.state, task.result = TaskState.DONE, result
    job.stages[stage].done_tasks += 1
    job.revision += 1


def test_tasks_as_different_as_stages_are_share_their_evidence() -> None:
    jobs = [Recording("vote", f"q{k}", (llm("vote", *(100 + 40 * (i - 2) + k for i in range(5))),)) for k in range(40)]
    read = tables(VOTE, jobs)

    # within: 3200 + 1600... = 40^2 x 2.5 = 4000; between: 133.25 - 4000 / 5 < 0, so stages do not differ at all
    assert read.kappa == [100.0]


# ----------------------------------------------------------------------------------------------------- known plans


def test_a_known_plan_is_priced_by_its_candidates() -> None:
    jobs = [planned(f"q{k}#1", 50, searches=1 + k % 2, maths=k % 3, seconds=1.0 + k % 2) for k in range(12)]
    estimator = MeanEstimator(tables(PLANNED, jobs))
    job = job_at(PLANNED, planned("x", 50, searches=3, maths=2), 1)

    # searches: six of 1 s (one each) and twelve of 2 s (two each): 30 s / 18
    assert left(estimator, job, "cpu") == pytest.approx(3 * 30 / 18, abs=1e-3)
    # math 0.5 s each, and the join of 1 s
    assert left(estimator, job) == pytest.approx(2 * 0.5 + 1.0, abs=1e-3)


def test_a_candidate_nobody_chose_before_costs_what_any_does() -> None:
    estimator = MeanEstimator(tables(PLANNED, [planned(f"q{k}", 50, searches=1) for k in range(3)]))

    assert estimator.tables.price("tools", "telescope") == estimator.tables.price("tools", "search")


# --------------------------------------------------------------------------------------------------------- history


def test_history_sees_what_the_input_says() -> None:
    estimator = HistoryEstimator(tables(REPAIR, repairs(200)))

    short = left(estimator, job_at(REPAIR, repair("x", 1, prompt=110), 0))
    long = left(estimator, job_at(REPAIR, repair("x", 1, prompt=290), 0))

    # a draft is as long as its prompt, every second one is fixed: 1.5 x prompt x 10 ms
    # (a coin decides whether there is a fix, so the kernel is wide and draws both towards the mean of 3)
    assert short == pytest.approx(1.65, rel=0.25)
    assert long == pytest.approx(4.35, rel=0.25)


def test_history_updates_by_what_is_over() -> None:
    estimator = HistoryEstimator(tables(REPAIR, repairs(200)))

    # the draft took 290 tokens where the prompt promised 110; its fix, if any, is as long as the draft
    after_draft = left(estimator, job_at(REPAIR, repair("x", 290, 290, prompt=290), 1))
    in_fix = left(estimator, job_at(REPAIR, repair("x", 290, 290, prompt=290), 2))

    assert after_draft == pytest.approx(1.45, rel=0.25)
    assert in_fix == pytest.approx(2.9, rel=0.1)


def test_weights_are_a_distribution_and_stay_within_the_course() -> None:
    estimator = HistoryEstimator(tables(REPAIR, repairs(100)))
    outlook = estimator.outlook(job_at(REPAIR, repair("x", 200, 200), 2))

    assert outlook.weights.sum() == pytest.approx(1.0)
    assert len(outlook.weights) == 50  # the jobs that were fixed
    assert outlook.totals("llm").min() > 0


def test_history_of_few_jobs_of_a_course_is_widened() -> None:
    jobs = [repair(f"q{k}", 100) for k in range(20)] + [repair("r", 100, 100)]
    estimator = HistoryEstimator(tables(REPAIR, jobs))

    assert left(estimator, job_at(REPAIR, repair("x", 100, 100), 2)) == 1.0  # what the one fix took


def test_far_from_everything_seen_the_nearest_jobs_count() -> None:
    estimator = HistoryEstimator(tables(REPAIR, repairs(100)))

    answer = left(estimator, job_at(REPAIR, repair("x", 1, prompt=10**6), 0))

    assert answer == answer
    assert answer <= max(t.fixed + t.decode for t in [Work(0, 2 * 3.1)])


def test_ridge_finds_the_line_and_ignores_noise() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 3))
    y = np.column_stack([2.0 * z[:, 0] + 0.1 * rng.normal(size=400), rng.normal(size=400)])

    beta = ridge(z, y - y.mean(axis=0))

    assert beta[:, 0] == pytest.approx([2.0, 0.0, 0.0], abs=0.05)
    assert np.abs(beta[:, 1]).max() < 0.15


# -------------------------------------------------------------------------------------------------------- bayesnet


def test_the_network_updates_stages_that_are_left() -> None:
    estimator = bayes(REPAIR, repairs(400))

    before = estimator.remaining(job_at(REPAIR, repair("x", 290, 290, prompt=290), 0))["llm"].total
    short = estimator.remaining(job_at(REPAIR, repair("x", 105, 105, prompt=105), 2))["llm"].total
    long = estimator.remaining(job_at(REPAIR, repair("x", 295, 295, prompt=295), 2))["llm"].total

    assert before == pytest.approx(2.9 * 1.5, rel=0.25)
    assert short == pytest.approx(1.05, rel=0.25)
    assert long == pytest.approx(2.95, rel=0.25)


def test_the_networks_outlook_has_the_mean_of_its_remaining_work() -> None:
    estimator = bayes(REPAIR, repairs(400))
    for completed in range(4):
        job = job_at(REPAIR, repair("x", 200, 200, prompt=200), completed)
        outlook = estimator.outlook(job)
        mean = sum(w.total for w in estimator.remaining(job).values())
        # 200 samples of a sum with a standard deviation below 1.5 s
        assert outlook.weights @ outlook.totals() == pytest.approx(mean, abs=4 * 1.5 / 200**0.5)


def test_impossible_evidence_is_answered_all_the_same() -> None:
    """A network without smoothing finds a fix after a short draft impossible."""
    jobs = [repair(f"q{k}", 100 if k % 2 else 300, 0 if k % 2 else 300) for k in range(40)]
    estimator = bayes(REPAIR, jobs, smoothing=0)
    job = job_at(REPAIR, repair("x", 100, 50), 2)

    answer = estimator.remaining(job)["llm"].total

    assert 0 < answer < 10
    assert estimator.inference.impossible > 0


def test_a_constant_application_has_no_network() -> None:
    assert learn_stages(tables(REPAIR, [repair(f"q{k}", 100) for k in range(20)])) is None


# ------------------------------------------------------------------------------------------- what all of them do


@pytest.fixture(params=["mean", "history", "bayesnet"])
def estimator(request: pytest.FixtureRequest) -> CasesEstimator | BayesEstimator:
    if request.param == "bayesnet":
        return bayes(REPAIR, repairs(200))
    kind = MeanEstimator if request.param == "mean" else HistoryEstimator
    return kind(tables(REPAIR, repairs(200)))


def test_running_tasks_are_at_least_as_long_as_they_ran(estimator: CasesEstimator | BayesEstimator) -> None:
    job = job_at(REPAIR, repair("x", 200, prompt=200), 0)
    ref = TaskRef(job.id, "draft", 0)
    job.running[ref] = (job.stages["draft"].tasks or ())[0]

    fresh = estimator.outlook(job).totals("llm")
    late = estimator.outlook(job, {ref: 2.5})

    assert left(estimator, job) > 0
    # drafts shorter than 2.5 s are out, and 2.5 s of the others are behind
    assert late.weights @ late.totals("llm") < (estimator.outlook(job).weights @ fresh)
    assert late.totals("llm").min() >= 0.0


def test_asking_changes_nothing_and_answers_the_same(estimator: CasesEstimator | BayesEstimator) -> None:
    job = job_at(REPAIR, repair("x", 200, 200), 1)

    first, outlook = estimator.remaining(job), estimator.outlook(job)

    assert estimator.remaining(job) == first
    np.testing.assert_array_equal(estimator.outlook(job).weights, outlook.weights)
    np.testing.assert_array_equal(estimator.outlook(job).totals(), outlook.totals())


def test_a_finished_job_has_nothing_left(estimator: CasesEstimator | BayesEstimator) -> None:
    *_, job = _walked(REPAIR, repair("x", 200, 200))

    assert all(work.total == 0.0 for work in estimator.remaining(job).values())


def _walked(application: Application, recording: Recording) -> list[Job]:
    from llmsched.profiler.walk import walk

    return list(walk(application, recording))


# ------------------------------------------------------------------------------------------ declared, truth, ceiling


def test_declared_means_serve_until_something_is_learned() -> None:
    template = Application.parse(
        {
            "name": "hinted",
            "stages": [
                {"name": "draft", "kind": "llm", "expected": {"output_tokens": 300}},
                {
                    "name": "fix",
                    "kind": "llm",
                    "after": ["draft"],
                    "expected": {"probability": 0.5, "output_tokens": 100},
                },
                {"name": "check", "kind": "regular", "after": ["fix"], "expected": {"duration": 2}},
            ],
        }
    )
    estimator = DeclaredEstimator(template, CURVES)
    job = Recording("hinted", "x", (llm("draft", 7), llm("fix", 7, after=["draft"])))

    assert estimator.remaining(job_at(template, job, 0)) == {"llm": Work(0.0, 3.5), "cpu": Work(2.0, 0.0)}
    assert estimator.remaining(job_at(template, job, 1)) == {"llm": Work(0.0, 1.0), "cpu": Work(2.0, 0.0)}


def test_the_truth_is_what_the_recording_still_has() -> None:
    recording = planned("x", 70, searches=2, maths=1)
    truth = Truth({"x": recording}, CURVES)

    assert truth.remaining(job_at(PLANNED, recording, 0)) == {
        "llm": Work(pytest.approx(3e-7), pytest.approx(0.7 + 0.5 + 1.0)),
        "cpu": Work(4.0, 0.0),
    }
    assert truth.remaining(job_at(PLANNED, recording, 2))["cpu"] == Work(2.0, 0.0)


def test_the_ceiling_knows_ready_stages_and_believes_of_the_rest() -> None:
    recording = repair("x", 900, 50, prompt=200)
    estimator = HistoryEstimator(tables(REPAIR, repairs(200)))
    ceiling = Ceiling(estimator, Truth({"x": recording}, CURVES))

    first = ceiling.outlook(job_at(REPAIR, recording, 0)).means()["llm"].total
    last = ceiling.outlook(job_at(REPAIR, recording, 2)).means()["llm"].total

    assert first > 9.0  # the draft is 9 s, what follows is believed
    assert last == pytest.approx(0.5, abs=1e-3)


# --------------------------------------------------------------------------------------------------------- outlook


def test_quantiles_of_weighted_cases() -> None:
    outlook = Outlook(
        ("llm", "cpu"), np.array([0.5, 0.3, 0.2]), np.array([[1.0, 0], [2, 0], [4, 10]]), np.zeros((3, 2))
    )

    assert outlook.quantiles(0.4, 0.5, 0.51, 0.8, 0.81, 1.0, pool="llm") == (1, 1, 2, 2, 4, 4)
    assert outlook.totals().tolist() == [1, 2, 14]
    assert outlook.totals("gpu").tolist() == [0, 0, 0]


def test_calibration_scales_decoding_only() -> None:
    """Equation 2 with l(1) = 20 ms, l(4) = 26, l(8) = 34: 10 s alone are 17 s at 8, and 13 s at 4 are."""
    assert Work(0.0, 10.0).calibrated(34 / 20) == pytest.approx(17.0)
    assert Work(0.0, 13.0 * 20 / 26).calibrated(34 / 20) == pytest.approx(17.0)
    assert Work(1.0, 10.0).calibrated(2.0) == 21.0
