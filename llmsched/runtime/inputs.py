"""Inputs of jobs, checked against the JSON Schema (2020-12) that their application declares as `input_schema`."""

from __future__ import annotations

import re
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable

from llmsched.errors import InvalidApplication, InvalidInput
from llmsched.model.application import Application
from llmsched.runtime.misfits import NOWHERE, misfit, words


def check_schema(application: Application) -> None:
    """Raises InvalidApplication if `input_schema` is no JSON Schema."""
    try:
        Draft202012Validator.check_schema(application.input_schema or {})
    except SchemaError as error:
        where = f"input_schema{error.json_path[1:]}"
        raise InvalidApplication(f"application {application.name!r}, {where}: {words(error)}", field=where) from None


def check_input(application: Application, value: Any) -> None:
    """Raises InvalidInput, with the path of the culprit, if `value` is no input of this application."""
    if application.input_schema is None:
        return
    try:
        error = misfit(Draft202012Validator(application.input_schema, registry=NOWHERE), value)
    except (Unresolvable, RecursionError, re.error) as trouble:
        raise InvalidInput(
            f"the input_schema of application {application.name!r} cannot be used: {trouble}; register a better one",
            field="application",
        ) from None
    if error is not None:
        field = f"input{error.json_path[1:]}"
        raise InvalidInput(f"{field} is not what {application.name!r} takes: {words(error)}", field=field)
