"""Live jobs: prompts and arguments from sandboxed Jinja2 templates over the input and earlier outputs.

Names a template may use:

* `input`: the job's input;
* `stages`: outputs by stage: one value, or a list for parallel tasks; None for a skipped stage. In a loop the plain
  name (`stages.code_gen`) is the newest iteration's output;
* `last`: the output of the newest stage the current one waits for; `iteration`: the number of the loop's round;
* `item`, `index`: the element of `for_each` (or the number) that this parallel task is for.

`prompt` and `system` are templates; `when`, `for_each`, `while` and `result` are expressions; strings inside
`arguments` are templates, and one that is nothing but `{{ expression }}` keeps the value's type. An LLM stage with a
`response_format` of JSON, and a planner, answers with JSON.

A plan is `{"stages": [{"name", "candidate", "after": [], "arguments": {}}]}`: candidate defaults to the name;
`arguments` are handed to the candidate's handler together with `inputs`, the outputs of the stages it waits for. A
planned LLM stage is asked `arguments.prompt`, as it stands, with its `inputs` below as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmsched.errors import InvalidApplication, InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.events import Reveal
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import PromptText, describe
from llmsched.model.spec import Candidate, StageSpec, validate_plan
from llmsched.model.unfolding import Unfolded
from llmsched.runtime.engine import CompletionRequest
from llmsched.runtime.handlers import HandlerRegistry, TaskContext
from llmsched.runtime.workers import WorkerTask


class _Sandbox(ImmutableSandboxedEnvironment):
    """Values are JSON, so `input.items` is the key "items" before it is the method of a dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


_ENV = _Sandbox(undefined=StrictUndefined, autoescape=False)
# A restarted job evaluates its expressions again and has to come to the same structure: nothing random.
del _ENV.filters["random"], _ENV.globals["lipsum"]
_VARIABLES = frozenset({"input", "stages", "last", "iteration", "item", "index"})
_RESERVED = frozenset({"model", "messages", "prompt", "stream", "stream_options", "priority", "n", "max_tokens"})
_NOBODY = TaskContext("", "", 0, 0, "")
#: Longest name a plan may give a stage.
MAX_PLANNED_NAME = 100

_template: Callable[[str], Template] = lru_cache(4096)(_ENV.from_string)


@lru_cache(4096)
def _expression(source: str) -> Callable[..., Any]:
    return _ENV.compile_expression(source, undefined_to_none=False)


def check_templates(application: Application, handlers: HandlerRegistry) -> None:
    """Finds what would only fail in the middle of a job: bad syntax, undefined variables, unknown handlers.

    An application in which no stage has a prompt or a handler runs recordings only, and is fine.
    Raises InvalidApplication or UnknownName, naming the stage and the line.
    """
    known = sorted(handler.name for handler in handlers)
    for spec in application.stages:
        where = f"application {application.name!r}, stage {spec.name!r}"
        for label, source in (("prompt", spec.prompt), ("system", spec.system)):
            _check(f"{where}, {label}", source, expression=False)
        for label, source in (("when", spec.when), ("for_each", spec.for_each)):
            _check(f"{where}, {label}", source, expression=True)
        for source in _strings(spec.arguments):
            _check(f"{where}, arguments", source, expression=False)
        for key in spec.sampling:
            if key in _RESERVED:
                raise InvalidApplication(f"{where}, sampling: {key!r} is set by llmsched; leave it out")
        for name in (spec.handler, *(c.handler for c in spec.candidates)):
            if name is not None and application.is_executable and name not in known:
                raise InvalidApplication(f"{where}: {UnknownName.of('handler', name, known)}")
    _check(f"application {application.name!r}, result", application.result, expression=True)


def _check(where: str, source: str | None, *, expression: bool) -> None:
    if source is None:
        return
    text = f"{{{{ ({source}) }}}}" if expression else source
    try:
        if expression:
            _expression(source)
        tree = _ENV.parse(text)
        _ENV.compile(tree)
    except TemplateError as error:
        line = getattr(error, "lineno", 1)
        raise InvalidApplication(f"{where}, line {line}: {error}") from None
    if any(True for _ in meta.find_referenced_templates(tree)):
        raise InvalidApplication(f"{where}: there are no other templates to include, import or extend; write it out")
    for name in sorted(meta.find_undeclared_variables(tree) - _VARIABLES - _ENV.globals.keys()):
        raise InvalidApplication(f"{where}: {UnknownName.of('variable', name, sorted(_VARIABLES))}")


