"""How a tool is called: its arguments by name, as a plan gives them, checked and turned into the values it takes.

    {"tool": "Image Stitcher", "arguments": {"image": "example1.jpg", "second_image": {…}},
     "input": {"request": "…", "resources": {}}}

Arguments are called as their types. A string that is a file's name stands for the resource of that name in `input`, the
job's.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llmsched import InvalidInput, handler

from .samples import kind_of_file, sample
from .values import MAX_TEXT_CHARS, SPOKEN, TEXT, URL, Media, is_media

Handler = Callable[[dict[str, Any]], Any]


def tool(name: str, *takes: str) -> Callable[[Callable[..., Any]], Handler]:
    """Makes a handler `task_automation.<name>` of a function that takes values of these types, in order."""

    def register(function: Callable[..., Any]) -> Handler:
        @handler(name=f"task_automation.{name}", schema=call_schema(takes))
        @functools.wraps(function)
        def run(call: dict[str, Any]) -> Any:
            with naming(call):
                made = function(*read_arguments(call, takes))
                return made.to_json() if isinstance(made, Media) else made

        return run

    return register


@contextmanager
def naming(call: Mapping[str, Any]) -> Iterator[None]:
    """Puts the tool's name in front of what it says is wrong."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{call['tool']}: {error}") from None


def call_schema(takes: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of a tool's call. What else is wrong with arguments, `read_arguments` says in plainer words."""
    arguments = {name: {"description": SPOKEN[kind]} for name, kind in zip(argument_names(takes), takes, strict=True)}
    return {
        "type": "object",
        "properties": {
            "tool": {"type": "string"},
            "arguments": {"type": "object", "properties": arguments},
            "input": {"type": "object"},
        },
        "required": ["tool", "arguments"],
    }


def argument_names(takes: Sequence[str]) -> list[str]:
    """What a tool's arguments are called: as their types, the second of a type `second_…`.

    >>> argument_names(["image", "image"])
    ['image', 'second_image']
    """
    return [kind if kind not in takes[:i] else f"second_{kind}" for i, kind in enumerate(takes)]


def read_arguments(call: Mapping[str, Any], takes: Sequence[str]) -> list[str | Media]:
    """The values of a call's arguments in order, of the types the tool takes.

    Raises InvalidInput, naming argument and type, for one that is missing, unknown, too large or of another type.
    """
    given, names = call["arguments"], argument_names(takes)
    for name in given:
        if name not in names:
            raise InvalidInput(f"there is no argument {name!r}; the tool takes {', '.join(names)}")
    for name in names:
        if name not in given:
            raise InvalidInput(f"the argument {name!r} is missing; the tool takes {', '.join(names)}")
    resources = (call.get("input") or {}).get("resources") or {}
    return [
        _value(_meant(given[name], resources, where), kind, where)
        for name, kind in zip(names, takes, strict=True)
        for where in [f"the argument {name!r}"]
    ]


def _meant(value: Any, resources: Mapping[str, Any], where: str) -> Any:
    """A resource of the job or a sample for a file's name, the text of what a simulated tool wrote, else the value."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return value["text"]
    if not isinstance(value, str):
        return value
    if value in resources:
        return resources[value]
    if kind_of_file(value) is None:
        return value
    if (found := sample(value)) is None:
        known = ", ".join(sorted(resources)) or "none"
        raise InvalidInput(f"{where} names the file {value!r}, which is no resource of the job; known: {known}")
    return found


def _value(value: Any, kind: str, where: str) -> str | Media:
    match value:
        case str() if kind == TEXT or (kind == URL and re.fullmatch(r"https?://\S+", value, re.IGNORECASE)):
            if len(value) > MAX_TEXT_CHARS:
                raise InvalidInput(f"{where} has {len(value)} characters, {MAX_TEXT_CHARS} are allowed; shorten it")
            return value
        case bool() | int() | float() if kind == TEXT:
            return str(value)
        case Mapping() if is_media(value):
            try:
                media = Media.from_json(value)
            except InvalidInput as error:
                raise InvalidInput(f"{where} {error}") from None
            if media.kind == kind:
                return media
            shown = SPOKEN[media.kind]
        case str():
            shown = f"the text {value[:60]!r}"
        case _:
            shown = f"{value!r:.60}"
    raise InvalidInput(f"{where} is {shown}, it must be {SPOKEN[kind]}")


def needs(module: str) -> Any:
    """A module of the extra `[tools]`. Raises InvalidInput if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInput(
            f"this tool needs a library that is not installed ({error}); pip install 'llmsched[tools]'"
        ) from None
