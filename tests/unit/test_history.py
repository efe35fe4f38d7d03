"""Finished jobs as arrays, running jobs in the same columns, and finished jobs relived."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from llmsched.errors import ProfileError
from llmsched.model.application import Application
from llmsched.model.job import StageState
from llmsched.model.recording import Recording
from llmsched.profiler.evidence import ABSENT, OPEN, OVER, UNKNOWN, Evidence
from llmsched.profiler.history import OUTPUT, PROMPT, SECONDS, TASKS, Column, History, Layout
from llmsched.profiler.walk import walk
from tests.unit.learned import CURVES, PLANNED, REPAIR, VOTE, job_at, llm, planned, regular, repair, repairs


def test_a_dynamic_stage_has_a_column_for_every_pool_of_its_candidates() -> None:
    assert Layout.of(PLANNED).columns == (
        Column("plan", "llm", False),
        Column("tools", "cpu", True),
        Column("tools", "llm", True),
        Column("join", "llm", False),
    )


def test_costs_are_tokens_and_seconds_by_column() -> None:
    history = History.of(PLANNED, [planned("q#1", 70, searches=2, maths=1)])

    assert history.costs[0].tolist() == [[1, 100, 70, 0], [2, 0, 0, 4.0], [1, 100, 50, 0], [1, 100, 100, 0]]
    assert history.plans[0][0].counts == {"search": 2, "math": 1}
    assert history.plans[0][0].edges == (("search", "search"), ("search", "math"))
    assert history.candidates["tools", "search"] == (2, 2, 0, 0, 4.0)


def test_work_is_made_with_the_curves_that_are_handed_in() -> None:
    history = History.of(REPAIR, [repair("q#1", draft=200, fix=50)])

    fixed, decode = history.works(CURVES)

    # 10 ms per output token; a prompt of 100 tokens is read in 0.1 us
    assert decode[0].tolist() == [2.0, 0.0, 0.5, 0.0]
    assert fixed[0] == pytest.approx([1e-7, 1.0, 1e-7, 1.0])


def test_a_stage_that_did_not_run_costs_nothing() -> None:
    history = History.of(REPAIR, [repair("q#1", 10)])

    assert history.ran[0].tolist() == [True, True, False, False]


def test_history_survives_json() -> None:
    jobs = [planned("q#1", 70, 2, 1), planned("r#1", 30, 1)]
    history = History.of(PLANNED, jobs)

    read = History.from_json(orjson.loads(orjson.dumps(history.to_json())), PLANNED)

    np.testing.assert_array_equal(read.costs, history.costs)
    np.testing.assert_array_equal(read.squares, history.squares)
    np.testing.assert_array_equal(read.numbers, history.numbers)
    assert (read.queries, read.variants, read.plans) == (history.queries, history.variants, history.plans)
    assert read.candidates == history.candidates


def test_history_of_other_stages_is_refused() -> None:
    document = History.of(REPAIR, [repair("q#1", 10)]).to_json()
    other = Application.parse({"name": "repair", "stages": [{"name": "draft", "kind": "llm"}]})

    with pytest.raises(ProfileError, match="learned from other stages than version 1 has; fit it again"):
        History.from_json(document, other)


def test_a_job_of_another_application_teaches_nothing() -> None:
    with pytest.raises(ProfileError, match=r"job 'q#1' is of application 'repair'; a profile of 'vote' learns from"):
        History.of(VOTE, [repair("q#1", 10)])


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_impossible_cost_is_told_with_its_place(seconds: float) -> None:
    job = Recording("repair", "q#1", (llm("draft", 10), regular("check", seconds, after=["draft"])))

    with pytest.raises(ProfileError, match=r"job 'q#1', stage 'check' costs .* mend or drop the job"):
        History.of(REPAIR, [job])


def test_stages_that_the_template_does_not_know_are_left_out_of_account() -> None:
    job = Recording("repair", "q#1", (llm("draft", 10), regular("check", 1.0, after=["draft"]), llm("extra", 99)))

    assert History.of(REPAIR, [job]).costs[0].sum(axis=0)[OUTPUT] == 10


# ------------------------------------------------------------------------------------------------------- evidence


def test_evidence_grows_as_the_job_goes_on() -> None:
    layout = Layout.of(REPAIR)
    patterns = [Evidence.of(layout, job).pattern for job in walk(REPAIR, repair("q#1", 200, 50))]

    assert patterns == [
        (OPEN, UNKNOWN, UNKNOWN, UNKNOWN),
        (OVER, OPEN, UNKNOWN, UNKNOWN),
        (OVER, OVER, OPEN, UNKNOWN),
        (OVER, OVER, OVER, OPEN),
    ]


def test_a_skipped_stage_is_evidence() -> None:
    """recheck is the last stage of the chain, so a job that passed at once is over when its check is."""
    template = Application.parse(
        {
            "name": "repair",
            "stages": [
                {"name": "draft", "kind": "llm"},
                {"name": "fix", "kind": "llm", "after": ["draft"], "expected": {"probability": 0.5}},
                {"name": "sum", "kind": "llm", "after": ["draft"]},
                {"name": "end", "kind": "regular", "after": ["sum"]},
            ],
        }
    )
    job = Recording(
        "repair", "q", (llm("draft", 5), llm("sum", 5, after=["draft"]), regular("end", 1.0, after=["sum"]))
    )

    assert Evidence.of(Layout.of(template), job_at(template, job, 1)).pattern == (OVER, ABSENT, OPEN, UNKNOWN)


def test_what_is_known_of_an_open_stage_is_its_tasks_and_prompts() -> None:
    evidence = Evidence.of(Layout.of(REPAIR), job_at(REPAIR, repair("q#1", 200, prompt=123), 0))

    cost = evidence.costs[0]
    assert (cost[TASKS], cost[PROMPT], cost[OUTPUT], cost[SECONDS]) == (1, 123, 0, 0)
    assert evidence.done[0] == 0


def test_a_plan_that_is_known_opens_the_columns_it_uses_and_closes_the_others() -> None:
    layout = Layout.of(PLANNED)
    job = planned("q#1", 70, searches=2)

    assert Evidence.of(layout, job_at(PLANNED, job, 0)).pattern == (OPEN, UNKNOWN, UNKNOWN, UNKNOWN)
    assert Evidence.of(layout, job_at(PLANNED, job, 1)).pattern == (OVER, OPEN, ABSENT, UNKNOWN)
    assert Evidence.of(layout, job_at(PLANNED, job, 2)).done[1] == 1
    assert Evidence.of(layout, job_at(PLANNED, job, 3)).pattern == (OVER, OVER, ABSENT, OPEN)


# ----------------------------------------------------------------------------------------------------------- walk


def test_a_walk_passes_every_stage_once_and_ends_with_the_job() -> None:
    seen = []
    for job in walk(REPAIR, repair("q#1", 200, 50)):
        seen.append([s.name for s in job.stages.values() if s.state is StageState.READY])

    assert seen == [["draft"], ["check"], ["fix"], ["recheck"]]
    assert all(stage.is_over for stage in job.stages.values())


def test_every_generated_history_can_be_walked() -> None:
    for recording in repairs(20):
        assert sum(1 for _ in walk(REPAIR, recording)) == len(recording.stages)
