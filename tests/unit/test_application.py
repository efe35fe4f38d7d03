"""Applications as data: what a definition means, and the one sentence each mistake gets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched import catalogue
from llmsched.catalogue import installed_applications, load_application
from llmsched.errors import InvalidApplication, UnknownName
from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.spec import MAX_STAGES, Candidate, Expected, StageSpec, validate_plan

A_NAME = "a name starts with a letter and uses only letters, digits, '_', '-' and '.' (at most 64)"


def llm(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "llm", "after": list(after), **more}


def regular(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "regular", "after": list(after), **more}


def dynamic(**more: Any) -> dict[str, Any]:
    tools = {"name": "tools", "kind": "dynamic", "after": ["plan"], "planner": "plan", "candidates": ["search", "math"]}
    return tools | more


def loop(*stages: object, **more: Any) -> dict[str, Any]:
    return {"loop": "again", "max_iterations": 2, "stages": list(stages)} | more


def app(*stages: object, **more: Any) -> Application:
    return Application.parse({"name": "a", "stages": list(stages)} | more)


def shape(application: Application) -> dict[str, tuple[str, ...]]:
    return {s.name: s.after for s in application.stages}


# --------------------------------------------------------------------------------------- what a definition means


def test_stages_get_the_defaults_of_their_kind() -> None:
    application = app(llm("plan"), dynamic(), regular("end", "tools"))

    plan, tools, end = application.stages
    assert (plan.pool, tools.pool, end.pool) == ("llm", "", "cpu")
    assert (plan.tasks, plan.max_tasks, plan.retries, plan.timeout) == (1, 1, 2, None)
    assert tools.candidates == (Candidate("search"), Candidate("math"))
    assert (tools.edges, tools.max_stages) == (None, 16)
    assert plan.expected == Expected()


def test_pool_is_the_model_unless_it_is_named() -> None:
    application = app(llm("a", model="small"), llm("b", model="small", pool="big"), regular("c", pool="gpu"))

    assert [s.pool for s in application.stages] == ["small", "big", "gpu"]


def test_stages_may_stand_in_any_order_and_come_out_in_a_topological_one() -> None:
    application = app(llm("c", "b"), llm("x"), llm("b", "a"), llm("a"))

    assert [s.name for s in application.stages] == ["x", "a", "b", "c"]
    assert application.children("a") == ("b",)
    assert application.children("nobody") == ()


def test_stages_in_a_topological_order_keep_it() -> None:
    assert [s.name for s in app(llm("a"), llm("b", "a"), llm("c"), llm("d", "b")).stages] == ["a", "b", "c", "d"]


def test_a_candidate_may_say_how_its_stages_run() -> None:
    how = {"prompt": "p", "system": "s", "max_tokens": 5, "sampling": {"top_p": 1}, "response_format": {"type": "text"}}
    candidates = [
        {"name": "ask", "kind": "llm", **how},
        {"name": "call", "handler": "f", "arguments": {"x": 1}},
        {"name": "bare", "handler": "f", "arguments": {}},
        {"name": "null", "handler": "f", "arguments": None},
    ]
    tools = app(llm("plan"), dynamic(candidates=candidates, off_profile=True, fallback="g"))["tools"]

    assert tools.candidates == (
        Candidate("ask", StageKind.LLM, "llm", **how),
        Candidate("call", handler="f", arguments={"x": 1}),
        Candidate("bare", handler="f", arguments={}),
        Candidate("null", handler="f", arguments=None),
    )
    assert (tools.off_profile, tools.fallback) == (True, "g")


def test_null_counts_as_absent() -> None:
    application = app(llm("plan", timeout=None, tasks=None, pool=None, expected=None), dynamic(edges=None))

    assert application.stages == app(llm("plan"), dynamic()).stages


def test_number_of_tasks_is_open_up_to_the_limit_with_for_each() -> None:
    a, b, c = app(llm("a", for_each="x"), llm("b", tasks=3), llm("c", tasks=3, max_tasks=7)).stages

    assert [(s.tasks, s.max_tasks) for s in (a, b, c)] == [(1, 1000), (3, 3), (3, 7)]


def test_lookup_of_an_unknown_stage_names_the_nearest() -> None:
    application = app(llm("plan"), llm("join", "plan"))

    assert application["join"].after == ("plan",)
    assert "join" in application
    assert "jion" not in application
    with pytest.raises(UnknownName) as caught:
        application["jion"]
    assert str(caught.value) == "unknown stage 'jion'; did you mean 'join'? known: plan, join"


def test_digest_changes_with_the_definition_and_not_with_the_order_of_keys() -> None:
    one = Application.parse({"name": "a", "stages": [{"name": "x", "kind": "llm"}]})
    same = Application.parse({"stages": [{"kind": "llm", "name": "x"}], "name": "a"})
    other = Application.parse({"name": "a", "stages": [{"name": "x", "kind": "llm", "retries": 3}]})

    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 12


def test_application_is_executable_when_every_stage_says_how() -> None:
    prompt, handler = {"prompt": "Hi"}, {"handler": "f"}
    tools = dynamic(candidates=[{"name": "search", "handler": "f"}])

    assert app(llm("plan", **prompt), tools, regular("end", "tools", **handler)).is_executable
    assert not app(llm("plan"), tools).is_executable
    assert not app(llm("plan", **prompt), dynamic()).is_executable
    assert not app(regular("x")).is_executable


def test_application_survives_pickling() -> None:
    for application in installed_applications().values():
        again = pickle.loads(pickle.dumps(application))
        assert again == application
        assert again.children("plan") == application.children("plan")


# ---------------------------------------------------------------------------------------------- expected work


def test_expected_work_counts_tokens_of_llm_stages_and_seconds_of_regular_ones() -> None:
    # generic-7b: 8,000 prompt tokens/s and 10 ms per token; 0.5 x 4 x (800/8000 + 50 x 0.01) = 1.2; 0.5 x 3 x 2 = 3
    means = {"probability": 0.5, "prompt_tokens": 800, "output_tokens": 50, "duration": 2}
    application = app(llm("a", expected=means | {"tasks": 4}), regular("b", expected=means | {"tasks": 3}))

    assert application.expected_work(GENERIC_7B) == pytest.approx(1.2 + 3.0)


def test_a_dynamic_stage_declares_both_kinds_of_work_of_its_plan() -> None:
    # 2 planned tasks of 0.6 s LLM and 1.5 s regular work each
    means = {"tasks": 2, "prompt_tokens": 800, "output_tokens": 50, "duration": 1.5}

    assert app(llm("plan"), dynamic(expected=means)).expected_work(GENERIC_7B) == pytest.approx(2 * (0.6 + 1.5))


# ------------------------------------------------------------------------------------------------------ loops


def test_loop_is_padded_into_a_chain() -> None:
    application = app(
        llm("draft"),
        loop(llm("reflect"), llm("code", "reflect"), regular("run", "code"), first=1, after=["draft"]),
    )

    assert shape(application) == {
        "draft": (),
        "reflect_1": ("draft",),
        "code_1": ("reflect_1",),
        "run_1": ("code_1",),
        "reflect_2": ("run_1",),
        "code_2": ("reflect_2",),
        "run_2": ("code_2",),
    }
    assert [(s.loop, s.iteration) for s in application.stages] == [
        (None, None),
        *[("again", 1)] * 3,
        *[("again", 2)] * 3,
    ]


def test_waiting_for_a_loop_is_waiting_for_what_led_to_it_and_for_every_iteration() -> None:
    application = app(
        llm("draft"),
        loop(llm("x"), llm("left", "x"), llm("right", "x"), after=["draft"]),
        llm("end", "again"),
    )

    assert application["x_1"].after == ("left_0", "right_0")
    assert application["end"].after == ("draft", "left_0", "right_0", "left_1", "right_1")


def test_one_loop_may_wait_for_another_also_from_inside() -> None:
    application = app(
        loop(llm("x"), loop="first", max_iterations=1),
        loop(llm("y"), llm("z", "first", "y"), loop="second", max_iterations=1, after=["first"]),
        llm("end", "second"),
    )

    assert shape(application) == {
        "x_0": (),
        "y_0": ("x_0",),
        "z_0": ("x_0", "y_0"),
        "end": ("x_0", "z_0"),
    }


def test_stages_of_a_loop_may_wait_for_stages_outside() -> None:
    application = app(llm("a"), llm("b"), loop(llm("x", "b"), llm("y", "x", "a"), after=["a"]))

    assert shape(application) == {
        "a": (),
        "b": (),
        "x_0": ("b", "a"),
        "y_0": ("x_0", "a"),
        "x_1": ("b", "y_0"),
        "y_1": ("x_1", "a"),
    }


def test_condition_of_a_loop_is_asked_before_each_iteration() -> None:
    body = (llm("x", when="p"), llm("y"), llm("z", "x", when="q"))
    application = app(loop(*body, **{"while": "more"}))

    assert [application[n].when for n in ("x_0", "y_0", "z_0", "x_1")] == [
        "(more) and (p)",
        "more",
        "q",
        "(more) and (p)",
    ]


def test_a_planner_inside_a_loop_is_the_one_of_its_iteration() -> None:
    application = app(loop(llm("plan"), dynamic()))

    assert [(s.name, s.planner) for s in application.stages if s.kind is StageKind.DYNAMIC] == [
        ("tools_0", "plan_0"),
        ("tools_1", "plan_1"),
    ]


@pytest.mark.parametrize(
    ("continues", "chances"),
    [
        (None, [0.5, 0.5, 0.5]),
        (0.4, [0.5, 0.2, 0.08]),
        ([0.4], [0.5, 0.2, 0.08]),
        ([0.4, 0.0], [0.5, 0.2, 0.0]),
    ],
)
def test_chance_of_an_iteration_is_the_chance_of_all_before_it(continues: object, chances: list[float]) -> None:
    stage = llm("x", expected={"probability": 0.5})
    application = app(loop(stage, max_iterations=3, continues=continues))

    assert [s.expected.probability for s in application.stages] == pytest.approx(chances)


# --------------------------------------------------------------------------------------------------- mistakes

NO_PLANNER = (
    "application 'a', stage 'tools' is dynamic and needs a planner:"
    " the llm stage among ['plan'] whose output is the plan"
)

STAGE_KEYS = (
    "name, kind, model, pool, expected, tasks, after, max_tasks, retries, timeout, planner, candidates, edges,"
    " max_stages, off_profile, fallback, when, for_each, prompt, system, max_tokens, sampling, response_format,"
    " handler, arguments"
)

MISTAKES: dict[str, tuple[list[object], str]] = {
    # names and structure
    "no stages": ([], "application 'a' has no stages; give it at least one"),
    "stage is a text": (["x"], "application 'a', stages[0] must be a mapping, not 'x'"),
    "stage is null": ([None], "application 'a', stages[0] must be a mapping, not None"),
    "no name": ([{"kind": "llm"}], "application 'a', stages[0]: name is missing; it must be a text"),
    "empty name": ([{"name": ""}], "application 'a', stages[0]: name is ''; it must be a text"),
    "bad name": ([llm("1 x")], f"application 'a', stage '1 x': {A_NAME}"),
    "long name": ([llm("x" * 65)], f"application 'a', stage '{'x' * 65}': {A_NAME}"),
    "duplicate": ([llm("x"), llm("x")], "application 'a' has two stages named 'x'; names must differ"),
    "unknown parent": (
        [llm("x"), llm("y", "z")],
        "application 'a', stage 'y': unknown parent 'z' in 'after'; known: x, y",
    ),
    "unknown parent among many": (
        [*(llm(f"s{i}") for i in range(30)), llm("y", "z")],
        "application 'a', stage 'y': unknown parent 'z' in 'after'; known: "
        + ", ".join(f"s{i}" for i in range(20))
        + ", …",
    ),
    "cycle": (
        [llm("x", "z"), llm("y", "x"), llm("z", "y")],
        "application 'a' has a cycle: x -> y -> z -> x; a stage cannot wait for itself",
    ),
    "long cycle": (
        [llm(f"s{i}", f"s{(i - 1) % 12}") for i in range(12)],
        "application 'a' has a cycle: s0 -> s1 -> s2 -> s3 -> s4 -> s5 -> s6 -> s7 -> … -> s0;"
        " a stage cannot wait for itself",
    ),
    "waits for itself": (
        [llm("x", "x")],
        "application 'a' has a cycle: x -> x; a stage cannot wait for itself",
    ),
    "too many": (
        [llm(f"s{i}") for i in range(1001)],
        "application 'a' has more than 1000 stages after its loops are padded; use fewer",
    ),
    # kinds, keys and types
    "no kind": ([{"name": "x"}], "application 'a', stage 'x': kind is missing; it must be a text"),
    "bad kind": (
        [{"name": "x", "kind": "llmm"}],
        "application 'a', stage 'x': unknown kind 'llmm'; known: llm, regular, dynamic",
    ),
    "unknown key": (
        [llm("x", promt="Hi")],
        f"application 'a', stage 'x': unknown key 'promt'; did you mean 'prompt'? known: {STAGE_KEYS}",
    ),
    "misspelt key that was absent": (
        [llm("x", timeuot=3)],
        f"application 'a', stage 'x': unknown key 'timeuot'; did you mean 'timeout'? known: {STAGE_KEYS}",
    ),
    "unknown mean": (
        [llm("x", expected={"tokens": 3})],
        "application 'a', stage 'x', expected: unknown key 'tokens'; did you mean 'prompt_tokens'?"
        " known: probability, tasks, prompt_tokens, output_tokens, duration",
    ),
    "after is a text": ([{**llm("x"), "after": "y"}], "application 'a', stage 'x': after is 'y'; it must be a list"),
    "after has a number": (
        [{**llm("x"), "after": [1]}],
        "application 'a', stage 'x': after is [1]; it must be a list of names",
    ),
    "sampling is a list": (
        [llm("x", sampling=[1])],
        "application 'a', stage 'x': sampling is [1]; it must be a mapping",
    ),
    "long value": (
        [llm("x", retries="y" * 1000)],
        f"application 'a', stage 'x': retries is '{'y' * 37}...{'y' * 38}'; it must be a whole number"
        " from 0 to 1000000000",
    ),
    # bounds
    "half a task": (
        [llm("x", tasks=1.5)],
        "application 'a', stage 'x': tasks is 1.5; it must be a whole number from 0 to 1000000000",
    ),
    "true tasks": (
        [llm("x", tasks=True)],
        "application 'a', stage 'x': tasks is True; it must be a whole number from 0 to 1000000000",
    ),
    "no tasks": (
        [llm("x", tasks=0)],
        "application 'a', stage 'x': max_tasks is 0; it must be between 1 and 1000",
    ),
    "more tasks than allowed": (
        [llm("x", tasks=1001)],
        "application 'a', stage 'x': max_tasks is 1001; it must be between 1 and 1000",
    ),
    "more tasks than max_tasks": (
        [llm("x", tasks=3, max_tasks=2)],
        "application 'a', stage 'x': tasks is 3; it must be between 1 and max_tasks (2)",
    ),
    "too many retries": (
        [llm("x", retries=101)],
        "application 'a', stage 'x': retries is 101; it must be between 0 and 100",
    ),
    "negative retries": (
        [llm("x", retries=-1)],
        "application 'a', stage 'x': retries is -1; it must be a whole number from 0 to 1000000000",
    ),
    "no time": (
        [llm("x", timeout=0)],
        "application 'a', stage 'x': timeout is 0.0; it must be a positive number of seconds",
    ),
    "huge time": (
        [llm("x", timeout=1e10)],
        "application 'a', stage 'x': timeout is 10000000000.0; it must be a number from 0 to 1000000000",
    ),
    "more than certain": (
        [llm("x", expected={"probability": 1.5})],
        "application 'a', stage 'x', expected: probability is 1.5; it cannot be above 1",
    ),
    # loops
    "unbounded loop": (
        [{"loop": "again", "stages": [llm("x")]}],
        "application 'a', loop 'again' is unbounded; give it max_iterations (at most 100)",
    ),
    "loop bound is null": (
        [loop(llm("x"), max_iterations=None)],
        "application 'a', loop 'again' is unbounded; give it max_iterations (at most 100)",
    ),
    "no iterations": (
        [loop(llm("x"), max_iterations=0)],
        "application 'a', loop 'again': max_iterations is 0; it must be between 1 and 100",
    ),
    "too many iterations": (
        [loop(llm("x"), max_iterations=101)],
        "application 'a', loop 'again': max_iterations is 101; it must be between 1 and 100",
    ),
    "empty loop": ([loop()], "application 'a', loop 'again' has no stages; give it at least one"),
    "bad loop name": ([loop(llm("x"), loop="")], "application 'a', stages[0]: loop is ''; it must be a text"),
    "loop in a loop": (
        [loop(loop(llm("x")))],
        "application 'a', loop 'again', stages[0] is a loop inside a loop; unroll one of them",
    ),
    "two loops of one name": (
        [loop(llm("x")), loop(llm("y"))],
        "application 'a' has two loops named 'again'; names must differ",
    ),
    "loop and stage of one name": (
        [loop(llm("x")), llm("again")],
        "application 'a' has a loop and a stage named 'again'; names must differ",
    ),
    "duplicate in a loop": (
        [loop(llm("x"), llm("x"))],
        "application 'a' has two stages named 'x_0'; names must differ",
    ),
    "cycle in a loop": (
        [loop(llm("x", "y"), llm("y", "x"))],
        "application 'a' has a cycle: x_0 -> y_0 -> x_0; a stage cannot wait for itself",
    ),
    "unknown parent in a loop": (
        [loop(llm("x"), llm("y", "z"), max_iterations=1)],
        "application 'a', stage 'y_0': unknown parent 'z' in 'after'; known: x_0, y_0",
    ),
    "unknown key of a loop": (
        [loop(llm("x"), until="done")],
        "application 'a', loop 'again': unknown key 'until';"
        " known: loop, max_iterations, first, while, continues, after, stages",
    ),
    "loop pads to too many stages": (
        [loop(*(llm(f"s{i}") for i in range(11)), max_iterations=100)],
        "application 'a' has more than 1000 stages after its loops are padded; use fewer",
    ),
    "continues for the wrong number of iterations": (
        [loop(llm("x"), max_iterations=4, continues=[0.5, 0.5])],
        "application 'a', loop 'again': continues has 2 numbers; it must have one, or 3:"
        " one for each iteration but the first",
    ),
    "continues more than surely": (
        [loop(llm("x"), continues=1.5)],
        "application 'a', loop 'again': continues has 1.5; a chance cannot be above 1",
    ),
    "continues with a text": (
        [loop(llm("x"), continues=["often"])],
        "application 'a', loop 'again': continues is 'often'; it must be a number from 0 to 1000000000",
    ),
    # dynamic stages
    "no candidates": (
        [llm("plan"), dynamic(candidates=[])],
        "application 'a', stage 'tools' is dynamic and needs candidates: the stages a plan may choose from",
    ),
    "no planner": (
        [llm("plan"), dynamic(planner=None)],
        NO_PLANNER,
    ),
    "planner is no parent": (
        [llm("plan"), llm("other"), dynamic(planner="other")],
        NO_PLANNER,
    ),
    "planner is regular": (
        [regular("plan"), dynamic()],
        NO_PLANNER,
    ),
    "planner of an llm stage": (
        [llm("plan"), llm("x", "plan", planner="plan")],
        "application 'a', stage 'x': only a dynamic stage has candidates or a planner",
    ),
    "candidates of a regular stage": (
        [regular("x", candidates=["search"])],
        "application 'a', stage 'x': only a dynamic stage has candidates or a planner",
    ),
    "no stages allowed": (
        [llm("plan"), dynamic(max_stages=0)],
        "application 'a', stage 'tools': max_stages is 0; it must be between 1 and 1000",
    ),
    "candidate twice": (
        [llm("plan"), dynamic(candidates=["search", "math", "search"])],
        "application 'a', stage 'tools': candidate 'search' is listed 2 times; names must differ",
    ),
    "candidate of no kind": (
        [llm("plan"), dynamic(candidates=[{"name": "search", "kind": "tool"}])],
        "application 'a', stage 'tools', candidates[0] 'search': unknown kind 'tool'; known: llm, regular, dynamic",
    ),
    "dynamic candidate": (
        [llm("plan"), dynamic(candidates=[{"name": "search", "kind": "dynamic"}])],
        "application 'a', stage 'tools': candidate 'search' is dynamic; a plan cannot contain another plan",
    ),
    "candidate without a name": (
        [llm("plan"), dynamic(candidates=[{"kind": "llm"}])],
        "application 'a', stage 'tools', candidates[0]: name is missing; it must be a text",
    ),
    "unprintable candidate": (
        [llm("plan"), dynamic(candidates=["a\nb"])],
        r"application 'a', stage 'tools', candidates[0] 'a\nb': a candidate's name is at most 200 printable characters",
    ),
    "unknown key of a candidate": (
        [llm("plan"), dynamic(candidates=[{"name": "search", "inputs": ["text"]}])],
        "application 'a', stage 'tools', candidates[0] 'search': unknown key 'inputs'; did you mean 'input'?"
        " known: name, kind, pool, handler, input, output,"
        " prompt, system, max_tokens, sampling, response_format, arguments",
    ),
    "prompt of a regular candidate": (
        [llm("plan"), dynamic(candidates=[{"name": "search", "prompt": "x"}])],
        "application 'a', stage 'tools', candidates[0] 'search' is of kind regular, which has no prompt;"
        " leave it out or change the kind",
    ),
    "arguments of an llm candidate": (
        [llm("plan"), dynamic(candidates=[{"name": "ask", "kind": "llm", "arguments": {"x": 1}}])],
        "application 'a', stage 'tools', candidates[0] 'ask' is of kind llm, which has no arguments;"
        " leave it out or change the kind",
    ),
    "fallback that nothing falls back to": (
        [llm("plan"), dynamic(fallback="f")],
        "application 'a', stage 'tools': fallback 'f' is for plans that leave the candidates, which are refused here;"
        " say off_profile: true, or leave it out",
    ),
    "off_profile that is no truth": (
        [llm("plan"), dynamic(off_profile="yes")],
        "application 'a', stage 'tools': off_profile is 'yes'; it must be true or false",
    ),
    "off_profile of another kind": (
        [llm("x", off_profile=True)],
        "application 'a', stage 'x': only a dynamic stage has off_profile or a fallback",
    ),
    "edge outside the set": (
        [llm("plan"), dynamic(edges=[["search", "weather"]])],
        "application 'a', stage 'tools': edge ['search', 'weather'] names 'weather',"
        " which is not one of its candidates: search, math",
    ),
    "edge of one": (
        [llm("plan"), dynamic(edges=[["search"]])],
        "application 'a', stage 'tools': an edge is a pair of candidate names, not ['search']",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_in_the_stages_gets_its_sentence(mistake: str) -> None:
    stages, sentence = MISTAKES[mistake]

    with pytest.raises(InvalidApplication) as caught:
        app(*stages)

    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        (None, "application must be a mapping, not None"),
        ("code", "application must be a mapping, not 'code'"),
        ([], "application must be a mapping, not []"),
        ({}, "application: name is missing; it must be a text"),
        ({"name": 3}, "application: name is 3; it must be a text"),
        ({"name": "a b", "stages": [llm("x")]}, f"application 'a b': {A_NAME}"),
        ({"name": "a"}, "application 'a' has no stages; give it at least one"),
        ({"name": "a", "stages": {}}, "application 'a': stages is {}; it must be a list"),
        (
            {"name": "a", "stages": [llm("x")], "descripton": "…"},
            "application 'a': unknown key 'descripton'; did you mean 'description'?"
            " known: name, stages, description, result, input_schema",
        ),
        ({1: 2}, "the key 1 must be a text; put it in quotes"),
        ({"name": {1}}, "the value {1} cannot be stored as JSON; put it in quotes"),
        ({"name": float("nan")}, "the number nan is not finite, so it cannot be stored as JSON"),
        ({"name": 2**63}, "the definition has a number of more than 64 bits; use a smaller one"),
        ({"name": "a\0"}, r"the text 'a\x00' has characters that cannot be stored"),
        ({"name": "\ud800"}, r"the text '\ud800' has characters that cannot be stored"),
    ],
)
def test_every_mistake_in_the_definition_gets_its_sentence(definition: object, sentence: str) -> None:
    with pytest.raises(InvalidApplication) as caught:
        Application.parse(definition)

    assert str(caught.value) == sentence


def test_a_definition_that_is_nested_too_deeply_is_refused() -> None:
    deep: object = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(InvalidApplication) as caught:
        Application.parse({"name": "a", "stages": [llm("x", sampling={"deep": deep})]})

    assert str(caught.value) == "the definition is nested deeper than 50 levels; make it flatter"


def test_the_error_names_the_field() -> None:
    with pytest.raises(InvalidApplication) as caught:
        app(llm("x", tasks="many"))

    assert caught.value.field == "tasks"


_KEYS = st.sampled_from([
    "name", "stages", "kind", "after", "loop", "max_iterations", "first", "continues", "candidates", "planner", "edges",
    "expected", "tasks", "max_tasks", "timeout", "retries", "max_stages", "sampling", "input", "probability", "while",
])  # fmt: skip
_TEXTS = st.sampled_from(["a", "b", "llm", "regular", "dynamic", "again"]) | st.text(max_size=5)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=6),
    max_leaves=20,
)
_STAGE = st.fixed_dictionaries(
    {"name": _TEXTS | _JSON, "kind": st.sampled_from(["llm", "regular", "dynamic"]) | _JSON},
    optional={
        "after": st.lists(_TEXTS, max_size=3) | _JSON,
        "tasks": st.integers(0, 5) | _JSON,
        "planner": _TEXTS | _JSON,
        "candidates": st.lists(_TEXTS | _JSON, max_size=3),
        "edges": _JSON,
        "expected": _JSON,
        "timeout": _JSON,
    },
)
_LOOP = st.fixed_dictionaries(
    {
        "loop": _TEXTS | _JSON,
        "max_iterations": st.integers(0, 5) | _JSON,
        "stages": st.lists(_STAGE | _JSON, max_size=3),
    },
    optional={"after": _JSON, "first": _JSON, "continues": _JSON, "while": _JSON},
)
_DEFINITION = st.fixed_dictionaries({"name": _TEXTS, "stages": st.lists(_STAGE | _LOOP | _JSON, max_size=4)})


@settings(max_examples=200, deadline=None)
@given(_JSON | _DEFINITION)
def test_any_json_is_an_application_or_an_invalid_one(definition: object) -> None:
    try:
        application = Application.parse(definition)
    except InvalidApplication as error:
        sentence = str(error)
    else:
        sentence = "fine"
        assert Application.parse(json.loads(json.dumps(definition))) == application
        assert len(application.digest) == 12
        seen: set[str] = set()
        for stage in application.stages:
            assert seen.issuperset(stage.after)
            seen.add(stage.name)
    assert "\n" not in sentence
    assert len(sentence) < 2_000


# ------------------------------------------------------------------------------------------------------ plans

TOOLS = app(llm("plan"), dynamic(max_stages=3, edges=[["search", "math"], ["search", "search"]]))["tools"]


def planned(name: str, *after: str) -> StageSpec:
    return StageSpec(name, StageKind.REGULAR, after=after)


def test_a_plan_comes_back_in_topological_order() -> None:
    plan = [planned("sum", "one", "two"), planned("one"), planned("two", "one")]
    chosen = {"sum": "math", "one": "search", "two": "search"}

    assert [s.name for s in validate_plan(TOOLS, plan, chosen=chosen)] == ["one", "two", "sum"]
    assert validate_plan(TOOLS, []) == ()


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (
            [planned("search"), planned("weather")],
            "the plan for 'tools' uses 'weather' (stage 'weather'), which is not one of its candidates: search, math",
        ),
        (
            [planned(f"s{i}") for i in range(4)],
            "the plan for 'tools' has 4 stages, at most 3 are allowed; plan fewer or raise max_stages",
        ),
        (
            [planned("math"), planned("search", "math")],
            "the plan for 'tools' connects 'math' to 'search', which is not one of its edges",
        ),
        (
            [planned("math", "search")],
            "the plan for 'tools', stage 'math': unknown parent 'search' in 'after'; known: math",
        ),
        (
            [planned("search", "search")],
            "the plan for 'tools' has a cycle: search -> search; a stage cannot wait for itself",
        ),
        (
            [planned("search"), planned("search")],
            "the plan for 'tools' has two stages named 'search'; names must differ",
        ),
    ],
)
def test_a_plan_outside_its_bounds_is_refused(plan: list[StageSpec], sentence: str) -> None:
    with pytest.raises(InvalidApplication) as caught:
        validate_plan(TOOLS, plan)

    assert str(caught.value) == sentence


# -------------------------------------------------------------------------------------- what comes with llmsched


def test_the_six_applications_are_installed_in_their_padded_shape() -> None:
    kinds = {
        name: tuple(sum(s.kind is kind for s in application.stages) for kind in StageKind)
        for name, application in installed_applications().items()
    }

    # (llm, regular, dynamic): code_generation 1 + 1 + 4 x 2 and 1 + 4, web_search 7 x (2, 1)
    assert kinds == {
        "code_generation": (10, 5, 0),
        "document_merging": (6, 3, 0),
        "llm_compiler": (2, 0, 1),
        "sequence_sorting": (5, 10, 0),
        "task_automation": (1, 0, 1),
        "web_search": (14, 7, 0),
    }


def test_code_generation_repairs_in_a_chain() -> None:
    application = installed_applications()["code_generation"]

    assert shape(application) == {
        "test_gen": (),
        "code_gen_0": ("test_gen",),
        "code_exec_0": ("code_gen_0",),
        "reflect_1": ("code_exec_0",),
        "code_gen_1": ("reflect_1",),
        "code_exec_1": ("code_gen_1",),
        "reflect_2": ("code_exec_1",),
        "code_gen_2": ("reflect_2",),
        "code_exec_2": ("code_gen_2",),
        "reflect_3": ("code_exec_2",),
        "code_gen_3": ("reflect_3",),
        "code_exec_3": ("code_gen_3",),
        "reflect_4": ("code_exec_3",),
        "code_gen_4": ("reflect_4",),
        "code_exec_4": ("code_gen_4",),
    }


def test_task_automation_chooses_from_both_domains() -> None:
    tools = installed_applications()["task_automation"]["tools"]

    assert len(tools.candidates) == 23 + 40 - 3  # three tools are in both domains
    types = {c.name: (c.input, c.output) for c in tools.candidates}
    assert types["Image Editing"] == (("text", "image"), ("image",))
    assert types["Image Search (by Image)"] == (("image",), ("image",))
    assert types["Audio Splicer"] == (("audio", "audio"), ("audio",))


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        # means over the public recorded jobs: prompt tokens / 8,000 + output tokens x 10 ms + regular seconds
        ("sequence_sorting", 17777.6 / 8000 + 18.763 + 0.0886),
        ("document_merging", 235500.7 / 8000 + 344.140 + 0.03),
        ("code_generation", 3532.5 / 8000 + 5.358 + 0.2262),
        ("web_search", 18116.5 / 8000 + 1.669 + 2.7332),
        ("task_automation", 2443.2 / 8000 + 2.593 + 9.3198),
        ("llm_compiler", 2696.7 / 8000 + 1.791 + 2.3396),
    ],
)
def test_declared_means_add_up_to_the_recorded_mean_work(name: str, seconds: float) -> None:
    # 3 %: the means stand rounded to two digits in the templates
    assert installed_applications()[name].expected_work(GENERIC_7B) == pytest.approx(seconds, rel=0.03)


def test_the_catalogue_hands_out_copies() -> None:
    installed_applications().clear()

    assert len(installed_applications()) == 6


# -------------------------------------------------------------------------------------------------------- files

YAML = """
name: a
stages:
  - {name: x, kind: llm}
  - name: y
    kind: regular
    after: [x]
