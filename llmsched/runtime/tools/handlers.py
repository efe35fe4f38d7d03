"""Handlers: the functions, and the tools that live elsewhere, which an operator registered for regular tasks to call.

A handler is `handler(arguments: dict) -> anything JSON can say`, a plain or an `async` function. If its signature takes
`context`, it is also handed the `TaskContext` of the call: work may run twice after a crash, and the idempotency key
lets a handler with side effects notice. A handler that raises `llmsched.errors.InvalidInput` says that its arguments
are at fault, and the task is not tried again; after any other exception it may be.

Clients name handlers and never upload code. Handlers come from modules the operator names (`HandlerRegistry.load`),
from installed applications, from installed packages (entry points of the group `llmsched.handlers`) and from here
(`echo`, `sleep`). A worker is another process and finds a handler by importing its module, so handlers are functions at
the top of a module. An `HttpTool` is a handler for templates, and a URL for the service, which calls it itself.

Arguments are checked against the handler's schema before it is called, by the service.

Every worker imports this file, so whatever is slow to import is imported where it is used.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

from llmsched.errors import InvalidSetting, UnknownName

if TYPE_CHECKING:
    from llmsched.runtime.tools.arguments import Check

ENTRY_POINTS = "llmsched.handlers"

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)
H = TypeVar("H", "Handler", "HttpTool")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MARK = "__llmsched_handler__"


@dataclass(frozen=True, slots=True)
class TaskContext:
    """Which call this is. idempotency_key: the same for every attempt at one task, and for no other task."""

    job_id: str
    stage: str
    index: int
    attempt: int
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Handler:
    """A function and the name tasks call it by.

    schema: a JSON Schema (2020-12) of the arguments, which calls are held to, and which planners and people read.
    """

    kind: ClassVar[Literal["python", "http"]] = "python"

    name: str
    function: Function
    schema: Mapping[str, Any] | None = None

    @property
    def description(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def reference(self) -> tuple[str, str]:
        """(module, qualified name) by which another process finds the function.

        Raises InvalidSetting when it would not: a lambda, a nested function, a bound method, one of `__main__`.
        """
        module = getattr(self.function, "__module__", None) or "?"
        qualname = getattr(self.function, "__qualname__", None) or repr(self.function)
        if module == "__main__" or not _is_at(self.function, module, qualname):
            raise InvalidSetting(
                f"handler {self.name!r} is {qualname} of {module}, which a worker process cannot import;"
                " make it a function at the top of a module"
            )
        return module, qualname


@dataclass(frozen=True, slots=True)
class HttpTool:
    """A tool that lives elsewhere, and the name tasks call it by; `http_tools.py` says what goes over the wire.

    timeout: seconds of one request. retries: further requests within one call. headers: sent as they are; secrets.
    max_bytes: of an answer.
    """

    kind: ClassVar[Literal["python", "http"]] = "http"

    name: str
    url: str = field(repr=False)
    method: Literal["POST", "GET"] = "POST"
    schema: Mapping[str, Any] | None = None
    description: str = ""
    timeout: float = 60.0
    retries: int = 2
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_bytes: int = 1_000_000

    @property
    def where(self) -> str:
        """Its URL as it may be shown: without the query, where a key may be."""
        return self.url.partition("?")[0]


@overload
def handler(function: F, /) -> F: ...
@overload
def handler(*, name: str | None = None, schema: Mapping[str, Any] | None = None) -> Callable[[F], F]: ...
def handler(
    function: Function | None = None, /, *, name: str | None = None, schema: Mapping[str, Any] | None = None
) -> Any:
    """Marks a function as a handler, under its own name or `name`; `HandlerRegistry.load` of its module registers it.

    The function itself stays as it is.

    >>> @handler(name="add")
    ... def plus(arguments):
    ...     return arguments["a"] + arguments["b"]
    >>> plus({"a": 1, "b": 2})
    3
    """

    def mark(marked: F) -> F:
        setattr(marked, _MARK, (name or marked.__name__, schema))
        return marked

    return mark if function is None else mark(function)


def name_of(function: Function) -> str | None:
    """The name `handler` marked a function with; None: it is not marked."""
    mark = getattr(function, _MARK, None)
    return mark[0] if mark else None


class HandlerRegistry:
    """The handlers of one service, by name, in order of registration."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler | HttpTool] = {}
        #: What arguments are checked with, of handlers that have a schema.
        self._checks: dict[str, Check] = {}

    def register(self, name: str, function: Function, schema: Mapping[str, Any] | None = None) -> Handler:
        """Lets tasks call `function` by `name`; registering the same pair again changes nothing.

        Raises InvalidSetting for a bad name, something that cannot be called, a schema that is none, or a name that is
        taken.
        """
        if not callable(function):
            raise InvalidSetting(f"handler {name!r} is {function!r}, which is not a function")
        known = self._handlers.get(name)
        if isinstance(known, Handler) and known.function == function:
            return known
        return self._add(Handler(name, function, schema), function)

    def add(self, tool: HttpTool) -> HttpTool:
        """Lets tasks call `tool` by its name; adding an equal one again changes nothing.

        Raises InvalidSetting for a bad name, a schema that is none, or a name that is taken.
        """
        return tool if self._handlers.get(tool.name) == tool else self._add(tool, tool.where)

    def _add(self, new: H, what: object) -> H:
        if not _NAME.fullmatch(new.name):
            raise InvalidSetting(f"handler name {new.name!r} must match {_NAME.pattern}")
        known = self._handlers.get(new.name)
        if known is not None:
            other = known.function if isinstance(known, Handler) else known.where
            raise InvalidSetting(f"two handlers are called {new.name!r}: {other!r} and {what!r}; rename one")
        if new.schema is not None:
            from llmsched.runtime.tools.arguments import Check  # jsonschema: 100 ms

            self._checks[new.name] = Check(new.name, new.schema)
        self._handlers[new.name] = new
        return new

    def get(self, name: str) -> Handler | HttpTool:
        """Raises UnknownName, with the nearest known name, for one that nobody registered."""
        try:
            return self._handlers[name]
        except KeyError:
            raise UnknownName.of("handler", name, sorted(self._handlers), field="handler") from None

    def check_of(self, name: str) -> Check | None:
        """What the arguments of a known handler are checked with, if it has a schema."""
        return self._checks.get(name)

    def load(self, module_path: str) -> list[str]:
        """Imports a module and registers its `HANDLERS` (name to function) and everything marked with `@handler`.

        Returns their names. Raises InvalidSetting when the module cannot be imported, has no handlers, or has one that
        a worker could not import.
        """
        module = _import(module_path, f"module of handlers {module_path!r}")
        table = getattr(module, "HANDLERS", {})
        if not isinstance(table, Mapping):
            raise InvalidSetting(f"HANDLERS of module {module_path!r} must map names to functions, not be {table!r}")
        marks = ((getattr(value, _MARK, None), value) for value in vars(module).values() if inspect.isroutine(value))
        found = [(mark[0], function, mark[1]) for mark, function in marks if mark]
        found += [(str(name), function, getattr(function, _MARK, (None, None))[1]) for name, function in table.items()]
        if not found:
            raise InvalidSetting(f"module {module_path!r} has no handlers; mark some with @handler or fill HANDLERS")
        for name, function, schema in found:
            _ = self.register(name, function, schema).reference
        return list(dict.fromkeys(name for name, _, _ in found))

    def load_entry_points(self) -> list[str]:
        """Registers what installed packages offer in the group `llmsched.handlers`: `name = package.module:function`.

        Returns their names. Raises InvalidSetting when one cannot be imported.
        """
        from importlib.metadata import entry_points  # 40 ms

        names = []
        for point in entry_points(group=ENTRY_POINTS):
            what = f"handler {point.name!r} of entry point {point.value!r}"
            function = _locate(point.module, point.attr, what)
            _ = self.register(point.name, function, getattr(function, _MARK, (None, None))[1]).reference
            names.append(point.name)
        return names

    def __contains__(self, name: object) -> bool:
        return name in self._handlers

    def __iter__(self) -> Iterator[Handler | HttpTool]:
        return iter(self._handlers.values())

    def __len__(self) -> int:
        return len(self._handlers)


