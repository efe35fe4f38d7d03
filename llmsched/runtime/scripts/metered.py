"""The sandbox that templates run in: nothing gets out, nothing is changed, and nothing takes long.

Templates come from clients and are rendered in the event loop, so one rendering must not be able to stall or swell the
service. Jinja's sandbox keeps a template from reaching what it must not reach, but lets it spend what it likes. Here
everything that can be repeated or grown is counted, per rendering:

* *turns*: rounds of loops and runs of macros and blocks, `MAX_TURNS` in all, however they are nested;
* *seconds* of computing, `MAX_SECONDS`: looked at with every turn, call, filter, test, comparison and operator. They
  are the second line: between two looks, the sizes below bound what can be done;
* *characters*: a value that a template makes is at most `MAX_SIZE` of them, as text or written as JSON; what it writes
  is `MAX_WRITTEN` in all, texts inside macros and blocks that are written again included;
* integers have at most `MAX_BITS` bits.

Sizes are known before the work is done: `"x" * 10**9` fails and allocates nothing. A list that holds a list many times
(`[x, x]`, and again) is small in memory and endless as text, so the size of a container is that of its text.

Turns and the like are counted by calls that are put into a template's tree before it is compiled (`_Counted`); they
have names that no template can write. Methods of JSON values are those of a short list.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import chain
from time import perf_counter, thread_time
from typing import Any, TypeVar

from jinja2 import StrictUndefined, nodes, pass_context, pass_environment, pass_eval_context
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TURNS = 200_000
MAX_SECONDS = 0.5
MAX_SIZE = 4_000_000
MAX_WRITTEN = 4 * MAX_SIZE
MAX_BITS = 10_000
#: Characters for filters that are slow: Python goes through them one by one, or again and again.
MAX_SLOW = 100_000
#: Elements of containers whose sizes are remembered at a time.
_MAX_KNOWN = 1_000_000

T = TypeVar("T")


class TooMuch(Exception):
    """A rendering would take more than it may."""


class _Meter:
    """What one rendering spent so far."""

    __slots__ = ("_cpu_until", "_known", "_remembered", "_turns", "_until", "_written")

    def __init__(self) -> None:
        self._turns = 0
        self._until = perf_counter() + MAX_SECONDS
        self._cpu_until = thread_time() + MAX_SECONDS
        self._written = 0
        #: Containers with their sizes, by id. That they are kept here keeps the ids theirs.
        self._known: dict[int, tuple[object, int]] = {}
        self._remembered = 0

    def look(self) -> None:
        # The first clock is cheap, the second fair: a machine that is busy with others is not the template's fault.
        if perf_counter() > self._until and thread_time() > self._cpu_until:
            raise TooMuch(f"it takes longer than {MAX_SECONDS:g} s; do less here, or do it in a handler")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside is not the rendering's time."""
        wall, cpu = perf_counter(), thread_time()
        yield
        self._until += perf_counter() - wall
        self._cpu_until += thread_time() - cpu

    def turn(self) -> None:
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise TooMuch(f"it goes around its loops and macros more than {MAX_TURNS:,} times; use a handler for that")
        self.look()

    def write(self, characters: int) -> None:
        self._written += characters
        if self._written > MAX_WRITTEN:
            raise TooMuch(f"it writes more than {MAX_WRITTEN:,} characters")

    def made(self, value: T) -> T:
        """The value, if its size is one that a template may make."""
        if isinstance(value, str):
            check_size(len(value))
        elif isinstance(value, list | tuple | dict):
            self.size(value)
        return value

    def size(self, value: object) -> int:
        """About how many characters a value is as JSON; the text of a lazy sequence is only its name.

        Raises TooMuch for more than MAX_SIZE of them, after as much work.
        """
        if isinstance(value, str):
            return len(value) + 2
        if isinstance(value, int):
            return 8 + value.bit_length() // 3
        if not isinstance(value, list | tuple | dict):
            return 8
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        inner: Iterable[object] = chain(value.keys(), value.values()) if isinstance(value, dict) else value
        total, is_flat = 2, len(value) < 100
        for each in inner:
            if type(each) is str:
                total += 4 + len(each)
            elif type(each) is float or each is None:
                total += 10
            else:
                is_flat = is_flat and isinstance(each, int)
                total += 2 + self.size(each)
            check_size(total)
        if not is_flat:  # others are counted again as fast as they are remembered
            self._remember(value, total)
        return total

    def _remember(self, value: Sized, size: int) -> None:
        if self._remembered > _MAX_KNOWN:
            self._known.clear()
            self._remembered = 0
        self._known[id(value)] = value, size
        self._remembered += 1 + len(value)


