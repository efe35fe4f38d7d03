"""Reads a definition, the JSON-like form of an application, with a sentence for everything that is wrong with it.

See `application.py` for an example. Loops are padded here: what comes out is the DAG of all stages that could ever run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from math import isfinite
from operator import mul
from typing import NamedTuple, cast

from llmsched.errors import InvalidApplication, UnknownName, show
from llmsched.model.kinds import StageKind
from llmsched.model.spec import (
    A_NAME,
    DEFAULT_POOLS,
    MAX_DEPTH,
    MAX_ITERATIONS,
    MAX_NUMBER,
    MAX_STAGES,
    MAX_TASKS,
    NAME,
    Candidate,
    Expected,
    StageSpec,
)


class Definition(NamedTuple):
    """What a definition says; the stages are padded, but not yet checked against each other."""

    name: str
    stages: tuple[StageSpec, ...]
    description: str
    result: str | None
    input_schema: Mapping[str, object] | None


def read_definition(definition: object) -> Definition:
    """The content of a JSON-like definition.

    Raises InvalidApplication with one sentence that names the stage and the way out.
    """
    _check_json(definition)
    top = _Reader(definition, "application")
    name = top.text("name", required=True)
    top.where = f"application {show(name)}"
    entries = top.items("stages")
    read = Definition(
        name=name,
        stages=tuple(islice(_stages(entries, top.where), MAX_STAGES + 1)),
        description=top.text("description"),
        result=top.text("result") or None,
        input_schema=top.mapping("input_schema") or None,
    )
    top.done()
    return read


def _check_json(definition: object) -> None:
    """A definition is stored as JSON and read again: what could not be is refused before anything else looks at it."""
    left = [(definition, 0)]
    while left:
        value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise InvalidApplication(f"the definition is nested deeper than {MAX_DEPTH} levels; make it flatter")
        match value:
            case str():
                if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
                    raise InvalidApplication(f"the text {show(value)} has characters that cannot be stored")
            case bool() | None:
                pass
            case int():
                if not -(2**63) <= value < 2**63:
                    raise InvalidApplication("the definition has a number of more than 64 bits; use a smaller one")
            case float():
                if not isfinite(value):
                    raise InvalidApplication(f"the number {value} is not finite, so it cannot be stored as JSON")
            case Mapping():
                for key in value:
                    if not isinstance(key, str):
                        raise InvalidApplication(f"the key {show(key)} must be a text; put it in quotes")
                    left.append((key, depth))
                left += ((inner, depth + 1) for inner in value.values())
            case list() | tuple():
                left += ((inner, depth + 1) for inner in value)
            case _:
                raise InvalidApplication(f"the value {show(value)} cannot be stored as JSON; put it in quotes")


def _stages(entries: Iterable[object], where: str) -> Iterable[StageSpec]:
    """Specs of all entries, loops padded; names of loops in `after` stand for every iteration's last stages."""
    loops: dict[str, tuple[str, ...]] = {}
    names: set[str] = set()
    for i, entry in enumerate(entries):
        reader = _Reader(entry, f"{where}, stages[{i}]")
        padded = _loop(reader, where, loops) if "loop" in reader.left else [_stage(reader, where, loops)]
        for spec in padded:
            names.add(spec.name)
            yield spec
        if clash := next((loop for loop in loops if loop in names), None):
            raise InvalidApplication(f"{where} has a loop and a stage named {clash!r}; names must differ")


def _resolve(after: Iterable[str], loops: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for name in after for n in loops.get(name, (name,))))


