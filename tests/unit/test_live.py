"""Live jobs: what templates see, how loops, conditions and plans unfold, and what is refused in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from llmsched.errors import InvalidApplication, InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import PromptText, describe
from llmsched.model.spec import MAX_ITERATIONS, MAX_STAGES, MAX_TASKS
from llmsched.model.unfolding import Unfolded
from llmsched.runtime.scripts import checking, metered, replies
from llmsched.runtime.scripts.live import LiveScript, check_templates
from llmsched.runtime.scripts.plans import read_plan
from llmsched.runtime.scripts.replies import BadReply
from llmsched.runtime.tools.handlers import build_registry
from llmsched.runtime.tools.workers import WorkerTask

REGISTRY = build_registry(installed=False)
ROOT = Path(__file__).parents[2]
#: Everything a definition may say.
KEYS = """
    name description input_schema stages result kind after when for_each tasks max_tasks retries timeout pool model
    prompt system max_tokens sampling response_format handler arguments expected planner candidates edges max_stages
    off_profile fallback loop max_iterations first while continues input output probability prompt_tokens
    output_tokens duration
"""


def an_application(*stages: dict[str, Any], **top: Any) -> Application:
    application = Application.parse({"name": "app", "stages": list(stages), **top})
    check_templates(application, REGISTRY)
    return application


def llm(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "llm", "after": list(after), "prompt": f"do {name}", **more}


def echo(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "regular", "after": list(after), "handler": "echo", **more}


def script(*stages: dict[str, Any], input: Any = None, **top: Any) -> LiveScript:
    return LiveScript("job_1", an_application(*stages, **top), input)


def shown(unfolded: Unfolded) -> tuple[list[tuple[str, int]], list[str]]:
    """Revealed stages with their numbers of tasks, and skipped ones."""
    return [(r.spec.name, len(r.prompt_tokens)) for r in unfolded.reveals], list(unfolded.skipped)


def prompt(live: LiveScript, stage: str, index: int = 0) -> str:
    messages = live.llm(stage, index).messages
    assert messages is not None
    return str(messages[-1]["content"])


def arguments(live: LiveScript, stage: str, index: int = 0) -> dict[str, Any]:
    work = live.work(stage, index)
    assert isinstance(work, WorkerTask)
    return work.arguments


# ------------------------------------------------------------------------------------------ prompts and arguments


def test_prompts_see_the_input_and_earlier_outputs() -> None:
    live = script(
        llm("draft", prompt="Summarise {{ input.text }}", system="You are {{ input.tone }}.", max_tokens=20),
        llm("polish", "draft", prompt="{{ last }} / {{ stages.draft }}", sampling={"top_p": 0.5}),
        input={"text": "this", "tone": "kind"},
    )
    assert shown(live.begin()) == ([("draft", 1)], [])
    request = live.llm("draft", 0)
    assert request.messages == [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "Summarise this"},
    ]
    assert request.max_tokens == 20
    assert shown(live.complete("draft", ["that"])) == ([("polish", 1)], [])
    assert prompt(live, "polish") == "that / that"
    assert live.llm("polish", 0).extra == {"top_p": 0.5}
    assert shown(live.complete("polish", ["done"])) == ([], [])
    assert live.result() == "done"


def test_an_argument_that_is_one_expression_keeps_its_type() -> None:
    live = script(
        echo(
            "e",
            arguments={
                "n": "{{ input.n }}",
                "tight": "{{- input.n -}}",
                "text": "n={{ input.n }}",
                "both": "{{ input.n }}{{ input.n }}",
                "deep": [{"list": "{{ input.rows | map(attribute='a') }}"}, 7, None],
                "made": "{{ {'a': input.n} }}",
            },
        ),
        input={"n": 3, "rows": [{"a": 1}, {"a": 2}]},
    )
    live.begin()
    assert arguments(live, "e") == {
        "n": 3,
        "tight": 3,
        "text": "n=3",
        "both": "33",
        "deep": [{"list": [1, 2]}, 7, None],
        "made": {"a": 3},
    }
    assert live.tool("e", 0) == "echo"


def test_keys_of_the_input_win_over_methods_of_a_dict() -> None:
    live = script(llm("each", for_each="input.items", prompt="{{ item }}"), input={"items": ["a", "b"]})
    assert shown(live.begin()) == ([("each", 2)], [])
    assert prompt(live, "each", 1) == "b"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{{ input.nope }}", "stage 'e', arguments: 'dict object' has no attribute 'nope'"),
        ("{{ {'a': input.nope} }}", "stage 'e', arguments: 'dict object' has no attribute 'nope'"),
        ("{{ input.keys }}", "stage 'e', arguments: it gives a builtin_function_or_method, which JSON does not have"),
        ("x {{ input.nope }}", "stage 'e', arguments: 'dict object' has no attribute 'nope'"),
        ("{{ input['n'] + 1 }}", "stage 'e', arguments: can only concatenate str (not \"int\") to str"),
    ],
)
def test_what_a_template_cannot_say_is_one_sentence(value: str, why: str) -> None:
    live = script(echo("e", arguments={"x": value}), input={"n": "three"})
    live.begin()
    with pytest.raises(InvalidInput) as error:
        live.work("e", 0)
    assert str(error.value) == why


@pytest.mark.parametrize(
    "template",
    [
        "{{ input.__class__ }}",
        "{{ input.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ (input | attr('__class__')) }}",
        "{{ '{0.__class__}'.format(input) }}",
        "{{ stages.clear() }}",
        "{{ input.rows.append(1) }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_the_sandbox_lets_nothing_out_and_changes_nothing(template: str) -> None:
    given = {"rows": [0]}
    live = LiveScript("job_1", Application.parse({"name": "app", "stages": [llm("a", prompt=template)]}), given)
    live.begin()
    with pytest.raises(InvalidInput, match=r"^stage 'a', prompt: "):
        live.llm("a", 0)
    assert given == {"rows": [0]}


def test_prompts_are_not_templates_twice() -> None:
    live = script(llm("a", prompt="{{ input }}"), input="{{ 1 + 1 }} {% raise %}")
    live.begin()
    assert prompt(live, "a") == "{{ 1 + 1 }} {% raise %}"


# ------------------------------------------------------------------------------- conditions, parallel tasks, skips


def test_a_skip_cascades_but_a_stage_with_another_parent_runs() -> None:
    live = script(
        llm("a"),
        llm("b", "a", when="stages.a == 'go'"),
        llm("c", "b"),
        llm("d", "a", "c", prompt="{{ stages.b }} {{ stages.c }} {{ last }}"),
        llm("e", "c"),
        result="[stages.c, stages.d]",
    )
    live.begin()
    assert shown(live.complete("a", ["stop"])) == ([("d", 1)], ["b", "c", "e"])
    assert prompt(live, "d") == "None None stop"
    live.complete("d", ["end"])
    assert live.result() == [None, "end"]


def test_for_each_makes_parallel_tasks_and_their_outputs_a_list() -> None:
    live = script(
        llm("split"),
        llm("each", "split", for_each="range(2)", prompt="{{ index }}:{{ item }}"),
        llm("one", "split", for_each="[stages.split]"),
        llm("none", "split", for_each="[]"),
        llm("fixed", "split", tasks=3, prompt="{{ index }}"),
        llm("join", "each", "one", "none", "fixed", prompt="{{ stages.each | join('+') }} {{ stages.one[0] }}"),
    )
    live.begin()
    assert shown(live.complete("split", ["s"])) == ([("each", 2), ("one", 1), ("fixed", 3)], ["none"])
    assert [prompt(live, "each", k) for k in range(2)] == ["0:0", "1:1"]
    assert prompt(live, "fixed", 2) == "2"
    live.complete("each", ["x", "y"])
    live.complete("one", ["z"])
    assert shown(live.complete("fixed", ["1", "2", "3"])) == ([("join", 1)], [])
    assert prompt(live, "join") == "x+y z"


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("input.rows", "stage 'each': for_each gives 5 items, at most 3 are allowed (max_tasks)"),
        ("input.text", "stage 'each': for_each gives 'abc', it must give a list"),
        ("input", "stage 'each': for_each gives {'rows': [1, 2, 3, 4, 5], 'text': 'abc'}, it must give a list"),
        ("input.nope", "stage 'each', for_each: 'dict object' has no attribute 'nope'"),
    ],
)
def test_a_for_each_that_cannot_be_is_refused_at_submission(expression: str, why: str) -> None:
    live = script(llm("each", for_each=expression, max_tasks=3), input={"rows": [1, 2, 3, 4, 5], "text": "abc"})
    with pytest.raises(InvalidInput) as error:
        live.begin()
    assert str(error.value) == why


# --------------------------------------------------------------------------------------------------------- loops

REPAIR = (
    llm("code", prompt="write"),
    echo("check", "code"),
    {
        "loop": "repair",
        "first": 1,
        "max_iterations": 2,
        "after": ["check"],
        "while": "not last.ok",
        "stages": [
            llm("fix", prompt="{{ iteration }}: {{ stages.fix if 'fix' in stages else stages.code }}"),
            echo("test", "fix", arguments={"code": "{{ stages.fix }}"}),
        ],
    },
    llm("tell", "repair", prompt="{{ last.ok }} {{ stages.fix }} {{ stages.fix_1 }} {{ stages.test }}"),
)


def test_a_loop_goes_on_while_its_condition_holds() -> None:
    live = script(*REPAIR)
    live.begin()
    live.complete("code", ["v0"])
    assert shown(live.complete("check", [{"ok": False}])) == ([("fix_1", 1)], [])
    assert prompt(live, "fix_1") == "1: v0"
    live.complete("fix_1", ["v1"])
    assert arguments(live, "test_1") == {"code": "v1"}
    assert shown(live.complete("test_1", [{"ok": False}])) == ([("fix_2", 1)], [])
    assert prompt(live, "fix_2") == "2: v1"
    live.complete("fix_2", ["v2"])
    assert shown(live.complete("test_2", [{"ok": True}])) == ([("tell", 1)], [])
    assert prompt(live, "tell") == "True v2 v1 {'ok': True}"


def test_a_loop_that_ends_early_skips_the_rest_and_keeps_its_newest_outputs() -> None:
    live = script(*REPAIR)
    live.begin()
    live.complete("code", ["v0"])
    live.complete("check", [{"ok": False}])
    live.complete("fix_1", ["v1"])
    assert shown(live.complete("test_1", [{"ok": True}])) == ([("tell", 1)], ["fix_2", "test_2"])
    assert prompt(live, "tell") == "True v1 v1 {'ok': True}"


def test_a_loop_that_never_runs_leaves_none_under_its_names() -> None:
    live = script(*REPAIR)
    live.begin()
    live.complete("code", ["v0"])
    assert shown(live.complete("check", [{"ok": True}])) == ([("tell", 1)], ["fix_1", "test_1", "fix_2", "test_2"])
    assert prompt(live, "tell") == "True None None None"


# --------------------------------------------------------------------------------------------------------- plans

PLANNED = (
    llm("plan"),
    {
        "name": "tools",
        "kind": "dynamic",
        "after": ["plan"],
        "planner": "plan",
        "candidates": [
            {"name": "search", "handler": "echo"},
            {"name": "sum", "handler": "echo"},
            {"name": "ask", "kind": "llm"},
        ],
        "edges": [["search", "sum"], ["search", "ask"], ["sum", "sum"]],
        "max_stages": 3,
    },
    llm("join", "tools", prompt="{{ stages.tools }}"),
)


def planned(plan: Any) -> tuple[LiveScript, Callable[[], Unfolded]]:
    live = script(*PLANNED)
    live.begin()
    return live, lambda: live.complete("plan", [plan])


def test_a_plan_takes_the_place_of_the_dynamic_stage() -> None:
    live, unfold = planned(
        {
            "stages": [
                {"name": "total", "candidate": "sum", "after": ["search"], "arguments": {"n": "{{ 1 }}"}},
                {"name": "search", "arguments": {"q": "x"}},
                {"name": "why", "candidate": "ask", "after": ["search"], "arguments": {"prompt": "Why {{ x }}?"}},
            ]
        }
    )
    unfolded = unfold()
    assert shown(unfolded) == ([("tools", 0), ("tools.search", 1), ("tools.total", 1), ("tools.why", 1)], [])
    specs = {r.spec.name: r.spec for r in unfolded.reveals}
    assert specs["tools.total"].after == ("tools.search",)
    assert specs["tools.total"].parent == "tools"
    assert [specs[f"tools.{n}"].kind for n in ("total", "why")] == [StageKind.REGULAR, StageKind.LLM]
    assert arguments(live, "tools.search") == {"q": "x"}
    assert live.tool("tools.total", 0) == "sum"
    assert shown(live.complete("tools.search", ["found"])) == ([], [])
    # what a model wrote is no template
    assert arguments(live, "tools.total") == {"n": "{{ 1 }}", "inputs": {"search": "found"}}
    assert prompt(live, "tools.why") == 'Why {{ x }}?\n\n{"search":"found"}'
    live.complete("tools.why", ["because"])
    assert shown(live.complete("tools.total", [3])) == ([("join", 1)], [])
    assert prompt(live, "join") == "{'total': 3, 'search': 'found', 'why': 'because'}"


def test_an_empty_plan_is_over_at_once() -> None:
    live, unfold = planned([])
    assert shown(unfold()) == ([("tools", 0), ("join", 1)], [])
    assert prompt(live, "join") == "{}"


def test_a_dynamic_stage_is_skipped_with_its_planner() -> None:
    live = script(llm("first"), llm("plan", "first", when="false"), PLANNED[1] | {"after": ["first", "plan"]})
    live.begin()
    assert shown(live.complete("first", ["x"])) == ([], ["plan", "tools"])


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("search", "the plan for 'tools' must be a list of stages, or an object with one under 'stages', not 'search'"),
        ({"steps": []}, "the plan for 'tools' must be a list of stages, or an object with one under 'stages'"),
        (None, "the plan for 'tools' must be a list of stages"),
        ([{"candidate": "search"}], "each stage needs a name of at most 100 printable characters"),
        ([{"name": "a" * 101}], "each stage needs a name of at most 100 printable characters"),
        (["search"], "each stage needs a name of at most 100 printable characters, which 'search' lacks"),
        ([{"name": "search", "after": "x"}], "stage 'search': after is 'x', it must be a list of names"),
        ([{"name": "search", "arguments": [1]}], "stage 'search': arguments is [1], it must be an object"),
        ([{"name": "rm"}], "uses 'rm' (stage 'tools.rm'), which is not one of its candidates: search, sum, ask"),
        ([{"name": "search", "after": ["nope"]}], "unknown parent 'tools.nope' in 'after'"),
        ([{"name": "search"}, {"name": "search"}], "has two stages named 'search'; names must differ"),
        (
            [
                {"name": "a", "candidate": "sum", "after": ["b"]},
                {"name": "b", "candidate": "sum", "after": ["a"]},
            ],
            "has a cycle: ",
        ),
        (
            [{"name": "search"}, {"name": "x", "candidate": "search", "after": ["search"]}],
            "connects 'search' to 'search', which is not one of its edges",
        ),
        ([{"name": f"s{k}", "candidate": "sum"} for k in range(4)], "has 4 stages, at most 3 are allowed"),
        (
            [{"name": "why", "candidate": "ask", "arguments": {"question": "?"}}],
            "stage 'why': 'ask' is asked arguments.prompt, which is None; it must be a text",
        ),
    ],
)
def test_a_plan_that_cannot_run_is_refused_in_one_sentence(plan: Any, why: str) -> None:
    _, unfold = planned(plan)
    with pytest.raises(InvalidInput) as error:
        unfold()
    assert why in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ references

CHAINED = (
    llm("plan"),
    {
        "name": "tools",
        "kind": "dynamic",
        "after": ["plan"],
        "planner": "plan",
        "candidates": [{"name": "math", "handler": "echo"}, {"name": "ask", "kind": "llm"}],
    },
)


def chained(*entries: dict[str, Any]) -> tuple[LiveScript, Unfolded]:
    live = script(*CHAINED)
    live.begin()
    return live, live.complete("plan", [live.read("plan", 0, orjson.dumps({"stages": entries}).decode())])


def math(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "candidate": "math", **more}


def test_a_reference_waits_for_a_planned_stage_and_becomes_its_output() -> None:
    live, unfolded = chained(
        math("sum", arguments={"whole": "$1", "braced": "${a b}", "text": "$1 + ${a b}", "deep": [{"x": "$1"}]}),
        math("1", arguments={"of": 7}),
        math("a b", after=["1"]),
    )
    assert [(r.spec.name, r.spec.after) for r in unfolded.reveals[1:]] == [
        ("tools.1", ()),
        ("tools.a b", ("tools.1",)),
        ("tools.sum", ("tools.1", "tools.a b")),
    ]
    live.complete("tools.1", [{"n": [1, None]}])
    assert arguments(live, "tools.a b") == {"inputs": {"1": {"n": [1, None]}}}
    live.complete("tools.a b", ["two"])
    assert arguments(live, "tools.sum") == {
        "whole": {"n": [1, None]},
        "braced": "two",
        "text": '{"n":[1,null]} + two',
        "deep": [{"x": {"n": [1, None]}}],
        "inputs": {"1": {"n": [1, None]}, "a b": "two"},
    }


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("$1", "one"),
        ("$1.", "one."),
        ("($1)", "(one)"),
        ("$1-$a.b", "one-dotted"),
        ("$a.b.c", "dotted.c"),
        ("$1, $1", "one, one"),
        # no stage is called so
        ("$10", "$10"),
        ("$1.50", "$1.50"),
        ("$1,000", "$1,000"),
        ("$1st", "$1st"),
        ("$", "$"),
        ("${", "${"),
        ("${nobody} $nobody", "${nobody} $nobody"),
        ("$$1", "$one"),
    ],
)
def test_a_name_without_braces_ends_where_its_characters_do(text: str, becomes: str) -> None:
    live, _ = chained(math("1"), math("a.b"), math("last", after=["1", "a.b"], arguments={"x": text}))
    live.complete("tools.1", ["one"])
    live.complete("tools.a.b", ["dotted"])
    assert arguments(live, "tools.last")["x"] == becomes


def test_a_prompt_refers_to_outputs_and_is_given_the_others_below() -> None:
    ask = {"name": "ask", "after": ["x", "y"], "arguments": {"prompt": "Is $x even?"}}
    live, _ = chained(math("x"), math("y"), ask)
    live.complete("tools.x", [4])
    live.complete("tools.y", ["see"])
    assert prompt(live, "tools.ask") == 'Is 4 even?\n\n{"y":"see"}'


def test_a_prompt_that_is_a_reference_is_its_text() -> None:
    live, _ = chained(math("x"), {"name": "ask", "arguments": {"prompt": "$x"}})
    live.complete("tools.x", [{"a": 1}])
    assert prompt(live, "tools.ask") == '{"a":1}'


def test_what_a_reference_brings_is_not_looked_through_again() -> None:
    live, _ = chained(math("x"), math("y"), math("z", arguments={"v": "$x!"}, after=["y"]))
    live.complete("tools.x", ["$y"])
    live.complete("tools.y", ["secret"])
    assert arguments(live, "tools.z")["v"] == "$y!"


@pytest.mark.parametrize(
    "entries",
    [
        [math("a", arguments={"x": "$b"}), math("b", arguments={"x": "after $a"})],
        [math("a", arguments={"x": "$b"}), math("b", after=["a"])],
        [math("a", arguments={"x": ["${a}"]})],
    ],
)
def test_a_cycle_of_references_is_a_cycle(entries: list[dict[str, Any]]) -> None:
    with pytest.raises(BadReply, match="the plan for 'tools' has a cycle: "):
        chained(*entries)


def test_a_reference_counts_as_an_edge() -> None:
    live = script(CHAINED[0], CHAINED[1] | {"edges": [["ask", "math"]]})
    live.begin()
    plan = [math("a"), math("b", arguments={"x": "$a"})]
    with pytest.raises(InvalidInput, match="connects 'math' to 'math', which is not one of its edges"):
        live.complete("plan", [plan])


# ------------------------------------------------------------------------------------------- templates of candidates


def test_a_candidate_says_how_its_stages_are_asked() -> None:
    candidates = [
        {
            "name": "ask",
            "kind": "llm",
            "prompt": "{{ input }}: {{ arguments.q }} of {{ inputs.first }} ({{ last }}, {{ stages.plan | length }})",
            "system": "Be brief, {{ input }}.",
            "max_tokens": 9,
            "sampling": {"top_p": 0.5},
            "response_format": {"type": "json_object"},
        },
        {"name": "calc", "handler": "echo", "arguments": {"all": "{{ inputs }}", "q": "={{ arguments.q }}", "n": 1}},
        {"name": "bare", "handler": "echo", "arguments": {}},
    ]
    live = script(CHAINED[0], CHAINED[1] | {"candidates": candidates}, input="me")
    live.begin()
    plan = [
        {"name": "first", "candidate": "calc", "arguments": {"q": 1}},
        {"name": "second", "candidate": "ask", "after": ["first"], "arguments": {"q": "$first"}},
        {"name": "third", "candidate": "calc", "after": ["second"], "arguments": {"q": "{{ x }}"}},
        {"name": "fourth", "candidate": "bare", "after": ["third"], "arguments": {"q": 1}},
    ]
    specs = {r.spec.name: r.spec for r in live.complete("plan", [plan]).reveals}
    assert specs["tools.second"].max_tokens == 9
    assert arguments(live, "tools.first") == {"all": {}, "q": "=1", "n": 1}
    live.complete("tools.first", [{"v": 2}])

    request = live.llm("tools.second", 0)
    assert request.messages == [
        {"role": "system", "content": "Be brief, me."},
        {"role": "user", "content": "me: {'v': 2} of {'v': 2} ({'v': 2}, 4)"},
    ]
    assert (request.max_tokens, request.extra) == (9, {"top_p": 0.5})
    assert live.read("tools.second", 0, '{"a": 1}') == {"a": 1}
    live.complete("tools.second", [{"a": 1}])
    assert arguments(live, "tools.third") == {"all": {"second": {"a": 1}}, "q": "={{ x }}", "n": 1}
    live.complete("tools.third", [3])
    assert arguments(live, "tools.fourth") == {}
    assert [live.tool(f"tools.{n}", 0) for n in ("first", "second")] == ["calc", "ask"]


def test_a_candidate_sees_the_round_of_its_loop() -> None:
    candidates = [{"name": "ask", "kind": "llm", "prompt": "{{ iteration }} {{ last }} {{ index }}"}]
    inner = {"name": "do", "kind": "dynamic", "after": ["think"], "planner": "think", "candidates": candidates}
    live = script({"loop": "again", "first": 1, "max_iterations": 2, "stages": [llm("think"), inner]})
    live.begin()
    live.complete("think_1", [[{"name": "ask"}]])
    assert prompt(live, "do_1.ask") == "1 None 0"
    live.complete("do_1.ask", ["x"])
    live.complete("think_2", [[{"name": "ask"}]])
    assert prompt(live, "do_2.ask") == "2 None 0"


# -------------------------------------------------------------------------------------------------- bad replies

ANSWER = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "of": {"type": "array", "items": {"type": "string"}}},
            "required": ["n"],
        },
    },
}


def refusal(live: LiveScript, stage: str, text: str) -> tuple[str, bool]:
    with pytest.raises(BadReply) as error:
        live.read(stage, 0, text)
    return str(error.value), error.value.can_repair


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("Sure: 1", "stage 'a' must answer with JSON, but: "),
        ('{"n": 1', "stage 'a' must answer with JSON, but: "),
        ('{"n": "1"}', "stage 'a' must answer with JSON of its schema, but n is not: '1' is not of type 'integer'"),
        ('{"n": 1, "of": ["x", 2]}', "stage 'a' must answer with JSON of its schema, but of[1] is not: 2 is not of "),
        ("{}", "stage 'a' must answer with JSON of its schema, but it is not: 'n' is a required property"),
        ("[]", "stage 'a' must answer with JSON of its schema, but it is not: [] is not of type 'object'"),
    ],
)
def test_a_reply_is_held_against_its_schema(reply: str, why: str) -> None:
    live = script(llm("a", response_format=ANSWER))
    live.begin()
    sentence, can_repair = refusal(live, "a", reply)
    assert sentence.startswith(why)
    assert can_repair


def test_a_bad_reply_is_asked_for_again_once_with_what_is_wrong() -> None:
    live = script(llm("a", response_format=ANSWER, tasks=2))
    live.begin()
    first = live.llm("a", 0)

    why, _ = refusal(live, "a", "[1]" + " " * 5_000)
    again = live.llm("a", 0)
    assert first.messages is not None
    assert again.messages == [
        *first.messages,
        {"role": "assistant", "content": "[1]" + " " * 3_997 + " …"},
        {
            "role": "user",
            "content": f"That answer cannot be used: {why}.\n"
            "Do the same task again and give the whole answer, corrected. Reply with the JSON only.",
        },
    ]
    assert live.llm("a", 0) == again, "however often the task is tried"
    assert live.llm("a", 1).messages == first.messages, "another task"

    assert refusal(live, "a", "{}") == (
        "stage 'a' must answer with JSON of its schema, but it is not: 'n' is a required property"
        " (asked again, it still is no good)",
        False,
    )


def test_a_good_reply_ends_the_matter() -> None:
    live = script(llm("a", response_format=ANSWER))
    live.begin()
    assert refusal(live, "a", "")[1]
    messages = live.llm("a", 0).messages
    assert messages is not None
    assert messages[1] == {"role": "assistant", "content": "(nothing)"}
    assert live.read("a", 0, '{"n": 3}') == {"n": 3}
    assert prompt(live, "a") == "do a"


def test_a_stage_without_retries_is_not_asked_again() -> None:
    live = script(llm("a", response_format=ANSWER, retries=0))
    live.begin()
    assert refusal(live, "a", "[]") == (
        "stage 'a' must answer with JSON of its schema, but it is not: [] is not of type 'object'",
        False,
    )


def test_a_bad_plan_is_a_bad_reply_and_is_told_in_the_end() -> None:
    live = script(*CHAINED)
    live.begin()
    bad = '[{"name": "rm"}]'
    why = "the plan for 'tools' uses 'rm' (stage 'tools.rm'), which is not one of its candidates: math, ask"
    assert refusal(live, "plan", bad) == (why, True)
    assert refusal(live, "plan", bad) == (
        f"{why} (asked again, it still is no good); the plan was {bad}",
        False,
    )


def test_a_plan_is_a_plan_and_fits_the_schema() -> None:
    live = script(llm("plan", response_format=ANSWER), CHAINED[1])
    live.begin()
    assert "must answer with JSON of its schema" in refusal(live, "plan", "[]")[0]
    assert "must be a list of stages" in refusal(live, "plan", '{"n": 1}')[0]


def test_a_schema_that_refers_to_elsewhere_is_never_fetched() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://127.0.0.1:1/x"}}}
    live = script(llm("a", response_format=schema))
    live.begin()
    assert "cannot be held against its json_schema" in refusal(live, "a", "1")[0]


@pytest.mark.parametrize(
    ("response_format", "why"),
    [
        ({"type": "json_schema"}, "response_format of type json_schema must be {"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "it has no schema there"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strng"}}},
            "json_schema.schema.type is no JSON Schema: 'strng' is not valid under any of the given schemas",
        ),
    ],
)
def test_a_schema_that_is_none_is_found_at_registration(response_format: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidApplication) as error:
        an_application(llm("a", response_format=response_format))
    assert str(error.value).startswith("application 'app', stage 'a', response_format: ")
    assert why in str(error.value)


# ------------------------------------------------------------------------------------------------- off the profile


def departing(**more: Any) -> LiveScript:
    tools = PLANNED[1] | {"off_profile": True} | more
    live = script(PLANNED[0], tools, PLANNED[2])
    live.begin()
    return live


def test_a_plan_may_leave_what_its_stage_declares_where_that_is_allowed() -> None:
    live = departing(fallback="echo")
    plan = [
        {"name": "search"},
        {"name": "rm", "after": ["search"], "arguments": {"path": "$search"}},
        {"name": "again", "candidate": "search", "after": ["search"]},
        {"name": "more", "candidate": "sum"},
    ]
    assert live.off_profile == ()
    unfolded = live.complete("plan", [live.read("plan", 0, orjson.dumps(plan).decode())])
    assert shown(unfolded)[0] == [("tools", 0), *((f"tools.{n}", 1) for n in ("search", "rm", "again", "more"))]
    assert live.off_profile == (
        "the plan for 'tools' has 4 stages, at most 3 are allowed; plan fewer or raise max_stages",
        "the plan for 'tools' uses 'rm' (stage 'tools.rm'), which is not one of its candidates: search, sum, ask",
        "the plan for 'tools' connects 'search' to 'rm', which is not one of its edges",
        "the plan for 'tools' connects 'search' to 'search', which is not one of its edges",
    )
    live.complete("tools.search", ["/x"])
    work = live.work("tools.rm", 0)
    assert isinstance(work, WorkerTask)
    assert (work.handler, live.tool("tools.rm", 0)) == ("echo", "rm")
    assert work.arguments == {"tool": "rm", "arguments": {"path": "/x"}, "inputs": {"search": "/x"}}
    spec = unfolded.reveals[2].spec
    assert (spec.kind, spec.pool, spec.candidate) == (StageKind.REGULAR, "cpu", "rm")


def test_a_plan_that_could_leave_it_and_does_not_is_on_profile() -> None:
    live = departing(fallback="echo")
    live.complete("plan", [[{"name": "search"}]])
    assert live.off_profile == ()


@pytest.mark.parametrize(
    ("plan", "fallback", "why"),
    [
        ([{"name": "rm"}], None, "which is not one of its candidates: search, sum, ask; there is no fallback handler"),
        (
            [{"name": "a", "candidate": "sum", "after": ["b"]}, {"name": "b", "candidate": "x", "after": ["a"]}],
            "echo",
            "has a cycle: ",
        ),
        ([{"name": "search", "after": ["nope"]}], "echo", "unknown parent 'tools.nope' in 'after'"),
        ([{"name": f"s{k}", "candidate": "x"} for k in range(1_001)], "echo", "has 1001 stages, more than 1000 are"),
    ],
)
def test_some_plans_never_run(plan: Any, fallback: str | None, why: str) -> None:
    live = departing(fallback=fallback)
    with pytest.raises(InvalidInput) as error:
        live.complete("plan", [plan])
    assert why in str(error.value)


# ------------------------------------------------------------------------------------------- outputs and results


def test_a_planner_and_a_stage_with_a_json_format_answer_with_json() -> None:
    live = script(
        *PLANNED,
        llm("json", response_format={"type": "json_object"}),
        llm("text", response_format={"type": "text"}),
    )
    live.begin()
    assert live.read("plan", 0, '[{"name": "search"}]') == [{"name": "search"}]
    assert live.read("json", 0, ' {"a": 1}\n') == {"a": 1}
    assert live.read("join", 0, "{") == "{"
    assert live.read("text", 0, "{") == "{"
    for stage in ("plan", "json"):
        with pytest.raises(InvalidInput) as error:
            live.read(stage, 0, "Sure! Here is")
        assert str(error.value).startswith(f"stage '{stage}' must answer with JSON, but: ")
        assert str(error.value).endswith("it said 'Sure! Here is'")


def test_the_result_is_the_expression_or_what_the_last_stages_said() -> None:
    stages = (llm("a"), llm("b", "a"), llm("c", "a"))
    chosen, ends = script(*stages, result="{'b': stages.b, 'n': 1}"), script(*stages)
    for live in (chosen, ends):
        live.begin()
        for name in "abc":
            live.complete(name, [name.upper()])
    assert chosen.result() == {"b": "B", "n": 1}
    assert ends.result() == {"b": "B", "c": "C"}


def test_a_result_that_cannot_be_made_says_so() -> None:
    live = script(llm("a"), result="stages.a.b")
    live.begin()
    live.complete("a", ["text"])
    with pytest.raises(InvalidInput, match=r"^result: .*has no attribute 'b'"):
        live.result()


def test_an_application_without_prompts_runs_recordings_only() -> None:
    application = Application.parse({"name": "app", "stages": [{"name": "a", "kind": "llm"}]})
    with pytest.raises(InvalidInput, match=r"runs recordings only \(stage 'a' has no prompt or handler\)") as error:
        LiveScript("job_1", application, {})
    assert error.value.field == "input"


# ------------------------------------------------------------------------------------------------------ restoring


@pytest.mark.parametrize(
    ("stages", "ends"),
    [
        (REPAIR, [("code", ["v0"]), ("check", [{"ok": False}]), ("fix_1", ["v1"]), ("test_1", [{"ok": True}])]),
        (
            PLANNED,
            [
                ("plan", [[{"name": "search"}, {"name": "t", "candidate": "sum", "after": ["search"]}]]),
                ("tools.search", ["s"]),
                ("tools.t", ["t"]),
                ("join", ["j"]),
            ],
        ),
    ],
)
def test_a_restored_job_unfolds_as_it_did(
    stages: Sequence[dict[str, Any]], ends: Sequence[tuple[str, list[Any]]]
) -> None:
    first, again = script(*stages), script(*stages)
    told = [first.begin(), *(first.complete(name, outputs) for name, outputs in ends)]
    assert [again.begin(), *(again.complete(name, outputs) for name, outputs in ends)] == told
    last = told[-1].reveals[-1].spec.name if told[-1].reveals else None
    if last is not None:
        assert prompt(again, last) == prompt(first, last)


# ------------------------------------------------------------------------------------------------ check_templates


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        (
            [llm("a", prompt="one\n{{ input.x")],
            "application 'app', stage 'a', prompt, line 2: unexpected end of template",
        ),
        ([llm("a", prompt="{% for x in input %}\n")], "application 'app', stage 'a', prompt, line "),
        ([llm("a", system="{{ inptu }}")], "application 'app', stage 'a', system: unknown variable 'inptu'; did you"),
        ([llm("a", prompt="{{ input | nope }}")], "stage 'a', prompt, line 1: No filter named 'nope'"),
        ([llm("a", when="stages.b ==")], "application 'app', stage 'a', when, line 1: "),
        ([llm("a", when="1) }}{{ (2")], "application 'app', stage 'a', when, line 1: "),
        ([llm("a", for_each="itms")], "stage 'a', for_each: unknown variable 'itms'"),
        ([echo("a", arguments={"x": [{"y": "{{ nope }}"}]})], "stage 'a', arguments: unknown variable 'nope'"),
        ([llm("a", prompt="{% include 'b' %}")], "stage 'a', prompt: there are no other templates to include"),
        ([llm("a", sampling={"stream": True})], "stage 'a', sampling: 'stream' is set by llmsched; leave it out"),
    ],
)
def test_templates_are_checked_before_anything_runs(stages: list[dict[str, Any]], why: str) -> None:
    application = Application.parse({"name": "app", "stages": stages})
    with pytest.raises(InvalidApplication) as error:
        check_templates(application, REGISTRY)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("stages", "top", "why"),
    [
        (
            [llm("draft"), llm("b", "draft", prompt="{{ stages.drfat }}")],
            {},
            "stage 'b', prompt: unknown stage 'drfat'; did you mean 'draft'? known: draft, b",
        ),
        (
            [llm("draft"), echo("b", "draft", arguments={"x": ["{{ stages['drfat'] }}"]})],
            {},
            "stage 'b', arguments: unknown stage 'drfat'; did you mean 'draft'?",
        ),
        ([llm("a")], {"result": "stages.b"}, "application 'app', result: unknown stage 'b'; known: a"),
        (
            [llm("a"), llm("b", prompt="{{ stages.a }}")],
            {},
            "stage 'b', prompt: it reads 'a', which need not be over by then; add 'a' to 'after', or ask first whether"
            " it is there: 'a' in stages",
        ),
        ([llm("a", prompt="{{ stages.a }}")], {}, "stage 'a', prompt: it reads its own output ('a'), which is not"),
        (
            [llm("a"), llm("b", "a", when="stages.c"), llm("c", "b")],
            {},
            "stage 'b', when: it reads 'c', which need not be over by then",
        ),
        (
            [*REPAIR[:3], llm("tell", "check", prompt="{{ stages.fix }}")],
            {},
            "stage 'tell', prompt: it reads 'fix', which need not be over by then; add 'repair' to 'after'",
        ),
        (
            [*REPAIR[:3], llm("tell", "repair", prompt="{{ stages.fxi }}")],
            {},
            "unknown stage 'fxi'; did you mean 'fix'? known: code, check, fix, test, tell",
        ),
        (
            [
                llm("plan"),
                llm("x"),
                CHAINED[1] | {"candidates": [{"name": "q", "kind": "llm", "prompt": "{{ stages.x }}"}]},
            ],
            {},
            "stage 'tools', candidate 'q', prompt: it reads 'x', which need not be over by then",
        ),
        (
            [
                llm("plan"),
                CHAINED[1] | {"candidates": [{"name": "q", "handler": "echo", "arguments": {"a": "{{ argments }}"}}]},
            ],
            {},
            "stage 'tools', candidate 'q', arguments: unknown variable 'argments'; did you mean 'arguments'?",
        ),
        ([llm("a", prompt="{{ arguments }}")], {}, "stage 'a', prompt: unknown variable 'arguments'"),
        ([llm("a", arguments={"x": 1})], {}, "stage 'a' is of kind llm, which has no arguments; leave it out or"),
        ([echo("a", prompt="x")], {}, "stage 'a' is of kind regular, which has no prompt; leave it out or change"),
        (
            [llm("plan"), CHAINED[1] | {"for_each": "input"}],
            {},
            "stage 'tools' is of kind dynamic, which has no for_each; leave it out or change the kind",
        ),
        (
            [llm("plan"), CHAINED[1] | {"off_profile": True, "fallback": "ecko"}],
            {},
            "stage 'tools': unknown handler 'ecko'; did you mean 'echo'?",
        ),
        (
            [llm("plan"), CHAINED[1] | {"candidates": [{"name": "q", "kind": "llm", "sampling": {"n": 2}}]}],
            {},
            "stage 'tools', candidate 'q', sampling: 'n' is set by llmsched; leave it out",
        ),
        ([llm("a", prompt="{{ " + "(" * 5_000)], {}, "stage 'a', prompt: it is nested too deeply; write it in smaller"),
        ([llm("a", prompt="{{ " + "9" * 5_000 + " }}")], {}, "stage 'a', prompt: Exceeds the limit (4300 digits)"),
        ([llm("a", prompt="x" * 1_000_001)], {}, "its templates have more than 1,000,000 characters; hand long texts"),
        ([llm("a", prompt="{{input}}" * 7_000)], {}, "its templates have more than 20,000 words of code; compute in"),
    ],
)
def test_what_cannot_be_read_is_found_at_registration(
    stages: list[dict[str, Any]], top: dict[str, Any], why: str
) -> None:
    with pytest.raises((InvalidApplication, UnknownName)) as error:
        an_application(*stages, **top)
    assert why in str(error.value)


def test_what_can_be_read_is_let_through() -> None:
    candidate = {"name": "q", "kind": "llm", "prompt": "{{ stages.plan }} {{ stages['tools.x'] | default('') }}"}
    an_application(
        llm("first"),
        llm("side"),
        llm("plan", "first", prompt="{{ stages.get('side') }} {% if 'side' in stages %}{{ stages.side }}{% endif %}"),
        CHAINED[1] | {"candidates": [candidate]},
        {
            "loop": "again",
            "max_iterations": 2,
            "after": ["tools"],
            "while": "stages.first and (iteration == 0 or stages.test)",
            "stages": [
                llm("fix", prompt="{{ stages.fix if iteration else stages.first }} {{ stages['tools.x'] }}"),
                echo("test", "fix", arguments={"all": "{{ stages.items() | list }}", "x": "{{ stages.fix }}"}),
            ],
        },
        llm("end", "again", prompt="{{ stages.fix }} {{ stages.fix_0 }} {% set s = stages %}{{ s.anything }}"),
        result="stages.side ~ stages.end",
    )


def test_a_padded_loop_is_checked_as_fast_as_one_round() -> None:
    body = [llm(f"s{k}", prompt=f"{{{{ stages.s{k} if iteration }}}} {k}" + "{{ input }}" * 200) for k in range(10)]
    an_application({"loop": "again", "max_iterations": 100, "stages": body})


def test_a_loop_condition_is_checked_at_its_first_stage() -> None:
    loop = {"loop": "again", "max_iterations": 2, "while": "lst", "stages": [llm("a")]}
    with pytest.raises(InvalidApplication, match="stage 'a_0', when: unknown variable 'lst'; did you mean 'last'"):
        an_application(loop)


def test_an_unknown_handler_names_the_nearest() -> None:
    application = Application.parse({"name": "app", "stages": [echo("a") | {"handler": "ecko"}]})
    with pytest.raises(InvalidApplication, match=r"stage 'a': unknown handler 'ecko'; did you mean 'echo'\?"):
        check_templates(application, REGISTRY)


def test_handlers_of_an_application_that_runs_recordings_need_not_exist() -> None:
    an_application({"name": "a", "kind": "llm"}, echo("b", "a") | {"handler": "not_here"})


def test_the_result_is_checked_too() -> None:
    with pytest.raises((InvalidApplication, UnknownName), match="application 'app', result: unknown variable 'stage'"):
        an_application(llm("a"), result="stage.a")


# ------------------------------------------------------------------------------------------- what prompts are like


def texts(unfolded: Unfolded) -> dict[str, tuple[PromptText | None, ...]]:
    return {reveal.spec.name: reveal.texts for reveal in unfolded.reveals}


def test_prompts_are_described_while_somebody_asks() -> None:
    asked = [False]
    application = an_application(
        llm("a", prompt="sort {{ input }}"),
        llm("b", "a", prompt="{{ index }}: {{ last }}", for_each="[1, 2]", max_tasks=2),
        echo("c", "b"),
    )
    live = LiveScript("job_1", application, "it", lambda: asked[0])

    assert texts(live.begin()) == {"a": ()}, "nobody asked"
    asked[0] = True
    assert texts(live.complete("a", ["done"])) == {"b": (describe("0: done"), describe("1: done"))}
    assert texts(live.complete("b", ["x", "y"])) == {"c": ()}, "it is no LLM stage"


def test_describing_many_prompts_takes_no_longer_than_one_may() -> None:
    long = "{% for i in range(99999) %}{% endfor %}long"
    application = an_application(llm("a", tasks=4, prompt=long))
    live = LiveScript("job_1", application, None, lambda: True)

    assert texts(live.begin()) == {"a": (describe("long"), describe("long"), None, None)}
    assert [prompt(live, "a", k) for k in range(4)] == ["long"] * 4


def test_a_prompt_that_fails_has_no_text_and_fails_as_ever_when_it_is_due() -> None:
    live = LiveScript("job_1", an_application(llm("a", prompt="{{ input.nothing.at_all }}")), {}, lambda: True)

    assert texts(live.begin()) == {"a": (None,)}
    with pytest.raises(InvalidInput, match="stage 'a', prompt"):
        live.llm("a", 0)


def test_a_planned_prompt_is_described_without_its_inputs() -> None:
    plan = {"stages": [{"name": "ask", "arguments": {"prompt": "why $x?"}}, {"name": "x", "candidate": "none"}]}
    candidates = [{"name": "ask", "kind": "llm"}, {"name": "none", "kind": "llm", "prompt": "{{ input.nothing }}"}]
    application = an_application(
        llm("plan"), {"name": "do", "kind": "dynamic", "after": ["plan"], "planner": "plan", "candidates": candidates}
    )
    live = LiveScript("job_1", application, None, lambda: True)
    live.begin()

    revealed = texts(live.complete("plan", [plan]))

    assert revealed == {"do": (), "do.x": (None,), "do.ask": (describe("why $x?"),)}


# -------------------------------------------------------------------------------------------------- documentation

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/templates.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_in_the_documentation_can_be_registered(block: str) -> None:
    content = yaml.safe_load(block)
    if isinstance(content, list):
        content = {"name": "example", "stages": content}
    application = Application.parse(content)
    registry = build_registry(installed=False)
    for spec in application.stages:
        for name in filter(None, (spec.handler, *(c.handler for c in spec.candidates))):
            registry.register(name, print)
    check_templates(application, registry)
    assert application.is_executable


def test_the_plan_in_the_documentation_is_one() -> None:
    text = (ROOT / "docs/templates.md").read_text()
    plan = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert plan is not None
    stages = next(yaml.safe_load(b) for b in BLOCKS if "planner" in b)
    tools = Application.parse({"name": "example", "stages": stages})["tools"]

    assert [(s.name, s.after) for s in read_plan(tools, orjson.loads(plan[1])).specs] == [
        ("tools.1", ()),
        ("tools.2", ()),
        ("tools.difference", ("tools.2", "tools.1")),
    ]


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs/templates.md").read_text()
    assert [key for key in KEYS.split() if f"`{key}`" not in text] == []


def test_the_limits_in_the_documentation_are_those_of_the_code() -> None:
    text = (ROOT / "docs/templates.md").read_text()
    limits = (metered.MAX_TURNS, metered.MAX_SIZE, metered.MAX_WRITTEN, metered.MAX_BITS, metered.MAX_SLOW)
    more = (checking.MAX_CHARACTERS, checking.MAX_TOKENS, replies.SHOWN, MAX_STAGES, MAX_TASKS, MAX_ITERATIONS)
    assert [n for n in (*limits, *more) if f"{n:,}" not in text] == []
    assert f"{metered.MAX_SECONDS:g} s" in text
