"""Replies that are not what was asked, and plans that leave their template, through the real service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmsched.testing import Call
from tests.integration.service import InProcessService, in_process_service

PLANNED = {
    "name": "planned",
    "stages": [
        {"name": "plan", "kind": "llm", "prompt": "plan it"},
        {
            "name": "tools",
            "kind": "dynamic",
            "after": ["plan"],
            "planner": "plan",
            "max_stages": 2,
            "candidates": [{"name": "echo", "handler": "echo"}],
            "off_profile": True,
            "fallback": "echo",
        },
    ],
}


async def put(service: InProcessService, definition: dict[str, Any]) -> None:
    response = await service.put(f"/v1/applications/{definition['name']}", json=definition)
    assert response.status_code == 200, response.text


def in_turn(*replies: str) -> tuple[list[Call], Callable[[Call], str]]:
    """What was asked, and a model that gives these replies one after the other."""
    calls: list[Call] = []

    def answer(call: Call) -> str:
        calls.append(call)
        return replies[len(calls) - 1]

    return calls, answer


async def test_a_model_is_told_what_is_wrong_with_its_reply_and_answers_better(tmp_path: Path) -> None:
    calls, answer = in_turn("Sure!", '[{"name": "echo", "arguments": {"x": 1}}]')
    async with in_process_service(tmp_path, emulate=1, speed=1000, answer=answer) as service:
        await put(service, PLANNED)
        job = await service.finished((await service.submit(application="planned", input=None))["id"])
        story = await service.story(job["id"])

    assert (job["status"], job["result"], job["off_profile"]) == ("completed", {"echo": {"x": 1}}, [])
    assert [len(call.messages) for call in calls] == [1, 3]
    assert calls[1].messages[1] == {"role": "assistant", "content": "Sure!"}
    assert "must answer with JSON, but: " in calls[1].last
    failed = [data for _, type, data in story if type == "task.failed"]
    assert [(f["stage"], f["attempt"], f["reason"].partition(":")[0]) for f in failed] == [("plan", 1, "bad_output")]


async def test_a_second_bad_reply_ends_the_job_with_the_error_and_the_plan(tmp_path: Path) -> None:
    plan = '[{"name": "a", "candidate": "echo", "after": ["a"]}]'
    calls, answer = in_turn(plan, plan)
    async with in_process_service(tmp_path, emulate=1, speed=1000, answer=answer) as service:
        await put(service, PLANNED)
        job = await service.finished((await service.submit(application="planned", input=None))["id"])

    assert (job["status"], len(calls)) == ("failed", 2)
    assert job["error"] == (
        "task plan[0]: bad_output: the plan for 'tools' has a cycle: tools.a -> tools.a; a stage cannot wait for itself"
        f" (asked again, it still is no good); the plan was {plan}"
    )


async def test_a_live_job_whose_plan_leaves_its_template_says_so(tmp_path: Path) -> None:
    plan = '[{"name": "a", "candidate": "echo"}, {"name": "rm", "arguments": {"of": "$a"}}, {"name": "echo"}]'
    _, answer = in_turn(plan)
    async with in_process_service(tmp_path, emulate=1, speed=1000, answer=answer) as service:
        await put(service, PLANNED)
        job = await service.finished((await service.submit(application="planned", input=None))["id"])
        story = await service.story(job["id"])

    lines = [
        "the plan for 'tools' has 3 stages, at most 2 are allowed; plan fewer or raise max_stages",
        "the plan for 'tools' uses 'rm' (stage 'tools.rm'), which is not one of its candidates: echo",
    ]
    assert (job["status"], job["off_profile"]) == ("completed", lines)
    assert job["result"] == {
        "a": {},
        "rm": {"tool": "rm", "arguments": {"of": {}}, "inputs": {"a": {}}},
        "echo": {},
    }
    expanded = [data for _, type, data in story if type == "stage.expanded"]
    assert [e["off_profile"] for e in expanded] == [lines]