def _loop(reader: _Reader, where: str, loops: dict[str, tuple[str, ...]]) -> Iterable[StageSpec]:
    name = _named(reader, "loop", where)
    if name in loops:
        raise InvalidApplication(f"{where} has two loops named {name!r}; names must differ")
    if reader.left.get("max_iterations") is None:
        raise InvalidApplication(f"{reader.where} is unbounded; give it max_iterations (at most {MAX_ITERATIONS})")
    most = reader.integer("max_iterations", 0)
    if not 1 <= most <= MAX_ITERATIONS:
        raise InvalidApplication(f"{reader.where}: max_iterations is {most}; it must be between 1 and {MAX_ITERATIONS}")
    first = reader.integer("first", 0)
    condition = reader.text("while") or None
    reached = _reached(reader, most)
    entry = _resolve(reader.names("after"), loops)
    body = [_Reader(e, f"{reader.where}, stages[{i}]") for i, e in enumerate(reader.items("stages"))]
    reader.done()
    if not body:
        raise InvalidApplication(f"{reader.where} has no stages; give it at least one")
    if nested := next((r for r in body if "loop" in r.left), None):
        raise InvalidApplication(f"{nested.where} is a loop inside a loop; unroll one of them")
    templates = [_stage(r, reader.where, {}) for r in body]
    inside = {t.name for t in templates}
    ends = [t.name for t in templates if not any(t.name in other.after for other in templates)]
    previous, exits = entry, list(entry)
    for i in range(most):
        k = first + i
        for t in templates:
            is_head = not any(p in inside for p in t.after)
            own = tuple(n for p in t.after for n in ((f"{p}_{k}",) if p in inside else loops.get(p, (p,))))
            yield replace(
                t,
                name=f"{t.name}_{k}",
                after=tuple(dict.fromkeys(own + previous if is_head else own)),
                iteration=k,
                loop=name,
                when=_both(condition, t.when) if is_head else t.when,
                planner=f"{t.planner}_{k}" if t.planner in inside else t.planner,
                expected=replace(t.expected, probability=t.expected.probability * reached[i]),
            )
        previous = tuple(f"{e}_{k}" for e in ends)
        exits += previous
    loops[name] = tuple(exits)


def _reached(reader: _Reader, iterations: int) -> list[float]:
    """Chance of each iteration, given that the first one takes place."""
    chances = reader.numbers("continues")
    if len(chances) == 1:
        chances *= iterations - 1
    if chances and len(chances) != iterations - 1:
        raise InvalidApplication(
            f"{reader.where}: continues has {len(chances)} numbers; it must have one, or {iterations - 1}:"
            " one for each iteration but the first"
        )
    if above := next((c for c in chances if c > 1), None):
        raise InvalidApplication(f"{reader.where}: continues has {above}; a chance cannot be above 1")
    return list(accumulate(chances or [1.0] * (iterations - 1), mul, initial=1.0))


def _both(a: str | None, b: str | None) -> str | None:
    return f"({a}) and ({b})" if a and b else a or b


def _stage(reader: _Reader, where: str, loops: Mapping[str, tuple[str, ...]]) -> StageSpec:
    name = _named(reader, "name", where)
    kind = _kind(reader, reader.text("kind", required=True))
    model = reader.text("model") or None
    pool = reader.text("pool") or (model if kind is StageKind.LLM and model else DEFAULT_POOLS[kind])
    expected = _expected(_Reader(reader.mapping("expected"), f"{reader.where}, expected"))
    tasks = reader.integer("tasks", 1)
    spec = StageSpec(
        name=name,
        kind=kind,
        after=_resolve(reader.names("after"), loops),
        pool=pool,
        tasks=tasks,
        max_tasks=reader.integer("max_tasks", MAX_TASKS if "for_each" in reader.left else tasks),
        retries=reader.integer("retries", 2),
        timeout=reader.optional("timeout"),
        expected=expected,
        planner=reader.text("planner") or None,
        candidates=tuple(
            _candidate(_Reader({"name": c} if isinstance(c, str) else c, f"{reader.where}, candidates[{i}]"))
            for i, c in enumerate(reader.items("candidates"))
        ),
        edges=_edges(reader),
        max_stages=reader.integer("max_stages", 16),
        off_profile=reader.flag("off_profile"),
        fallback=reader.text("fallback") or None,
        when=reader.text("when") or None,
        for_each=reader.text("for_each") or None,
        prompt=reader.text("prompt") or None,
        system=reader.text("system") or None,
        model=model,
        max_tokens=reader.integer("max_tokens", 0) or None,
        sampling=reader.mapping("sampling"),
        response_format=reader.mapping("response_format") or None,
        handler=reader.text("handler") or None,
        arguments=reader.mapping("arguments"),
    )
    reader.done()
    return spec


def _named(reader: _Reader, key: str, where: str) -> str:
    """The name of a stage or loop, from here on also named in the reader's messages."""
    name = reader.text(key, required=True)
    reader.where = f"{where}, {'loop' if key == 'loop' else 'stage'} {show(name)}"
    if not NAME.fullmatch(name):
        raise InvalidApplication(f"{reader.where}: a name {A_NAME}", field=key)
    return name


def _kind(reader: _Reader, raw: str) -> StageKind:
    try:
        return StageKind(raw)
    except ValueError:
        known = ", ".join(k.value for k in StageKind)
        raise InvalidApplication(f"{reader.where}: unknown kind {show(raw)}; known: {known}", field="kind") from None


