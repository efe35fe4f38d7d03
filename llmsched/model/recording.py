"""A recorded job: what one run really did, stage by stage, so that it can be learned from and run again.

A recording is complete in hindsight: it holds stages that the running job revealed only late (later turns
of a loop, stages a planner asked for). Whoever replays it shows the scheduler no more than a live job would
have shown. `features` is what was known when the job was submitted.

A recording is authoritative. `Recording.from_json` is strict about what a replay needs and ignores every
other field; it does not compare the job with its application's template.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from typing import Any, Protocol

from llmsched.errors import InvalidRecording, show
from llmsched.model.kinds import StageKind

#: Limits against absurd input; the largest published job has 80 tasks and 400,000 tokens.
MAX_STAGES = 10_000
MAX_TASKS = 10_000
MAX_DEPS = 100_000
MAX_TOKENS = 10_000_000
MAX_SECONDS = 30 * 86_400.0
MAX_NAME = 200

#: What may be known of a job when it is submitted, besides the prompts of its first stages.
FEATURES: Mapping[str, type] = {"variant": str, "length": int, "doc_tokens": int, "input_chars": int}

_KINDS = {kind.value: kind for kind in StageKind}
_MISSING: Any = object()


def input_features(value: Any) -> Mapping[str, int]:
    """The features of a live job: the size of its JSON input in characters.

    >>> input_features({"text": "Grüße"})
    {'input_chars': 16}
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return {"input_chars": min(len(text), MAX_TOKENS)}


class ReferenceCurve(Protocol):
    """The part of a latency curve that turns tokens into seconds of a task that runs alone."""

    def reference(self, prompt_tokens: int, output_tokens: int) -> float: ...


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """One LLM call (tokens) or one call of a tool (`duration` seconds; `tool` is None if not recorded).

    A planned call of the LLM may carry as `tool` what its planner chose; without it the stage is named after that.
    `prompt_tokens` may be 0, which costs no prefill when simulated (a real engine needs one token);
    `output_tokens` of an LLM task is at least 1, because no engine can be asked for fewer.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    duration: float = 0.0
    tool: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """One stage of a recorded job; `after` names the stages it waited for.

    A dynamic stage has no tasks: it is the placeholder of the stages whose `parent` it is. To wait for a
    dynamic stage is to wait for it and for everything it generated.
    """

    name: str
    kind: StageKind
    after: tuple[str, ...]
    tasks: tuple[RecordedTask, ...]
    iteration: int | None = None
    parent: str | None = None
    candidates: str | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded job. Stages stand in a topological order: the trace's own where that is one.

    Built from code it is taken as it is; `from_json` checks what came from outside.
    """

    application: str
    job_id: str
    stages: tuple[RecordedStage, ...]
    features: Mapping[str, str | int] = field(default_factory=dict, hash=False)

    @classmethod
    def from_json(cls, obj: object) -> Recording:
        """Read one job of the trace format (keys `app`, `job_id`, `stages`, optional features).

        Raises InvalidRecording, whose `field` is a path like `stages[3].tasks[0].output_tokens`.
        """
        if not isinstance(obj, dict):
            raise InvalidRecording(f"a recording must be an object with app, job_id and stages, not {_show(obj)}")
        application = _name(obj, "app", "")
        job_id = _name(obj, "job_id", "")
        features: dict[str, str | int] = {}
        for key in FEATURES:
            value = obj.get(key)
            if value is not None:
                features[key] = _name(obj, key, "") if FEATURES[key] is str else _count(obj, key, "")
        stages = _stages(obj.get("stages", _MISSING))
        return cls(application, job_id, in_order(stages), features)

    def to_json(self) -> dict[str, Any]:
        """The same job in the trace format; `from_json` of it gives an equal recording."""
        generates: dict[str, list[str]] = {}
        for stage in self.stages:
            if stage.parent is not None:
                generates.setdefault(stage.parent, []).append(stage.name)
        return {
            "app": self.application,
            "job_id": self.job_id,
            **self.features,
            "stages": [_stage_json(stage, generates.get(stage.name, [])) for stage in self.stages],
        }

    def tasks(self, kind: StageKind) -> Iterator[RecordedTask]:
        """Every task of one kind, in stage order."""
        for stage in self.stages:
            if stage.kind is kind:
                yield from stage.tasks

    @property
    def n_tasks(self) -> int:
        """LLM calls and tool calls of the whole job."""
        return sum(len(stage.tasks) for stage in self.stages)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all LLM calls."""
        return sum(task.prompt_tokens for task in self.tasks(StageKind.LLM))

    @property
    def output_tokens(self) -> int:
        """Output tokens of all LLM calls."""
        return sum(task.output_tokens for task in self.tasks(StageKind.LLM))

    @property
    def regular_seconds(self) -> float:
        """Seconds of all regular tasks together."""
        return sum(task.duration for task in self.tasks(StageKind.REGULAR))

    @property
    def longest_context(self) -> int:
        """Largest prompt + output of one LLM call, in tokens: what an engine's context must hold."""
        return max((task.prompt_tokens + task.output_tokens for task in self.tasks(StageKind.LLM)), default=0)

    def reference_seconds(self, curve: ReferenceCurve) -> dict[str, float]:
        """Seconds of work per kind of pool if every task ran alone: `{"llm": s, "regular": s}`."""
        llm = sum(curve.reference(t.prompt_tokens, t.output_tokens) for t in self.tasks(StageKind.LLM))
        return {"llm": llm, "regular": self.regular_seconds}

    def alone_seconds(self, curve: ReferenceCurve) -> float:
        """Seconds of the job if nothing else ran: its longest path, every task at once that can be, each alone."""
        ends: dict[str, float] = {}
        for stage in self.stages:
            start = max((ends[p] for p in stage.after), default=0.0)
            if stage.kind is StageKind.LLM:
                longest = max((curve.reference(t.prompt_tokens, t.output_tokens) for t in stage.tasks), default=0.0)
            else:
                longest = max((t.duration for t in stage.tasks), default=0.0)
            ends[stage.name] = max(ends.get(stage.name, 0.0), start + longest)
            if stage.parent is not None:  # whoever waits for a dynamic stage waits for its plan
                ends[stage.parent] = max(ends.get(stage.parent, 0.0), ends[stage.name])
        return max(ends.values(), default=0.0)


