"""Learning a profile, keeping it, and what is believed at one time."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import orjson
import pytest

from llmsched.catalogue import installed_applications
from llmsched.errors import ProfileError, UnknownName
from llmsched.model.application import Application
from llmsched.profiler import MIN_JOBS, Knowledge, Profile, fit
from llmsched.profiler.learn import fold_of
from llmsched.profiler.plans import plan_statistics
from llmsched.profiler.truth import Truth
from llmsched.profiler.validation import assess, kendall_tau
from llmsched.workloads import Workload
from tests.unit.learned import CURVES, PLANNED, REPAIR, job_at, planned, repair, repairs


def profile(n: int = 120) -> Profile:
    return fit(REPAIR, repairs(n), curves=CURVES, learned_at=7.0)


def total(knowledge: Knowledge, completed: int = 0) -> float:
    job = job_at(REPAIR, repair("x", 250, 250, prompt=250), completed)
    return sum(work.total for work in knowledge.remaining(job).values())


# ------------------------------------------------------------------------------------------------------------- fit


def test_cross_validation_chooses_the_estimator_that_errs_least() -> None:
    learned = profile()

    assert learned.jobs == 120
    errors = {name: scores["rmse"] or 0.0 for name, scores in learned.scores.items()}
    assert set(errors) == {"history", "bayesnet", "mean"}
    assert errors[learned.estimator] <= 1.01 * min(errors.values())
    assert errors["mean"] == max(errors.values())


def test_where_nothing_can_be_learned_all_estimators_tie_and_none_is_confused() -> None:
    constant = fit(REPAIR, [repair(f"q{k}", 100) for k in range(30)], curves=CURVES)

    assert constant.network is None
    assert {scores["rmse"] for scores in constant.scores.values()} == {0.0}


def test_too_few_jobs_are_told() -> None:
    with pytest.raises(ProfileError) as caught:
        fit(REPAIR, repairs(MIN_JOBS - 1))

    assert str(caught.value) == "9 jobs of 'repair' are too few to learn from; at least 10 are needed"


def test_the_newest_jobs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsched.profiler.learn.MAX_JOBS", 20)

    learned = fit(REPAIR, [repair(f"old{k}", 900) for k in range(30)] + repairs(20), estimator="mean")

    assert learned.jobs == 20
    assert not any(query.startswith("old") for query in learned.history.queries)


def test_runs_of_one_query_never_straddle_a_fold() -> None:
    assert {fold_of(f"q{k}") for k in range(50)} == {0, 1, 2}
    assert fold_of("q7") == fold_of("q7")


def test_fitting_is_deterministic() -> None:
    assert profile().to_json() == profile().to_json()


@pytest.mark.parametrize("name", sorted(installed_applications()))
def test_every_installed_application_can_be_learned(name: str) -> None:
    workload = Workload.load(name)
    jobs = [arrival.recording for arrival in workload.arrivals(60, 1.0, 0)]

    learned = fit(installed_applications()[name], jobs)

    assert learned.estimator in ("history", "bayesnet", "mean")
    covered = learned.scores[learned.estimator]["cover90"]
    # 60 jobs, three folds: the interval is wide, yet no more than a fifth off
    assert covered is not None
    assert covered > 0.7


# --------------------------------------------------------------------------------------------------------- profiles


def test_a_profile_survives_json_and_answers_the_same() -> None:
    learned = profile()
    read = Profile.from_json(orjson.loads(orjson.dumps(learned.to_json())), REPAIR)

    assert (read.jobs, read.estimator, read.learned_at, read.scores) == (120, learned.estimator, 7.0, learned.scores)
    for name in ("history", "bayesnet", "mean"):
        ours, theirs = Knowledge([learned], CURVES), Knowledge([read], CURVES)
        ours.use("repair", name)
        theirs.use("repair", name)
        assert [total(ours, k) for k in range(3)] == [total(theirs, k) for k in range(3)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 99}, "this is no profile of format 1 but 99; fit it again"),
        ({"application": "other"}, "the profile is of application 'other', not of 'repair'"),
        ({"history": {"columns": []}}, "learned from other stages"),
        ({"network": {"variables": 3}}, "is damaged"),
        ({"version": "x"}, "is damaged"),
    ],
)
def test_a_damaged_profile_is_one_sentence(change: dict[str, object], told: str) -> None:
    with pytest.raises(ProfileError, match=told):
        Profile.from_json(profile(20).to_json() | change, REPAIR)


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0])
def test_a_profile_with_an_impossible_cost_is_refused(cost: float) -> None:
    document = profile(20).to_json()
    document["history"]["jobs"][3]["costs"][0][3] = cost

    with pytest.raises(ProfileError, match="has costs that are no numbers; fit it again"):
        Profile.from_json(document, REPAIR)


@pytest.mark.parametrize("document", [None, [], "x", {}])
def test_what_is_no_profile_at_all_is_refused(document: object) -> None:
    with pytest.raises(ProfileError, match="this is no profile of format 1"):
        Profile.from_json(document, REPAIR)


def test_a_profile_fits_versions_with_the_same_stages() -> None:
    learned = profile(20)
    same = Application.parse(REPAIR.definition, version=2)
    other = Application.parse({"name": "repair", "stages": [{"name": "draft", "kind": "llm"}]}, version=3)

    assert learned.fits(same)
    assert not learned.fits(other)


# -------------------------------------------------------------------------------------------------------- knowledge


def test_without_a_profile_the_declared_means_answer() -> None:
    knowledge = Knowledge(curves=CURVES)

    assert knowledge.estimator_of("repair") == "declared"
    assert total(knowledge) == 0.0


def test_a_profile_is_swapped_in_at_once() -> None:
    knowledge = Knowledge(curves=CURVES)
    job = job_at(REPAIR, repair("x", 250, 250, prompt=250), 0)
    assert sum(work.total for work in knowledge.remaining(job).values()) == 0.0
    before = knowledge.revision

    knowledge.put(profile())

    assert knowledge.revision > before
    assert knowledge.estimator_of("repair") in ("history", "bayesnet")
    # draft 2.5 s, check 1 s, and both again for every second job
    assert sum(work.total for work in knowledge.remaining(job).values()) == pytest.approx(5.25, rel=0.2)
    knowledge.drop("repair")
    assert sum(work.total for work in knowledge.remaining(job).values()) == 0.0


def test_the_choice_of_a_profile_can_be_overruled() -> None:
    knowledge = Knowledge([profile()], CURVES)
    chosen = total(knowledge)

    knowledge.use("repair", "mean")
    assert knowledge.estimator_of("repair") == "mean"
    assert total(knowledge) != chosen
    knowledge.use("repair", None)
    assert total(knowledge) == chosen
    with pytest.raises(UnknownName, match="unknown estimator 'men'; did you mean 'mean'"):
        knowledge.use("repair", "men")


def test_a_job_of_a_version_with_other_stages_gets_the_declared_means() -> None:
    other = Application.parse(
        {
            "name": "repair",
            "stages": [
                {"name": "draft", "kind": "llm", "expected": {"output_tokens": 42}},
                {"name": "check", "kind": "regular", "after": ["draft"]},
            ],
        },
        version=2,
    )
    knowledge = Knowledge([profile(20)], CURVES)

    left = knowledge.remaining(job_at(other, repair("x", 99), 0))

    assert sum(work.total for work in left.values()) == pytest.approx(0.42)


def test_answers_are_remembered_until_the_job_or_the_knowledge_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge = Knowledge([profile(20)], CURVES)
    job = job_at(REPAIR, repair("x", 100), 0)
    first = knowledge.remaining(job)

    assert knowledge.remaining(job) is first
    job.revision += 1
    assert knowledge.remaining(job) is not first
    knowledge.forget(job.id)
    assert len(knowledge._answers) == 0


def test_knowledge_can_be_sent_to_another_process() -> None:
    knowledge = Knowledge([profile()], CURVES)
    expected = total(knowledge)

    assert total(pickle.loads(pickle.dumps(knowledge))) == expected


# ------------------------------------------------------------------------------------------------------- validation


def test_the_truth_is_never_wrong() -> None:
    jobs = repairs(15)
    truth = Truth({job.job_id: job for job in jobs}, CURVES)

    score = assess(REPAIR, jobs, {"truth": truth}, CURVES)["truth"]

    assert (score.mae, score.rmse, score.cover50, score.cover90) == (0.0, 0.0, 1.0, 1.0)
    assert score.tau == pytest.approx(1.0)
    assert score.points == sum(len(job.stages) for job in jobs)


def test_kendalls_tau_of_ties() -> None:
    """Specification 8: lengths 10, 20, 30, 40 and predictions 12, 11, 30, 30."""
    assert kendall_tau(np.array([12.0, 11, 30, 30]), np.array([10.0, 20, 30, 40])) == pytest.approx(0.547723, abs=1e-6)
    assert kendall_tau(np.ones(3), np.arange(3.0)) is None


# ------------------------------------------------------------------------------------------------------------ plans


def test_plan_statistics_are_shares_of_jobs() -> None:
    jobs = [planned("a", 10, 1), planned("b", 10, 2), planned("c", 10, 1, 1), planned("d", 10, 2, 1)]
    knowledge = Knowledge([replace(fit_few(jobs), learned_at=0.0)], CURVES)
    tables = knowledge.tables("planned")
    assert tables is not None

    found = plan_statistics(tables)["tools"]

    assert found.candidates == {"math": 0.5, "search": 1.0}
    assert found.edges == {("search", "math"): 0.5, ("search", "search"): 0.5}
    assert found.entropy == pytest.approx(1 + 0 + 1 + 1)  # Equation 4
    assert (found.least.total, found.most.total) == (pytest.approx(2.0), pytest.approx(4.5))


def fit_few(jobs: list[object]) -> Profile:
    from llmsched.profiler.history import History

    history = History.of(PLANNED, jobs)  # type: ignore[arg-type]
    return Profile("planned", 1, history, None, "mean")