class LiveScript:
    """Executes `application` on `job_input`. Raises InvalidInput if the application runs recordings only.

    describes: asked at each reveal, whether it shall say what the prompts of its LLM tasks are like.
    """

    off_profile: tuple[str, ...] = ()

    def __init__(
        self, job: str, application: Application, job_input: Any, describes: Callable[[], bool] = lambda: False
    ) -> None:
        if not application.is_executable:
            missing = next(s.name for s in application.stages if not s.is_executable)
            raise InvalidInput(
                f"application {application.name!r} runs recordings only (stage {missing!r} has no prompt or handler);"
                " submit a 'recording', or register a version with prompts",
                field="input",
            )
        self._application = application
        self._input = job_input
        self._describes = describes
        self._specs = {s.name: s for s in application.stages}
        self._hidden = dict.fromkeys(self._specs)
        self._over: dict[str, bool] = {}  # name -> whether it ran
        self._items: dict[str, list[Any]] = {}
        self._outputs: dict[str, Any] = {}
        self._inner: dict[str, set[str]] = {}
        self._chosen: dict[str, tuple[Candidate, Mapping[str, Any]]] = {}

    # ------------------------------------------------------------------------------------------- structure

    def begin(self) -> Unfolded:
        return self._unfold()

    def complete(self, stage: str, outputs: Sequence[Any]) -> Unfolded:
        spec = self._specs[stage]
        self._end(spec, list(outputs) if spec.for_each or len(outputs) > 1 else outputs[0])
        return self._unfold()

    def _end(self, spec: StageSpec, output: Any) -> None:
        self._over[spec.name] = True
        for known_as in _names_of(spec):
            self._outputs[known_as] = output
        if spec.parent is not None:
            left = self._inner[spec.parent]
            left.discard(spec.name)
            if not left:
                self._close(self._specs[spec.parent])

    def _close(self, dynamic: StageSpec) -> None:
        prefix = f"{dynamic.name}."
        plan = {n.removeprefix(prefix): self._outputs.get(n) for n in self._chosen if n.startswith(prefix)}
        self._end(dynamic, plan)

    def _unfold(self) -> Unfolded:
        reveals: list[Reveal] = []
        skipped: list[str] = []
        for name in list(self._hidden):
            spec = self._specs[name]
            if not all(p in self._over for p in spec.after):
                continue
            del self._hidden[name]
            if self._is_skipped(spec):
                self._over[name] = False
                for known_as in _names_of(spec):
                    self._outputs.setdefault(known_as, None)
                skipped.append(name)
            elif spec.kind is StageKind.DYNAMIC:
                reveals += self._plan(spec)
            else:
                reveals.append(self._reveal(spec, len(self._items[name])))
        return Unfolded(tuple(reveals), tuple(skipped))

    def _is_skipped(self, spec: StageSpec) -> bool:
        if spec.after and not any(self._over[p] for p in spec.after):
            return True
        if spec.planner is not None and not self._over[spec.planner]:
            return True
        if spec.when is not None and not self._evaluate(spec, "when", spec.when):
            return True
        self._items[spec.name] = self._tasks(spec)
        return not self._items[spec.name]

    def _tasks(self, spec: StageSpec) -> list[Any]:
        if spec.for_each is None:
            return list(range(spec.tasks))
        items = self._evaluate(spec, "for_each", spec.for_each)
        if not isinstance(items, list):
            raise InvalidInput(f"stage {spec.name!r}: for_each gives {items!r:.80}, it must give a list")
        if len(items) > spec.max_tasks:
            raise InvalidInput(
                f"stage {spec.name!r}: for_each gives {len(items)} items, at most {spec.max_tasks} are allowed"
                " (max_tasks)"
            )
        return items

    def _plan(self, dynamic: StageSpec) -> list[Reveal]:
        assert dynamic.planner is not None, dynamic
        plan = _read_plan(dynamic, self._outputs[dynamic.planner])
        known = {c.name: c for c in dynamic.candidates}
        specs = []
        for entry in plan:
            candidate = known.get(entry["candidate"])
            name = f"{dynamic.name}.{entry['name']}"
            specs.append(
                StageSpec(
                    name,
                    candidate.kind if candidate else StageKind.REGULAR,
                    after=tuple(f"{dynamic.name}.{p}" for p in entry["after"]),
                    pool=candidate.pool if candidate else "cpu",
                    parent=dynamic.name,
                    candidate=entry["candidate"],
                    handler=candidate.handler if candidate else None,
                )
            )
            if candidate is not None:
                self._chosen[name] = (candidate, entry["arguments"])
        ordered = validate_plan(dynamic, specs, chosen={f"{dynamic.name}.{e['name']}": e["candidate"] for e in plan})
        self._specs |= {s.name: s for s in ordered}
        self._inner[dynamic.name] = {s.name for s in ordered}
        if not ordered:
            self._close(dynamic)
        return [Reveal(dynamic), *(self._reveal(s, 1) for s in ordered)]

    def _reveal(self, spec: StageSpec, tasks: int) -> Reveal:
        is_asked = spec.kind is StageKind.LLM and self._describes()
        return Reveal(spec, (0,) * tasks, tuple(self._text(spec, index) for index in range(tasks)) if is_asked else ())

    def _text(self, spec: StageSpec, index: int) -> PromptText | None:
        """What the prompt of a task is like, of a planned one without its inputs, which may not be there yet.

        A template that fails does so when its task is dispatched, and fails the job then; nothing is known until then.
        """
        if spec.name in self._chosen:
            prompt = self._chosen[spec.name][1].get("prompt")
            return describe(prompt) if isinstance(prompt, str) else None
        if spec.prompt is None:
            return None
        try:
            return describe(self._render(spec, "prompt", spec.prompt, index))
        except InvalidInput:
            return None

    # ------------------------------------------------------------------------------------------- execution

    def llm(self, stage: str, index: int) -> CompletionRequest:
        spec = self._specs[stage]
        if stage in self._chosen:
            arguments = self._arguments(stage)
            prompt = arguments.get("prompt")
            if not isinstance(prompt, str):
                raise InvalidInput(f"stage {stage!r}: the plan gives no text as arguments.prompt")
            if "inputs" in arguments:
                prompt += f"\n\n{orjson.dumps(arguments['inputs']).decode()}"
            return CompletionRequest(messages=[{"role": "user", "content": prompt}])
        assert spec.prompt is not None, spec
        messages = [{"role": "user", "content": self._render(spec, "prompt", spec.prompt, index)}]
        if spec.system is not None:
            messages.insert(0, {"role": "system", "content": self._render(spec, "system", spec.system, index)})
        return CompletionRequest(
            messages=messages,
            max_tokens=spec.max_tokens,
            response_format=spec.response_format,
            extra=dict(spec.sampling),
        )

    def work(self, stage: str, index: int) -> WorkerTask:
        spec = self._specs[stage]
        assert spec.handler is not None, spec
        if stage in self._chosen:
            arguments = self._arguments(stage)
        else:
            arguments = {k: self._fill(spec, v, index) for k, v in spec.arguments.items()}
        return WorkerTask(spec.handler, arguments, timeout=0.0, context=_NOBODY)

    def tool(self, stage: str, index: int) -> str | None:
        return self._chosen[stage][0].name if stage in self._chosen else self._specs[stage].handler

    def read(self, stage: str, index: int, text: str) -> Any:
        asked = self._specs[stage].response_format or {}
        if asked.get("type", "text") == "text" and not self._is_planner(stage):
            return text
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"stage {stage!r} must answer with JSON, but: {error}; it said {text[:80]!r}") from None

    def result(self) -> Any:
        if self._application.result is not None:
            return self._evaluate(None, "result", self._application.result)
        parents = {p for s in self._application.stages for p in s.after}
        ends = {s.name: self._outputs.get(s.name) for s in self._application.stages if s.name not in parents}
        return next(iter(ends.values())) if len(ends) == 1 else ends

    def _is_planner(self, stage: str) -> bool:
        return any(s.planner == stage for s in self._application.stages)

    def _arguments(self, stage: str) -> dict[str, Any]:
        spec = self._specs[stage]
        arguments = dict(self._chosen[stage][1])
        if spec.after:
            arguments["inputs"] = {p.removeprefix(f"{spec.parent}."): self._outputs.get(p) for p in spec.after}
        return arguments

    # ------------------------------------------------------------------------------------------- templates

    def _names(self, spec: StageSpec | None, index: int | None = None) -> dict[str, Any]:
        names: dict[str, Any] = {"input": self._input, "stages": self._outputs, "last": None, "iteration": None}
        if spec is not None:
            ran = [p for p in spec.after if self._over.get(p)]
            names["last"] = self._outputs.get(ran[-1]) if ran else None
            names["iteration"] = spec.iteration
            if index is not None:
                names |= {"index": index, "item": self._items[spec.name][index]}
        return names

    def _evaluate(self, spec: StageSpec | None, label: str, source: str, index: int | None = None) -> Any:
        where = f"stage {spec.name!r}, {label}" if spec else label
        try:
            return _plain(_expression(source)(**self._names(spec, index)))
        except Exception as error:  # whatever an expression of the user's raises
            raise InvalidInput(f"{where}: {error}") from None

    def _render(self, spec: StageSpec, label: str, source: str, index: int) -> str:
        try:
            return _template(source).render(**self._names(spec, index))
        except Exception as error:  # whatever a template of the user's raises
            raise InvalidInput(f"stage {spec.name!r}, {label}: {error}") from None

    def _fill(self, spec: StageSpec, value: Any, index: int) -> Any:
        match value:
            case str() if (inner := _only_expression(value)) is not None:
                return self._evaluate(spec, "arguments", inner, index)
            case str():
                return self._render(spec, "arguments", value, index)
            case Mapping():
                return {k: self._fill(spec, v, index) for k, v in value.items()}
            case list() | tuple():
                return [self._fill(spec, v, index) for v in value]
            case _:
                return value


