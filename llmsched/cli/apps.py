"""`llmsched apps`: what applications there are, and what is to be said of one before it is registered."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
import yaml
from rich.text import Text

from llmsched.catalogue import installed_applications, load_application
from llmsched.cli.client import DEFAULT_URL, Json, ask, print_json
from llmsched.cli.console import note, out, table
from llmsched.cli.local import Config, Modules, registered
from llmsched.errors import InvalidApplication, InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.runtime.api import Api
from llmsched.runtime.tools.handlers import HandlerRegistry

app = typer.Typer(invoke_without_command=True)

_KINDS = {"llm": "blue", "regular": "green", "dynamic": "yellow"}


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="apps")


@app.callback()
def apps(
    context: typer.Context,
    put: Annotated[
        Path | None, typer.Option(help="First register the application in this YAML or JSON file with the service.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Ask this service instead of what is installed.")] = None,
    as_json: Json = False,
) -> None:
    """List applications: those installed, or with --url those of a service. `apps check` looks into one."""
    if context.invoked_subcommand is not None:
        if put is not None or url is not None or as_json:
            raise InvalidInput(f"options of apps {context.invoked_subcommand} stand behind it")
        return
    if put is not None or url is not None:
        there = url or os.environ.get("LLMSCHED_URL", DEFAULT_URL)
        rows = ask(there, lambda api: _registered(api, put))
    else:
        rows = [
            {
                "name": a.name,
                "version": a.version,
                "description": a.description,
                "executable": a.is_executable,
                "stages": [{"name": s.name, "kind": s.kind.value} for s in a.stages],
            }
            for a in installed_applications().values()
        ]
    if as_json:
        print_json(rows)
        return
    asked = any("profile" in row for row in rows)
    columns = ("name", "version", "stages", "takes", *(["learned from"] if asked else []), "what it is")
    listed = table(*columns, right=("version", "stages"), folds=("what it is",))
    for row in rows:
        takes = "inputs, recordings" if row["executable"] else "recordings"
        cells = [row["name"], str(row["version"]), str(len(row["stages"])), takes]
        listed.add_row(*cells, *([_learned(row.get("profile"))] if asked else []), Text(row["description"]))
    out.print(listed)


def _learned(profile: Mapping[str, Any] | None) -> str:
    """How many jobs a service learned an application from, and what predicts by it."""
    return "" if profile is None else f"{profile['jobs']} jobs, {profile['estimator']}"


async def _registered(api: Api, file: Path | None) -> Any:
    if file is not None:
        application = load_application(file)
        await api.put(f"/v1/applications/{application.name}", application.definition)
    return (await api.get("/v1/applications"))["items"]


# -------------------------------------------------------------------------------------------------- one of them


@app.command()
def check(
    application: Annotated[str, typer.Argument(help="A YAML or JSON file, or the name of an application.")],
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print the graph as Mermaid, and nothing else.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Also write the graph to this file, as SVG.")] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Draw each loop once.")] = False,
    handlers: Modules = None,
    config_file: Config = None,
    url: Annotated[str | None, typer.Option("--url", help="Look among the applications of this service.")] = None,
    as_json: Json = False,
) -> None:
    """Check an application and show its graph, what is learned of it, what it needs, and what looks wrong.

    Exit 2, with one sentence, if it can never run.
    """
    found = _found(application, url)
    from llmsched import drawing  # what is imported here costs other commands a quarter of a second

    report = _report(found, registered(handlers, config_file), where=application)
    if svg is not None:
        _write(svg, drawing.svg(found, fold=fold))
    if mermaid:
        print(drawing.mermaid(found, fold=fold))
    elif as_json:
        print_json(report)
    else:
        _show(found, report, fold)


def _found(application: str, url: str | None) -> Application:
    """The application in a file, of a service, or installed. Raises InvalidInput."""
    if url is not None:
        view = ask(url, lambda api: api.get(f"/v1/applications/{quote(application, safe='')}"))
        return Application.parse(view["definition"], version=view["version"])
    path = Path(application)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        try:
            return load_application(path)
        except InvalidApplication as error:
            raise _located(path, error) from None
    installed = installed_applications()
    if application not in installed:
        raise InvalidInput(f"{UnknownName.of('application', application, installed)}; a file ends in .yaml or .json")
    return installed[application]


def _report(application: Application, handlers: HandlerRegistry, *, where: str) -> dict[str, Any]:
    from llmsched.advice import advice_on, features_of, handlers_of, variables_of, why_recordings_only
    from llmsched.builder import check as check_application

    try:
        check_application(application)
    except InvalidInput as error:
        raise _located(Path(where), error) from None
    return {
        "name": application.name,
        "description": application.description,
        "digest": application.digest,
        "executable": application.is_executable,
        "recordings_only_because": why_recordings_only(application),
        "stages": [
            {
                "name": s.name,
                "kind": s.kind.value,
                "after": list(s.after),
                "pool": s.pool,
                "tasks": s.tasks,
                "max_tasks": s.max_tasks,
                "loop": s.loop,
                "iteration": s.iteration,
                "handler": s.handler,
                "candidates": [c.name for c in s.candidates],
            }
            for s in application.stages
        ],
        "variables": [v._asdict() for v in variables_of(application)],
        "known_at_submission": features_of(application),
        "handlers": [
            {"name": n, "stages": stages, "registered": n in handlers} for n, stages in handlers_of(application).items()
        ],
        "warnings": [{"stage": a.stage, "text": str(a)} for a in advice_on(application, handlers)],
    }


def _write(file: Path, picture: str) -> None:
    try:
        file.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"--svg {str(file)!r} cannot be written: {error.strerror}") from None
    note(f"the graph is drawn in {file}")


# ------------------------------------------------------------------------------------------- where it is wrong

_PLACE = re.compile(r"(?:stage|loop) '([^']+)'(?:, (prompt|system|when|for_each|arguments))?(?:, line (\d+))?")


def _located(file: Path, error: InvalidInput) -> InvalidInput:
    """The error with the file, and with the line in it where that can be told from the stage the error names."""
    said = str(error).removeprefix(f"{file}: ")
    if not file.is_file() or said.startswith(str(file)):
        return error
    place = _PLACE.search(said)
    line = place and _line(file, place[1], place[2], int(place[3] or 1))
    return InvalidApplication(f"{file}{f', line {line}' if line else ''}: {said}", field=error.field)


def _line(file: Path, stage: str, key: str | None, within: int) -> int | None:
    """The line of a stage in a file, or that of a template of it. within: the line in the template."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    for entry in _mappings(root):
        keys = {k.value: v for k, v in entry.value}
        name = keys.get("name") or keys.get("loop")
        if name is None or not re.fullmatch(rf"{re.escape(str(name.value))}(_\d+)?", stage):
            continue
        there = keys.get(key) if key else name
        if there is None:
            continue
        first: int = there.start_mark.line + 1
        return first + within if getattr(there, "style", None) == "|" else first
    return None


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """The entries of `stages`, those in loops too."""
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "stages" and isinstance(value, yaml.SequenceNode):
                for entry in value.value:
                    if isinstance(entry, yaml.MappingNode):
                        yield entry
                        yield from _mappings(entry)


