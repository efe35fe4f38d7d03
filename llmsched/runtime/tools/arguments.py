"""Arguments of handlers, held to the JSON Schema (2020-12) that each handler declares, before it is called.

Here and not in the workers: they start faster without jsonschema, and a tool that lives elsewhere has no worker.
A schema is the operator's: it is checked when its handler is registered, refers to nothing outside itself, and its
patterns are run as they are, in the service; keep them simple. `format` is not checked, as the standard has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from llmsched.errors import InvalidInput, InvalidSetting, show
from llmsched.runtime.misfits import NOWHERE, misfit, words

#: Keywords whose value is data and no schema.
_DATA = ("const", "default", "enum", "examples")


class Check:
    """Whether arguments are what the handler `name` takes.

    Raises InvalidSetting for a schema that is none, or that refers to what it does not have.
    """

    def __init__(self, name: str, schema: Mapping[str, Any]) -> None:
        self._name = name
        where = f"schema of handler {name!r}"
        try:
            plain = json.loads(json.dumps(dict(schema), allow_nan=False))
            Draft202012Validator.check_schema(plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidSetting(f"the {where} is no JSON object: {error}", field="schema") from None
        except SchemaError as error:
            raise InvalidSetting(
                f"the {where} is no JSON Schema: {error.json_path} is {show(error.instance)}: {words(error)}",
                field="schema",
            ) from None
        resolver = NOWHERE.with_resource("", DRAFT202012.create_resource(plain)).crawl().resolver()
        for reference in _references(plain):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise InvalidSetting(
                    f"the {where} refers to {reference!r}, which it does not have; write it out under $defs",
                    field="schema",
                ) from None
        self._validator = Draft202012Validator(plain, registry=NOWHERE)

    def __call__(self, arguments: Mapping[str, Any]) -> None:
        """Raises InvalidInput, with the path and the value, for arguments that break the schema."""
        try:
            error = misfit(self._validator, arguments)
        except (ArithmeticError, RecursionError, Unresolvable) as trouble:  # numbers beyond floats, endless nesting
            raise InvalidInput(f"the arguments of handler {self._name!r} cannot be checked: {trouble}") from None
        if error is not None:
            path = f"arguments{error.json_path[1:]}"
            message = f"{path} is not what handler {self._name!r} takes: {words(error)}"
            raise InvalidInput(message, field=path)


def is_long(value: Any, limit: int = 2000) -> bool:
    """Whether checking `value` takes long: it has more than `limit` values in it (4 microseconds each).

    >>> is_long({"a": [1, 2, 3]}, 4), is_long({"a": [1, 2, 3]}, 5)
    (True, False)
    """
    left = [value]
    count = 0
    while left:
        count += 1
        if count + len(left) - 1 > limit:
            return True
        value = left.pop()
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
    return False


def _references(schema: Any) -> Iterator[str]:
    match schema:
        case dict():
            for keyword, value in schema.items():
                if keyword in ("$ref", "$dynamicRef") and isinstance(value, str):
                    yield value
                elif keyword not in _DATA:
                    yield from _references(value)
        case list():
            for value in schema:
                yield from _references(value)
