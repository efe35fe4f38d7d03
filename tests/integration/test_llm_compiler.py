"""llm_compiler at work: right answers, calls in parallel, plans that are no good, and replanning."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llmsched.apps.llm_compiler import dataset, scorer, scripted
from llmsched.catalogue import load_application
from llmsched.testing import Answer, Call
from tests.integration.applications import RunningApplication, running_application

FOLDER = Path(dataset.__file__).parent
TOWERS = "Which tower is higher, the Eiffel Tower or Tokyo Tower?"
RIVERS = "If the Rhine were 10% shorter and the Elbe 20% longer, which of the two rivers would be longer?"
MOUNTAINS = (
    "If Mount Kenya grew by 10% and Mont Blanc lost 5% of its height, what would be the difference in their heights in"
    " metres?"
)


def a_plan(*stages: tuple[str, str, dict[str, Any], list[str]]) -> str:
    return json.dumps({"stages": [{"name": n, "candidate": c, "arguments": a, "after": p} for n, c, a, p in stages]})


def is_planned(call: Call) -> bool:
    return "Write the plan" in call.messages[1]["content"]


async def happened(app: RunningApplication, job: dict[str, Any]) -> list[tuple[str, str]]:
    """What happened to stages, in order: (started or completed, stage)."""
    story = await app.service.story(job["id"])
    return [(type.removeprefix("stage."), data["stage"]) for _, type, data in story if type.startswith("stage.")]


# ------------------------------------------------------------------------------------------------ answers to questions


async def test_examples_are_answered_right(tmp_path: Path) -> None:
    scores = {}
    async with running_application(tmp_path, "llm_compiler") as app:
        for sample in dataset.load(FOLDER / "examples.json"):
            job = await app.run(sample.input)
            assert job["status"] == "completed", job["error"]
            scores[sample.id] = scorer.score(job["result"], sample.reference)
    assert scores == dict.fromkeys(scores, 1.0)
    assert len(scores) == 6


async def test_numbers_come_from_pages_through_calculations_into_the_answer(tmp_path: Path) -> None:
    async with running_application(tmp_path, "llm_compiler") as app:
        job = await app.run({"question": MOUNTAINS})
    result = job["result"]
    assert result["results"]["1"].startswith("Mount Kenya: Mount Kenya is an extinct volcano")
    assert {name: result["results"][name] for name in ("3", "4", "5")} == {
        "3": {"working": "5199 * 1.1 = 5718.9", "answer": 5718.9},
        "4": {"working": "4806 * 0.95 = 4565.7", "answer": 4565.7},
        "5": {"working": "5718.9 - 4565.7 = 1153.2", "answer": 1153.2},
    }
    assert (result["answer"], len(result["plan"])) == ("1153.2", 5)
    last_problem = next(call.last for call in app.calls if "Take the difference" in call.last)
    assert last_problem == "Given: 5718.9\nGiven: 4565.7\nProblem: Take the difference of the two heights."


async def test_calls_that_do_not_need_each_other_run_at_the_same_time(tmp_path: Path) -> None:
    async with running_application(tmp_path, "llm_compiler") as app:
        job = await app.run({"question": RIVERS})
        order = [step for step in await happened(app, job) if "." in step[1]]
    # Both searches begin before either ends; a calculation waits for its own search only.
    assert order[:2] == [("started", "tasks.1"), ("started", "tasks.2")]
    at = {step: place for place, step in enumerate(order)}
    assert at["started", "tasks.3"] > at["completed", "tasks.1"]
    assert at["started", "tasks.4"] > at["completed", "tasks.2"]
    assert len(order) == 8


async def test_an_answer_breaks_when_the_pages_do_not_say_it(tmp_path: Path) -> None:
    def elsewhere(call: Call) -> str:
        if is_planned(call):
            return a_plan(("1", "search", {"query": "Kilimanjaro"}, []), ("2", "search", {"query": "Danube"}, []))
        return scripted.answer(call)

    async with running_application(tmp_path, "llm_compiler", answer=elsewhere) as app:
        job = await app.run({"question": TOWERS})
    assert (job["status"], job["result"]["answer"]) == ("completed", None)
    assert scorer.score(job["result"], {"answer": "Tokyo Tower"}) == 0.0


# ----------------------------------------------------------------------------------------------- plans that are no good


async def test_a_plan_outside_the_candidates_is_asked_for_again(tmp_path: Path) -> None:
    bad = a_plan(("1", "browse", {"query": "Eiffel Tower"}, []))

    def repenting(call: Call) -> str:
        return bad if is_planned(call) and len(call.messages) == 2 else scripted.answer(call)

    async with running_application(tmp_path, "llm_compiler", answer=repenting) as app:
        job = await app.run({"question": TOWERS})
    assert (job["status"], job["result"]["answer"], len(app.calls)) == ("completed", "Tokyo Tower", 3)
    assert app.calls[1].messages[2]["content"] == bad
    assert "That answer cannot be used" in app.calls[1].last


async def test_a_plan_outside_the_candidates_fails_the_job_with_the_plan_when_it_is_insisted_on(tmp_path: Path) -> None:
    bad = a_plan(("1", "browse", {"query": "Eiffel Tower"}, []))
    async with running_application(tmp_path, "llm_compiler", answer=lambda call: bad) as app:
        job = await app.run({"question": TOWERS})
    assert (job["status"], len(app.calls)) == ("failed", 2)
    assert "browse" in job["error"]
    assert "Eiffel Tower" in job["error"], "the plan is told"


async def test_a_plan_that_waits_for_itself_is_asked_for_again_and_never_run(tmp_path: Path) -> None:
    bad = a_plan(("1", "math", {"problem": "Add 1 to $2."}, []), ("2", "math", {"problem": "Add 1 to $1."}, []))
    async with running_application(tmp_path, "llm_compiler", answer=lambda call: bad) as app:
        job = await app.run({"question": TOWERS})
        started = [stage for step, stage in await happened(app, job) if step == "started"]
    assert (job["status"], len(app.calls)) == ("failed", 2)
    assert "has a cycle: " in job["error"]
    assert set(started) == {"plan"}


async def test_a_calculation_that_is_no_number_is_asked_for_again(tmp_path: Path) -> None:
    def vague(call: Call) -> str:
        if "Problem: Take the difference" in call.prompt and len(call.messages) == 2:
            return '{"working": "", "answer": "a lot"}'
        return scripted.answer(call)

    async with running_application(tmp_path, "llm_compiler", answer=vague) as app:
        job = await app.run({"question": MOUNTAINS})
    assert (job["status"], job["result"]["answer"], len(app.calls)) == ("completed", "1153.2", 6)


# --------------------------------------------------------------------------------------------------------- replanning


@asynccontextmanager
async def replanning(folder: Path, answer: Answer = scripted.answer) -> AsyncIterator[RunningApplication]:
    async with running_application(folder, "llm_compiler_replan", answer=answer) as app:
        definition = load_application(FOLDER / "replanning.yaml").definition
        response = await app.service.put("/v1/applications/llm_compiler_replan", json=definition)
        assert response.status_code == 200, response.text
        yield app


async def test_what_a_first_plan_cannot_know_is_found_by_a_second(tmp_path: Path) -> None:
    async with replanning(tmp_path) as app:
        job = await app.run({"question": scripted.HAMBURG})
    assert job["status"] == "completed", job["error"]
    result = job["result"]
    assert result["answer"] == "642"  # 1,094 - 452
    assert [[stage["arguments"] for stage in round["plan"]] for round in result["rounds"]] == [
        [{"query": "Weser"}, {"query": "Hamburg"}],
        [
            {"query": "Elbe"},
            {
                "problem": "Take the difference of the two lengths in kilometres.",
                "context": ["$1", "The Weser is 452 kilometres long."],
            },
        ],
    ]
    assert [round["join"]["action"] for round in result["rounds"]] == ["replan", "finish"]
    # The second planner reads what the first plan found and what is missing.
    second = next(call.last for call in app.calls if "Write plan 2" in call.last)
    assert "\nPlan 1:\nsearch[Weser]: Weser: The Weser is a river" in second
    assert f"\nMissing: {result['rounds'][0]['join']['thought']}\n" in second


async def test_without_replanning_the_same_question_has_no_answer(tmp_path: Path) -> None:
    async with running_application(tmp_path, "llm_compiler") as app:
        job = await app.run({"question": scripted.HAMBURG})
    assert (job["status"], job["result"]["answer"]) == ("completed", None)
    assert job["result"]["thought"] == ("Hamburg lies on the Elbe, and the length of the Elbe is not in the results.")


async def test_a_joiner_that_is_never_content_is_stopped_after_three_plans(tmp_path: Path) -> None:
    def never(call: Call) -> str:
        if "Write plan" in call.last:
            return a_plan(("1", "search", {"query": "Danube"}, []))
        return '{"thought": "I need more.", "action": "replan", "answer": ""}'

    async with replanning(tmp_path, never) as app:
        job = await app.run({"question": TOWERS})
    assert (job["status"], job["result"]["answer"]) == ("completed", None)
    assert (len(job["result"]["rounds"]), len(app.calls)) == (3, 6)
    assert ["There is no further plan" in call.last for call in app.calls] == [False] * 5 + [True]
