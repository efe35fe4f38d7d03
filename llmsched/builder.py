"""Applications written in Python: `App` builds the same definition as a YAML file, and finds mistakes line by line.

```python
from llmsched import App

app = App("summarize", description="Summarises a text in one sentence.")
draft = app.llm("draft", prompt="Summarise:\\n{{ input.text }}", max_tokens=200)
with app.loop("shorten", after=draft, max_iterations=3, repeat_while="last | length > 80"):
    app.llm("polish", prompt="Say it shorter:\\n{{ last }}", max_tokens=60)
app.result("stages.polish or stages.draft")

print(app)                # the graph
app.save("summarize.yaml")
app.put("http://127.0.0.1:8000")
```

An `App` holds data and runs nothing. Its keywords are those of the YAML language (only `while` is `repeat_while`), and
one that is left out is left out of the definition. Every stage is checked when it is added, templates included, and a
loop once more when it ends: InvalidApplication names the stage, and the app stays as it was. Whether handlers exist is
checked where they run.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import yaml

from llmsched.errors import InvalidApplication, InvalidInput
from llmsched.model.application import Application
from llmsched.runtime.inputs import check_schema
from llmsched.runtime.scripts.checking import check_templates
from llmsched.runtime.scripts.templates import check as check_template
from llmsched.runtime.scripts.templates import texts_in
from llmsched.runtime.tools.handlers import HandlerRegistry, echo, name_of

#: What templates of a stage may read.
_VARIABLES = ("input", "stages", "last", "iteration", "item", "index")
_TEMPLATES = ("when", "for_each", "prompt", "system")

DEFAULT_URL = "http://127.0.0.1:8000"


class Expected(TypedDict, total=False):
    """Means of a stage until something is learned; tokens and seconds are per task, probability is that it runs."""

    probability: float
    tasks: float
    prompt_tokens: float
    output_tokens: float
    duration: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of an App, to name in `after`, `planner` and `result`. loop: the loop it is in."""

    name: str
    loop: str | None = None


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop of an App; `after=loop` waits for the whole of it, however many rounds it takes."""

    name: str


#: What a stage waits for: one or several stages and loops, or their names.
After = Stage | Loop | str | Iterable[Stage | Loop | str]
#: A function marked with `@handler`, or the name of one.
HandlerName = str | Callable[..., Any]
JsonObject = Mapping[str, Any]


class App:
    """An application in the making."""

    def __init__(self, name: str, *, description: str | None = None, input_schema: JsonObject | None = None) -> None:
        """input_schema: JSON Schema of the jobs' input. Raises InvalidApplication for a bad name or schema."""
        self._head = _given(name=name, description=description, input_schema=input_schema)
        self._stages: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._result: str | None = None
        _checked(self._head | {"stages": [{"name": "any", "kind": "regular"}]})

    # ------------------------------------------------------------------------------------------------ stages

    def llm(
        self,
        name: str,
        *,
        prompt: str | None = None,
        system: str | None = None,
        after: After = (),
        max_tokens: int | None = None,
        sampling: JsonObject | None = None,
        response_format: JsonObject | None = None,
        json_schema: JsonObject | None = None,
        when: str | None = None,
        for_each: str | None = None,
        tasks: int | None = None,
        max_tasks: int | None = None,
        model: str | None = None,
        pool: str | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        expected: Expected | None = None,
    ) -> Stage:
        """Adds a stage that asks the model.

        prompt, system: templates. when, for_each: expressions. json_schema: short for a `response_format` that makes
        the model answer with JSON of this schema. timeout: seconds per attempt.
        """
        if json_schema is not None:
            if response_format is not None:
                raise InvalidApplication(f"stage {name!r} has a json_schema and a response_format; give one of them")
            response_format = {"type": "json_schema", "json_schema": {"name": name, "schema": json_schema}}
        return self._add(
            name=name,
            kind="llm",
            after=self._after(name, after),
            when=when,
            for_each=for_each,
            system=system,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            response_format=response_format,
            tasks=tasks,
            max_tasks=max_tasks,
            model=model,
            pool=pool,
            retries=retries,
            timeout=timeout,
            expected=expected,
        )

    def regular(
        self,
        name: str,
        *,
        handler: HandlerName | None = None,
        arguments: JsonObject | None = None,
        after: After = (),
        when: str | None = None,
        for_each: str | None = None,
        tasks: int | None = None,
        max_tasks: int | None = None,
        pool: str | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        expected: Expected | None = None,
    ) -> Stage:
        """Adds a stage that calls a handler.

        handler: its name, or the function marked with `@handler`. arguments: texts in them are templates; one that is
        nothing but `{{ expression }}` keeps the value's type.
        """
        return self._add(
            name=name,
            kind="regular",
            after=self._after(name, after),
            when=when,
            for_each=for_each,
            handler=_handler(f"stage {name!r}", handler),
            arguments=arguments,
            tasks=tasks,
            max_tasks=max_tasks,
            pool=pool,
            retries=retries,
            timeout=timeout,
            expected=expected,
        )

    def dynamic(
        self,
        name: str,
        *,
        planner: Stage | str,
        candidates: Sequence[str | JsonObject],
        after: After | None = None,
        max_stages: int | None = None,
        edges: Iterable[tuple[str, str]] | None = None,
        off_profile: bool | None = None,
        fallback: HandlerName | None = None,
        when: str | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        expected: Expected | None = None,
    ) -> Stage:
        """Adds a placeholder for the stages that the reply of `planner` asks for.

        candidates: what a plan may choose from: names, or what `App.candidate` gives. after: by default the planner.
        edges: which candidate may feed which; without it any. off_profile: run plans that leave these bounds all the
        same, unknown candidates by the handler `fallback`.
        """
        return self._add(
            name=name,
            kind="dynamic",
            after=self._after(name, planner if after is None else after),
            planner=planner if isinstance(planner, str) else planner.name,
            when=when,
            max_stages=max_stages,
            candidates=list(candidates),
            edges=None if edges is None else [list(edge) for edge in edges],
            off_profile=off_profile,
            fallback=_handler(f"stage {name!r}", fallback),
            retries=retries,
            timeout=timeout,
            expected=expected,
        )

    @staticmethod
    def candidate(
        name: str,
        *,
        kind: str | None = None,
        handler: HandlerName | None = None,
        arguments: JsonObject | None = None,
        prompt: str | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        sampling: JsonObject | None = None,
        response_format: JsonObject | None = None,
        input: Sequence[str] | None = None,
        output: Sequence[str] | None = None,
        pool: str | None = None,
    ) -> dict[str, Any]:
        """A candidate of a dynamic stage. kind: `regular`, the default, or `llm`.

        arguments, prompt, system: templates that also see `arguments` (the plan's) and `inputs` (outputs of the
        planned stages it waits for). input, output: kinds of data it takes and gives, for planners to read.
        """
        return _given(
            name=name,
            kind=kind,
            handler=_handler(f"candidate {name!r}", handler),
            arguments=arguments,
            prompt=prompt,
            system=system,
            max_tokens=max_tokens,
            sampling=sampling,
            response_format=response_format,
            input=input,
            output=output,
            pool=pool,
        )

    @contextmanager
    def loop(
        self,
        name: str,
        *,
        max_iterations: int,
        first: int | None = None,
        after: After = (),
        repeat_while: str | None = None,
        continues: float | Sequence[float] | None = None,
    ) -> Iterator[Loop]:
        """Stages added inside the `with` block repeat, at most `max_iterations` times.

        first: number of the first round. repeat_while: expression asked before each round (`while` in YAML).
        continues: chances that a further round follows, until something is learned.
        """
        if self._open is not None:
            raise InvalidApplication(f"loop {name!r} is inside loop {self._open['loop']!r}; unroll one of them")
        entry = _given(loop=name, first=first, max_iterations=max_iterations, after=self._after(name, after))
        entry |= _given(**{"while": repeat_while}, continues=continues) | {"stages": []}
        self._open = entry
        try:
            yield Loop(name)
            _checked(self.definition)
            self._stages.append(entry)
        finally:
            self._open = None

    def result(self, expression: str | Stage) -> None:
        """What a job's result is: an expression over `input` and `stages`, or the output of a stage."""
        before = self._result
        self._result = f"stages.{expression.name}" if isinstance(expression, Stage) else expression
        try:
            if self._stages:
                _checked(self.definition)
        except InvalidInput:
            self._result = before
            raise

    # ----------------------------------------------------------------------------------------------- outcome

    @property
    def definition(self) -> dict[str, Any]:
        """The definition so far, as JSON keeps it; yours to change."""
        return deepcopy(self._definition())

    def build(self) -> Application:
        """The validated application. Raises InvalidApplication."""
        return _checked(self.definition)

    def save(self, path: str | Path) -> Path:
        """Writes the definition: as JSON if the name ends in `.json`, as YAML if it ends in `.yaml` or `.yml`.

        Raises InvalidApplication if it is none yet, InvalidInput for another name or where nothing can be written.
        """
        path = Path(path)
        definition = dict(self.build().definition)
        if path.suffix not in (".json", ".yaml", ".yml"):
            raise InvalidInput(f"{str(path)!r} must end in .yaml, .yml or .json")
        text = (
            json.dumps(definition, indent=2, ensure_ascii=False) + "\n" if path.suffix == ".json" else _yaml(definition)
        )
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"{str(path)!r} cannot be written: {error.strerror}") from None
        return path

    def put(self, url: str | None = None, *, key: str | None = None) -> dict[str, Any]:
        """Registers it with a running service, and returns what the service says of it.

        url, key: by default LLMSCHED_URL, else http://127.0.0.1:8000, and LLMSCHED_API_KEY.
        Raises InvalidApplication, ApiError if the service refuses it, BackendError if it does not answer.
        """
        from llmsched.runtime.api import Api  # aiohttp and httpx: a third of a second

        application = self.build()
        there = url or os.environ.get("LLMSCHED_URL", DEFAULT_URL)

        async def send() -> dict[str, Any]:
            async with Api(there, key=key or os.environ.get("LLMSCHED_API_KEY")) as api:
                answer: dict[str, Any] = await api.put(f"/v1/applications/{application.name}", application.definition)
                return answer

        return _wait_for(send())

    def __str__(self) -> str:
        """The graph as text."""
        from llmsched.drawing import text

        return text(self.build())

    def __repr__(self) -> str:
        return f"App({self._head['name']!r}, {len(self._stages)} stages and loops)"

    def _repr_svg_(self) -> str:
        """The graph as notebooks show it."""
        from llmsched.drawing import svg

        return svg(self.build())

    # ------------------------------------------------------------------------------------------------ within

    def _definition(self) -> dict[str, Any]:
        made = self._head | {"stages": self._stages + ([] if self._open is None else [self._open])}
        return made if self._result is None else made | {"result": self._result}

    def _add(self, **keys: Any) -> Stage:
        entry = deepcopy(_given(**keys))
        stages: list[dict[str, Any]] = self._stages if self._open is None else self._open["stages"]
        stages.append(entry)
        try:
            application = Application.parse(self._definition())
            if self._open is None:
                _check_templates(application)
            else:
                _check_syntax(f"application {application.name!r}, stage {entry['name']!r}", entry)
        except InvalidInput:
            stages.pop()
            raise
        return Stage(str(entry["name"]), None if self._open is None else self._open["loop"])

    def _after(self, name: str, after: After) -> list[str] | None:
        """Names of what `name` waits for; None for nothing."""
        several = [after] if isinstance(after, (str, Stage, Loop)) else list(after)
        inside = None if self._open is None else self._open["loop"]
        for one in several:
            if isinstance(one, Stage) and one.loop not in (None, inside):
                raise InvalidApplication(
                    f"stage {name!r} waits for {one.name!r}, which is inside loop {one.loop!r}; wait for the loop"
                )
        return [one if isinstance(one, str) else one.name for one in several] or None


