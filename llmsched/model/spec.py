"""The stages of an application as values, and what makes them a valid DAG: names, bounds, parents, no cycle.

A stage is *skipped* when its condition says so, or when all of its parents were skipped. A dynamic stage is a
placeholder: when its planner finishes, stages named after candidates take its place; it is done when they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Protocol, cast

from llmsched.errors import InvalidApplication, show
from llmsched.model.kinds import StageKind

#: Bounds that keep one application from swallowing the service.
MAX_STAGES = 1_000
MAX_TASKS = 1_000
MAX_ITERATIONS = 100
MAX_DEPTH = 50
MAX_NUMBER = 10**9

#: Pools of stages that name neither a pool nor a model.
DEFAULT_POOLS = {StageKind.LLM: "llm", StageKind.REGULAR: "cpu", StageKind.DYNAMIC: ""}

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
A_NAME = "starts with a letter and uses only letters, digits, '_', '-' and '.' (at most 64)"


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
    # --- how a planned stage is executed: templates, see llmsched.runtime.scripts.live; without them as the plan says
    prompt: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    response_format: Mapping[str, object] | None = None
    arguments: Mapping[str, object] | None = None


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
    #: What the plan chose from the candidates of its dynamic stage; the name of a tool outside them if it did so.
    candidate: str | None = None
    expected: Expected = field(default_factory=Expected)
    # --- dynamic stages
    planner: str | None = None
    candidates: tuple[Candidate, ...] = ()
    edges: tuple[tuple[str, str], ...] | None = None
    max_stages: int = 16
    #: Whether a live plan that leaves candidates, edges or max_stages is run all the same.
    off_profile: bool = False
    #: The handler that such a plan's stages of unknown candidates call.
    fallback: str | None = None
    # --- how it is executed when it is no recording: templates and expressions, see llmsched.runtime.scripts.live
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
    def names(self) -> tuple[str, ...]:
        """What templates may call the stage: its name, and inside a loop also its name without the number."""
        if self.loop is None or self.iteration is None:
            return (self.name,)
        return self.name, self.name.removesuffix(f"_{self.iteration}")

    @property
    def is_executable(self) -> bool:
        """Whether the stage says how to run without a recording."""
        match self.kind:
            case StageKind.LLM:
                return self.prompt is not None
            case StageKind.REGULAR:
                return self.handler is not None
            case StageKind.DYNAMIC:
                return all(c.handler is not None or c.kind is StageKind.LLM for c in self.candidates)


def validated_stages(name: str, stages: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
    if not NAME.fullmatch(name):
        raise InvalidApplication(f"application {show(name)}: a name {A_NAME}", field="name")
    where = f"application {name!r}"
    if not stages:
        raise InvalidApplication(f"{where} has no stages; give it at least one", field="stages")
    if len(stages) > MAX_STAGES:
        raise InvalidApplication(
            f"{where} has more than {MAX_STAGES} stages after its loops are padded; use fewer", field="stages"
        )
    ordered = in_topological_order(where, stages)
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
        if s.off_profile or s.fallback:
            raise InvalidApplication(f"{this}: only a dynamic stage has off_profile or a fallback")
        return
    if not s.candidates:
        raise InvalidApplication(f"{this} is dynamic and needs candidates: the stages a plan may choose from")
    if s.planner is None or s.planner not in s.after or by_name[s.planner].kind is not StageKind.LLM:
        raise InvalidApplication(
            f"{this} is dynamic and needs a planner: the llm stage among {list(s.after)} whose output is the plan"
        )
    if not 1 <= s.max_stages <= MAX_STAGES:
        raise InvalidApplication(f"{this}: max_stages is {s.max_stages}; it must be between 1 and {MAX_STAGES}")
    if s.fallback and not s.off_profile:
        raise InvalidApplication(
            f"{this}: fallback {s.fallback!r} is for plans that leave the candidates, which are refused here;"
            " say off_profile: true, or leave it out"
        )
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
                    f"{this}: edge {show(list(edge))} names {show(end)}, which is not one of its candidates:"
                    f" {listed(names)}"
                )


def in_topological_order(where: str, stages: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
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
                    f"{where}, stage {s.name!r}: unknown parent {show(parent)} in 'after'; known: {listed(by_name)}"
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


def listed(names: Iterable[str]) -> str:
    """Names as they can stand in a sentence."""
    first = list(islice(names, 21))
    return ", ".join([*first[:20], *(["…"] if len(first) > 20 else [])]) or "none"


def validate_plan(
    dynamic: StageSpec, plan: Sequence[StageSpec], *, chosen: Mapping[str, str] | None = None
) -> tuple[StageSpec, ...]:
    """The stages a planner asked for, in topological order, checked against candidates, edges and bound.

    plan: stages whose `after` names other stages of the plan. chosen: stage name -> candidate name (default: the
    stage's own name). Raises InvalidApplication with one sentence; nothing is half accepted.
    """
    for departure in departures(dynamic, plan, chosen=chosen):
        raise InvalidApplication(departure)
    return in_topological_order(f"the plan for {dynamic.name!r}", plan)


def departures(
    dynamic: StageSpec, plan: Sequence[StageSpec], *, chosen: Mapping[str, str] | None = None
) -> Iterator[str]:
    """How a plan leaves what its dynamic stage declares, one sentence each: bound, candidates, edges.

    Arguments as of `validate_plan`.
    """
    where = f"the plan for {dynamic.name!r}"
    known = [c.name for c in dynamic.candidates]
    of = {s.name: (chosen or {}).get(s.name, s.name) for s in plan}
    if len(plan) > dynamic.max_stages:
        most = f"at most {dynamic.max_stages} are allowed; plan fewer or raise max_stages"
        yield f"{where} has {len(plan)} stages, {most}"
    for name, candidate in of.items():
        if candidate not in known:
            yield f"{where} uses {candidate!r} (stage {name!r}), which is not one of its candidates: {listed(known)}"
    allowed = None if dynamic.edges is None else set(dynamic.edges)
    for s in plan:
        for parent in s.after:
            if allowed is not None and parent in of and (of[parent], of[s.name]) not in allowed:
                yield f"{where} connects {of[parent]!r} to {of[s.name]!r}, which is not one of its edges"
