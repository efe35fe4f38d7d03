"""Handlers: marking, registering, finding and calling them."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsched.apps import handler_modules
from llmsched.errors import InvalidInput, InvalidSetting, UnknownName
from llmsched.model.application import Application
from llmsched.runtime.scripts.live import check_templates
from llmsched.runtime.tools.handlers import (
    Handler,
    HandlerRegistry,
    HttpTool,
    TaskContext,
    bind,
    build_registry,
    echo,
    find_function,
    handler,
    sleep,
)

CONTEXT = TaskContext("job_1", "search", 0, 1, "job_1/search/0")

WriteModule = Callable[[str, str], None]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Writes a module that can be imported during the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.setitem(sys.modules, name, None)  # so that the module is forgotten afterwards
        del sys.modules[name]

    return write


def shout(arguments: dict[str, Any]) -> str:
    return str(arguments["text"]).upper()


def test_a_registered_handler_is_found_by_its_name() -> None:
    registry = HandlerRegistry()
    schema = {"type": "object"}
    registered = registry.register("shout", shout, schema)
    assert registered == Handler("shout", shout, schema)
    assert registry.get("shout") is registered
    assert list(registry) == [registered]
    assert (len(registry), "shout" in registry, "whisper" in registry) == (1, True, False)


def test_a_typo_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName) as caught:
        build_registry(installed=False).get("ecko")
    assert str(caught.value) == "unknown handler 'ecko'; did you mean 'echo'? known: echo, sleep"
    assert caught.value.field == "handler"


def test_registering_twice_is_harmless_and_a_taken_name_is_refused() -> None:
    registry = HandlerRegistry()
    assert registry.register("shout", shout) is registry.register("shout", shout)
    with pytest.raises(InvalidSetting, match=r"two handlers are called 'shout': .*shout.*echo.*; rename one"):
        registry.register("shout", echo)


@pytest.mark.parametrize("name", ["", "1st", "a b", "a/b", "x" * 65])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidSetting, match=r"handler name .* must match"):
        HandlerRegistry().register(name, shout)


def test_something_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="handler 'shout' is 3, which is not a function"):
        HandlerRegistry().register("shout", 3)  # type: ignore[arg-type]


def test_the_built_in_handlers_are_there() -> None:
    registry = build_registry(installed=False)
    assert [(h.name, h.function) for h in registry] == [("echo", echo), ("sleep", sleep)]
    assert echo({"a": 1}) == {"a": 1}


async def test_sleep_returns_nothing() -> None:
    assert await sleep({"seconds": 0}) is None  # type: ignore[func-returns-value]


# ------------------------------------------------------------------------------------------ schemas


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "is no JSON Schema: $.type is 'objekt': 'objekt' is not valid under any of the given sch"),
        ({"properties": {"a": 3}}, "is no JSON Schema: $.properties.a is 3: 3 is not of type 'object', 'boolean'"),
        (
            {"properties": {"a": {"pattern": "("}}},
            "is no JSON Schema: $.properties.a.pattern is '(': '(' is not a 'reg",
        ),
        ({"$ref": "#/$defs/a"}, "refers to '#/$defs/a', which it does not have; write it out under $defs"),
        ({"items": [], "$ref": 3}, "is no JSON Schema: "),
        ({"anyOf": [{"$ref": "http://127.0.0.1:1/a.json"}]}, "refers to 'http://127.0.0.1:1/a.json', which it does"),
        ({"const": {1}}, "is no JSON object: Object of type set is not JSON serializable"),
        ({"const": float("nan")}, "is no JSON object: Out of range float values are not JSON compliant"),
        (3, "is no JSON object: 'int' object is not iterable"),
    ],
)
def test_a_schema_that_is_none_is_found_when_its_handler_is_registered(schema: Any, message: str) -> None:
    registry = HandlerRegistry()
    with pytest.raises(InvalidSetting) as caught:
        registry.register("shout", shout, schema)
    assert str(caught.value).startswith(f"the schema of handler 'shout' {message}")
    assert len(registry) == 0


def test_arguments_are_held_to_the_schema_and_its_references() -> None:
    schema = {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/tree"}, "example": {"const": {"$ref": "nowhere"}}},
        "$defs": {"tree": {"type": "object", "additionalProperties": {"$ref": "#/$defs/tree"}}},
    }
    registry = HandlerRegistry()
    registry.register("shout", shout, schema)
    check = registry.check_of("shout")
    assert check is not None
    check({"tree": {"a": {"b": {}}}, "example": {"$ref": "nowhere"}})
    with pytest.raises(InvalidInput) as caught:
        check({"tree": {"a": {"b": 3}}})
    assert str(caught.value) == "arguments.tree.a.b is not what handler 'shout' takes: 3 is not of type 'object'"
    assert caught.value.field == "arguments.tree.a.b"
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(InvalidInput, match="the arguments of handler 'shout' cannot be checked: maximum recursion"):
        check({"tree": deep})


def test_a_number_beyond_floats_is_refused_and_no_bug() -> None:
    registry = HandlerRegistry()
    registry.register("shout", shout, {"properties": {"n": {"multipleOf": 0.1}}})
    check = registry.check_of("shout")
    assert check is not None
    with pytest.raises(InvalidInput, match="cannot be checked: int too large to convert to float"):
        check({"n": 10**400})


def test_without_a_schema_everything_goes() -> None:
    registry = HandlerRegistry()
    registry.register("shout", shout)
    assert registry.check_of("shout") is None


def test_what_people_read_is_the_first_line_of_the_docstring() -> None:
    def long(arguments: dict[str, Any]) -> None:
        """Does this.

        And that.
        """

    described = [Handler("a", long), Handler("b", shout), HttpTool("c", "http://a/", description="Far away.")]
    assert [(h.kind, h.description) for h in described] == [
        ("python", "Does this."),
        ("python", ""),
        ("http", "Far away."),
    ]


# ------------------------------------------------------------------------------------------ modules


def test_a_module_offers_what_is_marked_and_what_its_table_names(write_module: WriteModule) -> None:
    write_module(
        "my_tools",
        """
        from llmsched.runtime.tools.handlers import echo, handler

        @handler
        def plain(arguments): ...

        @handler(name="renamed", schema={"type": "object"})
        async def marked(arguments): ...

        def in_the_table(arguments): ...
        def no_handler(arguments): ...

        HANDLERS = {"tabled": in_the_table, "alias": marked}
        """,
    )
    registry = HandlerRegistry()
    names = registry.load("my_tools")
    assert names == ["echo", "plain", "renamed", "tabled", "alias"]
    assert [h.name for h in registry] == names
    assert [registry.get(n).schema for n in ("plain", "renamed", "alias")] == [
        None,
        {"type": "object"},
        {"type": "object"},
    ]
    assert registry.get("alias").reference == ("my_tools", "marked")


def test_modules_of_the_configuration_are_loaded(write_module: WriteModule) -> None:
    write_module("one", "def one(a): ...\nHANDLERS = {'one': one}\n")
    write_module("two", "def two(a): ...\nHANDLERS = {'two': two}\n")
    assert [h.name for h in build_registry(["one", "two"], installed=False)] == ["echo", "sleep", "one", "two"]


def test_handlers_of_applications_come_before_those_of_the_configuration(write_module: WriteModule) -> None:
    write_module("one", "def one(a): ...\nHANDLERS = {'one': one}\n")
    write_module("two", "def two(a): ...\nHANDLERS = {'two': two}\n")
    tool = HttpTool("far", "http://a/")
    registry = build_registry(["two"], installed=False, applications=["one"], tools=[tool])
    assert [h.name for h in registry] == ["echo", "sleep", "one", "two", "far"]


def test_an_application_without_its_library_is_left_out(
    write_module: WriteModule, caplog: pytest.LogCaptureFixture
) -> None:
    write_module("needy", "import no_such_library\n")
    write_module("one", "def one(a): ...\nHANDLERS = {'one': one}\n")
    registry = build_registry(installed=False, applications=["needy", "one"])
    assert [h.name for h in registry] == ["echo", "sleep", "one"]
    assert caplog.messages == [
        "handlers of an application are left out: module of handlers 'needy' cannot be imported: ModuleNotFoundError:"
        " No module named 'no_such_library'"
    ]


@pytest.mark.parametrize("source", ["1 / 0", "import llmsched.no_such_module", "from llmsched import nothing", ""])
def test_an_application_that_is_broken_is_told(write_module: WriteModule, source: str) -> None:
    write_module("broken", source)
    with pytest.raises(InvalidSetting, match="'broken'"):
        build_registry(installed=False, applications=["broken"])


def test_every_installed_application_has_its_handlers() -> None:
    registry = build_registry(installed=False, applications=handler_modules())
    names = {h.name.partition(".")[0] for h in registry} - {"echo", "sleep"}
    assert names == {module.split(".")[-2] for module in handler_modules()}


def test_a_worker_imports_nothing_that_is_slow() -> None:
    slow = ["aiohttp", "asyncio", "httpx", "jsonschema", "logging", "pydantic"]
    program = f"import sys, llmsched.runtime.tools.worker_process; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "module 'broken' has no handlers; mark some with @handler or fill HANDLERS"),
        ("1 / 0", "module of handlers 'broken' cannot be imported: ZeroDivisionError: division by zero"),
        ("HANDLERS = [print]", "HANDLERS of module 'broken' must map names to functions, not be "),
        ("HANDLERS = {'a': 3}", "handler 'a' is 3, which is not a function"),
        ("HANDLERS = {'a': lambda a: a}", "handler 'a' is <lambda> of broken, which a worker process cannot import"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(write_module: WriteModule, source: str, message: str) -> None:
    write_module("broken", source)
    with pytest.raises(InvalidSetting) as caught:
        HandlerRegistry().load("broken")
    assert message in str(caught.value)


def test_a_module_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"'no\.such\.module' cannot be imported: ModuleNotFoundError: No module"):
        HandlerRegistry().load("no.such.module")


def test_installed_packages_offer_handlers_as_entry_points(write_module: WriteModule, tmp_path: Path) -> None:
    write_module("packaged", "def search(arguments): return 'found'\n")
    (tmp_path / "packaged-1.0.dist-info").mkdir()
    (tmp_path / "packaged-1.0.dist-info/METADATA").write_text("Name: packaged\nVersion: 1.0\n")
    points = tmp_path / "packaged-1.0.dist-info/entry_points.txt"
    points.write_text("[llmsched.handlers]\nweb-search = packaged:search\n")

    registry = build_registry()
    assert registry.get("web-search").function({}) == "found"
    assert registry.get("web-search").reference == ("packaged", "search")

    points.write_text("[llmsched.handlers]\nweb-search = packaged:serach\n")
    with pytest.raises(InvalidSetting, match="'web-search' of entry point 'packaged:serach' does not exist"):
        build_registry()


# ---------------------------------------------------------------------------- other processes, and calls


def test_a_reference_leads_to_the_function() -> None:
    assert find_function(*Handler("echo", echo).reference) is echo


class Tool:
    def method(self, arguments: dict[str, Any]) -> None: ...

    @staticmethod
    def static(arguments: dict[str, Any]) -> None: ...


def test_a_function_that_another_process_cannot_find_has_no_reference() -> None:
    def nested(arguments: dict[str, Any]) -> None: ...

    for function in (nested, lambda arguments: None, Tool().method, Tool()):
        with pytest.raises(InvalidSetting, match="make it a function at the top of a module"):
            _ = Handler("tool", function).reference  # type: ignore[arg-type]
    assert Handler("tool", Tool.static).reference == (__name__, "Tool.static")


def test_a_missing_function_is_named() -> None:
    with pytest.raises(InvalidSetting, match=r"handler 'gone' of module 'llmsched\S+\.handlers' does not exist"):
        find_function("llmsched.runtime.tools.handlers", "gone")


def test_marking_leaves_the_function_as_it_is() -> None:
    def plus(arguments: dict[str, Any]) -> int:
        return int(arguments["a"] + 1)

    assert handler(plus) is plus
    assert handler(name="p")(plus) is plus
    assert plus({"a": 1}) == 2


def test_the_context_goes_only_to_who_takes_it() -> None:
    def with_context(arguments: dict[str, Any], context: TaskContext) -> tuple[Any, ...]:
        return arguments, context

    def by_keyword(arguments: dict[str, Any], *, context: TaskContext) -> tuple[Any, ...]:
        return arguments, context

    def any_keyword(arguments: dict[str, Any], **extra: Any) -> tuple[Any, ...]:
        return arguments, extra["context"]

    def without(arguments: dict[str, Any], limit: int = 3) -> tuple[Any, ...]:
        return arguments, limit

    def positional(arguments: dict[str, Any], context: int = 4, /) -> tuple[Any, ...]:
        return arguments, context

    taken = [bind(f)({"a": 1}, CONTEXT)[1] for f in (with_context, by_keyword, any_keyword, without, positional)]
    assert taken == [CONTEXT, CONTEXT, CONTEXT, 3, 4]


# ------------------------------------------------------------------------------------------ the documentation


def blocks(language: str) -> list[str]:
    page = Path(__file__).parents[2] / "docs/handlers.md"
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_handlers_in_the_documentation_work(write_module: WriteModule) -> None:
    (module,) = blocks("python")
    write_module("my_handlers", module)
    registry = build_registry(["my_handlers"], installed=False)
    count, shorten, read, book = (registry.get(name) for name in ("count_words", "text.shorten", "read_page", "book"))
    text = {"text": "one two three"}
    assert bind(count.function)(text, CONTEXT) == 3
    assert bind(shorten.function)({**text, "words": 2}, CONTEXT) == "one two"
    assert bind(book.function)({"room": 7}, CONTEXT) == {"room": 7, "booking": "job_1/search/0"}
    with pytest.raises(InvalidInput, match="which is no public address"):
        asyncio.run(read.function({"url": "http://localhost/"}))
    check = registry.check_of("text.shorten")
    assert check is not None
    with pytest.raises(InvalidInput) as caught:
        check({**text, "words": "many"})
    assert f"`{caught.value}`" in (Path(__file__).parents[2] / "docs/handlers.md").read_text()


def test_the_applications_in_the_documentation_are_some(write_module: WriteModule) -> None:
    write_module("my_handlers", blocks("python")[0])
    registry = build_registry(["my_handlers"], installed=False, tools=[HttpTool("weather", "http://a/")])
    for text in blocks("yaml"):
        application = Application.parse(yaml.safe_load(text))
        check_templates(application, registry)
        assert application.is_executable
