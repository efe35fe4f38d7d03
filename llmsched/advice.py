"""What a template says about itself before a job runs: handlers it needs, variables learned of it, advice.

Nothing here refuses an application; `llmsched.runtime.scripts.checking` does that. Advice is about something that is
likely to fail in the middle of a job, or to cost more than was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, nodes

from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.recording import FEATURES
from llmsched.model.spec import MAX_TASKS, Candidate, StageSpec
from llmsched.profiler import MIN_JOBS
from llmsched.profiler.history import Layout
from llmsched.runtime.scripts.templates import texts_in
from llmsched.runtime.tools.handlers import HandlerRegistry

_PARSER = Environment()
#: Methods of a JSON object; `input.get("x")` reads the whole input, as far as we can tell.
_METHODS = ("get", "items", "keys", "values")


class Variable(NamedTuple):
    """What profiles know one stage by. measures: in words; pools: where the work is done."""

    stage: str
    role: str
    measures: str
    pools: tuple[str, ...]


class Advice(NamedTuple):
    """Something that looks wrong. stage: None where it is about the whole."""

    stage: str | None
    text: str

    def __str__(self) -> str:
        return self.text if self.stage is None else f"stage {self.stage!r} {self.text}"


def handlers_of(application: Application) -> dict[str, list[str]]:
    """Names of the handlers it needs, with the stages that call them."""
    needed: dict[str, dict[str, None]] = {}
    for spec in application.stages:
        for name in (spec.handler, spec.fallback, *(c.handler for c in spec.candidates)):
            if name is not None:
                needed.setdefault(name, {})[spec.names[-1]] = None
    return {name: list(stages) for name, stages in needed.items()}


def why_recordings_only(application: Application) -> str | None:
    """What the first stage that cannot run lacks; None: the application runs on inputs."""
    for spec in application.stages:
        if spec.is_executable:
            continue
        if spec.kind is StageKind.DYNAMIC:
            lacking = next(c.name for c in spec.candidates if c.handler is None and c.kind is StageKind.REGULAR)
            return f"candidate {lacking!r} of stage {spec.name!r} has no handler"
        return f"stage {spec.name!r} has no {'prompt' if spec.kind is StageKind.LLM else 'handler'}"
    return None


def variables_of(application: Application) -> list[Variable]:
    """The stages as profiles see them, one variable each, in the order arcs of the network may point in."""
    layout = Layout.of(application)
    measures = {
        StageKind.LLM: "output tokens of all its tasks; 0: it does not run",
        StageKind.REGULAR: "whether it runs",
        StageKind.DYNAMIC: "work of its whole plan; 0: there is none",
    }
    roles = {StageKind.LLM: "llm", StageKind.REGULAR: "regular", StageKind.DYNAMIC: "plan"}
    return [
        Variable(
            stage,
            roles[application[stage].kind],
            measures[application[stage].kind],
            tuple(layout.columns[k].pool for k in columns),
        )
        for stage, columns in layout.of_stage.items()
    ]


def features_of(application: Application) -> list[str]:
    """What is known of a job when it is submitted, and may be variables too: features, and the first prompts."""
    first = (s.name for s in application.stages if not s.after and s.kind is StageKind.LLM)
    return [*FEATURES, *(f"{stage}.prompt" for stage in first)]


# ------------------------------------------------------------------------------------------------------ advice


def advice_on(application: Application, handlers: HandlerRegistry) -> list[Advice]:
    """What looks wrong with an application that `check_templates` lets pass, by stage; without that it may raise."""
    found = [*_undeclared(application)]
    if application.is_executable:
        reads = _Reads.of(application)
        found += _misread_stages(application, reads)
        found += _misread_input(application, reads)
        found += _handlers(application, handlers)
        found += _unbounded(application)
        found += _unread(application, reads)
    return list(dict.fromkeys(sorted(found, key=lambda advice: advice.stage is None)))


def _undeclared(application: Application) -> Iterator[Advice]:
    undeclared = dict.fromkeys(s.names[-1] for s in application.stages if not _declares(s))
    if undeclared:
        yield Advice(
            None,
            f"no `expected` for {_listed(undeclared)}: until {MIN_JOBS} jobs are learned from, their work counts as 0",
        )


def _declares(spec: StageSpec) -> bool:
    return any((spec.expected.prompt_tokens, spec.expected.output_tokens, spec.expected.duration))


class _Read(NamedTuple):
    """A template that reads `input.key` or `stages.key`; key None: all of it. guarded: only if something else holds."""

    stage: StageSpec | None
    where: str
    root: str
    key: str | None
    guarded: bool


class _Reads:
    """What the templates of an application read."""

    def __init__(self, reads: Iterable[_Read], uses_last: Iterable[str]) -> None:
        self.reads = list(reads)
        #: Stages that read `last`.
        self.uses_last = set(uses_last)

    @classmethod
    def of(cls, application: Application) -> _Reads:
        reads: list[_Read] = []
        uses_last = []
        for spec, where, source, expression in _sources(application):
            tree = _PARSER.parse(f"{{{{ ({source}) }}}}" if expression else source)
            reads += (_Read(spec, where, root, key, guarded) for root, key, guarded in _found(tree, False))
            if spec is not None and any(name.name == "last" for name in tree.find_all(nodes.Name)):
                uses_last.append(spec.name)
        return cls(reads, uses_last)

    def keys(self, root: str) -> set[str | None]:
        return {read.key for read in self.reads if read.root == root}


def _sources(application: Application) -> Iterator[tuple[StageSpec | None, str, str, bool]]:
    """Every template: its stage, its place in words, its text, and whether it is an expression."""
    for spec in application.stages:
        for label, source in (("when", spec.when), ("for_each", spec.for_each)):
            if source is not None:
                yield spec, label, source, True
        calls: list[StageSpec | Candidate] = [spec, *spec.candidates]
        for call in calls:
            for label, source in _templates(call):
                yield spec, label if call is spec else f"{label} of candidate {call.name!r}", source, False
    if application.result is not None:
        yield None, "result", application.result, True


def _templates(call: StageSpec | Candidate) -> Iterator[tuple[str, str]]:
    for label, source in (("prompt", call.prompt), ("system", call.system)):
        if source is not None:
            yield label, source
    for source in texts_in(call.arguments or {}):
        yield "arguments", source


def _found(node: nodes.Node, guarded: bool) -> Iterator[tuple[str, str | None, bool]]:
    """(root, key, guarded) of everything below `node` that reads input or stages."""
    match node:
        case nodes.Getattr(node=nodes.Name(name=("input" | "stages") as root), attr=key):
            yield root, None if key in _METHODS else key, guarded
            return
        case nodes.Getitem(node=nodes.Name(name=("input" | "stages") as root), arg=nodes.Const(value=str() as key)):
            yield root, key, guarded
            return
        case nodes.Name(name=("input" | "stages") as root):
            yield root, None, guarded
            return
        case nodes.Filter(name="default" | "d") | nodes.Test(name="defined" | "undefined"):
            guarded = True
        case nodes.And() | nodes.Or():
            yield from _found(node.left, guarded)
            yield from _found(node.right, True)
            return
        case nodes.If() | nodes.CondExpr():
            yield from _found(node.test, guarded)
            for child in node.iter_child_nodes(exclude=("test",)):
                yield from _found(child, True)
            return
        case _:
            pass
    for child in node.iter_child_nodes():
        yield from _found(child, guarded)


def _misread_stages(application: Application, reads: _Reads) -> Iterator[Advice]:
    """In the first round of a loop nothing of it is over yet; outside of loops `check_templates` is strict about it."""
    ancestors = _ancestors(application)
    for read in reads.reads:
        if read.root != "stages" or read.key is None or read.guarded or read.stage is None or read.stage.loop is None:
            continue
        over = {name for a in ancestors[read.stage.name] for name in application[a].names}
        if read.key not in over:
            yield Advice(
                read.stage.names[-1],
                f"reads stages.{read.key} in {read.where}, which is not there in round {read.stage.iteration};"
                " look at iteration first, or guard it with default",
            )


def _ancestors(application: Application) -> dict[str, set[str]]:
    above: dict[str, set[str]] = {}
    for spec in application.stages:
        above[spec.name] = {a for parent in spec.after for a in (parent, *above[parent])}
    return above


def _misread_input(application: Application, reads: _Reads) -> Iterator[Advice]:
    schema: Mapping[str, Any] | None = application.input_schema
    if schema is None:
        yield Advice(None, "no `input_schema`: a job with a wrong input fails on its way, and not when it is submitted")
        return
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return
    required = schema.get("required", ())
    for read in reads.reads:
        if read.root != "input" or read.key is None or read.guarded:
            continue
        if read.key not in properties:
            yield Advice(
                _at(read.stage), f"reads input.{read.key} in {read.where}, which `input_schema` does not declare"
            )
        elif read.key not in required:
            yield Advice(
                _at(read.stage),
                f"reads input.{read.key} in {read.where}, which is not required: a job without it fails there;"
                " require it, or guard it with default",
            )
    if None not in (used := reads.keys("input")):
        for key in properties:
            if key not in used:
                yield Advice(None, f"input.{key} is declared and never read")


def _handlers(application: Application, handlers: HandlerRegistry) -> Iterator[Advice]:
    for spec in application.stages:
        calls: list[StageSpec | Candidate] = [spec, *spec.candidates]
        for call in calls:
            name = call.handler
            if name is None:
                continue
            if name not in handlers:
                yield Advice(
                    spec.names[-1],
                    f"calls handler {name!r}, which is not registered here; a service needs it in `handlers`",
                )
            elif call.arguments is not None and (call is spec or call.arguments):
                schema = handlers.get(name).schema or {}
                for key in schema.get("required", ()):
                    if key not in call.arguments:
                        yield Advice(spec.names[-1], f"gives handler {name!r} no argument {key!r}, which it requires")


def _unbounded(application: Application) -> Iterator[Advice]:
    planners = {s.planner for s in application.stages}
    for spec in application.stages:
        if spec.kind is StageKind.LLM and spec.max_tokens is None:
            yield Advice(spec.names[-1], "has no max_tokens: its answer ends where the model or its context does")
        if spec.for_each is not None and spec.max_tasks == MAX_TASKS:
            yield Advice(spec.names[-1], f"has for_each without max_tasks: up to {MAX_TASKS} tasks in parallel")
        if spec.name in planners and spec.response_format is None:
            yield Advice(spec.names[-1], "plans without a response_format: nothing makes the model answer with a plan")


def _unread(application: Application, reads: _Reads) -> Iterator[Advice]:
    ends = [s.name for s in application.stages if not application.children(s.name)]
    if application.result is None and len({application[e].names[-1] for e in ends}) > 1:
        yield Advice(None, f"no `result`: a job's result is an object with the outputs of {_listed(ends)}")
    keys = reads.keys("stages")
    if None in keys:
        return
    for spec in application.stages:
        children = application.children(spec.name)
        is_read = (
            spec.kind is not StageKind.LLM  # what others do may be worth it by itself
            or keys & {spec.name, spec.names[-1]}
            or reads.uses_last.intersection(children)
            or any(application[c].planner == spec.name for c in children)
            or (application.result is None and not children)
        )
        if not is_read:
            yield Advice(spec.names[-1], "asks the model, and nothing reads its answer")


def _at(spec: StageSpec | None) -> str | None:
    return None if spec is None else spec.names[-1]


def _listed(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
