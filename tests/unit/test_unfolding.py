"""A recording is dealt out as a live job would reveal itself: nothing early, nothing twice, nothing forgotten."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.catalogue import installed_applications
from llmsched.model.application import Application
from llmsched.model.events import Reveal
from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedTask, Recording
from llmsched.model.spec import StageSpec
from llmsched.model.unfolding import RecordedUnfolding, Unfolded
from llmsched.workloads.generator import generate
from llmsched.workloads.traces import read_trace, trace_path
from tests.unit.world import random_job

APPLICATIONS = installed_applications()


def deal(application: Application, recording: Recording, rng: Random) -> RecordedUnfolding:
    """Runs a recording to its end, stages completing in any order, and checks every step of it."""
    unfolding = RecordedUnfolding(application, recording)
    stages = {s.name: s for s in recording.stages}
    plans = {s.name: {i.name for i in recording.stages if i.parent == s.name} for s in recording.stages}
    revealed: list[str] = []
    skipped: list[str] = []
    over: set[str] = set()
    running: list[str] = []

    def take(new: Unfolded) -> None:
        for spec, prompt_tokens, _ in new.reveals:
            stage = stages[spec.name]
            assert (spec.kind, spec.after, spec.parent) == (stage.kind, stage.after, stage.parent)
            assert prompt_tokens == tuple(t.prompt_tokens for t in stage.tasks)
            assert bool(spec.pool) == (stage.kind is not StageKind.DYNAMIC)
            assert spec.parent in revealed or over.issuperset(spec.after), f"{spec.name} was revealed before its time"
            revealed.append(spec.name)
            if spec.kind is not StageKind.DYNAMIC:
                running.append(spec.name)
            elif not plans[spec.name]:
                over.add(spec.name)
        for name in new.skipped:
            assert over.issuperset(application[name].after), f"{name} was skipped before its time"
            over.add(name)
        skipped.extend(new.skipped)

    take(unfolding.begin())
    while running:
        done = rng.choice([name for name in running if over.issuperset(stages[name].after)])
        running.remove(done)
        over.add(done)
        parent = stages[done].parent
        if parent is not None and over.issuperset(plans[parent]):
            over.add(parent)
        take(unfolding.complete(done))
    assert sorted(revealed) == sorted(stages)
    assert sorted(skipped) == sorted(s.name for s in application.stages if s.name not in stages)
    return unfolding


# ------------------------------------------------------------------------------------------------- by hand


def template(*stages: dict[str, Any]) -> Application:
    return Application.parse({"name": "app", "stages": list(stages)})


def stage(name: str, *after: str, kind: str = "llm", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "after": list(after), **more}


def recorded(*stages: dict[str, Any]) -> Recording:
    return Recording.from_json({"app": "app", "job_id": "q#0", "stages": list(stages)})


def ran(name: str, *deps: str, prompts: tuple[int, ...] = (7,), **more: Any) -> dict[str, Any]:
    tasks = [{"prompt_tokens": p, "output_tokens": 1} for p in prompts]
    return {"name": name, "kind": "llm", "deps": list(deps), "tasks": tasks, **more}


def used(name: str, *deps: str, tool: str = "search", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "regular", "deps": list(deps), "tasks": [{"tool": tool, "duration_s": 2}], **more}


def planned(name: str, *deps: str) -> dict[str, Any]:
    return {"name": name, "kind": "dynamic", "deps": list(deps), "tasks": []}


CHAIN = template(stage("ask"), stage("think", "ask", max_tasks=2), stage("tell", "think", kind="regular"))
LOOP = template(
    stage("ask"),
    {"loop": "again", "max_iterations": 2, "after": ["ask"], "stages": [stage("try"), stage("check", "try")]},
    stage("tell", "again"),
)
PLAN = template(
    stage("plan"),
    stage(
        "tools",
        "plan",
        kind="dynamic",
        planner="plan",
        max_stages=2,
        candidates=[{"name": "search", "pool": "net"}, {"name": "math", "kind": "llm", "pool": "small"}],
    ),
    stage("join", "tools"),
)


def test_a_stage_is_revealed_with_its_prompts_when_the_stages_before_it_are_over() -> None:
    unfolding = RecordedUnfolding(
        CHAIN, recorded(ran("ask", prompts=(5,)), ran("think", "ask", prompts=(8, 9)), used("tell", "think"))
    )

    assert unfolding.begin() == Unfolded((Reveal(CHAIN["ask"], (5,)),))
    assert unfolding.complete("ask") == Unfolded((Reveal(CHAIN["think"], (8, 9)),))
    assert unfolding.complete("think") == Unfolded((Reveal(CHAIN["tell"], (0,)),))
    assert unfolding.complete("tell") == Unfolded()
    assert unfolding.task("think", 1) == RecordedTask(9, 1)
    assert unfolding.task("tell", 0) == RecordedTask(duration=2.0, tool="search")
    assert unfolding.off_profile == ()


def test_a_loop_that_ended_skips_the_rest_of_its_chain_at_once() -> None:
    unfolding = RecordedUnfolding(
        LOOP, recorded(ran("ask"), ran("try_0", "ask"), ran("check_0", "try_0"), ran("tell", "check_0"))
    )
    unfolding.begin()

    assert unfolding.complete("ask") == Unfolded((Reveal(LOOP["try_0"], (7,)),))
    assert unfolding.complete("try_0") == Unfolded((Reveal(LOOP["check_0"], (7,)),))
    tell = unfolding.complete("check_0")
    assert [(r.spec.name, r.spec.after) for r in tell.reveals] == [("tell", ("check_0",))]
    assert tell.skipped == ("try_1", "check_1")
    assert unfolding.off_profile == ()


def test_an_iteration_may_end_in_the_middle() -> None:
    unfolding = RecordedUnfolding(LOOP, recorded(ran("ask"), ran("try_0", "ask"), ran("tell", "try_0")))
    unfolding.begin()
    unfolding.complete("ask")

    end = unfolding.complete("try_0")
    assert [r.spec.name for r in end.reveals] == ["tell"]
    assert end.skipped == ("check_0", "try_1", "check_1")


def test_a_plan_is_revealed_as_a_whole_when_its_planner_is_over() -> None:
    unfolding = RecordedUnfolding(
        PLAN,
        recorded(
            ran("plan"),
            planned("tools", "plan"),
            used("first", "plan", parent="tools"),
            ran("second", "first", parent="tools"),
            ran("join", "first", "second"),
        ),
    )
    first = StageSpec("first", StageKind.REGULAR, after=("plan",), pool="net", parent="tools", candidate="search")
    second = StageSpec("second", StageKind.LLM, after=("first",), pool="llm", parent="tools", candidate="second")

    assert [r.spec.name for r in unfolding.begin().reveals] == ["plan"]
    assert unfolding.complete("plan") == Unfolded((Reveal(PLAN["tools"]), Reveal(first, (0,)), Reveal(second, (7,))))
    assert unfolding.complete("first") == Unfolded()
    assert [(r.spec.name, r.spec.after) for r in unfolding.complete("second").reveals] == [
        ("join", ("first", "second"))
    ]
    assert unfolding.off_profile == ()


def test_waiting_for_a_plan_is_waiting_for_all_of_it() -> None:
    plan = [used("one", "plan", parent="tools"), used("two", "plan", parent="tools")]
    unfolding = RecordedUnfolding(PLAN, recorded(ran("plan"), planned("tools", "plan"), *plan, ran("join", "tools")))
    unfolding.begin()
    unfolding.complete("plan")

    assert unfolding.complete("two") == Unfolded()
    assert unfolding.complete("one") == Unfolded((Reveal(PLAN["join"], (7,)),))


def test_an_empty_plan_reveals_and_skips_what_waits_for_it_at_once() -> None:
    some = RecordedUnfolding(PLAN, recorded(ran("plan"), planned("tools", "plan"), ran("join", "tools")))
    some.begin()
    assert some.complete("plan") == Unfolded((Reveal(PLAN["tools"]), Reveal(PLAN["join"], (7,))))

    none = RecordedUnfolding(PLAN, recorded(ran("plan"), planned("tools", "plan")))
    none.begin()
    assert none.complete("plan") == Unfolded((Reveal(PLAN["tools"]),), ("join",))


def test_first_stages_that_were_not_recorded_are_skipped_at_submission() -> None:
    unfolding = RecordedUnfolding(CHAIN, recorded(used("tell")))

    begin = unfolding.begin()
    assert [(r.spec.name, r.spec.after) for r in begin.reveals] == [("tell", ())]
    assert begin.skipped == ("ask", "think")


def test_stages_the_template_does_not_know_run_where_their_kind_usually_does() -> None:
    usual = template(stage("a", model="large"), stage("b", kind="regular", pool="gpu"))
    unfolding = RecordedUnfolding(usual, recorded(ran("new"), used("newer")))

    assert [(r.spec.name, r.spec.pool) for r in unfolding.begin().reveals] == [("new", "large"), ("newer", "gpu")]
    bare = RecordedUnfolding(template(stage("a", model="large")), recorded(used("new")))
    assert [r.spec.pool for r in bare.begin().reveals] == ["cpu"]


@pytest.mark.parametrize(
    ("application", "recording", "lines"),
    [
        (
            CHAIN,
            recorded(ran("ask"), ran("think", "ask", prompts=(1, 1, 1)), ran("tell", "think"), ran("more", "tell")),
            (
                "stage 'think' has 3 tasks, in the template at most 2",
                "stage 'tell' is llm, in the template it is regular",
                "stage 'more' is not in the template",
            ),
        ),
        (CHAIN, recorded(ran("ask"), used("tell", "ask")), ("stage 'think' of the template is missing",)),
        (
            PLAN,
            recorded(
                ran("plan"),
                planned("tools", "plan"),
                used("x", "plan", parent="tools"),
                used("y", "x", tool="weather", parent="tools"),
                used("z", "y", tool="weather", parent="tools"),
                ran("join", "tools"),
            ),
            (
                "the plan of 'tools' has 3 stages, in the template at most 2",
                "tool 'weather' is not a candidate of 'tools'",
                "tool 'weather' is not a candidate of 'tools'",
            ),
        ),
        (
            PLAN,
            recorded(ran("plan"), planned("tools", "plan"), ran("join", "plan", parent="tools")),
            ("stage 'join' is part of the plan of 'tools', in the template it is not",),
        ),
    ],
)  # fmt: skip
def test_differences_from_the_template_are_named(
    application: Application, recording: Recording, lines: tuple[str, ...]
) -> None:
    assert RecordedUnfolding(application, recording).off_profile == lines
    deal(application, recording, Random(0))


def test_optional_stages_may_be_missing_on_profile() -> None:
    optional = template(stage("a"), stage("b", "a", expected={"probability": 0.4}), stage("c", "b", when="more"))

    assert RecordedUnfolding(optional, recorded(ran("a"))).off_profile == ()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_any_recording_is_dealt_out_completely(seed: int) -> None:
    rng = Random(seed)
    deal(*random_job(rng), rng)


# ------------------------------------------------------------------------------------- generated and real jobs


@pytest.mark.parametrize("name", APPLICATIONS)
@pytest.mark.parametrize("parameters", ["measured", "paper"])
def test_generated_jobs_are_dealt_out_and_fit_the_installed_templates(name: str, parameters: str) -> None:
    rng = Random(f"{name} {parameters}")
    for _ in range(100):
        unfolding = deal(APPLICATIONS[name], generate(name, rng, parameters), rng)
        assert understood(name, unfolding)


@pytest.mark.skipif("LLMSCHED_TRACES" not in os.environ, reason="LLMSCHED_TRACES names no folder of real traces")
@pytest.mark.parametrize("name", APPLICATIONS)
def test_real_jobs_are_dealt_out_and_fit_the_installed_templates(name: str) -> None:
    rng = Random(name)
    for recording in read_trace(trace_path(Path(os.environ["LLMSCHED_TRACES"]), name)):
        unfolding = deal(APPLICATIONS[name], recording, rng)
        assert understood(name, unfolding), recording.job_id


def understood(name: str, unfolding: RecordedUnfolding) -> bool:
    """Whether every way in which a job differs from its template is one we know of.

    Small models plan tools that do not exist, and the one published run of document_merging was scored by hand once.
    """
    known = {
        "task_automation": lambda line: line.startswith("tool ") and line.endswith(" is not a candidate of 'tools'"),
        "document_merging": lambda line: line == "stage 'score_2' of the template is missing",
    }
    return all(name in known and known[name](line) for line in unfolding.off_profile)
