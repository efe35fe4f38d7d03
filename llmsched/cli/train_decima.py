"""`llmsched train decima`: an agent for one workload, by reinforcement in the simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmsched.catalogue import installed_applications
from llmsched.cli.console import errors, note, out
from llmsched.errors import InvalidInput
from llmsched.runtime.emulator.settings import read_latency_curve
from llmsched.simulator.experiment import Source, Work, learn, prepare


def train_decima(
    workload: Annotated[
        str, typer.Option(help="mixed, predefined, chain, planning, mixed-nodoc, or a comma list of applications.")
    ],
    out_file: Annotated[Path, typer.Option("--out", help="The checkpoint to write, a .npz.")],
    traces: Annotated[
        Path | None,
        typer.Option(envvar="LLMSCHED_TRACES", help="Folder of <application>.jsonl.gz; jobs are generated without it."),
    ] = None,
    budget_seconds: Annotated[float, typer.Option(min=1.0, help="How long to train.")] = 1200.0,
    loads: Annotated[str, typer.Option(help="Offered loads to train at, a comma list.")] = "0.85,1.0,1.2",
    jobs: Annotated[int, typer.Option(min=5, help="Jobs of the longest episodes.")] = 80,
    processes: Annotated[int, typer.Option(min=1, help="Episodes played at once.")] = 2,
    latency: Annotated[str, typer.Option(help="Decode and prefill curve: a name, or a file.")] = "generic-7b",
    seed: Annotated[int, typer.Option(help="Of the first weights and of all choices.")] = 0,
) -> None:
    """Train an agent of Decima on a workload.

    With traces it learns from the part that `simulate` keeps for learning, never from jobs that are simulated.
    """
    try:
        from llmsched.training.decima.learn import BARS, Plan, train
    except ImportError as cause:
        raise InvalidInput(f"training needs torch ({cause}): pip install 'llmsched[train]'") from None
    if out_file.suffix != ".npz":
        raise InvalidInput(f"--out is {str(out_file)!r}; a checkpoint is a .npz file, so end its name with .npz")
    if not out_file.parent.is_dir():
        raise InvalidInput(f"there is no folder {str(out_file.parent)!r} to write into; make it first")
    from llmsched.training.decima.episodes import Ground

    curve = read_latency_curve(latency)
    applications = installed_applications()
    source = _training_part(prepare(workload, traces, None))
    work = Work.of(source.workload, applications, curve)
    ground = Ground(source.workload, applications, curve, learn(source.training, applications, curve), work)
    plan = Plan(
        budget=budget_seconds,
        jobs=(min(20, jobs), jobs),
        validation_jobs=min(100, max(20, jobs + 20)),
        loads=_loads(loads),
        processes=processes,
        seed=seed,
    )
    trained = train(ground, plan, lambda line: errors.print(line, highlight=False))
    about = {
        "workload": workload,
        "applications": list(source.workload.applications),
        "jobs_from": "traces, training part" if traces else "generator",
        "seconds": round(trained.seconds),
        "iterations": trained.iterations,
        "teacher": trained.teacher,
        "seed": seed,
        "loads": list(plan.loads),
        "validation": {"decima": round(trained.agent, 3)} | {n: round(m, 3) for n, m in trained.others.items()},
        "history": trained.history,
        "is_trained": bool(trained.is_trained),
    }
    trained.network.about.update(about)
    trained.network.save(str(out_file))
    fair, prior = (trained.agent / trained.others[name] - 1 for name in BARS)
    out.print(
        f"{workload}: {trained.agent:.2f} s on validation, {fair:+.1%} against fair, {prior:+.1%} against srtf-prior"
        f" after {trained.seconds:.0f} s"
    )
    if not trained.is_trained:
        note("under-trained: it should be no worse than fair and within 10 % of srtf-prior; give it more seconds")
    note(f"checkpoint: {out_file}")


def _training_part(source: Source) -> Source:
    """Episodes are played with the jobs that are learned from."""
    if source.workload.traces is None:
        return source
    return replace(source, workload=replace(source.workload, traces=dict(source.training)))


def _loads(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(f"--loads is {text!r}; it must be a comma list of numbers: 0.85,1.0") from None