def _names_of(spec: StageSpec) -> list[str]:
    """What templates may call a stage: its name, and inside a loop also its name without the number."""
    is_padded = spec.loop is not None and spec.iteration is not None
    return [spec.name, *([spec.name.removesuffix(f"_{spec.iteration}")] if is_padded else [])]


def _plain(value: Any) -> Any:
    """The value of an expression as JSON would keep it: tuples and lazy sequences become lists."""
    try:
        return orjson.loads(orjson.dumps(value, default=_listed))
    except orjson.JSONEncodeError as error:
        cause = error.__cause__ or error
        raise InvalidInput(str(cause)) from None


def _listed(value: Any) -> list[Any]:
    if isinstance(value, Iterable):  # an undefined value is one, and says what it is when it is read
        return list(value)
    raise TypeError(f"it gives a {type(value).__name__}, which JSON does not have")


def _only_expression(text: str) -> str | None:
    """The expression of a text that is nothing but `{{ expression }}`."""
    text = text.strip()
    if text.startswith("{{") and text.endswith("}}") and text.count("{{") == 1 and "{%" not in text:
        return text[2:-2].removeprefix("-").removesuffix("-")
    return None


def _strings(value: Any) -> Iterable[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for inner in value.values():
                yield from _strings(inner)
        case list() | tuple():
            for inner in value:
                yield from _strings(inner)
        case _:
            return


def _read_plan(dynamic: StageSpec, plan: Any) -> list[dict[str, Any]]:
    where = f"the plan for {dynamic.name!r}"
    entries = plan.get("stages") if isinstance(plan, Mapping) else plan
    if not isinstance(entries, list):
        raise InvalidInput(f"{where} must be a list of stages, or an object with one under 'stages', not {plan!r:.80}")
    read = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not 0 < len(name) <= MAX_PLANNED_NAME or not name.isprintable():
            raise InvalidInput(
                f"{where}: each stage needs a name of at most {MAX_PLANNED_NAME} printable characters,"
                f" which {entry!r:.80} lacks"
            )
        after, arguments = entry.get("after") or [], entry.get("arguments") or {}
        if not (isinstance(after, list) and all(isinstance(a, str) for a in after)):
            raise InvalidInput(f"{where}, stage {name!r}: after is {after!r:.80}, it must be a list of names")
        if not isinstance(arguments, Mapping):
            raise InvalidInput(f"{where}, stage {name!r}: arguments is {arguments!r:.80}, it must be an object")
        candidate = str(entry.get("candidate") or name)
        read.append({"name": name, "candidate": candidate, "after": after, "arguments": arguments})
    return read