_METER: ContextVar[_Meter] = ContextVar("llmsched_template_meter")


@contextmanager
def metering() -> Iterator[None]:
    """Everything inside is one rendering, also what is metered again inside."""
    if _METER.get(None) is not None:
        yield
        return
    token = _METER.set(_Meter())
    try:
        yield
    finally:
        _METER.reset(token)


def meter() -> _Meter:
    """The one of the rendering at hand; outside of any (while constants are compiled), a fresh one."""
    return _METER.get(None) or _Meter()


def check_size(characters: int) -> None:
    if characters > MAX_SIZE:
        raise TooMuch(f"it makes a value of more than {MAX_SIZE:,} characters")


# -------------------------------------------------------------------------------------------------- operators


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, Sequence) and isinstance(right, int):
        check_size(len(left) * right)
    elif isinstance(left, int) and isinstance(right, Sequence):
        check_size(left * len(right))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TooMuch(f"it makes an integer of more than {MAX_BITS:,} bits")


def _check_sum(left: Any, right: Any) -> None:
    if isinstance(left, Sequence) and isinstance(right, Sequence):
        check_size(len(left) + len(right))


_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?")


def _check_percent(left: Any, right: Any) -> None:
    """`"%5s" % x`: every field is as wide as it says, or as what it shows."""
    if not isinstance(left, str):
        return
    fields = _PERCENT.findall(left)
    if any("*" in field for field in fields):
        raise TooMuch("a width of '*' cannot be used; write the number")
    values = right if isinstance(right, tuple) else right.values() if isinstance(right, Mapping) else [right]
    sizes = [meter().size(value) for value in values]
    shown = sum(sizes) if isinstance(right, tuple) else len(fields) * max(sizes, default=0)
    check_size(len(left) + _numbers(chain.from_iterable(fields)) + shown)


