"""What a planner wrote, read as stages: names, candidates, what waits for what, and what refers to what.

A plan is `{"stages": [{"name", "candidate", "after": [], "arguments": {}}]}`; the candidate defaults to the name. In
the arguments, `$NAME` (or `${NAME}`) stands for the output of the planned stage NAME, and is a reason to wait for it: a
text that is nothing else becomes the output itself, inside a longer text it becomes the output's text. A name in braces
may have any characters, one without ends where letters, digits, `_`, `-` and `.` end. What names no stage of the plan
stays as it is: `$5.00` is money.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from llmsched.errors import InvalidInput
from llmsched.model.kinds import StageKind
from llmsched.model.spec import (
    DEFAULT_POOLS,
    MAX_STAGES,
    Candidate,
    StageSpec,
    departures,
    in_topological_order,
    listed,
    validate_plan,
)
from llmsched.runtime.scripts.templates import texts_in

#: Longest name a plan may give a stage.
MAX_NAME = 100

_REFERENCE = re.compile(rf"\$(?:\{{([^{{}}]{{1,{MAX_NAME}}})\}}|(\w[\w.-]*))")


@dataclass(frozen=True, slots=True)
class Entry:
    """One stage as the planner wrote it. refers: what its arguments refer to. chosen: None for an unknown candidate."""

    name: str
    candidate: str
    after: tuple[str, ...]
    refers: tuple[str, ...]
    arguments: Mapping[str, Any]
    chosen: Candidate | None


class Plan(NamedTuple):
    """A plan that can run. specs: in topological order; entries: by the name of the spec.

    off_profile: how it leaves what its dynamic stage declares, one sentence each.
    """

    specs: tuple[StageSpec, ...]
    entries: Mapping[str, Entry]
    off_profile: tuple[str, ...]


def read_plan(dynamic: StageSpec, plan: Any) -> Plan:
    """The stages that take the place of `dynamic`.

    Raises InvalidInput with one sentence: it is no plan, has a cycle, or leaves candidates, edges or bound of a stage
    that does not allow that.
    """
    entries = {f"{dynamic.name}.{e.name}": e for e in _read(dynamic, plan)}
    specs = [_spec(dynamic, name, entry) for name, entry in entries.items()]
    chosen = {name: entry.candidate for name, entry in entries.items()}
    if not dynamic.off_profile:
        return Plan(validate_plan(dynamic, specs, chosen=chosen), entries, ())
    where = f"the plan for {dynamic.name!r}"
    if len(specs) > MAX_STAGES:
        raise InvalidInput(f"{where} has {len(specs)} stages, more than {MAX_STAGES} are never run; plan fewer")
    if dynamic.fallback is None and (strange := next((e for e in entries.values() if e.chosen is None), None)):
        known = listed(c.name for c in dynamic.candidates)
        raise InvalidInput(
            f"{where} uses {strange.candidate!r} (stage {strange.name!r}), which is not one of its candidates: {known};"
            " there is no fallback handler either"
        )
    off_profile = tuple(departures(dynamic, specs, chosen=chosen))
    return Plan(in_topological_order(where, specs), entries, off_profile)


def resolve(value: Any, outputs: Mapping[str, Any]) -> Any:
    """A planned stage's arguments with its references replaced. outputs: by planned name; others stay as they are."""
    match value:
        case str() if (name := _alone(value, outputs)) is not None:
            return outputs[name]
        case str():
            return _REFERENCE.sub(lambda found: _replaced(found, outputs), value)
        case Mapping():
            return {k: resolve(v, outputs) for k, v in value.items()}
        case list():
            return [resolve(v, outputs) for v in value]
        case _:
            return value


