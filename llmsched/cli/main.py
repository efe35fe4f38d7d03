"""`llmsched`: every command, and how errors become one sentence and an exit status (2: your input, 1: the world)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from llmsched import __version__
from llmsched.cli import apps, calibrate, client, demo, fit, keys, local, replay, run, serve, simulate, train, whatif
from llmsched.cli.console import complain
from llmsched.errors import InvalidInput, LlmschedError

app = typer.Typer(
    name="llmsched",
    help="Schedules jobs of compound LLM applications in front of vLLM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    add_completion=False,
)
for part in (serve, client, apps, keys, local, run, replay, simulate, whatif, demo, fit, calibrate, train):
    part.register(app)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the console script. Modules that a setting names are also looked for where it was started."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        app()
    except InvalidInput as error:
        complain(error)
        sys.exit(2)
    except LlmschedError as error:
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has enough, as in `llmsched jobs --json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
