"""What one rendering may spend: every way to stall or swell the service with a template ends in a sentence, at once."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llmsched.errors import InvalidInput
from llmsched.runtime.scripts.metered import MAX_SECONDS, MAX_SIZE
from llmsched.runtime.scripts.templates import evaluate, fill, render

INPUT = {
    "text": "word " * 200_000,
    "rows": [{"x": i, "y": "abc"} for i in range(20_000)],
    "none": [None] * 1_000,
    "deep": [[None] * 100] * 1_000,
}
LARGE = "it makes a value of more than 4,000,000 characters"
TURNS = "it goes around its loops and macros more than 200,000 times; use a handler for that"
WRITES = "it writes more than 16,000,000 characters"
BITS = "it makes an integer of more than 10,000 bits"
LONG = "it takes longer than 0.5 s; do less here, or do it in a handler"
DEEP = "it goes deeper and deeper into itself"
PIECES = "999,999,999 pieces are too many; at most 200,000"


def refused(template: str) -> tuple[str, float]:
    """The sentence, and the seconds of computing it took."""
    began = time.thread_time()
    with pytest.raises(InvalidInput) as error:
        render("t", template, {"input": INPUT})
    return str(error.value).removeprefix("t: "), time.thread_time() - began


def doubling(start: str, double: str, then: str = "") -> str:
    """Sixty times twice as much."""
    again = f"{{% set ns.x = {double.replace('X', 'ns.x')} %}}"
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{again}{{% endfor %}}{then}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        # operators
        ("{{ 'x' * 10**9 }}", LARGE),
        ("{{ 10**9 * 'x' }}", LARGE),
        ("{{ [0] * 10**9 }}", LARGE),
        ("{{ (1, 2) * 10**9 }}", LARGE),
        ("{{ 9 ** (9 ** 9) }}", BITS),
        ("{{ 9999999999 ** 9999 }}", BITS),
        ("{{ '%999999999d' % 1 }}", LARGE),
        ("{{ '%.999999999f' % 1.0 }}", LARGE),
        ("{{ '%99999999999999999999d' % 1 }}", LARGE),
        ("{{ '%*d' % (999999999, 1) }}", "a width of '*' cannot be used; write the number"),
        ("{{ ('%(a)s' * 1000) % {'a': input.text} }}", LARGE),
        ("{{ ('%s' * 100) % ((input.text,) * 100) }}", LARGE),
        (doubling("'x'", "X ~ X"), LARGE),
        (doubling("'x'", "X + X"), LARGE),
        (doubling("[1]", "X + X"), LARGE),
        (doubling("7", "X * X"), BITS),
        (doubling("'x'", "'%s%s' % (X, X)"), LARGE),
        # methods and filters that make much of little
        ("{{ 'x'.center(999999999) }}", LARGE),
        ("{{ 'x'.ljust(999999999) }}", LARGE),
        ("{{ 'x'.rjust(999999999) }}", LARGE),
        ("{{ 'x'.zfill(999999999) }}", LARGE),
        ("{{ 'x' | center(999999999) }}", LARGE),
        ("{{ ['x'] | map('center', 999999999) | list }}", LARGE),
        ("{{ 'x' | center(width=999999999) }}", LARGE),
        ("{{ 'x' | indent(999999999, true) }}", LARGE),
        ("{{ ('x ' * 9999) | wordwrap(1, wrapstring='y' * 999999) }}", LARGE),
        ("{{ input.text.replace('', input.text) }}", LARGE),
        ("{{ input.text | replace('o', input.text) }}", LARGE),
        ("{{ input.text.join(input.text) }}", LARGE),
        ("{{ input.rows | join(input.text) }}", LARGE),
        ("{{ input.rows | join(input.text, attribute='y') }}", LARGE),
        ("{{ input.rows | map(attribute='y') | join(input.text) }}", LARGE),
        ("{{ '{:999999999}'.format(1) }}", LARGE),
        ("{{ '{:>9999999999}'.format_map({}) }}", LARGE),
        ("{{ ('{0}' * 1000).format(input.text) }}", LARGE),
        (
            "{{ '{:{}}'.format(1, 999999999) }}",
            "a field inside the format of a field cannot be used; write the width as a number",
        ),
        ("{{ '%999999999d' | format(1) }}", LARGE),
        ("{{ [1] | batch(999999999, 'x') | list }}", PIECES),
        ("{{ [1] | slice(999999999) | list }}", PIECES),
        ("{{ 5 | round(-999999999) }}", "precision is -999999999; it must be between -100 and 100"),
        ("{{ 5 | round(999999999, 'ceil') }}", "precision is 999999999; it must be between -100 and 100"),
        ("{{ [1] | tojson(indent=999999999) }}", "indent is 999999999; it must be a number from 0 to 16"),
        ("{{ range(10**9) | list }}", "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."),
        ("{{ 'a'.expandtabs(9) }}", "access to attribute 'expandtabs' of 'str' object is unsafe."),
        ("{{ 'a'.encode() }}", "access to attribute 'encode' of 'str' object is unsafe."),
        ("{{ (5).to_bytes(9, 'big') }}", "access to attribute 'to_bytes' of 'int' object is unsafe."),
        ("{{ (input.text * 4) | pprint }}", "this filter takes at most 100,000 characters, not 4,000,002"),
        ("{{ ('<!--' * 99999) | striptags }}", "this filter takes at most 100,000 characters, not 399,998"),
        ("{{ input.text | urlize }}", "this filter takes at most 100,000 characters, not 1,000,002"),
        # lists within lists are small in memory and endless as text
        (doubling("[1]", "[X, X]", "{{ ns.x }}"), LARGE),
        (doubling("[1]", "{'a': X, 'b': X}", "{{ ns.x | tojson }}"), LARGE),
        (doubling("[1]", "(X, X)", "{{ ns.x == ns.x }}"), LARGE),
        (doubling("[1]", "dict(a=X, b=X)"), LARGE),
        (doubling("[1]", "[X] | batch(2, X) | list"), LARGE),
        (doubling("[1]", "[X, X] | sum(start=[])"), LARGE),
        ("{{ input.none | map('default', input.text, true) | list }}", LARGE),
        # rounds, however they are made
        ("{% for a in range(999) %}{% for b in range(999) %}{% endfor %}{% endfor %}", TURNS),
        ("{% for a in range(99999) %}{% for b in range(99999) if 0 %}{% endfor %}{% endfor %}", TURNS),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DEEP),
        ("{% block a %}{{ self.a() }}{% endblock %}", DEEP),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", DEEP),
        # writing, however it is hidden
        ("{% for i in range(99999) %}{{ input.text }}{% endfor %}", WRITES),
        (f"{{% for i in range(99999) %}}{'static ' * 999}{{% endfor %}}", WRITES),
        ("{% for i in range(99999) %}{{ 'x' | center(3999999) }}{% endfor %}", WRITES),
        ("{% set x %}{% for i in range(99999) %}{{ input.text }}{% endfor %}{% endset %}", WRITES),
        ("{% for i in range(99) %}{% filter center(3999999) %}x{% endfilter %}{% endfor %}", WRITES),
        (
            "{% macro m() %}{% for i in range(99999) %}{{ input.text }}{% endfor %}{% endmacro %}{% set x = m() %}",
            WRITES,
        ),
        (
            "{% macro m() %}{{ caller() }}{% endmacro %}"
            "{% for i in range(99) %}{% call m() %}{{ input.text }}{% endcall %}{% endfor %}",
            WRITES,
        ),
        ("{{ input.text }}{{ input.text }}{{ input.text }}{{ input.text }}{{ input.text }}", LARGE),
    ],
)
def test_a_template_that_would_swell_or_stall_is_refused_at_once(template: str, why: str) -> None:
    sentence, seconds = refused(template)
    assert sentence == why
    assert seconds < MAX_SECONDS + 0.5


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% if 'zz' in input.text %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = input.rows | list %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = input.rows[1:] %}{% endfor %}",
        "{{ input.rows | selectattr('x', 'in', input.rows | map(attribute='y') | list) | list }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [1, 1] recursive %}{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_computes_for_long_is_stopped(template: str) -> None:
    sentence, seconds = refused(template)
    assert sentence in (LONG, TURNS)  # whichever comes first on this machine
    assert seconds < MAX_SECONDS + 0.5


@pytest.mark.parametrize(
    "expression",
    [
        "input.none | map('default', input.text, true)",
        "[input.none | map('default', input.text, true)]",
        "input.deep | map('map', 'default', 'x' * 1000, true)",
    ],
)
def test_lazy_sequences_are_no_way_around_the_limits(expression: str) -> None:
    with pytest.raises(InvalidInput, match=r"^e: it (makes|writes) "):
        evaluate("e", expression, {"input": INPUT})


def test_all_arguments_of_a_call_are_one_rendering() -> None:
    arguments = {"a": ["{% for i in range(70000) %}{% endfor %}"] * 3}
    with pytest.raises(InvalidInput, match=f"^t: {TURNS}$"):
        fill("t", arguments, {})
    assert fill("t", {"a": arguments["a"][:2]}, {}) == {"a": ["", ""]}
    assert fill("t", arguments["a"][0], {}) == "", "the next one begins anew"


def test_namespaces_within_namespaces_have_no_text() -> None:
    nested = "{% set a = namespace(x=a, y=a) %}" * 60
    assert render("t", f"{{% set a = namespace(x=1) %}}{nested}{{{{ a }}}}", {}) == "<namespace>"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 'ab' * 2 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 'a' ~ 1 ~ none }} {{ 1 + 2 }}", "abab 1024 3 a1None 3"),
        ("{{ '%05.1f|%s' % (3.14159, 'x') }} {{ '%(a)s' % {'a': 1} }}", "003.1|x 1"),
        ("{{ '{:>4}|{a!r}'.format(1, a='x') }} {{ '{x}'.format_map({'x': 2}) }}", "   1|'x' 2"),
        (
            "{{ ['a', 'b'] | join('-') }} {{ rows | join(',', attribute='x') }} {{ '+'.join(['1', '2']) }}",
            "a-b 1,2 1+2",
        ),
        ("{{ rows | sum(attribute='x') }} {{ [[1], [2, 3]] | sum(start=[]) }}", "3 [1, 2, 3]"),
        ("{% for r in rows if r.x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ r.x }}{% endfor %}", "1/1:2"),
        ("{% for r in [] %}x{% else %}none{% endfor %}", "none"),
        ("{% macro m(a) %}<{{ a }}{{ caller() }}>{% endmacro %}{% call m(1) %}2{% endcall %}", "<12>"),
        ("{% for n in tree recursive %}{{ n.v }}{{ loop(n.c) }}{% endfor %}", "123"),
        ("{% filter upper %}a{{ 'b' }}{% endfilter %}{% set x %}c{% endset %}{{ x }}", "ABc"),
        ("{{ 'x' | center(5) }}| {{ 'a\nb' | indent(2) }} {{ 'aXb'.replace('X', '-') }}", "  x  | a\n  b a-b"),
        ("{{ [1, 2, 3][1:] }} {{ {'a': [1]} | tojson(indent=1) }}", '[2, 3] {\n "a": [\n  1\n ]\n}'),
        ("{{ rows | groupby('x') | map(attribute='grouper') | list }} {{ (3.0).is_integer() }}", "[1, 2] True"),
        ("{% autoescape true %}{{ '<' ~ '>' }}{% endautoescape %} {{ '<' | e }}", "&lt;&gt; &lt;"),
    ],
)
def test_ordinary_templates_come_out_as_ever(template: str, text: str) -> None:
    names: dict[str, Any] = {
        "rows": [{"x": 1}, {"x": 2}],
        "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": []}]}],
    }
    assert render("t", template, names) == text


def test_values_that_are_handed_in_are_not_measured() -> None:
    """They are in memory already."""
    long = "x" * (2 * MAX_SIZE)
    assert evaluate("e", "input", {"input": long}) == long
    assert evaluate("e", "input | length", {"input": [long] * 3}) == 3


def test_an_error_names_the_line_of_a_template_that_has_several() -> None:
    with pytest.raises(InvalidInput) as error:
        render("t", "one\ntwo {{ 1 }}\n{{ input.nope }}\nfour", {"input": {}})
    assert str(error.value) == "t, line 3: 'dict object' has no attribute 'nope'"