def _stage_json(stage: RecordedStage, generates: list[str]) -> dict[str, Any]:
    tasks: list[dict[str, Any]]
    named: list[dict[str, Any]] = [{} if t.tool is None else {"tool": t.tool} for t in stage.tasks]
    if stage.kind is StageKind.LLM:
        tasks = [
            {**name, "prompt_tokens": t.prompt_tokens, "output_tokens": t.output_tokens}
            for name, t in zip(named, stage.tasks, strict=True)
        ]
    else:
        tasks = [{**name, "duration_s": t.duration} for name, t in zip(named, stage.tasks, strict=True)]
    obj: dict[str, Any] = {
        "name": stage.name,
        "kind": stage.kind.value,
        "iteration": stage.iteration,
        "deps": list(stage.after),
        "tasks": tasks,
    }
    if stage.candidates is not None:
        obj["candidates"] = stage.candidates
    if stage.kind is StageKind.DYNAMIC:
        obj["generates"] = generates
    if stage.parent is not None:
        obj["parent"] = stage.parent
    return obj


# Reading one thing at a time. `at` is the path of the object that holds the thing, "" for the job itself.


def _stages(listed: object) -> list[RecordedStage]:
    if not isinstance(listed, list) or not listed:
        raise _wrong("stages", listed, "a list of at least one stage")
    _limit("stages", len(listed), "stages", MAX_STAGES)
    known: dict[tuple[object, ...], RecordedTask] = {}
    stages = [_stage(raw, f"stages[{i}]", known) for i, raw in enumerate(listed)]
    tasks = [task for stage in stages for task in stage.tasks]
    _limit("stages", len(tasks), "tasks", MAX_TASKS)
    _limit("stages", sum(t.prompt_tokens + t.output_tokens for t in tasks), "tokens", MAX_TOKENS)
    _limit("stages", sum(len(stage.after) for stage in stages), "dependencies", MAX_DEPS)
    return _linked(stages, listed)


def _stage(raw: object, at: str, known: dict[tuple[object, ...], RecordedTask]) -> RecordedStage:
    if not isinstance(raw, dict):
        raise _wrong(at, raw, "an object with name, kind, deps and tasks")
    name = _name(raw, "name", at)
    kind_name = raw.get("kind", _MISSING)
    kind = _KINDS.get(kind_name) if type(kind_name) is str else None
    if kind is None:
        raise _wrong(f"{at}.kind", kind_name, "one of llm, regular, dynamic")
    deps = raw.get("deps", _MISSING)
    if not isinstance(deps, list):
        raise _wrong(f"{at}.deps", deps, "a list of stage names, [] for a first stage")
    _limit(f"{at}.deps", len(deps), "names", MAX_DEPS)
    for k, dep in enumerate(deps):
        if type(dep) is not str:
            raise _wrong(f"{at}.deps[{k}]", dep, "the name of a stage")
    after = tuple(dict.fromkeys(map(intern, deps)))
    iteration = None if raw.get("iteration") is None else _count(raw, "iteration", at)
    parent = None if raw.get("parent") is None else _name(raw, "parent", at)
    tasks = _tasks(raw.get("tasks", _MISSING), kind, at, known)
    candidates = None
    if kind is StageKind.DYNAMIC:
        if parent is not None:
            raise InvalidRecording(
                f"{at}.parent is {parent!r}; no dynamic stage generates another: leave it out",
                field=f"{at}.parent",
            )
        if not after:
            raise _wrong(f"{at}.deps", deps, "a list that names the stage whose output decides what is generated")
        candidates = None if raw.get("candidates") is None else _name(raw, "candidates", at)
    return RecordedStage(name, kind, after, tasks, iteration, parent, candidates)


