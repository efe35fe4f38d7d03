"""Applications written in Python are the same data as those in YAML, and mistakes are found where they are made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmsched import App, InvalidInput, handler
from llmsched.catalogue import installed_applications, load_application
from llmsched.errors import InvalidApplication
from llmsched.model.application import Application

ROOT = Path(__file__).parents[2]


@handler(name="count.words")
def words(arguments: dict[str, Any]) -> int:
    return len(arguments["text"].split())


def rebuilt(definition: Mapping[str, Any]) -> App:
    """The application of a definition, said again with an App: every key is a keyword of the same name."""
    app = App(**{k: v for k, v in definition.items() if k not in ("stages", "result")})
    for entry in definition["stages"]:
        add(app, entry)
    if "result" in definition:
        app.result(definition["result"])
    return app


def add(app: App, entry: Mapping[str, Any]) -> None:
    given = {
        ("repeat_while" if k == "while" else k): v for k, v in entry.items() if k not in ("kind", "loop", "stages")
    }
    if "loop" in entry:
        with app.loop(entry["loop"], **given):
            for inner in entry["stages"]:
                add(app, inner)
        return
    getattr(app, entry["kind"])(**given)


# ---------------------------------------------------------------------------------------------- the same data


@pytest.mark.parametrize("name", installed_applications())
def test_every_installed_application_can_be_said_in_python(name: str) -> None:
    application = installed_applications()[name]

    assert rebuilt(application.definition).build().digest == application.digest


def test_the_example_in_python_is_the_example_in_yaml() -> None:
    app = App(
        "summarize",
        description="Summarises a text, shortens the summary, and reports both lengths.",
        input_schema={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    )
    draft = app.llm(
        "draft", system="You summarise texts in plain words.", prompt="Summarise:\n{{ input.text }}", max_tokens=200
    )
    polish = app.llm("polish", after=draft, prompt="Say it in one sentence:\n{{ stages.draft }}", max_tokens=60)
    report = app.regular(
        "report",
        handler="echo",
        after=[draft, polish],
        arguments={"summary": "{{ stages.polish | trim }}", "words": "{{ input.text.split() | length }}"},
    )
    app.result(report)

    assert app.build() == load_application(ROOT / "docs/examples/summarize.yaml")


def known_keys(definition: dict[str, Any]) -> set[str]:
    """The keys that the language has where `definition` has one it does not have."""
    with pytest.raises(InvalidApplication) as refused:
        Application.parse(definition)
    _, _, known = str(refused.value).rpartition("known: ")
    return set(known.split(", "))


def keywords(*functions: Callable[..., Any]) -> set[str]:
    return {name for function in functions for name in inspect.signature(function).parameters} - {"self"}


def test_every_key_of_the_language_is_a_keyword() -> None:
    stage = {"name": "s", "kind": "regular"}
    of_top = known_keys({"name": "a", "stages": [stage], "no_such_key": 1})
    of_stage = known_keys({"name": "a", "stages": [stage | {"no_such_key": 1}]})
    loop = {"loop": "l", "max_iterations": 1, "stages": [stage], "no_such_key": 1}
    of_loop = known_keys({"name": "a", "stages": [loop]})
    candidates = [{"name": "c", "no_such_key": 1}]
    of_candidate = known_keys({"name": "a", "stages": [stage | {"kind": "dynamic", "candidates": candidates}]})

    assert of_top - {"stages", "result"} == keywords(App)
    assert of_stage - {"kind"} == keywords(App.llm, App.regular, App.dynamic) - {"json_schema"}
    assert of_loop - {"loop", "while", "stages"} == keywords(App.loop) - {"name", "repeat_while"}
    assert of_candidate == keywords(App.candidate)


def test_a_loop_a_plan_and_what_is_left_out() -> None:
    app = App("a")
    plan = app.llm("plan", prompt="Plan.", json_schema={"type": "object"})
    search = app.candidate("search", handler=words, input=["text"])
    think = app.candidate("think", kind="llm", prompt="{{ arguments.question }}")
    tools = app.dynamic("tools", planner=plan, candidates=[search, think, "echo"], edges=[("search", "think")])
    with app.loop("repair", after=[tools, "plan"], max_iterations=2, repeat_while="not last", continues=0.5) as repair:
        fix = app.llm("fix", prompt="Fix {{ last }}")
        app.regular("count", after=fix, handler=words, arguments={"text": "{{ stages.fix }}"})
    app.llm("end", after=repair)

    assert app.definition == {
        "name": "a",
        "stages": [
            {
                "name": "plan",
                "kind": "llm",
                "prompt": "Plan.",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "plan", "schema": {"type": "object"}},
                },
            },
            {
                "name": "tools",
                "kind": "dynamic",
                "after": ["plan"],
                "planner": "plan",
                "candidates": [
                    {"name": "search", "handler": "count.words", "input": ["text"]},
                    {"name": "think", "kind": "llm", "prompt": "{{ arguments.question }}"},
                    "echo",
                ],
                "edges": [["search", "think"]],
            },
            {
                "loop": "repair",
                "max_iterations": 2,
                "after": ["tools", "plan"],
                "while": "not last",
                "continues": 0.5,
                "stages": [
                    {"name": "fix", "kind": "llm", "prompt": "Fix {{ last }}"},
                    {
                        "name": "count",
                        "kind": "regular",
                        "after": ["fix"],
                        "handler": "count.words",
                        "arguments": {"text": "{{ stages.fix }}"},
                    },
                ],
            },
            {"name": "end", "kind": "llm", "after": ["repair"]},
        ],
    }
    assert [s.name for s in app.build().stages][-3:] == ["fix_1", "count_1", "end"]
    assert app.build()["end"].after == ("tools", "plan", "count_0", "count_1")


def test_what_is_handed_in_or_out_can_be_changed_without_harm() -> None:
    arguments = {"text": ["a"]}
    app = App("a")
    app.regular("s", handler="echo", arguments=arguments)
    arguments["text"].append("b")
    app.definition["stages"].clear()

    assert app.definition["stages"][0]["arguments"] == {"text": ["a"]}


# ------------------------------------------------------------------------------------------------ what it writes


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
@pytest.mark.parametrize("name", ["code_generation", "task_automation"])
def test_a_saved_application_is_read_as_the_same(name: str, suffix: str, tmp_path: Path) -> None:
    application = installed_applications()[name]
    saved = rebuilt(application.definition).save(tmp_path / f"x{suffix}")

    assert load_application(saved).digest == application.digest


def test_saved_yaml_is_pleasant_to_read(tmp_path: Path) -> None:
    twice = {"type": "object"}
    app = App("a", input_schema={"properties": {"x": twice, "y": twice}})
    app.llm("s", prompt="Zwei Zeilen,\nbeide größer.", max_tokens=5)

    assert app.save(tmp_path / "a.yaml").read_text() == (
        "name: a\ninput_schema:\n  properties:\n    x:\n      type: object\n    y:\n      type: object\n"
        "stages:\n- name: s\n  kind: llm\n  prompt: |-\n    Zwei Zeilen,\n    beide größer.\n  max_tokens: 5\n"
    )


def test_where_nothing_can_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    app = App("a")
    app.llm("s")
    with pytest.raises(InvalidInput, match=re.escape("'a.txt' must end in .yaml, .yml or .json")):
        app.save("a.txt")
    with pytest.raises(InvalidInput, match="cannot be written: No such file or directory"):
        app.save(tmp_path / "none" / "a.yaml")
    with pytest.raises(InvalidApplication, match="application 'empty' has no stages"):
        App("empty").save(tmp_path / "a.yaml")


def test_an_app_shows_its_graph() -> None:
    app = App("a")
    app.llm("s", after=app.llm("r"))

    assert str(app) == "●  r  llm\n●  s  llm"
    assert app._repr_svg_().startswith("<svg ")
    assert repr(app) == "App('a', 2 stages and loops)"


# ------------------------------------------------------------------------------------------------------ mistakes


def unmarked(arguments: dict[str, Any]) -> None: ...


def started() -> App:
    app = App("a")
    app.llm("one", prompt="{{ input }}")
    with app.loop("l", max_iterations=1):
        app.llm("inside")
    return app


MISTAKES: list[tuple[Callable[[App], object], str]] = [
    (lambda app: app.llm("one"), "application 'a' has two stages named 'one'; names must differ"),
    (lambda app: app.llm("2"), "application 'a', stage '2': a name starts with a letter"),
    (lambda app: app.llm("two", prompt="{{ inptu }}"), "stage 'two', prompt: unknown variable 'inptu'; did you mean"),
    (lambda app: app.llm("two", prompt="a\n{{ input. }}"), "stage 'two', prompt, line 2: expected name or number"),
    (lambda app: app.llm("two", when="input +"), "stage 'two', when, line 1: "),
    (lambda app: app.llm("two", after="tow"), "stage 'two': unknown parent 'tow' in 'after'; known: one, "),
    (lambda app: app.llm("two", sampling={"stream": True}), "stage 'two', sampling: 'stream' is set by llmsched"),
    (lambda app: app.llm("two", tasks=0), "stage 'two': max_tasks is 0; it must be between 1 and 1000"),
    (
        lambda app: app.llm("two", json_schema={}, response_format={}),
        "stage 'two' has a json_schema and a response_format; give one of them",
    ),
    (lambda app: app.regular("two", handler="a b"), "application 'a', stage 'two': handler name 'a b' must match"),
    (
        lambda app: app.regular("two", handler=unmarked),
        "stage 'two': unmarked is no handler; mark it with @handler, or give a handler's name",
    ),
    (lambda app: app.candidate("c", handler=unmarked), "candidate 'c': unmarked is no handler"),
    (lambda app: app.regular("two", arguments={"x": object()}), "cannot be stored as JSON"),
    (lambda app: app.dynamic("two", planner="one", candidates=[]), "stage 'two' is dynamic and needs candidates"),
    (
        lambda app: app.dynamic("two", planner="one", candidates=["c", "c"]),
        "stage 'two': candidate 'c' is listed 2 times; names must differ",
    ),
    (lambda app: app.result("stages."), "application 'a', result, line 1: "),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_a_mistake_is_found_at_once_and_leaves_the_app_as_it_was(
    mistake: Callable[[App], object], sentence: str
) -> None:
    app = started()
    before = app.definition
    with pytest.raises(InvalidApplication, match=re.escape(sentence)):
        mistake(app)

    assert app.definition == before
    app.llm("two", after="one")
    assert [s.name for s in app.build().stages] == ["one", "inside_0", "two"]


def test_a_stage_inside_a_loop_cannot_be_waited_for_outside() -> None:
    app = App("a")
    with app.loop("l", max_iterations=2) as loop:
        inside = app.llm("inside")
        app.llm("beside", after=inside)
    with pytest.raises(InvalidApplication, match="stage 'x' waits for 'inside', which is inside loop 'l'; wait for"):
        app.llm("x", after=inside)
    app.llm("x", after=loop)


def test_a_loop_is_checked_with_its_stages() -> None:
    app = App("a")
    with pytest.raises(InvalidApplication, match="loop 'l' has no stages"), app.loop("l", max_iterations=2):
        pass
    with (
        pytest.raises(InvalidApplication, match="loop 'l': max_iterations is 101; it must be between 1 and 100"),
        app.loop("l", max_iterations=101),
    ):
        app.llm("s")
    with (
        pytest.raises(InvalidApplication, match="stage 's_3', when: unknown variable 'latest'; did you mean 'last'"),
        app.loop("l", first=3, max_iterations=2, repeat_while="latest"),
    ):
        app.llm("s")
    with (
        pytest.raises(InvalidApplication, match="loop 'inner' is inside loop 'l'; unroll one of them"),
        app.loop("l", max_iterations=2),
        app.loop("inner", max_iterations=2),
    ):
        pass

    assert app.definition == {"name": "a", "stages": []}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "an app"}, "application 'an app': a name starts with a letter"),
        ({"name": "a", "input_schema": {"type": "objct"}}, "application 'a', input_schema"),
    ],
)
def test_a_bad_beginning_is_found_at_once(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidApplication, match=re.escape(sentence)):
        App(**arguments)
