"""Live jobs: prompts and arguments from sandboxed Jinja2 templates over the input and earlier outputs.

Names a template may use:

* `input`: the job's input;
* `stages`: outputs by stage: one value, or a list for parallel tasks; None for a skipped stage. In a loop the plain
  name (`stages.code_gen`) is the newest iteration's output;
* `last`: the output of the newest stage the current one waits for; `iteration`: the number of the loop's round;
* `item`, `index`: the element of `for_each` (or the number) that this parallel task is for;
* `arguments`, `inputs`, in templates of a candidate: what the plan says, and the outputs of the stages it waits for.

`prompt` and `system` are templates; `when`, `for_each`, `while` and `result` are expressions; strings inside
`arguments` are templates, and one that is nothing but `{{ expression }}` keeps the value's type. `docs/templates.md` is
the reference.

An LLM stage with a `response_format` of JSON, and a planner, answers with JSON, which is held against the schema, and a
plan against its dynamic stage. A reply that is no good is asked for again once, with the reply and the error in the
conversation; what is remembered for that does not survive a restart of the service.

A plan (see `plans.py`) hands `arguments` to its candidate's handler together with `inputs`, unless the candidate has
templates of its own. A planned LLM stage without a prompt is asked `arguments.prompt`, as it stands, with those of its
`inputs` below, as JSON, that its arguments do not refer to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import Reveal
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import PromptText, describe
from llmsched.model.spec import StageSpec
from llmsched.model.unfolding import Unfolded
from llmsched.runtime.engine import CompletionRequest
from llmsched.runtime.scripts.checking import check_templates
from llmsched.runtime.scripts.metered import metering
from llmsched.runtime.scripts.plans import Entry, read_plan, resolve, text_of
from llmsched.runtime.scripts.replies import BadReply, read_json, repair
from llmsched.runtime.scripts.templates import evaluate, fill, render
from llmsched.runtime.tools.handlers import TaskContext
from llmsched.runtime.tools.workers import WorkerTask

__all__ = ["LiveScript", "check_templates"]

_NOBODY = TaskContext("", "", 0, 0, "")
#: Characters of a refused plan in the reason of a failed job.
_PLAN_SHOWN = 1_000


class LiveScript:
    """Executes `application` on `job_input`. Raises InvalidInput if the application runs recordings only.

    describes: asked at each reveal, whether it shall say what the prompts of its LLM tasks are like.
    """

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
        #: How plans left what their dynamic stages declare; grows while the job runs.
        self.off_profile: tuple[str, ...] = ()
        self._application = application
        self._input = job_input
        self._describes = describes
        self._specs = {s.name: s for s in application.stages}
        self._hidden = dict.fromkeys(self._specs)
        self._over: dict[str, bool] = {}  # name -> whether it ran
        self._items: dict[str, list[Any]] = {}
        self._outputs: dict[str, Any] = {}
        self._inner: dict[str, set[str]] = {}
        self._planned: dict[str, Entry] = {}
        #: Bad replies that are asked for again, by task, with what is wrong with them.
        self._bad: dict[tuple[str, int], tuple[str, str]] = {}

    # ------------------------------------------------------------------------------------------- structure

    def begin(self) -> Unfolded:
        return self._described(self._unfold())

    def complete(self, stage: str, outputs: Sequence[Any]) -> Unfolded:
        spec = self._specs[stage]
        self._end(spec, list(outputs) if spec.for_each or len(outputs) > 1 else outputs[0])
        return self._described(self._unfold())

    def _end(self, spec: StageSpec, output: Any) -> None:
        self._over[spec.name] = True
        for known_as in spec.names:
            self._outputs[known_as] = output
        if spec.parent is not None:
            left = self._inner[spec.parent]
            left.discard(spec.name)
            if not left:
                self._close(self._specs[spec.parent])

    def _close(self, dynamic: StageSpec) -> None:
        prefix = f"{dynamic.name}."
        plan = {n.removeprefix(prefix): self._outputs.get(n) for n in self._planned if n.startswith(prefix)}
        self._end(dynamic, plan)

    def _unfold(self) -> Unfolded:
        with metering():
            return self._reveal()

    def _reveal(self) -> Unfolded:
        reveals: list[Reveal] = []
        skipped: list[str] = []
        for name in list(self._hidden):
            spec = self._specs[name]
            if not all(p in self._over for p in spec.after):
                continue
            del self._hidden[name]
            if self._is_skipped(spec):
                self._over[name] = False
                for known_as in spec.names:
                    self._outputs.setdefault(known_as, None)
                skipped.append(name)
            elif spec.kind is StageKind.DYNAMIC:
                reveals += self._expand(spec)
            else:
                reveals.append(Reveal(spec, (0,) * len(self._items[name])))
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

    def _expand(self, dynamic: StageSpec) -> list[Reveal]:
        assert dynamic.planner is not None, dynamic
        plan = read_plan(dynamic, self._outputs[dynamic.planner])
        self.off_profile += plan.off_profile
        self._planned |= plan.entries
        self._specs |= {s.name: s for s in plan.specs}
        self._items |= {s.name: [0] for s in plan.specs}
        self._inner[dynamic.name] = {s.name for s in plan.specs}
        if not plan.specs:
            self._close(dynamic)
        return [Reveal(dynamic), *(Reveal(s, (0,)) for s in plan.specs)]

    def _described(self, unfolded: Unfolded) -> Unfolded:
        if not any(r.spec.kind is StageKind.LLM for r in unfolded.reveals) or not self._describes():
            return unfolded
        with metering():  # many tasks together; where that is too much, nothing is known of the rest
            return unfolded._replace(reveals=tuple(r._replace(texts=self._texts(r)) for r in unfolded.reveals))

    def _texts(self, reveal: Reveal) -> tuple[PromptText | None, ...]:
        spec, tasks = reveal.spec, len(reveal.prompt_tokens)
        return tuple(self._text(spec, k) for k in range(tasks)) if spec.kind is StageKind.LLM else ()

    def _text(self, spec: StageSpec, index: int) -> PromptText | None:
        """What the prompt of a task is like, of a planned one without its inputs, which are not there yet.

        A template that fails does so when its task is dispatched, and fails the job then; nothing is known until then.
        """
        if spec.prompt is None:
            return describe(self._planned[spec.name].arguments["prompt"])
        try:
            return describe(self._render(spec, "prompt", spec.prompt, index))
        except InvalidInput:
            return None

    # ------------------------------------------------------------------------------------------- execution

    def llm(self, stage: str, index: int) -> CompletionRequest:
        spec = self._specs[stage]
        prompt = self._asked(spec) if spec.prompt is None else self._render(spec, "prompt", spec.prompt, index)
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if spec.system is not None:
            messages.insert(0, {"role": "system", "content": self._render(spec, "system", spec.system, index)})
        if (bad := self._bad.get((stage, index))) is not None:
            messages += repair(*bad)
        return CompletionRequest(
            messages=messages,
            max_tokens=spec.max_tokens,
            response_format=spec.response_format,
            extra=dict(spec.sampling),
        )

    def work(self, stage: str, index: int) -> WorkerTask:
        spec = self._specs[stage]
        assert spec.handler is not None, spec
        return WorkerTask(spec.handler, self._arguments(spec, index), timeout=0.0, context=_NOBODY)

    def tool(self, stage: str, index: int) -> str | None:
        spec = self._specs[stage]
        return spec.handler if spec.parent is None else spec.candidate

    def read(self, stage: str, index: int, text: str) -> Any:
        """The output of an LLM task made from the engine's text.

        Raises BadReply where it is not what was asked: the first time the task is worth another attempt, in which `llm`
        says what was wrong, unless its stage has no retries.
        """
        spec = self._specs[stage]
        of_dynamic = [s for s in self._application.stages if s.planner == stage]
        if (spec.response_format or {}).get("type", "text") == "text" and not of_dynamic:
            return text
        try:
            value = self._read(spec, text, of_dynamic)
        except InvalidInput as error:
            raise self._refused(spec, index, text, str(error), is_plan=bool(of_dynamic)) from None
        self._bad.pop((stage, index), None)
        return value

    def _read(self, spec: StageSpec, text: str, of_dynamic: Sequence[StageSpec]) -> Any:
        try:
            value = read_json(text, spec.response_format)
        except InvalidInput as error:
            raise InvalidInput(f"stage {spec.name!r} {error}") from None
        if len(self._items[spec.name]) == 1 and spec.for_each is None:  # else its tasks make one plan together
            for dynamic in of_dynamic:
                read_plan(dynamic, value)
        return value

    def _refused(self, spec: StageSpec, index: int, text: str, error: str, *, is_plan: bool) -> BadReply:
        key = spec.name, index
        if spec.retries and key not in self._bad:
            self._bad[key] = text, error
            return BadReply(error, can_repair=True)
        again = " (asked again, it still is no good)" if self._bad.pop(key, None) else ""
        plan = f"; the plan was {_shortened(text)}" if is_plan else ""
        return BadReply(f"{error}{again}{plan}", can_repair=False)

    def result(self) -> Any:
        if self._application.result is not None:
            return self._evaluate(None, "result", self._application.result)
        parents = {p for s in self._application.stages for p in s.after}
        ends = {s.name: self._outputs.get(s.name) for s in self._application.stages if s.name not in parents}
        return next(iter(ends.values())) if len(ends) == 1 else ends

    # ------------------------------------------------------------------------------------------- planned stages

    def _asked(self, spec: StageSpec) -> str:
        """The prompt that a plan gives a stage whose candidate has none."""
        entry = self._planned[spec.name]
        prompt = text_of(self._resolved(spec)["prompt"])
        below = {n: output for n, output in self._inputs(spec).items() if n not in entry.refers}
        return f"{prompt}\n\n{text_of(below)}" if below else prompt

    def _arguments(self, spec: StageSpec, index: int) -> dict[str, Any]:
        """What a handler is called with."""
        entry = self._planned.get(spec.name)
        if entry is None or (entry.chosen is not None and entry.chosen.arguments is not None):
            return self._fill(spec, spec.arguments, index)
        arguments = self._resolved(spec)
        if entry.chosen is None:
            return {"tool": entry.candidate, "arguments": arguments, "inputs": self._inputs(spec)}
        return arguments | {"inputs": self._inputs(spec)} if spec.after else arguments

    def _resolved(self, spec: StageSpec) -> dict[str, Any]:
        """A planned stage's arguments, references replaced by the outputs that are there."""
        entry = self._planned[spec.name]
        full = {name: f"{spec.parent}.{name}" for name in entry.refers}
        outputs = {name: self._outputs[of] for name, of in full.items() if of in self._outputs}
        return {k: resolve(v, outputs) for k, v in entry.arguments.items()}

    def _inputs(self, spec: StageSpec) -> dict[str, Any]:
        return {p.removeprefix(f"{spec.parent}."): self._outputs.get(p) for p in spec.after}

    # ------------------------------------------------------------------------------------------- templates

    def _names(self, spec: StageSpec | None, index: int | None = None) -> dict[str, Any]:
        names: dict[str, Any] = {"input": self._input, "stages": self._outputs, "last": None, "iteration": None}
        if spec is not None:
            ran = [p for p in spec.after if self._over.get(p)]
            names["last"] = self._outputs.get(ran[-1]) if ran else None
            names["iteration"] = spec.iteration if spec.parent is None else self._specs[spec.parent].iteration
            if index is not None:
                names |= {"index": index, "item": self._items[spec.name][index]}
            if spec.parent is not None:
                names |= {"arguments": self._resolved(spec), "inputs": self._inputs(spec)}
        return names

    def _evaluate(self, spec: StageSpec | None, label: str, source: str) -> Any:
        return evaluate(f"stage {spec.name!r}, {label}" if spec else label, source, self._names(spec))

    def _render(self, spec: StageSpec, label: str, source: str, index: int) -> str:
        return render(f"stage {spec.name!r}, {label}", source, self._names(spec, index))

    def _fill(self, spec: StageSpec, value: Mapping[str, Any], index: int) -> dict[str, Any]:
        filled: dict[str, Any] = fill(f"stage {spec.name!r}, arguments", value, self._names(spec, index))
        return filled


def _shortened(text: str) -> str:
    return text if len(text) <= _PLAN_SHOWN else f"{text[:_PLAN_SHOWN]} …"
