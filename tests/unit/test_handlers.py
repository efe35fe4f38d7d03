"""Handlers: marking, registering, finding and calling them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmsched.errors import InvalidSetting, UnknownName
from llmsched.runtime.handlers import (
    Handler,
    HandlerRegistry,
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


# ------------------------------------------------------------------------------------------ modules


def test_a_module_offers_what_is_marked_and_what_its_table_names(write_module: WriteModule) -> None:
    write_module(
        "my_tools",
        """
        from llmsched.runtime.handlers import echo, handler

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
    with pytest.raises(InvalidSetting, match=r"handler 'gone' of module 'llmsched\.runtime\.handlers' does not exist"):
        find_function("llmsched.runtime.handlers", "gone")


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