def build_registry(
    modules: Iterable[str] = (),
    *,
    installed: bool = True,
    applications: Iterable[str] = (),
    tools: Iterable[HttpTool] = (),
) -> HandlerRegistry:
    """The built-in handlers, those of `modules` and `applications`, `tools` and, if `installed`, entry points.

    applications: modules of installed applications. One that needs a library which is not installed is left out, with
    a warning: whoever does not use that application must not have to install it.

    Raises InvalidSetting as `HandlerRegistry.load` does.

    >>> [handler.name for handler in build_registry(installed=False)]
    ['echo', 'sleep']
    """
    registry = HandlerRegistry()
    registry.load(__name__)
    for module in applications:
        try:
            registry.load(module)
        except InvalidSetting as error:
            missing = error.__cause__
            if not isinstance(missing, ModuleNotFoundError) or (missing.name or "").startswith("llmsched"):
                raise
            from logging import getLogger  # 10 ms

            getLogger(__name__).warning("handlers of an application are left out: %s", error)
    if installed:
        registry.load_entry_points()
    for module in modules:
        registry.load(module)
    for tool in tools:
        registry.add(tool)
    return registry


def find_function(module: str, qualname: str) -> Function:
    """The function of a `Handler.reference`. Raises InvalidSetting when it cannot be imported."""
    return _locate(module, qualname, f"handler {qualname!r} of module {module!r}")


def bind(function: Function) -> Callable[[dict[str, Any], TaskContext], Any]:
    """`function` as something that takes arguments and context, whether or not it wants the context.

    >>> bind(len)({"a": 1}, TaskContext("j1", "s", 0, 1, "j1/s/0"))
    1
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have no signature
        parameters = {}.values()
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD or (p.name == "context" and p.kind in keyword) for p in parameters):
        return lambda arguments, context: function(arguments, context=context)
    return lambda arguments, _: function(arguments)


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # the module is the operator's: importing it can raise anything
        raise InvalidSetting(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


def _locate(module: str, qualname: str, what: str) -> Function:
    found = _import(module, what)
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InvalidSetting(f"{what} does not exist") from None
    return found  # type: ignore[no-any-return]  # whoever registers or calls it finds out whether it is a function


def _is_at(function: Function, module: str, qualname: str) -> bool:
    try:
        return bool(find_function(module, qualname) == function)
    except InvalidSetting:
        return False


# ------------------------------------------------------------------------------------------------- built-in


@handler(schema={"type": "object"})
def echo(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns its arguments."""
    return arguments


@handler(schema={"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]})
async def sleep(arguments: dict[str, Any]) -> None:
    """Does nothing for `seconds`."""
    from asyncio import sleep as pause  # 40 ms

    await pause(float(arguments["seconds"]))
