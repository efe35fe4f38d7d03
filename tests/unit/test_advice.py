"""What a template says about itself: handlers, variables as profiles have them, and advice with its counter-example."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from llmsched.advice import advice_on, features_of, handlers_of, variables_of, why_recordings_only
from llmsched.catalogue import installed_applications
from llmsched.model.application import Application
from llmsched.profiler import fit
from llmsched.runtime.tools.handlers import build_registry
from llmsched.workloads.generator import generate

HANDLERS = build_registry(installed=False)
EXPECTED = {"prompt_tokens": 1, "output_tokens": 1}


def an_llm(name: str = "ask", **more: Any) -> dict[str, Any]:
    """A stage with nothing to object to, except for what `more` says."""
    return {"name": name, "kind": "llm", "prompt": "{{ input.text }}", "max_tokens": 5, "expected": EXPECTED} | more


def a_regular(name: str = "do", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "regular", "handler": "echo", "expected": {"duration": 1}} | more


def said_of(*stages: dict[str, Any], **top: Any) -> list[str]:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    application = Application.parse({"name": "a", "input_schema": schema, "stages": list(stages)} | top)
    return [str(advice) for advice in advice_on(application, HANDLERS)]


# ----------------------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("name", installed_applications())
def test_variables_are_those_of_a_learned_network(name: str) -> None:
    application = installed_applications()[name]
    rng = Random(0)
    profile = fit(application, [generate(name, rng) for _ in range(60)], estimator="bayesnet")
    assert profile.network is not None
    learned = profile.network.variables
    ran = {
        c.stage for c, runs in zip(profile.history.layout.columns, profile.history.ran.any(axis=0), strict=True) if runs
    }

    declared = {v.stage: v.role for v in variables_of(application)}
    assert list(declared) == [v.name for v in learned if v.is_stage]
    assert {v.name: v.role for v in learned if v.name in ran} == {k: v for k, v in declared.items() if k in ran}
    assert {v.name for v in learned if not v.is_stage} <= set(features_of(application))


def test_a_plan_is_one_variable_in_all_pools_it_may_reach() -> None:
    (tasks,) = (v for v in variables_of(installed_applications()["llm_compiler"]) if v.role == "plan")

    assert (tasks.stage, tasks.pools) == ("tasks", ("cpu", "llm"))


# ------------------------------------------------------------------------------------------------- what it needs


def test_handlers_are_named_with_the_stages_that_call_them() -> None:
    loop = {"loop": "l", "max_iterations": 3, "stages": [a_regular("inner", handler="sleep")]}
    planner = an_llm("plan")
    dynamic = {
        "name": "tools",
        "kind": "dynamic",
        "after": ["plan"],
        "planner": "plan",
        "candidates": [{"name": "c", "handler": "sleep"}, {"name": "l", "kind": "llm"}],
        "off_profile": True,
        "fallback": "echo",
    }
    application = Application.parse({"name": "a", "stages": [a_regular(), loop, planner, dynamic]})

    assert handlers_of(application) == {"echo": ["do", "tools"], "sleep": ["inner", "tools"]}


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ({"name": "s", "kind": "llm"}, "stage 's' has no prompt"),
        ({"name": "s", "kind": "regular"}, "stage 's' has no handler"),
        (
            {"name": "s", "kind": "dynamic", "after": ["ask"], "planner": "ask", "candidates": ["c"]},
            "candidate 'c' of stage 's' has no handler",
        ),
        (a_regular("s"), None),
    ],
)
def test_recordings_only_has_a_reason(stage: dict[str, Any], why: str | None) -> None:
    assert why_recordings_only(Application.parse({"name": "a", "stages": [an_llm(), stage]})) == why


# -------------------------------------------------------------------------------------------------------- advice


def test_a_careful_application_gets_no_advice() -> None:
    careful = [
        an_llm(),
        a_regular(after=["ask"], arguments={"text": "{{ stages.ask }}"}),
        {
            "loop": "repair",
            "max_iterations": 2,
            "after": ["do"],
            "while": "iteration == 0 or not last.passed",
            "stages": [
                an_llm("fix", prompt="{% if iteration %}{{ stages.check }}{% endif %}{{ last }}"),
                a_regular("check", after=["fix"], arguments={"text": "{{ stages.fix }}"}),
            ],
        },
        an_llm("end", after=["repair"], prompt="{{ stages.fix | default('none') }}{{ input.note | default('') }}"),
    ]

    assert said_of(*careful) == []


@pytest.mark.parametrize(
    ("stages", "top", "advice"),
    [
        (
            [an_llm(expected={})],
            {},
            "no `expected` for ask: until 10 jobs are learned from, their work counts as 0",
        ),
        (
            [an_llm()],
            {"input_schema": None},
            "no `input_schema`: a job with a wrong input fails on its way, and not when it is submitted",
        ),
        (
            [an_llm(prompt="{{ input.txt }}{{ input.text }}")],
            {},
            "stage 'ask' reads input.txt in prompt, which `input_schema` does not declare",
        ),
        (
            [an_llm()],
            {"input_schema": {"properties": {"text": {}}}},
            "stage 'ask' reads input.text in prompt, which is not required: a job without it fails there;"
            " require it, or guard it with default",
        ),
        ([an_llm(prompt="hello")], {}, "input.text is declared and never read"),
        (
            [an_llm(max_tokens=None)],
            {},
            "stage 'ask' has no max_tokens: its answer ends where the model or its context does",
        ),
        (
            [an_llm(for_each="input.text")],
            {},
            "stage 'ask' has for_each without max_tasks: up to 1000 tasks in parallel",
        ),
        (
            [{"loop": "l", "max_iterations": 2, "stages": [an_llm("x", prompt="{{ stages.x }}{{ input.text }}")]}],
            {},
            "stage 'x' reads stages.x in prompt, which is not there in round 0;"
            " look at iteration first, or guard it with default",
        ),
        (
            [an_llm(), a_regular(after=["ask"])],
            {},
            "stage 'ask' asks the model, and nothing reads its answer",
        ),
        ([an_llm(), an_llm("x")], {}, "no `result`: a job's result is an object with the outputs of ask, x"),
        (
            [an_llm(), a_regular(handler="nap", after=["ask"], arguments={"x": "{{ last }}"})],
            {},
            "stage 'do' calls handler 'nap', which is not registered here; a service needs it in `handlers`",
        ),
        (
            [an_llm(), a_regular(handler="sleep", after=["ask"], arguments={"x": "{{ last }}"})],
            {},
            "stage 'do' gives handler 'sleep' no argument 'seconds', which it requires",
        ),
        (
            [
                an_llm(),
                {
                    "name": "tools",
                    "kind": "dynamic",
                    "after": ["ask"],
                    "planner": "ask",
                    "candidates": [{"name": "c", "handler": "echo"}],
                    "expected": {"duration": 1},
                },
            ],
            {},
            "stage 'ask' plans without a response_format: nothing makes the model answer with a plan",
        ),
    ],
)
def test_advice(stages: list[dict[str, Any]], top: dict[str, Any], advice: str) -> None:
    assert said_of(*stages, **top) == [advice]


def test_recordings_only_need_no_prompts_that_are_right() -> None:
    assert said_of({"name": "s", "kind": "llm", "expected": EXPECTED}, input_schema=None) == []
