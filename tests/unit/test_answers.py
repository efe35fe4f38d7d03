"""Scripts of emulated engines: rules in a file, functions by name, and what they say to a call."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsched.errors import InvalidSetting
from llmsched.testing import Call, read_script


def ask(text: str) -> Call:
    return Call([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}])


def written(folder: Path, rules: str) -> str:
    file = folder / "script.yaml"
    file.write_text(rules)
    return str(file)


def test_the_first_rule_that_matches_answers(tmp_path: Path) -> None:
    script = read_script(
        written(
            tmp_path,
            r"""
- {match: 'capital of (\w+)', answer: 'I know \1.'}
- {match: plan, json: {stages: []}}
- {answer: I do not know.}
""",
        )
    )

    assert [script(ask(q)) for q in ("The capital of France?", "Plan it", "Why?")] == [
        "I know France.",
        '{"stages": []}',
        "I do not know.",
    ]


def test_a_rule_is_used_as_often_as_it_says(tmp_path: Path) -> None:
    script = read_script(written(tmp_path, "- {answer: wrong, times: 2}\n- {answer: right}\n"))

    assert [script(ask("?")) for _ in range(4)] == ["wrong", "wrong", "right", "right"]


def test_a_call_that_no_rule_matches_is_named(tmp_path: Path) -> None:
    script = read_script(written(tmp_path, "- {match: aye, answer: nay}\n"))

    with pytest.raises(LookupError, match="no rule of the script matches 'Perhaps'"):
        script(ask("Perhaps"))


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ("answer: hello", "must be a list of rules"),
        ("- hello", "rule 1 is 'hello'; it must have either 'answer' or 'json'"),
        ("- {answer: a, json: 1}", "either 'answer' or 'json'"),
        ("- {answer: a, mach: b}", "either 'answer' or 'json'"),
        ("- {answer: 1}", "answer is 1; it must be a text"),
        ("- {answer: a, times: 0}", "times is 0"),
        ("- {answer: a, match: '('}", "match is no regular expression"),
        (r"- {answer: '\1', match: a}", "answer refers to a group that match does not have"),
        ("- [", "is no YAML"),
    ],
)
def test_what_is_no_rule_is_refused(tmp_path: Path, rules: str, sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence.replace("(", r"\(")):
        read_script(written(tmp_path, rules))


def test_a_function_is_a_script_by_its_name() -> None:
    assert read_script("tests.unit.test_answers:shout")(ask("hello")) == "HELLO"


def shout(call: Call) -> str:
    return call.last.upper()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("sorting", "script is 'sorting'; it must be a YAML or JSON file"),
        ("no.such.module:answer", "cannot be imported: No module named 'no'"),
        ("tests.unit.test_answers:PLACE", "cannot be imported"),
        ("missing.yaml", "cannot be read: No such file"),
    ],
)
def test_an_unknown_script_is_refused(source: str, sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence):
        read_script(source)


def test_a_call_tells_what_was_said_by_whom() -> None:
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    call = Call([*ask("first").messages, {"role": "assistant", "content": "so?"}], wanted)

    assert (call.system, call.last, call.prompt) == ("Be brief.", "first", "Be brief.\n\nfirst\n\nso?")
    assert call.schema == schema
    assert ask("x").schema is None
