"""Where commands print: results to standard output, everything about them to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Container

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

#: Columns for whoever reads through a pipe: enough for every table, so that nothing is cut.
_PIPE = 160

out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE)
errors = Console(stderr=True)


def table(*columns: str, right: Container[str] = (), folds: Container[str] = (), title: Text | None = None) -> Table:
    """An empty table. right: columns of numbers. folds: columns that give way in a narrow terminal."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style="bold")
    for name in columns:
        justify: JustifyMethod = "right" if name in right else "left"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=name not in folds)
    return made


def note(message: str) -> None:
    """A line about what is going on; never wrapped, so that a URL or a path in it can be copied."""
    errors.print(message, markup=False, highlight=False, soft_wrap=True)


def complain(error: BaseException) -> None:
    """The one sentence a command fails with."""
    errors.print(Text.assemble(("Error:", "red"), " ", str(error)), soft_wrap=True)