def _given(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


def check(application: Application) -> None:
    """Raises InvalidApplication for one that can never run, whatever handlers there are: its schemas and templates."""
    check_schema(application)
    _check_templates(application)


def _checked(definition: dict[str, Any]) -> Application:
    application = Application.parse(definition)
    check(application)
    return application


def _check_templates(application: Application) -> None:
    registry = HandlerRegistry()  # of what it names, for which handlers there are is known where it runs
    for spec in application.stages:
        for name in (spec.handler, spec.fallback, *(c.handler for c in spec.candidates)):
            if name is not None:
                try:
                    registry.register(name, echo)
                except InvalidInput as error:
                    raise InvalidApplication(
                        f"application {application.name!r}, stage {spec.name!r}: {error}"
                    ) from None
    check_templates(application, registry)


def _check_syntax(where: str, entry: Mapping[str, Any]) -> None:
    """The templates of a stage by themselves: what they read may be a later stage of the loop, in its next round."""
    sources = [(key, entry[key], key in ("when", "for_each")) for key in _TEMPLATES if key in entry]
    sources += (("arguments", text, False) for text in texts_in(entry.get("arguments", {})))
    for label, source, is_expression in sources:
        check_template(f"{where}, {label}", source, _VARIABLES, expression=is_expression)


def _handler(where: str, handler: HandlerName | None) -> str | None:
    """The name of a handler. Raises InvalidApplication for a function that is none."""
    if handler is None or isinstance(handler, str):
        return handler
    name = name_of(handler)
    if name is None:
        shown = getattr(handler, "__qualname__", repr(handler))
        raise InvalidApplication(f"{where}: {shown} is no handler; mark it with @handler, or give a handler's name")
    return name


def _wait_for(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The outcome of `work`, in a thread of its own: in a notebook an event loop runs already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no aliases, which applications do not have."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _Dumper.text)


def _yaml(definition: dict[str, Any]) -> str:
    text: str = yaml.dump(definition, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
