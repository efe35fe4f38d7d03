"""Runs a candidate program against tests, in the sandbox: for the job its own tests, for the scorer the dataset's."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence

from llmsched.runtime.tools.sandbox import Limits, Outcome, run_python

#: For all tests of one program together, and for each.
LIMITS = Limits(seconds=30.0, cpu_seconds=20, check_seconds=5.0, memory_mib=512)

_FENCED = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*\n(.*?)^[ \t]*(?:```|~~~)[ \t]*$", re.DOTALL | re.MULTILINE)


def bare_code(text: str) -> str:
    """The program in a model's answer: the longest fenced block, or all of it where nothing is fenced.

    >>> bare_code("Here you are:\\n```python\\nx = 1\\n```\\nGood luck!")
    'x = 1'
    """
    blocks: list[str] = _FENCED.findall(text)
    return max(blocks, key=len).strip("\n") if blocks else text.strip("\n")


def usable_tests(tests: Sequence[str]) -> list[str]:
    """Those that are Python, each once, without the white space around them.

    >>> usable_tests(["assert f(1) == 2 ", "assert f(1 == 2", "assert f(1) == 2"])
    ['assert f(1) == 2']
    """
    return [test for test in dict.fromkeys(test.strip() for test in tests) if test and _is_python(test)]


def run_program(code: str, tests: Sequence[str], *, context: str = "", setup: str = "") -> Outcome:
    """Runs `context`, `code` and `setup`, and then each test. The outcome's checks are those of the tests.

    Raises InvalidSetting where this machine has no sandbox.
    """
    source = f"{context.rstrip()}\n\n{code}" if context.strip() else code
    # Behind the code, for it may need the code's classes; as a check, so that its lines are not the program's.
    return run_python(source, checks=[setup or "pass", *tests], limits=LIMITS)


def parse(source: str) -> ast.Module:
    """The syntax tree of code that others wrote, whose doubtful escapes are no news. Raises as `ast.parse` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _is_python(test: str) -> bool:
    try:
        parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