"""


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "stages": [llm("x"), regular("y", "x")]}))

    assert (
        load_application(tmp_path / "a.yaml")
        == load_application(tmp_path / "a.json")
        == app(llm("x"), regular("y", "x"))
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "name: a\nstages: []\nname: b\n",
            ", line 3, column 1: the key 'name' stands twice in one mapping; keep one",
        ),
        (
            "name: a\nstages: [&s {name: x, kind: llm}, *s]\n",
            ", line 2, column 35: the alias *s is not allowed; write the value out",
        ),
        ("name: [a\n", ", line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        (
            "name: 2024-01-01\nstages: [{name: x, kind: llm}]\n",
            f": application '2024-01-01': {A_NAME}",  # no date: JSON has none
        ),
        ("name: a\n1: x\n", ": the key 1 must be a text; put it in quotes"),
        ("? [a, b]\n: x\n", ", line 1, column 3: found unhashable key"),
        (
            "name: !!python/name:os.system x\n",
            ", line 1, column 7: could not determine a constructor for the tag"
            " 'tag:yaml.org,2002:python/name:os.system'",
        ),
        ("", ": application must be a mapping, not None"),
        (
            "name: a\nstages: [{name: x, kind: lm}]\n",
            ": application 'a', stage 'x': unknown kind 'lm'; known: llm, regular, dynamic",
        ),
        ("[" * 10_000, " is nested too deeply to be an application"),
        ("a: " + "x" * 1_000_000, " is larger than 1,000,000 bytes, so it is not an application"),
        (
            "name: \x07",
            " is not YAML: unacceptable character #x0007: special characters are not allowed in"
            ' "<byte string>", position 6',
        ),
    ],
)
def test_a_bad_yaml_file_is_refused_by_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path / "a.yaml", text) == f"{tmp_path / 'a.yaml'}{sentence}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"name": "a", "name": "b"}', ": the key 'name' stands twice in one object; keep one"),
        (
            "{",
            " is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        ("[" * 100_000, " is nested too deeply to be an application"),
    ],
)
def test_a_bad_json_file_is_refused_by_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path / "a.json", text) == f"{tmp_path / 'a.json'}{sentence}"


def refusal(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(InvalidApplication) as caught:
        load_application(file)
    return str(caught.value)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidApplication) as caught:
        load_application(tmp_path / "none.yaml")

    assert str(caught.value) == f"{tmp_path / 'none.yaml'} cannot be read: No such file or directory"


def test_a_billion_laughs_are_not_funny(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (tmp_path / "a.yaml").write_text("\n".join(lines))

    with pytest.raises(InvalidApplication, match="line 2, column 8: the alias \\*a is not allowed"):
        load_application(tmp_path / "a.yaml")


def test_the_templates_of_a_checkout_are_the_ones_a_wheel_carries() -> None:
    folder = Path(catalogue.__file__).parent.parent / "apps"
    if not folder.is_dir():
        pytest.skip("installed from a wheel")

    for name, application in installed_applications().items():
        assert load_application(folder / name / "application.yaml") == application
        assert len(application.stages) <= MAX_STAGES