def text_of(value: Any) -> str:
    """A value inside a text: texts as they are, others as JSON."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value)


def _alone(text: str, names: Collection[str]) -> str | None:
    """The name, if the text is nothing but a reference."""
    if not text.startswith("$"):
        return None
    name = text[2:-1] if text.startswith("${") and text.endswith("}") else text[1:]
    return name if name in names else None


def _replaced(found: re.Match[str], outputs: Mapping[str, Any]) -> str:
    name, rest = _named(found, outputs)
    return found[0] if name is None else text_of(outputs[name]) + rest


def _named(found: re.Match[str], names: Collection[str]) -> tuple[str | None, str]:
    """The longest name at the start of what looks like a reference, and what is left behind it."""
    if found[1] is not None:
        return (found[1] if found[1] in names else None), ""
    token = found[2]
    ends = [len(token), *(m.start() for m in reversed(list(re.finditer(r"[.-]", token))))]
    for end in ends:
        rest = token[end:]
        behind = rest[:2] or found.string[found.end() : found.end() + 2]
        if token[:end] in names and not re.match(r"[.,]\d", behind):
            return token[:end], rest
    return None, ""


def _references(value: Any, names: Collection[str]) -> Iterator[str]:
    for text in texts_in(value):
        if (alone := _alone(text, names)) is not None:
            yield alone
            continue
        for found in _REFERENCE.finditer(text):
            name, _ = _named(found, names)
            if name is not None:
                yield name


def _spec(dynamic: StageSpec, name: str, entry: Entry) -> StageSpec:
    waits = dict.fromkeys((*entry.after, *entry.refers))
    candidate = entry.chosen
    shared: dict[str, Any] = {
        "after": tuple(f"{dynamic.name}.{p}" for p in waits),
        "parent": dynamic.name,
        "candidate": entry.candidate,
    }
    if candidate is None:
        kind = StageKind.REGULAR
        return StageSpec(name, kind, pool=DEFAULT_POOLS[kind], handler=dynamic.fallback, **shared)
    return StageSpec(
        name,
        candidate.kind,
        pool=candidate.pool,
        handler=candidate.handler,
        prompt=candidate.prompt,
        system=candidate.system,
        max_tokens=candidate.max_tokens,
        sampling=candidate.sampling,
        response_format=candidate.response_format,
        arguments=candidate.arguments or {},
        **shared,
    )


def _read(dynamic: StageSpec, plan: Any) -> list[Entry]:
    where = f"the plan for {dynamic.name!r}"
    raw = plan.get("stages") if isinstance(plan, Mapping) else plan
    if not isinstance(raw, list):
        raise InvalidInput(f"{where} must be a list of stages, or an object with one under 'stages', not {plan!r:.80}")
    names: dict[str, None] = {}
    for entry in raw:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InvalidInput(
                f"{where}: each stage needs a name of at most {MAX_NAME} printable characters,"
                f" which {entry!r:.80} lacks"
            )
        if name in names:
            raise InvalidInput(f"{where} has two stages named {name!r}; names must differ")
        names[name] = None
    known = {c.name: c for c in dynamic.candidates}
    return [_entry(where, entry, names, known) for entry in raw]


def _entry(where: str, raw: Mapping[str, Any], names: Collection[str], known: Mapping[str, Candidate]) -> Entry:
    name = raw["name"]
    after, arguments = raw.get("after") or [], raw.get("arguments") or {}
    if not (isinstance(after, list) and all(isinstance(a, str) for a in after)):
        raise InvalidInput(f"{where}, stage {name!r}: after is {after!r:.80}, it must be a list of names")
    if not isinstance(arguments, Mapping):
        raise InvalidInput(f"{where}, stage {name!r}: arguments is {arguments!r:.80}, it must be an object")
    candidate = str(raw.get("candidate") or name)
    chosen = known.get(candidate)
    if chosen is not None and chosen.kind is StageKind.LLM and chosen.prompt is None:
        prompt = arguments.get("prompt")
        if not isinstance(prompt, str):
            raise InvalidInput(
                f"{where}, stage {name!r}: {candidate!r} is asked arguments.prompt, which is {prompt!r:.80};"
                " it must be a text"
            )
    refers = tuple(dict.fromkeys(_references(arguments, names)))
    return Entry(name, candidate, tuple(dict.fromkeys(after)), refers, arguments, chosen)
