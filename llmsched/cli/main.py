"""`llmsched`: every command, and how errors become one sentence and an exit status (2: your input, 1: the world)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

from llmsched import __version__
from llmsched.cli.console import complain
from llmsched.errors import InvalidInput, LlmschedError

#: Modules of `llmsched.cli` and their commands, in the order of the help. Only that of the command at hand is imported:
#: all of them take a second.
PARTS = {
    "serve": ("serve", "emulate"),
    "client": ("submit", "jobs", "show", "watch", "cancel", "engines"),
    "apps": ("apps",),
    "keys": ("keys",),
    "local": ("policies", "handlers", "export"),
    "run": ("run",),
    "replay": ("replay",),
    "simulate": ("simulate",),
    "whatif": ("whatif",),
    "demo": ("demo",),
    "fit": ("fit",),
    "calibrate": ("calibrate",),
    "train": ("train",),
}


#: What numpy's linear algebra does unless the environment says otherwise. Our matrices are small: a second thread only
#: takes a processor from somebody who needs it, and the event loop waits until it gets one.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "1")


def application(parts: Iterable[str] = PARTS) -> typer.Typer:
    """The command line with the commands of these modules."""
    app = typer.Typer(
        name="llmsched",
        help="Schedules jobs of compound LLM applications in front of vLLM.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        add_completion=False,
    )
    for part in parts:
        import_module(f"llmsched.cli.{part}").register(app)
    app.callback(invoke_without_command=True)(_top)
    return app


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _needed(argument: str) -> Iterable[str]:
    """The modules that a command line with this first argument is answered by."""
    if argument == "--version":
        return ()
    return [part for part, commands in PARTS.items() if argument in commands] or PARTS


def main() -> None:
    """Entry point of the console script. Modules that a setting names are also looked for where it was started."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    os.environ.setdefault(*ONE_THREAD)
    try:
        application(_needed(sys.argv[1] if len(sys.argv) > 1 else ""))()
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