def _expected(reader: _Reader) -> Expected:
    spec = Expected(
        probability=reader.number("probability", 1.0),
        tasks=reader.number("tasks", 1.0),
        prompt_tokens=reader.number("prompt_tokens", 0.0),
        output_tokens=reader.number("output_tokens", 0.0),
        duration=reader.number("duration", 0.0),
    )
    reader.done()
    if spec.probability > 1:
        raise InvalidApplication(f"{reader.where}: probability is {spec.probability}; it cannot be above 1")
    return spec


def _candidate(reader: _Reader) -> Candidate:
    name = reader.text("name", required=True)
    reader.where += f" {show(name)}"
    if len(name) > 200 or not name.isprintable():
        raise InvalidApplication(
            f"{reader.where}: a candidate's name is at most 200 printable characters", field="name"
        )
    kind = _kind(reader, reader.text("kind") or "regular")
    has_arguments = reader.left.get("arguments") is not None
    candidate = Candidate(
        name=name,
        kind=kind,
        pool=reader.text("pool") or DEFAULT_POOLS[kind],
        handler=reader.text("handler") or None,
        input=reader.names("input"),
        output=reader.names("output"),
        prompt=reader.text("prompt") or None,
        system=reader.text("system") or None,
        max_tokens=reader.integer("max_tokens", 0) or None,
        sampling=reader.mapping("sampling"),
        response_format=reader.mapping("response_format") or None,
        arguments=reader.mapping("arguments") or ({} if has_arguments else None),
    )
    reader.done()
    for key in _OF_OTHERS[kind]:
        if getattr(candidate, key):
            raise InvalidApplication(
                f"{reader.where} is of kind {kind}, which has no {key}; leave it out or change the kind", field=key
            )
    return candidate


#: Keys of a candidate that mean nothing for its kind.
_OF_OTHERS = {
    StageKind.LLM: ("arguments",),
    StageKind.REGULAR: ("prompt", "system", "max_tokens", "sampling", "response_format"),
    StageKind.DYNAMIC: (),  # refused when the stages are checked against each other
}


def _edges(reader: _Reader) -> tuple[tuple[str, str], ...] | None:
    """None where the definition has no `edges`: then every edge is allowed."""
    is_absent = reader.left.get("edges") is None
    edges = []
    for edge in reader.items("edges"):
        if not (isinstance(edge, (list, tuple)) and len(edge) == 2 and all(isinstance(e, str) for e in edge)):
            raise InvalidApplication(f"{reader.where}: an edge is a pair of candidate names, not {show(edge)}")
        edges.append((edge[0], edge[1]))
    return None if is_absent else tuple(edges)


class _Reader:
    """Takes the known keys out of a mapping with checked types; `done` refuses what is left.

    A key whose value is null counts as absent.
    """

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise InvalidApplication(f"{where} must be a mapping, not {show(raw)}")
        self.where, self.known = where, list[str]()
        self.left: dict[str, object] = dict(raw)

    def _take(self, key: str) -> object:
        self.known.append(key)
        return self.left.pop(key, None)

    def _wrong(self, key: str, value: object, what: str) -> InvalidApplication:
        shown = "missing" if value is None else show(value)
        return InvalidApplication(f"{self.where}: {key} is {shown}; it must be {what}", field=key)

    def text(self, key: str, *, required: bool = False) -> str:
        value = self._take(key)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value):
            raise self._wrong(key, value, "a text")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.optional(key)
        return default if value is None else value

    def optional(self, key: str) -> float | None:
        value = self._take(key)
        return None if value is None else self._number(key, value)

    def numbers(self, key: str) -> list[float]:
        value = self._take(key)
        if value is None:
            return []
        return [self._number(key, v) for v in (value if isinstance(value, (list, tuple)) else [value])]

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_NUMBER:
            raise self._wrong(key, value, f"a number from 0 to {MAX_NUMBER}")
        return float(value)

    def integer(self, key: str, default: int) -> int:
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
            raise self._wrong(key, value, f"a whole number from 0 to {MAX_NUMBER}")
        return value

    def flag(self, key: str) -> bool:
        value = self._take(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def items(self, key: str) -> Sequence[object]:
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise self._wrong(key, value, "a list")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        value = self.items(key)
        if not all(isinstance(v, str) for v in value):
            raise self._wrong(key, value, "a list of names")
        return tuple(cast(Sequence[str], value))

    def mapping(self, key: str) -> Mapping[str, object]:
        value = self._take(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a mapping")
        return cast(Mapping[str, object], value)

    def done(self) -> None:
        if self.left:
            raise InvalidApplication(f"{self.where}: {UnknownName.of('key', next(iter(self.left))[:80], self.known)}")
