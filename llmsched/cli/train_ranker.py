"""`llmsched train ranker`: learns how long answers will be, and says how well."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from llmsched.catalogue import installed_applications
from llmsched.cli.console import errors, note, out, table
from llmsched.errors import InvalidInput
from llmsched.model.recording import Recording
from llmsched.profiler.lengths import Lengths
from llmsched.training.encoder import load_encoder
from llmsched.training.ranker import Published, Report, Sample, assess, published, sample, train
from llmsched.workloads import APPLICATIONS, Prompts, generate, read_traces
from llmsched.workloads.traces import traced

#: Generated jobs of each application to learn from, and to be judged by.
_LEARNED, _JUDGED = 300, 150


def train_ranker(
    to: Annotated[Path, typer.Option("--out", help="File to write, .npz.")],
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Folder of <application>.jsonl.gz. 70 % of the queries are learned from, the others judge. "
            "Without it, jobs are generated."
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Folder of their prompts, <application>.jsonl.gz.")] = None,
    lengths: Annotated[
        Path | None, typer.Option(help="Folder with ssjf_lmsys.csv.gz, to show a published predictor beside ours.")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="Local Hugging Face sequence classifier with one output, whose scores rank prompts."),
    ] = None,
) -> None:
    """Learn to predict the lengths of LLM answers: a ranker, and a regressor of tokens.

    `ltr`, `ssjf`, `magnus` and `hrrn` go by it: simulate --ranker F, serve --ranker F.
    """
    if to.suffix != ".npz":
        raise InvalidInput(f"--out is {str(to)!r}; its name must end in .npz")
    if prompts is not None and traces is None:
        raise InvalidInput("--prompts belong to traces; give --traces too")
    if encoder is not None and prompts is None:
        raise InvalidInput("--encoder reads prompts; give --prompts too")
    reads = load_encoder(encoder) if encoder is not None else None
    beside = published(lengths / "ssjf_lmsys.csv.gz") if lengths is not None else None
    about: dict[str, Any] = {"trained_on": "generated jobs" if traces is None else "traces", "texts": bool(prompts)}
    if encoder is not None:
        about["encoder"] = str(encoder)
    with errors.status("reading jobs …"):
        learned_jobs, judged_jobs = _generated() if traces is None else _split(traces)
        texts = None if prompts is None else Prompts.load(prompts, learned_jobs, reads)
        applications = installed_applications()
        learned, judged = (sample(jobs, applications, texts) for jobs in (learned_jobs, judged_jobs))
    with errors.status(f"learning from {len(learned)} answers …"):
        about |= {"answers": len(learned), "jobs": sum(map(len, learned_jobs.values()))}
        model, report = _trained(learned, judged, about)
    _write(model, to)
    _print(report, beside)
    note(f"{to}: {to.stat().st_size / 1000:.0f} kB, learned from {len(learned)} answers of {about['jobs']} jobs")


def _trained(learned: Sample, judged: Sample, about: dict[str, Any]) -> tuple[Lengths, Report]:
    model = train(learned, about)
    report = assess(model, judged, learned)
    about["figures"] = {name: quality.to_json() for name, quality in report._asdict().items()}
    return Lengths(model.features, model.ranker, model.regressor, model.quantiles, model.spreads, about), report


def _generated() -> tuple[Mapping[str, Sequence[Recording]], Mapping[str, Sequence[Recording]]]:
    def jobs(purpose: str, n: int) -> Mapping[str, Sequence[Recording]]:
        streams = {name: Random(f"llmsched/lengths/{purpose}/{name}") for name in APPLICATIONS}
        return {name: [generate(name, rng) for _ in range(n)] for name, rng in streams.items()}

    return jobs("learned", _LEARNED), jobs("judged", _JUDGED)


def _split(traces: Path) -> tuple[Mapping[str, Sequence[Recording]], Mapping[str, Sequence[Recording]]]:
    from llmsched.simulator.experiment import is_held_out

    installed = installed_applications()
    names = [name for name in installed if name in traced(traces)]
    if not names:
        raise InvalidInput(f"{traces} has no trace of an installed application: {', '.join(installed)}")
    jobs = read_traces(traces, names)
    learned = {name: [job for job in own if not is_held_out(name, job.job_id)] for name, own in jobs.items()}
    judged = {name: [job for job in own if is_held_out(name, job.job_id)] for name, own in jobs.items()}
    return learned, judged


def _write(model: Lengths, to: Path) -> None:
    part = to.with_name(f".{os.getpid()}.{to.name}")
    try:
        model.save(str(part))
        part.replace(to)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidInput(f"cannot write {to}: {error.strerror}; give a path in a folder you may write to") from None


def _print(report: Report, beside: Published | None) -> None:
    figures = ("answers", "tau-b", "within a stage", "MAE, tokens", "within 25 %")
    rows = table("", *figures, right=figures)
    names = {"ranker": "ranker", "regressor": "regressor", "constant": "mean of the stage"}
    for name, quality in report._asdict().items():
        cells = (quality.tau, quality.within, quality.mae, quality.close)
        formats = ("{:.3f}", "{:.3f}", "{:.1f}", "{:.0%}")
        shown = ["" if x is None else form.format(x) for form, x in zip(formats, cells, strict=True)]
        rows.add_row(names[name], str(quality.answers), *shown)
    if beside is not None:
        rows.add_row("SSJF's BERT, its data", str(beside.answers), f"{beside.tau:.3f}", "", f"{beside.mae:.1f}", "")
    out.print(rows)
    if beside is not None:
        note(f"SSJF's BERT names the right half of its own data in {beside.two_class:.0%}")