def _tasks(
    listed: object, kind: StageKind, at: str, known: dict[tuple[object, ...], RecordedTask]
) -> tuple[RecordedTask, ...]:
    """Tasks of one stage; equal ones are one object (`known`), since parallel calls often are."""
    if kind is StageKind.DYNAMIC:
        if listed is _MISSING or listed == []:
            return ()
        raise _wrong(f"{at}.tasks", listed, "[]: a dynamic stage runs nothing, the stages it generates do")
    if not isinstance(listed, list) or not listed:
        raise _wrong(f"{at}.tasks", listed, f"a list of at least one task, because the stage is {kind}")
    _limit(f"{at}.tasks", len(listed), "tasks", MAX_TASKS)
    tasks = []
    for k, raw in enumerate(listed):
        if not isinstance(raw, dict):
            raise _wrong(f"{at}.tasks[{k}]", raw, "an object")
        key: tuple[object, ...]
        if kind is StageKind.LLM:
            # The fast path of a valid call: no path string is built unless something is wrong.
            p, o = raw.get("prompt_tokens"), raw.get("output_tokens")
            if not (type(p) is int and type(o) is int and 0 <= p <= MAX_TOKENS and 1 <= o <= MAX_TOKENS):
                here = f"{at}.tasks[{k}]"
                p, o = _count(raw, "prompt_tokens", here), _count(raw, "output_tokens", here, least=1)
            tool = None if raw.get("tool") is None else _name(raw, "tool", f"{at}.tasks[{k}]")
            key = (p, o, tool)
            task = known.get(key) or known.setdefault(key, RecordedTask(p, o, tool=tool))
        else:
            duration = _seconds(raw, f"{at}.tasks[{k}]")
            tool = None if raw.get("tool") is None else _name(raw, "tool", f"{at}.tasks[{k}]")
            key = (duration, tool, "regular")
            task = known.get(key) or known.setdefault(key, RecordedTask(duration=duration, tool=tool))
        tasks.append(task)
    return tuple(tasks)


def _linked(stages: list[RecordedStage], listed: list[Any]) -> list[RecordedStage]:
    """Check that names are unique and links lead somewhere; give orphans of a planner their planner."""
    index: dict[str, int] = {}
    for i, stage in enumerate(stages):
        if stage.name in index:
            raise InvalidRecording(
                f"stages[{i}].name is {stage.name!r}, as stages[{index[stage.name]}] is called already; "
                "give every stage its own name",
                field=f"stages[{i}].name",
            )
        index[stage.name] = i
    for i, stage in enumerate(stages):
        for dep in stage.after:
            if dep not in index:
                raise _wrong(f"stages[{i}].deps", dep, "a list of names of stages of this job")
        if stage.parent is not None:
            parent = index.get(stage.parent)
            if parent is None or stages[parent].kind is not StageKind.DYNAMIC:
                raise _wrong(f"stages[{i}].parent", stage.parent, "the name of a dynamic stage of this job")
            if not stage.after:
                stages[i] = replace(stage, after=stages[parent].after)
    for i, stage in enumerate(stages):
        if stage.kind is StageKind.DYNAMIC:
            _check_generates(listed[i].get("generates"), i, stages, index)
    return stages


def _check_generates(generates: object, i: int, stages: list[RecordedStage], index: Mapping[str, int]) -> None:
    """`parent` decides what a planner generated; a `generates` that says otherwise would hide a mistake."""
    if generates is None:
        return
    if not isinstance(generates, list):
        raise _wrong(f"stages[{i}].generates", generates, "a list of stage names")
    for name in generates:
        child = index.get(name) if type(name) is str else None
        if child is not None and stages[child].parent != stages[i].name:
            raise InvalidRecording(
                f"stages[{i}].generates names {_show(name)}, but stages[{child}].parent is "
                f"{_show(stages[child].parent)}; it must be {stages[i].name!r}",
                field=f"stages[{child}].parent",
            )


