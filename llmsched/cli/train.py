"""`llmsched train`: learned policies, one command each."""

from __future__ import annotations

import typer

from llmsched.cli.train_decima import train_decima
from llmsched.cli.train_ranker import train_ranker

app = typer.Typer(help="Train what learned policies go by.", no_args_is_help=True)
app.command("decima")(train_decima)
app.command("ranker")(train_ranker)


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="train")
