r"""Scripted answers: an emulated engine that says what a script says, for tests and demonstrations of applications.

A script is a function from a `Call` to a text, or a file of rules:

```yaml
- match: 'capital of (\w+)'       # a regular expression, searched for in the last message
  answer: 'The capital of \1 is Paris.'
  times: 1                        # used so often, then passed over; without it: always
- match: 'plan'
  json: {stages: []}              # answered as JSON
- answer: I do not know.          # without match: any call
```

The first rule that matches answers. A call that nothing answers is refused, so that a job fails and says why.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmsched.errors import InvalidSetting

#: Says what the model answers. Raises LookupError, with a sentence, for a call it does not understand.
Answer = Callable[["Call"], str]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model as its script sees it.

    messages: role and content of each; a completion's prompt is one message of the user.
    """

    messages: Sequence[Mapping[str, str]]
    response_format: Mapping[str, Any] | None = None
    seed: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def prompt(self) -> str:
        """All that was said, in order."""
        return "\n\n".join(message["content"] for message in self.messages)

    @property
    def last(self) -> str:
        """The newest message of the user."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def system(self) -> str:
        """The system's message, if there is one."""
        return next((m["content"] for m in self.messages if m["role"] == "system"), "")

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema the answer has to fit; None: no such wish."""
        wanted = (self.response_format or {}).get("json_schema")
        return wanted.get("schema") if isinstance(wanted, Mapping) else None


def read_script(source: str) -> Answer:
    """The script `source` names: a file of rules, `module:function`, an installed application, or `apps` for all.

    Raises InvalidSetting, with the way out, for anything else.
    """
    if Path(source).suffix in (".yaml", ".yml", ".json"):
        return _Rules(_rules(Path(source)))
    if ":" in source:
        module, _, name = source.partition(":")
        return _function(module, name, source)
    from llmsched import apps

    names = [folder.name for folder in apps.folders() if (folder / "scripted.py").is_file()]
    if source == "apps":
        return _any_of([_function(f"{apps.__name__}.{name}.scripted", "answer", name) for name in names])
    if source in names:
        return _function(f"{apps.__name__}.{source}.scripted", "answer", source)
    raise InvalidSetting(
        f"script is {source!r}; it must be a YAML or JSON file of rules, module:function, 'apps', or one of"
        f" {', '.join(names)}",
        field="script",
    )


def _function(module: str, name: str, source: str) -> Answer:
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module is the user's: importing it can raise anything
        raise InvalidSetting(f"script {source!r} cannot be imported: {error}", field="script") from None
    if not callable(found):
        raise InvalidSetting(f"script {source!r} is {found!r}, which is not a function", field="script")
    return found  # type: ignore[no-any-return]  # whether it takes a call shows when it is called


def _any_of(answers: Sequence[Answer]) -> Answer:
    def answer(call: Call) -> str:
        for one in answers:
            try:
                return one(call)
            except LookupError:
                continue
        raise LookupError(f"no installed application asks {call.last[:80]!r}")

    return answer


# ---------------------------------------------------------------------------------------------------- rules


@dataclass(slots=True)
class _Rule:
    match: re.Pattern[str]
    answer: str | None
    json: Any
    #: How often it may still be used; None: always.
    left: int | None

    def try_on(self, call: Call) -> str | None:
        found = self.match.search(call.last) if self.left != 0 else None
        if found is None:
            return None
        if self.left is not None:
            self.left -= 1
        return json.dumps(self.json, ensure_ascii=False) if self.answer is None else found.expand(self.answer)


class _Rules:
    """Answers by the first rule that matches."""

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self._rules = rules

    def __call__(self, call: Call) -> str:
        for rule in self._rules:
            if (answer := rule.try_on(call)) is not None:
                return answer
        raise LookupError(f"no rule of the script matches {call.last[:80]!r}")


def _rules(path: Path) -> list[_Rule]:
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting(f"the script {path} cannot be read: {error.strerror}", field="script") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"the script {path} is no YAML: {error}", field="script") from None
    if not isinstance(listed, list):
        raise InvalidSetting(f"the script {path} must be a list of rules, not {listed!r:.80}", field="script")
    return [_rule(rule, f"the script {path}, rule {number}") for number, rule in enumerate(listed, 1)]


def _rule(raw: Any, where: str) -> _Rule:
    known = {"match", "answer", "json", "times"}
    if not isinstance(raw, dict) or ("answer" in raw) == ("json" in raw) or not raw.keys() <= known:
        raise InvalidSetting(
            f"{where} is {raw!r:.80}; it must have either 'answer' or 'json', and may have 'match' and 'times'",
            field="script",
        )
    answer, times = raw.get("answer"), raw.get("times")
    if "answer" in raw and not isinstance(answer, str):
        raise InvalidSetting(f"{where}: answer is {answer!r:.80}; it must be a text", field="script")
    if times is not None and (not isinstance(times, int) or isinstance(times, bool) or times < 1):
        raise InvalidSetting(f"{where}: times is {times!r:.80}; it must be a whole number from 1", field="script")
    try:
        match = re.compile(str(raw.get("match", "")), re.DOTALL | re.IGNORECASE)
        if isinstance(answer, str):
            _check_groups(match, answer)
    except IndexError:
        raise InvalidSetting(f"{where}: answer refers to a group that match does not have", field="script") from None
    except re.error as error:
        raise InvalidSetting(f"{where}: match is no regular expression: {error}", field="script") from None
    return _Rule(match, answer, raw.get("json"), times)


def _check_groups(match: re.Pattern[str], answer: str) -> None:
    """Raises IndexError or re.error if `answer` cannot be filled in from what `match` finds."""
    anything = re.compile(f"(?:{match.pattern})|", match.flags)
    if (found := anything.search("")) is not None:
        try:
            found.expand(answer)
        except re.error as error:
            raise IndexError(str(error)) from None
