"""Templates and expressions of live jobs: compiled once, rendered in a sandbox, and looked at before anything runs.

A *template* makes a text, an *expression* a JSON value. A text that is nothing but `{{ expression }}` makes a value too
where values are asked for (`fill`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

import orjson
from jinja2 import Template, TemplateError, meta, nodes

from llmsched.errors import InvalidApplication, InvalidInput, UnknownName
from llmsched.runtime.scripts.metered import MeteredSandbox, check_size, meter, metering

_ENV = MeteredSandbox()
#: What `stages.x` reads from the mapping itself.
_METHODS = frozenset({"copy", "get", "items", "keys", "values"})


@lru_cache(4096)
def _template(source: str) -> Template:
    with meter().stopped():
        return _ENV.from_string(source)


@lru_cache(4096)
def _expression(source: str) -> Callable[..., Any]:
    with meter().stopped():
        return _ENV.compile_expression(source, undefined_to_none=False)


def render(where: str, source: str, names: Mapping[str, Any]) -> str:
    """The text of a template. where: how errors call it. Raises InvalidInput for whatever goes wrong in it."""
    try:
        template = _template(source)
        with metering():
            text = template.render(**names)
        check_size(len(text))
        return text
    except Exception as error:  # whatever a template of the user's raises
        line = _line(error.__traceback__) if "\n" in source.strip() else ""
        raise InvalidInput(f"{where}{line}: {_words(error)}") from None


def evaluate(where: str, source: str, names: Mapping[str, Any]) -> Any:
    """The JSON value of an expression. where: how errors call it. Raises InvalidInput for whatever goes wrong in it."""
    try:
        expression = _expression(source)
        with metering():
            return _plain(expression(**names))
    except Exception as error:  # whatever an expression of the user's raises
        raise InvalidInput(f"{where}: {_words(error)}") from None


def _line(traceback: TracebackType | None) -> str:
    """Where in the template it happened, as far as that is known."""
    line = 0
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f", line {line}" if line else ""


def _words(error: Exception) -> str:
    return "it goes deeper and deeper into itself" if isinstance(error, RecursionError) else str(error)


def fill(where: str, value: Any, names: Mapping[str, Any]) -> Any:
    """A JSON value with its texts, which are templates, filled in: one rendering.

    Raises InvalidInput as `render` does.
    """
    with metering():
        return _filled(where, value, names)


def _filled(where: str, value: Any, names: Mapping[str, Any]) -> Any:
    match value:
        case str() if (inner := _only_expression(value)) is not None:
            return evaluate(where, inner, names)
        case str():
            return render(where, value, names)
        case Mapping():
            return {k: _filled(where, v, names) for k, v in value.items()}
        case list() | tuple():
            return [_filled(where, v, names) for v in value]
        case _:
            return value


@dataclass(frozen=True, slots=True)
class Reads:
    """What a template takes from outside. stages: the names it reads from `stages`, as far as they are written out.

    asked: those of them that it first asks for (`"x" in stages`, `stages.x is defined`, `stages.x | default(…)`).
    """

    variables: frozenset[str]
    stages: tuple[str, ...]
    asked: frozenset[str]


def check(where: str, source: str, variables: Iterable[str], *, expression: bool) -> Reads:
    """Compiles a template, or an expression, and tells what it reads.

    Raises InvalidApplication or UnknownName: bad syntax, a variable that is none of `variables`, another template.
    """
    try:
        reads = _look(source, expression)
    except TemplateError as error:
        line = getattr(error, "lineno", 1)
        raise InvalidApplication(f"{where}, line {line}: {error}") from None
    except InvalidApplication as error:
        raise InvalidApplication(f"{where}: {error}") from None
    except (RecursionError, SyntaxError, MemoryError):  # of Python's compiler as well as of Jinja's
        raise InvalidApplication(f"{where}: it is nested too deeply; write it in smaller steps") from None
    except ValueError as error:  # an integer that is too long
        raise InvalidApplication(f"{where}: {error}") from None
    known = set(variables)
    for name in sorted(reads.variables - known):
        raise InvalidApplication(f"{where}: {UnknownName.of('variable', name, sorted(known))}")
    return reads


def tokens(source: str, most: int, *, expression: bool) -> int:
    """How much there is to compile in a template: its tokens, text not counted, as far as they are at most `most`."""
    found = 0
    try:
        for _, kind, _ in _ENV.lex(f"{{{{ {source} }}}}" if expression else source):
            found += kind not in ("data", "whitespace")
            if found > most:
                break
    except TemplateError:  # told by `check`, with the line
        pass
    return found


@lru_cache(4096)
def _look(source: str, expression: bool) -> Reads:
    """Raises what Jinja and Python do, or InvalidApplication."""
    compiled = _expression(source) if expression else _template(source)
    assert compiled is not None
    tree = _ENV.parse(f"{{{{ ({source}) }}}}" if expression else source)
    if any(True for _ in meta.find_referenced_templates(tree)):
        raise InvalidApplication("there are no other templates to include, import or extend; write it out")
    variables = meta.find_undeclared_variables(tree) - _ENV.globals.keys()
    is_own = any(n.name == "stages" and n.ctx != "load" for n in tree.find_all(nodes.Name))
    read = {} if is_own else {name: None for n in tree.find_all((nodes.Getattr, nodes.Getitem)) if (name := _stage(n))}
    return Reads(frozenset(variables), tuple(read), frozenset(_asked(tree)))


def _is_stages(node: nodes.Node | None) -> bool:
    return isinstance(node, nodes.Name) and node.name == "stages"


def _stage(node: nodes.Node | None) -> str | None:
    """The name that `stages.name` or `stages["name"]` reads."""
    if isinstance(node, nodes.Getattr) and _is_stages(node.node):
        return None if node.attr in _METHODS else node.attr
    if isinstance(node, nodes.Getitem) and _is_stages(node.node):
        return _constant(node.arg)
    return None


def _constant(node: nodes.Node) -> str | None:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


def _asked(tree: nodes.Template) -> Iterator[str]:
    for compare in tree.find_all(nodes.Compare):
        if any(o.op in ("in", "notin") and _is_stages(o.expr) for o in compare.ops) and (n := _constant(compare.expr)):
            yield n
    for test in tree.find_all(nodes.Test):
        if test.name in ("defined", "undefined") and (n := _stage(test.node)):
            yield n
    for filtered in tree.find_all(nodes.Filter):
        if filtered.name in ("default", "d") and (n := _stage(filtered.node)):
            yield n


def texts_in(value: Any) -> Iterable[str]:
    """Every text inside a JSON value, keys excepted."""
    match value:
        case str():
            yield value
        case Mapping():
            for inner in value.values():
                yield from texts_in(inner)
        case list() | tuple():
            for inner in value:
                yield from texts_in(inner)
        case _:
            return


def _plain(value: Any) -> Any:
    """The value of an expression as JSON would keep it: tuples and lazy sequences become lists."""
    try:
        return orjson.loads(orjson.dumps(value, default=_listed))
    except orjson.JSONEncodeError as error:
        cause = error.__cause__ or error
        raise InvalidInput(str(cause)) from None


def _listed(value: Any) -> list[Any]:
    if isinstance(value, Iterable):  # an undefined value is one, and says what it is when it is read
        items = list(value)
        meter().write(meter().size(items))
        return items
    raise TypeError(f"it gives a {type(value).__name__}, which JSON does not have")


def _only_expression(text: str) -> str | None:
    """The expression of a text that is nothing but `{{ expression }}`."""
    text = text.strip()
    if text.startswith("{{") and text.endswith("}}") and text.count("{{") == 1 and "{%" not in text:
        return text[2:-2].removeprefix("-").removesuffix("-")
    return None
