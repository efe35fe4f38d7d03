"""Sequence sorting at work: lists come out sorted although single attempts do not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from llmsched.apps.sequence_sorting import scripted
from llmsched.testing import Call
from tests.integration.applications import RunningApplication, running_application

#: Its sum is even: the script merges it right, in every third attempt.
EVEN = [3, 1, 2, 2, 9, 0, 7, 4]
#: Its sum is odd: the script loses or repeats a number in every merge.
ODD = [3, 1, 2, 2, 9, 0, 7, 5]


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[RunningApplication]:
    async with running_application(tmp_path, "sequence_sorting") as running:
        yield running


def asked(app: RunningApplication) -> dict[str, int]:
    """Calls of the model by what it was to do."""
    labels = {
        "split": "\nList to split (8 ",
        "sort": "\nList to sort (4 ",
        "merge": "\nSorted list 1 (4 ",
        "improve": "\nOriginal (8 ",
    }
    return {task: count for task, label in labels.items() if (count := sum(label in c.prompt for c in app.calls))}


def states(job: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in job["stages"]}


async def test_a_list_is_sorted_though_most_attempts_are_wrong(app: RunningApplication) -> None:
    job = await app.run({"numbers": EVEN})
    assert job["error"] is None
    assert job["result"] == {"sorted": sorted(EVEN), "errors": 0, "merge_errors": 0, "split_repaired": False}
    assert asked(app) == {"split": 1, "sort": 10, "merge": 10}
    replies = Counter(scripted.answer(c) for c in app.calls if "\nList to sort (4 " in c.prompt)
    assert len(replies) > 2, "the attempts do not differ, so that nothing was chosen"
    assert [name for name, state in states(job).items() if state == "skipped"] == ["improve", "score_i", "keep_best_i"]


async def test_what_merging_broke_is_improved(app: RunningApplication) -> None:
    job = await app.run({"numbers": ODD})
    assert job["result"] == {"sorted": sorted(ODD), "errors": 0, "merge_errors": 1, "split_repaired": False}
    assert asked(app) == {"split": 1, "sort": 10, "merge": 10, "improve": 10}
    assert set(states(job).values()) == {"done"}


async def test_without_improvements_the_errors_are_reported(app: RunningApplication) -> None:
    job = await app.run({"numbers": ODD, "improve": False, "candidates": 3, "merges": 2})
    assert job["status"] == "completed"
    assert (job["result"]["errors"], job["result"]["merge_errors"]) == (1, 1)
    assert asked(app) == {"split": 1, "sort": 6, "merge": 2}


async def test_one_attempt_each_is_put_right_at_the_end(app: RunningApplication) -> None:
    job = await app.run({"numbers": EVEN, "candidates": 1, "merges": 1})
    # Each half lost a number in its only attempt, and so did the merge.
    assert job["result"] == {"sorted": sorted(EVEN), "errors": 0, "merge_errors": 3, "split_repaired": False}
    assert asked(app) == {"split": 1, "sort": 2, "improve": 10}
    assert sum("\nSorted list 1 (3 " in c.prompt for c in app.calls) == 1


async def test_a_wrong_split_is_noticed_and_repaired(tmp_path: Path) -> None:
    def loses_one(call: Call) -> str:
        reply = json.loads(scripted.answer(call))
        return json.dumps(reply | {"second": reply["second"][1:]} if "second" in reply else reply)

    async with running_application(tmp_path, "sequence_sorting", answer=loses_one) as app:
        job = await app.run({"numbers": EVEN})
    assert job["result"] == {"sorted": sorted(EVEN), "errors": 0, "merge_errors": 0, "split_repaired": True}


async def test_improvements_that_make_it_worse_are_not_kept(tmp_path: Path) -> None:
    def gives_up(call: Call) -> str:
        return '{"numbers": []}' if "\nOriginal (8 " in call.prompt else scripted.answer(call)

    async with running_application(tmp_path, "sequence_sorting", answer=gives_up) as app:
        job = await app.run({"numbers": ODD})
    assert (job["result"]["errors"], job["result"]["merge_errors"]) == (1, 1)


@pytest.mark.parametrize(
    ("input", "why"),
    [
        ([3, 1, 2], "input is not what 'sequence_sorting' takes: [3, 1, 2] is not of type 'object'"),
        ({}, "input is not what 'sequence_sorting' takes: 'numbers' is a required property"),
        (
            {"numbers": "3, 1, 2"},
            "input.numbers is not what 'sequence_sorting' takes: '3, 1, 2' is not of type 'array'",
        ),
        ({"numbers": [3]}, "input.numbers is not what 'sequence_sorting' takes: [3] is too short"),
        ({"numbers": [0] * 129}, "input.numbers is not what 'sequence_sorting' takes: [0, 0, "),
        ({"numbers": [3, "1"]}, "input.numbers[1] is not what 'sequence_sorting' takes: '1' is not of type 'integer'"),
        ({"numbers": [3, 1.5]}, "input.numbers[1] is not what 'sequence_sorting' takes: 1.5 is not of type 'integer'"),
        ({"numbers": [3, 10**6]}, "input.numbers[1] is not what 'sequence_sorting' takes: 1000000 is greater than the"),
        ({"numbers": [3, 1], "candidates": 11}, "input.candidates is not what 'sequence_sorting' takes: 11 is greater"),
        ({"numbers": [3, 1], "improve": 1}, "input.improve is not what 'sequence_sorting' takes: 1 is not of type"),
        ({"numbers": [3, 1], "candidate": 5}, "input is not what 'sequence_sorting' takes: Additional properties are"),
    ],
)
async def test_what_is_no_list_of_numbers_is_refused(app: RunningApplication, input: Any, why: str) -> None:
    response = await app.service.post("/v1/jobs", json={"application": "sequence_sorting", "input": input})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(why)
    assert app.calls == []


async def test_a_reply_that_is_no_split_is_asked_for_again(tmp_path: Path) -> None:
    def stumbles(call: Call) -> str:
        is_first = "\nList to split (8 " in call.prompt and len(call.messages) == 2
        return '{"first": ["three"]}' if is_first else scripted.answer(call)

    async with running_application(tmp_path, "sequence_sorting", answer=stumbles) as app:
        job = await app.run({"numbers": EVEN})
    assert job["result"] == {"sorted": sorted(EVEN), "errors": 0, "merge_errors": 0, "split_repaired": False}
    assert asked(app) == {"split": 2, "sort": 10, "merge": 10}


async def test_a_model_that_never_answers_with_lists_fails_the_job(tmp_path: Path) -> None:
    def chats(call: Call) -> str:
        return "Sure, I will split it for you!"

    async with running_application(tmp_path, "sequence_sorting", answer=chats) as app:
        job = await app.run({"numbers": EVEN})
    assert job["status"] == "failed"
    assert "stage 'split' must answer with JSON" in job["error"]
    assert "it said 'Sure, I will split it for you!'" in job["error"]
