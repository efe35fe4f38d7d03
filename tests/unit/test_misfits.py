"""What is wrong with a value or a reply: the alternative that was meant, and never a whole long value."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llmsched.errors import InvalidInput
from llmsched.runtime.misfits import misfit, words
from llmsched.runtime.scripts.replies import read_json


def told(schema: dict[str, Any], value: Any) -> tuple[str, str] | None:
    error = misfit(Draft202012Validator(schema), value)
    return None if error is None else (error.json_path, words(error))


def call(tool: str, **arguments: str) -> dict[str, Any]:
    properties = {"tool": {"const": tool}} | {name: {"type": kind} for name, kind in arguments.items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


CALLS = {"anyOf": [call("search", query="string"), call("math", problem="string", digits="integer")]}


def test_a_value_that_fits_has_no_misfit() -> None:
    assert told(CALLS, {"tool": "search", "query": "Rhine"}) is None


def test_of_alternatives_the_one_that_was_meant_is_told() -> None:
    assert told(CALLS, {"tool": "math", "problem": "1 + 1", "digits": "two"}) == (
        "$.digits",
        "'two' is not of type 'integer'",
    )
    assert told(CALLS, {"tool": "search"}) == ("$", "'query' is a required property")


def test_where_no_alternative_was_meant_none_is_told() -> None:
    path, said = told(CALLS, {"tool": "dance", "query": "tango"}) or ("", "")

    assert path == "$"
    assert said.endswith("is not valid under any of the given schemas")


def test_a_long_value_is_shortened_in_the_words() -> None:
    path, said = told({"type": "array", "maxItems": 3}, list(range(10_000))) or ("", "")

    assert path == "$"
    assert said == "[0, 1, 2, ...] is too long"


def test_control_characters_in_the_texts_of_a_reply_are_read() -> None:
    assert read_json('{"a":\n "one\ntwo\x06\t\\n"}', None) == {"a": "one\ntwo\x06\t\n"}


def test_a_reply_that_is_no_json_all_the_same_is_told() -> None:
    with pytest.raises(InvalidInput, match=r"must answer with JSON, but: .*; it said"):
        read_json('{"a": "one\ntwo', None)
