"""`llmsched fit`: learns profiles from traces or from a store's history, and writes them as files."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmsched.catalogue import installed_applications
from llmsched.cli.console import errors, note, out, table
from llmsched.errors import InvalidInput, ProfileError, UnknownName
from llmsched.model.application import Application
from llmsched.model.recording import Recording
from llmsched.profiler import MAX_JOBS, Profile
from llmsched.profiler import fit as learn
from llmsched.workloads import read_traces
from llmsched.workloads.traces import traced


def register(app: typer.Typer) -> None:
    app.command()(fit)


def fit(
    to: Annotated[Path, typer.Option("--out", help="Folder to write <application>.json.gz into.")],
    traces: Annotated[
        Path | None,
        typer.Option(help="Folder of <application>.jsonl.gz to learn from.", show_default="LLMSCHED_TRACES"),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Instead: URL of a store, whose newest completed jobs are learned from.")
    ] = None,
    application: Annotated[
        str | None, typer.Option(help="Only these, a comma list. By default all there is history of.")
    ] = None,
) -> None:
    """Learn profiles: what the jobs of an application cost, and what tells it early.

    A service starts with them if --profiles names the folder. It learns by itself, too.
    """
    if store is None and traces is None and (named := os.environ.get("LLMSCHED_TRACES")):
        traces = Path(named)
    if (store is None) == (traces is None):
        raise InvalidInput("fit learns from --traces or from --store; name one of the two")
    names = [name.strip() for name in application.split(",")] if application else []
    histories = _stored(store, names) if store is not None else _traced(traces or Path(), names)
    profiles: list[Profile] = []
    failures: list[ProfileError] = []
    with errors.status("") as status:
        for wanted, recordings in histories:
            status.update(f"learning {wanted.name} from {len(recordings)} jobs")
            try:
                profiles.append(_learned(wanted, recordings, to))
            except ProfileError as error:
                failures.append(error)
    if failures and (names or not profiles):
        raise failures[0]
    for failure in failures:
        note(f"left out: {failure}")
    if not profiles:
        raise ProfileError(f"there is nothing to learn from in {store or traces}; run jobs first")
    _print(profiles)
    note(f"{len(profiles)} profiles written to {to}")


def _learned(application: Application, recordings: Sequence[Recording], folder: Path) -> Profile:
    from llmsched.runtime.learning.profiles import write_profile

    profile = learn(application, recordings, learned_at=time.time())
    write_profile(folder, profile)
    return profile


def _traced(folder: Path, names: Sequence[str]) -> Iterable[tuple[Application, Sequence[Recording]]]:
    """Every trace of an installed application, or those of `names`."""
    installed = installed_applications()
    for name in names:
        if name not in installed:
            raise UnknownName.of("application", name, installed)
    for name in names or [name for name in traced(folder) if name in installed]:
        yield installed[name], read_traces(folder, [name])[name]


def _stored(url: str, names: Sequence[str]) -> Iterable[tuple[Application, Sequence[Recording]]]:
    """The newest completed jobs of every application of a store that has any, or of `names`."""
    from llmsched.fitting import recordings_of  # SQLAlchemy: a third of a second
    from llmsched.store.store import Store

    async def read() -> list[tuple[Application, Sequence[Recording]]]:
        async with await Store.open(url, create=False) as store:
            known = {r.name: Application.parse(r.definition, version=r.version) for r in await store.applications()}
            for name in names:
                if name not in known:
                    raise UnknownName.of("application", name, known)
            found = [(known[name], await recordings_of(store, known[name], MAX_JOBS)) for name in names or known]
            return [(wanted, jobs) for wanted, jobs in found if jobs or names]

    return asyncio.run(read())


def _print(profiles: Sequence[Profile]) -> None:
    """error: mean absolute error of remaining work, relative to its mean, of jobs that were kept aside."""
    shown = table("application", "jobs", "estimator", "error", "of the mean", "90 % hold", right=("jobs", "error"))
    for profile in profiles:
        own, mean = profile.scores.get(profile.estimator, {}), profile.scores.get("mean", {})
        cells = (_percent(own.get("mae")), _percent(mean.get("mae")), _percent(own.get("cover90")))
        shown.add_row(profile.application, str(profile.jobs), profile.estimator, *cells)
    out.print(shown)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