# ------------------------------------------------------------------------------------------------- for people


def _show(application: Application, report: Mapping[str, Any], fold: bool) -> None:
    from llmsched import drawing

    out.print(Text.assemble((report["name"], "bold"), f"  {report['description']}".rstrip()))
    out.print()
    out.print(_coloured(drawing.text(application, fold=fold)), soft_wrap=True)
    out.print()
    _say(
        "runs",
        "on inputs and recordings: every stage has a prompt or a handler"
        if report["executable"]
        else f"recordings only: {report['recordings_only_because']}",
    )
    for handler in report["handlers"]:
        state = ("registered here", "green") if handler["registered"] else ("not registered here", "yellow")
        _say("needs", f"handler {handler['name']}, for {', '.join(handler['stages'])}: ", state)
    _show_variables(application, report)
    for warning in report["warnings"]:
        _say("warning", warning["text"], style="yellow")
    if not report["warnings"]:
        _say("fine", "nothing looks wrong", style="green")


def _show_variables(application: Application, report: Mapping[str, Any]) -> None:
    listed = table("learned of it", "as", "measures", "in", folds=("measures", "in"))
    rounds = groupby(report["variables"], key=lambda v: application[v["stage"]].loop)
    for loop, variables in rounds:
        of_loop = list(variables)
        if loop is None:
            for v in of_loop:
                listed.add_row(v["stage"], "1 variable", v["measures"], ", ".join(v["pools"]))
            continue
        numbers = sorted({application[v["stage"]].iteration or 0 for v in of_loop})
        for v in of_loop[: len(of_loop) // len(numbers)]:
            base = v["stage"].removesuffix(f"_{numbers[0]}")
            name = f"{base}_{numbers[0]} … {base}_{numbers[-1]}" if len(numbers) > 1 else v["stage"]
            listed.add_row(name, f"{len(numbers)} variables", v["measures"], ", ".join(v["pools"]))
    out.print(listed)
    _say("known of a job when it is submitted", ", ".join(report["known_at_submission"]))


def _say(label: str, *said: str | tuple[str, str], style: str = "bold") -> None:
    out.print(Text.assemble((f"{label}: ", style), *said), soft_wrap=True)


def _coloured(drawn: str) -> Text:
    text = Text(drawn)
    for kind, colour in _KINDS.items():
        text.highlight_regex(rf"(?m)^[^\w\n]*\S+ +{kind}\b", colour)
    return text
