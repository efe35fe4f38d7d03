"""What a model answered, read as what it was asked for: text, JSON, JSON of a schema.

A reply that is no good is worth one more try: the model is shown its reply and what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable

from llmsched.errors import InvalidInput
from llmsched.runtime.misfits import NOWHERE, misfit, words

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f]")

#: Characters of a bad reply that the model is shown again.
SHOWN = 4_000


class BadReply(InvalidInput):
    """A reply that is not what was asked. can_repair: whether asking again, with the error, is worth it."""

    def __init__(self, message: str, *, can_repair: bool) -> None:
        super().__init__(message)
        self.can_repair = can_repair


def schema_of(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON Schema that a `response_format` asks for, if it does. Raises InvalidInput where it hides it."""
    if response_format is None or response_format.get("type") != "json_schema":
        return None
    wanted = response_format.get("json_schema")
    schema = wanted.get("schema") if isinstance(wanted, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InvalidInput(
            'response_format of type json_schema must be {"type": "json_schema", "json_schema": {"name": …, "schema":'
            " {…}}}; it has no schema there"
        )
    return schema


def check_response_format(response_format: Mapping[str, Any] | None) -> None:
    """Raises InvalidInput if replies could never be held against it."""
    schema = schema_of(response_format)
    if schema is not None:
        _validator(orjson.dumps(schema))


def read_json(text: str, response_format: Mapping[str, Any] | None) -> Any:
    """The JSON value of a reply. Raises InvalidInput if it is none, or not one of the schema that was asked for."""
    try:
        value = _loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"must answer with JSON, but: {error}; it said {text[:80]!r}") from None
    schema = schema_of(response_format)
    if schema is None:
        return value
    try:
        wrong = misfit(_validator(orjson.dumps(schema)), value)
    except (Unresolvable, RecursionError, ArithmeticError, re.error) as trouble:
        raise InvalidInput(f"cannot be held against its json_schema: {trouble}") from None
    if wrong is not None:
        where = wrong.json_path[1:].lstrip(".") or "it"
        raise InvalidInput(f"must answer with JSON of its schema, but {where} is not: {words(wrong)}")
    return value


def _loads(text: str) -> Any:
    """As JSON has it, but with control characters in texts: models write line breaks, some grammars let all through."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        escaped = _STRING.sub(lambda string: _CONTROL.sub(lambda c: f"\\u{ord(c[0]):04x}", string[0]), text)
        if escaped == text:
            raise
        return orjson.loads(escaped)


def repair(reply: str, error: str) -> list[dict[str, Any]]:
    """What is said after a bad reply, to be asked again: the reply (shortened), and what is wrong with it."""
    said = reply if len(reply) <= SHOWN else f"{reply[:SHOWN]} …"
    return [
        # Some chat templates refuse an assistant who says nothing.
        {"role": "assistant", "content": said if said.strip() else "(nothing)"},
        {
            "role": "user",
            "content": f"That answer cannot be used: {error}.\n"
            "Do the same task again and give the whole answer, corrected. Reply with the JSON only.",
        },
    ]


@lru_cache(256)
def _validator(schema: bytes) -> Draft202012Validator:
    content = orjson.loads(schema)
    try:
        Draft202012Validator.check_schema(content)
    except (SchemaError, RecursionError, re.error) as error:
        where = f"json_schema.schema{error.json_path[1:]}" if isinstance(error, SchemaError) else "json_schema.schema"
        message = words(error) if isinstance(error, SchemaError) else str(error)
        raise InvalidInput(f"{where} is no JSON Schema: {message}") from None
    return Draft202012Validator(content, registry=NOWHERE)
