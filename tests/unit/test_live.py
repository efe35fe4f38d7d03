"""Live jobs: what templates see, how loops, conditions and plans unfold, and what is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmsched.errors import InvalidApplication, InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import PromptText, describe
from llmsched.model.unfolding import Unfolded
from llmsched.runtime.handlers import build_registry
from llmsched.runtime.live import LiveScript, check_templates
from llmsched.runtime.workers import WorkerTask

REGISTRY = build_registry(installed=False)


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
        ([{"name": "search"}, {"name": "search"}], "has two stages named 'tools.search'"),
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
    ],
)
def test_a_plan_that_cannot_run_is_refused_in_one_sentence(plan: Any, why: str) -> None:
    _, unfold = planned(plan)
    with pytest.raises(InvalidInput) as error:
        unfold()
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_planned_llm_stage_needs_a_prompt() -> None:
    live, unfold = planned([{"name": "ask", "arguments": {"question": "?"}}])
    unfold()
    with pytest.raises(InvalidInput, match=r"^stage 'tools.ask': the plan gives no text as arguments.prompt$"):
        live.llm("tools.ask", 0)


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


def test_a_prompt_that_fails_has_no_text_and_fails_as_ever_when_it_is_due() -> None:
    live = LiveScript("job_1", an_application(llm("a", prompt="{{ input.nothing.at_all }}")), {}, lambda: True)

    assert texts(live.begin()) == {"a": (None,)}
    with pytest.raises(InvalidInput, match="stage 'a', prompt"):
        live.llm("a", 0)


def test_a_planned_prompt_is_described_without_its_inputs() -> None:
    plan = {"stages": [{"name": "x", "candidate": "ask", "arguments": {"prompt": "why?"}}, {"name": "ask"}]}
    candidates = [{"name": "ask", "kind": "llm"}]
    application = an_application(
        llm("plan"), {"name": "do", "kind": "dynamic", "after": ["plan"], "planner": "plan", "candidates": candidates}
    )
    live = LiveScript("job_1", application, None, lambda: True)
    live.begin()

    revealed = texts(live.complete("plan", [plan]))

    assert revealed == {"do": (), "do.x": (describe("why?"),), "do.ask": (None,)}