def _check_format(text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """`"{:5}".format(x)`: every field is as wide as it says, or as what it shows."""
    specs = [spec or "" for _, name, spec, _ in string.Formatter().parse(text) if name is not None]
    if any("{" in spec for spec in specs):
        raise TooMuch("a field inside the format of a field cannot be used; write the width as a number")
    largest = max((meter().size(value) for value in (*args, *kwargs.values())), default=0)
    check_size(len(text) + _numbers(re.findall(r"\d+", " ".join(specs))) + len(specs) * largest)


def _numbers(digits: Iterable[str]) -> int:
    return sum(int(d) if len(d) < 10 else MAX_SIZE + 1 for d in digits if d)


_OPERATORS: dict[str, Callable[[Any, Any], None]] = {
    "*": _check_product,
    "**": _check_power,
    "+": _check_sum,
    "%": _check_percent,
}


# ---------------------------------------------------------------------------------------- filters and methods


def _check_width(text: Any, width: Any = 80, *_: Any) -> None:
    if isinstance(width, int):
        check_size(width)


def _check_replace(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    check_size(len(text) + text.count(old) * len(new))


def _check_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    each = width if isinstance(width, int) else len(str(width))
    check_size(len(text) + len(str(text).splitlines()) * each)


def _check_wordwrap(
    text: Any, width: Any = 79, break_long_words: Any = True, wrapstring: Any = None, *_: Any, **__: Any
) -> None:
    _check_slow(text)
    lines = str(text).count("\n") + 1 + 2 * len(str(text)) // max(1, width)
    check_size(len(str(text)) + lines * len(str(wrapstring or "\n")))


def _check_slow(value: Any, *_: Any, **__: Any) -> None:
    size = meter().size(value)
    if size > MAX_SLOW:
        raise TooMuch(f"this filter takes at most {MAX_SLOW:,} characters, not {size:,}")


def _check_urlize(
    text: Any, limit: Any = None, nofollow: Any = False, target: Any = "", rel: Any = "", *_: Any, **__: Any
) -> None:
    _check_slow(text)
    check_size(len(str(text)) * (1 + len(str(target or "")) + len(str(rel or ""))) // 8)


def _check_json(value: Any, indent: Any = None) -> None:
    if indent is not None:  # then Python's own encoder is at work, and slow
        if not isinstance(indent, int) or not 0 <= indent <= 16:
            raise TooMuch(f"indent is {indent!r:.40}; it must be a number from 0 to 16")
        if meter().size(value) > 10 * MAX_SLOW:
            raise TooMuch(f"with an indent, at most {10 * MAX_SLOW:,} characters become JSON")


def _check_pieces(value: Any, pieces: Any, *_: Any, **__: Any) -> None:
    if isinstance(pieces, int) and pieces > MAX_TURNS:
        raise TooMuch(f"{pieces:,} pieces are too many; at most {MAX_TURNS:,}")


def _check_round(value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(precision, int) and abs(precision) > 100:
        raise TooMuch(f"precision is {precision!r:.40}; it must be between -100 and 100")


def _check_format_filter(text: Any, *args: Any, **kwargs: Any) -> None:
    _check_percent(str(text), kwargs or args)


_GUARDS: dict[str, Callable[..., None]] = {
    "batch": _check_pieces,
    "center": _check_width,
    "format": _check_format_filter,
    "indent": _check_indent,
    "pprint": _check_slow,
    "replace": _check_replace,
    "round": _check_round,
    "slice": _check_pieces,
    "striptags": _check_slow,
    "tojson": _check_json,
    "urlize": _check_urlize,
    "wordwrap": _check_wordwrap,
}

#: Methods of texts that can make much of little, with what keeps them from it.
_WIDE = dict.fromkeys(("center", "ljust", "rjust", "zfill"), _check_width) | {"replace": _check_replace}

_OF_TEXTS = """
    capitalize casefold center count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower
    isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace
    rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
"""
#: Methods of JSON values that a template may call. The ones that are not here change the value, leave JSON, or make
#: much of little (`expandtabs`, `translate`). `format` and `format_map` have their own way in.
_METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, frozenset(_OF_TEXTS.split())),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index", "grouper", "list"})),  # the last two: of what `groupby` gives
    ((int, float), frozenset({"is_integer"})),
)


@pass_eval_context
def _join(eval_ctx: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> Any:
    """Jinja's `join`, which knows the length of what it makes before it makes it."""
    environment = eval_ctx.environment
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    items = list(value)
    _check_joined(d, items)
    return _JINJAS_JOIN(eval_ctx, items, d)


def _check_joined(between: Any, items: Sequence[Any]) -> None:
    size = meter().size
    check_size(sum(map(size, items)) + len(str(between)) * len(items) - 2 * len(items))


@pass_environment
def _sum(environment: Any, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's `sum`, which does not copy a list for every list that it adds to it."""
    if attribute is not None:
        iterable = map(make_attrgetter(environment, attribute), iterable)
    if not isinstance(start, list):
        return sum(iterable, start)
    total = list(start)
    for each in iterable:
        check_size(len(total) + len(each))
        total += each
    return total


def _counted(function: Callable[..., Any], guard: Callable[..., None] | None) -> Callable[..., Any]:
    """A filter that looks at the clock and at sizes."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        at = meter()
        at.look()
        if guard is not None:
            guard(*args[first:], **kwargs)
        return at.made(function(*args, **kwargs))

    return counted


def _looked_at(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that looks at the clock."""

    @wraps(function)
    def looked_at(*args: Any, **kwargs: Any) -> Any:
        meter().look()
        return function(*args, **kwargs)

    return looked_at


# ----------------------------------------------------------------------------- what is put into a template's tree
# They are filters of the context: Jinja evaluates others when it compiles, where their arguments are constants.


@pass_context
def _turn(context: Context, value: T) -> T:
    meter().turn()
    return value


@pass_context
def _look(context: Context, value: T) -> T:
    meter().look()
    return value


@pass_context
def _made(context: Context, value: T) -> T:
    return meter().made(value)


@pass_context
def _written(context: Context, value: Any, characters: int = 0) -> str:
    text = value if isinstance(value, str) else str(value)
    meter().write(len(text) + characters)
    return text


@pass_context
def _wrote(context: Context, characters: int) -> None:
    meter().write(characters)


@pass_context
def _concat(context: Context, items: Sequence[Any]) -> Any:
    _check_joined("", items)
    return (markup_join if context.eval_ctx.autoescape else str_join)(items)


_INSERTED: dict[str, Callable[..., Any]] = {
    "<turn>": _turn,
    "<look>": _look,
    "<made>": _made,
    "<written>": _written,
    "<wrote>": _wrote,
    "<concat>": _concat,
}


def _call(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


class _Counted(NodeTransformer):
    """Puts the counting into a template's tree."""

    def __init__(self) -> None:
        #: How many things that can be repeated are around what is visited.
        self._inside = 0

    def _repeated(self, node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1
        turn = _call("<turn>", nodes.Const(True, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _repeated

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test is None:
            return self._repeated(node)
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1
        # Rounds that the test leaves out are rounds as well.
        node.test = nodes.And(_call("<turn>", nodes.Const(True, lineno=node.lineno)), node.test, lineno=node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node | list[nodes.Node]:
        self.generic_visit(node)
        constant = sum(len(n.data) for n in node.nodes if isinstance(n, nodes.TemplateData)) if self._inside else 0
        written: list[nodes.Expr] = []
        for each in node.nodes:
            if not isinstance(each, nodes.TemplateData):
                each = _call("<written>", each, nodes.Const(constant, lineno=node.lineno))
                constant = 0
            written.append(each)
        node.nodes = written
        if not constant:
            return node
        return [nodes.ExprStmt(_call("<wrote>", nodes.Const(constant, lineno=node.lineno)), lineno=node.lineno), node]

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _call("<written>", node.filter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("<concat>", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(i, nodes.Const) for i in node.items) else _call("<made>", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        is_plain = node.ctx != "load" or all(isinstance(i, nodes.Const) for i in node.items)
        return node if is_plain else _call("<made>", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(i.value, nodes.Const) for i in node.items) else _call("<made>", node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _call("<look>", node.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call("<look>", node.node)
        return node


# ---------------------------------------------------------------------------------------------- the environment


class _Namespace(Namespace):
    """Of namespaces within namespaces, the text would have no end."""

    def __repr__(self) -> str:
        return "<namespace>"


class MeteredSandbox(ImmutableSandboxedEnvironment):
    """Values are JSON, so `input.items` is the key "items" before it is the method of a dict."""

    intercepted_binops = frozenset(_OPERATORS)

    def __init__(self) -> None:
        # Constants are left to the rendering: compiled, they would be computed without anybody counting.
        super().__init__(undefined=StrictUndefined, autoescape=False, optimized=False)
        # A restarted job evaluates its expressions again and has to come to the same structure: nothing random.
        del self.filters["random"], self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        self.filters |= {"join": _join, "sum": _sum}
        self.filters = {name: _counted(f, _GUARDS.get(name)) for name, f in self.filters.items()} | _INSERTED
        tests: dict[str, Any] = self.tests
        self.tests = {name: _looked_at(test) for name, test in tests.items()}

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        return super()._generate(_Counted().visit(source), name, filename, defer_init)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS:
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        at = meter()
        at.look()
        _OPERATORS[operator](left, right)
        return at.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        at = meter()
        at.look()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "join" and args:
                args = (list(args[0]), *args[1:])
                _check_joined(owner, args[0])
            elif (guard := _WIDE.get(__obj.__name__)) is not None:
                guard(owner, *args, **kwargs)
        return at.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        is_map = value.__name__ == "format_map"

        def checked(*args: Any, **kwargs: Any) -> str:
            named = args[0] if is_map and len(args) == 1 and isinstance(args[0], Mapping) else kwargs
            _check_format(value.__self__, () if is_map else args, named)
            return wrapped(*args, **kwargs)

        return checked


_JINJAS_JOIN: Callable[..., Any] = ImmutableSandboxedEnvironment().filters["join"]
