"""Where commands print: results to standard output, everything about them to standard error."""

from __future__ import annotations

from rich.console import Console

out = Console()
errors = Console(stderr=True)