def in_order(stages: list[RecordedStage]) -> tuple[RecordedStage, ...]:
    """Topological order that follows the list wherever it can (Kahn's algorithm on a heap of positions).

    Node i is the start of stage i; node n + i, for a dynamic stage, is the end of all it generated.

    Raises InvalidRecording on a circle, and on a generated stage that waits for something which may not
    exist yet when the planner is done.
    """
    n = len(stages)
    index = {stage.name: i for i, stage in enumerate(stages)}
    before: list[list[int]] = [[] for _ in range(2 * n)]
    for i, stage in enumerate(stages):
        for dep in stage.after:
            j = index[dep]
            whole = stages[j].kind is StageKind.DYNAMIC and stage.parent != dep
            before[i].append(n + j if whole else j)
        if stage.parent is not None:
            parent = index[stage.parent]
            before[i].append(parent)
            before[n + parent].append(i)
        if stage.kind is StageKind.DYNAMIC:
            before[n + i].append(i)
    nodes = [i for i in range(2 * n) if i < n or before[i]]
    waits = [len(links) for links in before]
    then: list[list[int]] = [[] for _ in range(2 * n)]
    for i in nodes:
        for j in before[i]:
            then[j].append(i)
    ready = [i for i in nodes if not waits[i]]
    order: list[int] = []
    while ready:
        # Ends sort behind all stages, which delays what follows a placeholder but never wrongly.
        i = heapq.heappop(ready)
        order.append(i)
        for j in then[i]:
            waits[j] -= 1
            if not waits[j]:
                heapq.heappush(ready, j)
    if len(order) < len(nodes):
        raise _circle(stages, before, {i for i in nodes if waits[i]})
    _check_reveals(stages, index, before, order)
    return tuple(stages[i] for i in order if i < n)


def _circle(stages: list[RecordedStage], before: list[list[int]], stuck: set[int]) -> InvalidRecording:
    """Walk backwards among the nodes that never became ready until one repeats."""
    n = len(stages)
    seen: dict[int, int] = {}
    at = min(stuck)
    while at not in seen:
        seen[at] = len(seen)
        at = next(j for j in before[at] if j in stuck)
    circle = [i % n for i in list(seen)[seen[at] :]]
    names = list(dict.fromkeys(stages[i].name for i in circle))
    shown = " -> ".join([*names[:8], *(["…"] if len(names) > 8 else []), names[0]])
    return InvalidRecording(
        f"stages wait for each other in a circle: {shown}; drop one of these deps",
        field=f"stages[{min(circle)}].deps",
    )


def _check_reveals(
    stages: list[RecordedStage], index: Mapping[str, int], before: list[list[int]], order: list[int]
) -> None:
    """A generated stage may wait for its siblings and for whatever its planner has waited for."""
    n = len(stages)
    odd = []
    for i, stage in enumerate(stages):
        if stage.parent is not None:
            usual = {stage.parent, *stages[index[stage.parent]].after}
            unusual = [dep for dep in stage.after if dep not in usual]
            odd += [(i, dep) for dep in unusual if stages[index[dep]].parent != stage.parent]
    if not odd:
        return
    waited = [0] * (2 * n)  # one bit per node, so that 10,000 stages stay cheap
    for i in order:
        for j in before[i]:
            waited[i] |= waited[j] | 1 << j
    for i, dep in odd:
        stage = stages[i]
        assert stage.parent is not None
        if not waited[index[stage.parent]] >> index[dep] & 1:
            raise InvalidRecording(
                f"stages[{i}].deps names {dep!r}, unknown when {stage.parent!r} generates this "
                "stage; it must name siblings or stages that the planner waited for",
                field=f"stages[{i}].deps",
            )


def _name(obj: dict[Any, Any], key: str, at: str) -> str:
    value = obj.get(key, _MISSING)
    if type(value) is str and 0 < len(value) <= MAX_NAME and value.isprintable():
        return intern(value)
    raise _wrong(f"{at}.{key}" if at else key, value, f"a text of 1 to {MAX_NAME} printable characters")


def _count(obj: dict[Any, Any], key: str, at: str, *, least: int = 0) -> int:
    value = obj.get(key, _MISSING)
    if type(value) is int and least <= value <= MAX_TOKENS:
        return value
    raise _wrong(f"{at}.{key}" if at else key, value, f"a whole number from {least} to {MAX_TOKENS}")


def _seconds(obj: dict[Any, Any], at: str) -> float:
    value = obj.get("duration_s", _MISSING)
    if type(value) in (int, float) and 0 <= value <= MAX_SECONDS:
        return float(value)
    raise _wrong(f"{at}.duration_s", value, f"seconds from 0 to {MAX_SECONDS:.0f}")


def _limit(path: str, n: int, what: str, most: int) -> None:
    if n > most:
        raise InvalidRecording(f"{path} has {n} {what}; at most {most} are accepted", field=path)


def _wrong(path: str, value: object, wanted: str) -> InvalidRecording:
    return InvalidRecording(f"{path} is {_show(value)}; it must be {wanted}", field=path)


def _show(value: object) -> str:
    """The value as it can stand in a sentence: short, and never itself an error."""
    if value is _MISSING:
        return "missing"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as in JSON
    if type(value) is int and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"  # repr() of a huge one raises
    return show(value)
