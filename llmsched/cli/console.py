"""Where commands print: results to standard output, everything about them to standard error."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

out = Console()
errors = Console(stderr=True)


def note(message: str) -> None:
    """A line about what is going on; never wrapped, so that a URL or a path in it can be copied."""
    errors.print(message, markup=False, highlight=False, soft_wrap=True)


def complain(error: BaseException) -> None:
    """The one sentence a command fails with."""
    errors.print(Text.assemble(("Error:", "red"), " ", str(error)), soft_wrap=True)
