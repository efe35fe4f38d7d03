"""The application templates that came with llmsched, and templates read from files.

A template is `apps/<name>/application.yaml` (or `.json`).
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmsched import apps
from llmsched.errors import InvalidApplication
from llmsched.model.application import Application

#: No template comes near it; whatever is larger was not meant to be one.
MAX_BYTES = 1_000_000

_FILES = ("application.yaml", "application.yml", "application.json")


def installed_applications() -> dict[str, Application]:
    """The installed templates by name, in alphabetical order. Raises InvalidApplication, naming the file."""
    return dict(_installed())


def load_application(path: Path) -> Application:
    """The template in a YAML or JSON file.

    Raises InvalidApplication, naming the file: it cannot be read, is larger than 1 MB, is not YAML or JSON, has a key
    twice or an alias, or is no application.
    """
    return _load(path, str(path))


@cache
def _installed() -> dict[str, Application]:
    found: dict[str, Application] = {}
    for folder in apps.folders():
        for file in (folder / name for name in _FILES):
            if not file.is_file():
                continue
            shown = f"apps/{folder.name}/{file.name}"
            application = _load(file, shown)
            if application.name != folder.name:
                raise InvalidApplication(f"{shown} holds application {application.name!r}; name the folder like it")
            found[application.name] = application
    return found


def _load(file: Path, shown: str) -> Application:
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidApplication(f"{shown} cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise InvalidApplication(f"{shown} is larger than {MAX_BYTES:,} bytes, so it is not an application")
    try:
        return Application.parse(_json(text) if shown.endswith(".json") else yaml.load(text, _Loader))
    except InvalidApplication as error:
        raise InvalidApplication(f"{shown}: {error}", field=error.field) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidApplication(f"{shown}{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        kind = "JSON" if shown.endswith(".json") else "YAML"
        raise InvalidApplication(f"{shown} is not {kind}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InvalidApplication(f"{shown} is nested too deeply to be an application") from None


def _json(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=_pairs)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidApplication(f"the key {twice!r} stands twice in one object; keep one")
    return mapping


class _Loader(yaml.SafeLoader):
    """YAML as far as it means the same as JSON: no aliases, no key twice, no dates.

    Aliases are refused because a few lines of them stand for gigabytes ("billion laughs").
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]  # the stubs forgot it
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not allowed; write the value out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused when it is read: no such key is a text
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice in one mapping; keep one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
