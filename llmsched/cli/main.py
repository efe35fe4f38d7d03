"""`llmsched`: every command, and how errors become one sentence and an exit status (2: your input, 1: the world)."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmsched import __version__
from llmsched.cli import client, demo, local, serve
from llmsched.cli.console import errors
from llmsched.errors import BackendError, InvalidInput, LlmschedError

app = typer.Typer(
    name="llmsched",
    help="Schedules jobs of compound LLM applications in front of vLLM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
serve.register(app)
client.register(app)
local.register(app)
demo.register(app)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except InvalidInput as error:
        errors.print(f"[red]Error:[/red] {error}", highlight=False)
        sys.exit(2)
    except (BackendError, LlmschedError) as error:
        errors.print(f"[red]Error:[/red] {error}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
