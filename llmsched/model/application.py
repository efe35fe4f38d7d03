"""An application as data: stages, dependencies, bounded loops, dynamic stages, validated when built.

A definition is a JSON-like mapping (YAML files under `apps/`, `PUT /v1/applications/{name}`):

```yaml
name: code_generation
stages:
  - {name: test_gen, kind: llm}
  - {name: code_gen_0, kind: llm, after: [test_gen]}
  - {name: code_exec_0, kind: regular, handler: python_exec, after: [code_gen_0]}
  - loop: repair                     # padded into a chain: reflect_1, code_gen_1, …, code_exec_4
    first: 1
    max_iterations: 4
    after: [code_exec_0]
    while: "not last.passed"         # asked before each iteration; no: the rest of the chain is skipped
    continues: [0.8, 0.9, 0.9]       # chance that iteration 2, 3, … follows the one before it; one number: always this
    stages:
      - {name: reflect, kind: llm}
      - {name: code_gen, kind: llm, after: [reflect]}
      - {name: code_exec, kind: regular, handler: python_exec, after: [code_gen]}
```

`Application.stages` is the padded DAG in topological order: what schedulers and profilers see. Whether a padded stage
really runs is learned while the job runs: a stage is *skipped* when its condition says so, or when all of its
parents were skipped. A dynamic stage is a placeholder: when its planner finishes, stages named after candidates
take its place; it is done when they are. `after: [repair]` waits for a whole loop, however many iterations it takes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate, islice
from math import isfinite
from operator import mul
from reprlib import Repr
from typing import Protocol, cast

from llmsched.errors import InvalidApplication, UnknownName
from llmsched.model.kinds import StageKind

#: Bounds that keep one application from swallowing the service.
MAX_STAGES = 1_000
MAX_TASKS = 1_000
MAX_ITERATIONS = 100
MAX_DEPTH = 50
MAX_NUMBER = 10**9

#: Pools of stages that name neither a pool nor a model.
DEFAULT_POOLS = {StageKind.LLM: "llm", StageKind.REGULAR: "cpu", StageKind.DYNAMIC: ""}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_A_NAME = "starts with a letter and uses only letters, digits, '_', '-' and '.' (at most 64)"


class Curve(Protocol):
    """The part of a latency curve that turns tokens into seconds."""

    def reference(self, prompt_tokens: float, output_tokens: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Expected:
    """Declared means of one stage, used until something is learned. Tokens and seconds are per task.

    A dynamic stage declares what its plan costs: `tasks` planned tasks, each the mean over its LLM and regular ones.
    """

    probability: float = 1.0
    tasks: float = 1.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    duration: float = 0.0

    def work(self, kind: StageKind, curve: Curve) -> float:
        """Mean reference work of the stage in seconds, not executed counted as zero."""
        each = 0.0 if kind is StageKind.LLM else self.duration
        if kind is not StageKind.REGULAR:
            each += curve.reference(self.prompt_tokens, self.output_tokens)
        return self.probability * self.tasks * each


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stage that a planner may choose for a dynamic stage."""

    name: str
    kind: StageKind = StageKind.REGULAR
    pool: str = "cpu"
    handler: str | None = None
    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of the padded DAG, as far as the scheduler and the performers need to know it."""

    name: str
    kind: StageKind
    after: tuple[str, ...] = ()
    pool: str = ""
    #: Parallel tasks where their number is fixed; `for_each` or a recording may say otherwise, up to max_tasks.
    tasks: int = 1
    max_tasks: int = 1
    #: Failed attempts per task beyond the first before the job fails.
    retries: int = 2
    #: Seconds one attempt may take; None: the service's default.
    timeout: float | None = None
    iteration: int | None = None
    loop: str | None = None
    #: The dynamic stage whose plan brought this stage into being.
    parent: str | None = None
    expected: Expected = field(default_factory=Expected)
    # --- dynamic stages
    planner: str | None = None
    candidates: tuple[Candidate, ...] = ()
    edges: tuple[tuple[str, str], ...] | None = None
    max_stages: int = 16
    # --- how it is executed when it is no recording: templates and expressions, see llmsched.runtime.live
    when: str | None = None
    for_each: str | None = None
    prompt: str | None = None
    system: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    response_format: Mapping[str, object] | None = None
    handler: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_executable(self) -> bool:
        """Whether the stage says how to run without a recording."""
        match self.kind:
            case StageKind.LLM:
                return self.prompt is not None
            case StageKind.REGULAR:
                return self.handler is not None
            case StageKind.DYNAMIC:
                return all(c.handler is not None for c in self.candidates)


@dataclass(frozen=True, slots=True)
class Application:
    """A named, validated template; build it with `Application.parse`."""

    name: str
    stages: tuple[StageSpec, ...]
    version: int = 1
    description: str = ""
    result: str | None = None
    input_schema: Mapping[str, object] | None = None
    definition: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)
    _by_name: Mapping[str, StageSpec] = field(init=False, repr=False, compare=False)
    _children: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ordered = _validated(self.name, self.stages)
        object.__setattr__(self, "stages", ordered)
        object.__setattr__(self, "_by_name", {s.name: s for s in ordered})
        children: dict[str, list[str]] = {s.name: [] for s in ordered}
        for s in ordered:
            for parent in s.after:
                children[parent].append(s.name)
        object.__setattr__(self, "_children", {k: tuple(v) for k, v in children.items()})

    @classmethod
    def parse(cls, definition: object, *, version: int = 1) -> Application:
        """The application a JSON-like definition describes.

        Raises InvalidApplication with one sentence that names the stage and the way out.
        """
        return _parse(definition, version)

    def __contains__(self, stage: object) -> bool:
        return stage in self._by_name

    def __getitem__(self, stage: str) -> StageSpec:
        try:
            return self._by_name[stage]
        except KeyError:
            raise UnknownName.of("stage", stage, self._by_name) from None

    def children(self, stage: str) -> tuple[str, ...]:
        """Names of the stages that wait for `stage`, in topological order; empty for an unknown one."""
        return self._children.get(stage, ())

    @property
    def digest(self) -> str:
        """Twelve hex digits that change whenever the definition does."""
        text = json.dumps(self.definition, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def is_executable(self) -> bool:
        """Whether jobs can run on an input; otherwise only recordings can be submitted."""
        return all(s.is_executable for s in self.stages)

    def expected_work(self, curve: Curve) -> float:
        """Declared mean reference work of a job in seconds (all pools); 0 where nothing is declared."""
        return sum(s.expected.work(s.kind, curve) for s in self.stages)


def validate_plan(
    dynamic: StageSpec, plan: Sequence[StageSpec], *, chosen: Mapping[str, str] | None = None
) -> tuple[StageSpec, ...]:
    """The stages a planner asked for, in topological order, checked against candidates, edges and bound.

    plan: stages whose `after` names other stages of the plan. chosen: stage name -> candidate name (default: the
    stage's own name). Raises InvalidApplication with one sentence; nothing is half accepted.
    """
    where = f"the plan for {dynamic.name!r}"
    known = [c.name for c in dynamic.candidates]
    of = {s.name: (chosen or {}).get(s.name, s.name) for s in plan}
    if len(plan) > dynamic.max_stages:
        raise InvalidApplication(
            f"{where} has {len(plan)} stages, at most {dynamic.max_stages} are allowed; plan fewer or raise max_stages"
        )
    for name, candidate in of.items():
        if candidate not in known:
            raise InvalidApplication(
                f"{where} uses {candidate!r} (stage {name!r}), which is not one of its candidates: {_listed(known)}"
            )
    allowed = None if dynamic.edges is None else set(dynamic.edges)
    for s in plan:
        for parent in s.after:
            if allowed is not None and parent in of and (of[parent], of[s.name]) not in allowed:
                raise InvalidApplication(
                    f"{where} connects {of[parent]!r} to {of[s.name]!r}, which is not one of its edges"
                )
    return _topological(where, plan)


# ---------------------------------------------------------------------------------------------- validation


def _validated(name: str, stages: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
    if not _NAME.fullmatch(name):
        raise InvalidApplication(f"application {_show(name)}: a name {_A_NAME}", field="name")
    where = f"application {name!r}"
    if not stages:
        raise InvalidApplication(f"{where} has no stages; give it at least one", field="stages")
    if len(stages) > MAX_STAGES:
        raise InvalidApplication(
            f"{where} has more than {MAX_STAGES} stages after its loops are padded; use fewer", field="stages"
        )
    ordered = _topological(where, stages)
    by_name = {s.name: s for s in ordered}
    for s in ordered:
        _check_stage(where, s, by_name)
    return ordered


def _check_stage(where: str, s: StageSpec, by_name: Mapping[str, StageSpec]) -> None:
    this = f"{where}, stage {s.name!r}"
    if not 1 <= s.max_tasks <= MAX_TASKS:
        raise InvalidApplication(f"{this}: max_tasks is {s.max_tasks}; it must be between 1 and {MAX_TASKS}")
    if not 1 <= s.tasks <= s.max_tasks:
        raise InvalidApplication(f"{this}: tasks is {s.tasks}; it must be between 1 and max_tasks ({s.max_tasks})")
    if not 0 <= s.retries <= 100:
        raise InvalidApplication(f"{this}: retries is {s.retries}; it must be between 0 and 100")
    if s.timeout is not None and not 0 < s.timeout < float("inf"):
        raise InvalidApplication(f"{this}: timeout is {s.timeout}; it must be a positive number of seconds")
    if s.kind is not StageKind.DYNAMIC:
        if s.candidates or s.planner:
            raise InvalidApplication(f"{this}: only a dynamic stage has candidates or a planner")
        return
    if not s.candidates:
        raise InvalidApplication(f"{this} is dynamic and needs candidates: the stages a plan may choose from")
    if s.planner is None or s.planner not in s.after or by_name[s.planner].kind is not StageKind.LLM:
        raise InvalidApplication(
            f"{this} is dynamic and needs a planner: the llm stage among {list(s.after)} whose output is the plan"
        )
    if not 1 <= s.max_stages <= MAX_STAGES:
        raise InvalidApplication(f"{this}: max_stages is {s.max_stages}; it must be between 1 and {MAX_STAGES}")
    names = dict.fromkeys(c.name for c in s.candidates)
    if len(names) < len(s.candidates):
        counts = Counter(c.name for c in s.candidates)
        twice = next(name for name in names if counts[name] > 1)
        raise InvalidApplication(f"{this}: candidate {twice!r} is listed {counts[twice]} times; names must differ")
    for c in s.candidates:
        if c.kind is StageKind.DYNAMIC:
            raise InvalidApplication(f"{this}: candidate {c.name!r} is dynamic; a plan cannot contain another plan")
    for edge in s.edges or ():
        for end in edge:
            if end not in names:
                raise InvalidApplication(
                    f"{this}: edge {_show(list(edge))} names {_show(end)}, which is not one of its candidates:"
                    f" {_listed(names)}"
                )


def _topological(where: str, stages: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
    """Stages with every parent before its children; otherwise in the order given."""
    by_name: dict[str, StageSpec] = {}
    for s in stages:
        if s.name in by_name:
            raise InvalidApplication(f"{where} has two stages named {s.name!r}; names must differ")
        by_name[s.name] = s
    for s in stages:
        for parent in s.after:
            if parent not in by_name:
                raise InvalidApplication(
                    f"{where}, stage {s.name!r}: unknown parent {_show(parent)} in 'after'; known: {_listed(by_name)}"
                )
    try:
        order = list(TopologicalSorter({s.name: s.after for s in stages}).static_order())
    except CycleError as error:
        path = cast(list[str], error.args[1])
        shown = " -> ".join(path if len(path) < 10 else [*path[:8], "…", path[-1]])
        raise InvalidApplication(f"{where} has a cycle: {shown}; a stage cannot wait for itself") from None
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[p] for p in by_name[name].after), default=-1)
    given = {s.name: i for i, s in enumerate(stages)}
    if all(given[p] < given[s.name] for s in stages for p in s.after):
        return tuple(stages)
    return tuple(sorted(stages, key=lambda s: (depth[s.name], given[s.name])))


def _listed(names: Iterable[str]) -> str:
    """Names as they can stand in a sentence."""
    first = list(islice(names, 21))
    return ", ".join([*first[:20], *(["…"] if len(first) > 20 else [])]) or "none"


def _show(value: object) -> str:
    """A value as it can stand in a sentence: short, and never itself an error."""
    return _short.repr(value)


_short = Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring, _short.maxother = 2, 3, 3, 80, 80


# ------------------------------------------------------------------------------------------------- parsing


def _parse(definition: object, version: int) -> Application:
    _check_json(definition)
    top = _Reader(definition, "application")
    name = top.text("name", required=True)
    top.where = f"application {_show(name)}"
    entries = top.items("stages")
    application = Application(
        name=name,
        stages=tuple(islice(_stages(entries, top.where), MAX_STAGES + 1)),
        version=version,
        description=top.text("description"),
        result=top.text("result") or None,
        input_schema=top.mapping("input_schema") or None,
        definition=cast(Mapping[str, object], definition),
    )
    top.done()
    return application


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
                    raise InvalidApplication(f"the text {_show(value)} has characters that cannot be stored")
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
                        raise InvalidApplication(f"the key {_show(key)} must be a text; put it in quotes")
                    left.append((key, depth))
                left += ((inner, depth + 1) for inner in value.values())
            case list() | tuple():
                left += ((inner, depth + 1) for inner in value)
            case _:
                raise InvalidApplication(f"the value {_show(value)} cannot be stored as JSON; put it in quotes")


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
    reader.where = f"{where}, {'loop' if key == 'loop' else 'stage'} {_show(name)}"
    if not _NAME.fullmatch(name):
        raise InvalidApplication(f"{reader.where}: a name {_A_NAME}", field=key)
    return name


def _kind(reader: _Reader, raw: str) -> StageKind:
    try:
        return StageKind(raw)
    except ValueError:
        known = ", ".join(k.value for k in StageKind)
        raise InvalidApplication(f"{reader.where}: unknown kind {_show(raw)}; known: {known}", field="kind") from None


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
    reader.where += f" {_show(name)}"
    if len(name) > 200 or not name.isprintable():
        raise InvalidApplication(
            f"{reader.where}: a candidate's name is at most 200 printable characters", field="name"
        )
    kind = _kind(reader, reader.text("kind") or "regular")
    candidate = Candidate(
        name=name,
        kind=kind,
        pool=reader.text("pool") or DEFAULT_POOLS[kind],
        handler=reader.text("handler") or None,
        input=reader.names("input"),
        output=reader.names("output"),
    )
    reader.done()
    return candidate


def _edges(reader: _Reader) -> tuple[tuple[str, str], ...] | None:
    """None where the definition has no `edges`: then every edge is allowed."""
    is_absent = reader.left.get("edges") is None
    edges = []
    for edge in reader.items("edges"):
        if not (isinstance(edge, (list, tuple)) and len(edge) == 2 and all(isinstance(e, str) for e in edge)):
            raise InvalidApplication(f"{reader.where}: an edge is a pair of candidate names, not {_show(edge)}")
        edges.append((edge[0], edge[1]))
    return None if is_absent else tuple(edges)


class _Reader:
    """Takes the known keys out of a mapping with checked types; `done` refuses what is left.

    A key whose value is null counts as absent.
    """

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise InvalidApplication(f"{where} must be a mapping, not {_show(raw)}")
        self.where, self.known = where, list[str]()
        self.left: dict[str, object] = dict(raw)

    def _take(self, key: str) -> object:
        self.known.append(key)
        return self.left.pop(key, None)

    def _wrong(self, key: str, value: object, what: str) -> InvalidApplication:
        shown = "missing" if value is None else _show(value)
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
        return tuple(dict.fromkeys(cast(Sequence[str], value)))

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
