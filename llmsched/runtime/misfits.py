"""What is wrong with a value that does not fit its JSON Schema (2020-12), in words that can stand in a sentence.

Nothing is fetched: references of a schema stay within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, relevance
from referencing import Registry

from llmsched.errors import show

NOWHERE: Registry[Any] = Registry()
#: Characters of what the standard's words for an error may take.
_LONGEST = 300


def misfit(validator: Draft202012Validator, value: Any) -> ValidationError | None:
    """The error that says most; None: it fits. Raises what a schema's references and patterns may raise.

    Of alternatives it is one of the alternative that was most likely meant: where no constant differs, and the fewest
    errors are. (jsonschema's `best_match` says then that none of them fits.)
    """
    return _meant(list(validator.iter_errors(value)))


def words(error: ValidationError | SchemaError) -> str:
    """What is wrong, without all of a long value."""
    message = error.message.replace(repr(error.instance), show(error.instance), 1)
    return message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"


def _meant(errors: Sequence[ValidationError]) -> ValidationError | None:
    error = max(errors, key=relevance, default=None)
    if error is None or error.validator not in ("anyOf", "oneOf") or not error.context:
        return error
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).append(inner)
    likeliest = min(branches.values(), key=_strangeness)
    return error if _strangeness(likeliest)[0] else _meant(likeliest)


def _strangeness(errors: Sequence[ValidationError]) -> tuple[int, int]:
    """How little an alternative was meant: constants that differ, or another type altogether; then all its errors."""
    kinds = sum(e.validator in ("const", "enum") or (e.validator == "type" and not e.relative_path) for e in errors)
    return kinds, len(errors)
