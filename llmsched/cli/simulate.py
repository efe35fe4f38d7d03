"""`llmsched simulate`: policies compared on identical jobs in simulated time, hours of it in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmsched import __version__, report
from llmsched.catalogue import installed_applications
from llmsched.cli.console import errors, note, out
from llmsched.errors import InvalidInput
from llmsched.profiler import Knowledge
from llmsched.profiler.lengths import Lengths, default_lengths
from llmsched.runtime.emulator.settings import read_latency_curve
from llmsched.simulator.experiment import (
    Comparison,
    Deadlines,
    Sizing,
    Source,
    Work,
    compare,
    fixed,
    learn,
    parse_policies,
    prepare,
    size,
    to_json,
)
from llmsched.training.encoder import load_encoder
from llmsched.training.ranker import sample
from llmsched.training.ranker import train as train_lengths
from llmsched.workloads import Prompts, read_arrivals

_RATE = 0.9
_LOAD = 1.0
#: Jobs of the Gantt charts.
_GANTT = 20


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    workload: Annotated[
        str,
        typer.Option(help="mixed, predefined, chain, planning, mixed-nodoc, or a comma list of applications."),
    ],
    policy: Annotated[
        str, typer.Option(help="Policies to compare, a comma list; options as in llmsched:eps=0.1:seed=7.")
    ],
    jobs: Annotated[int, typer.Option(min=1, help="Jobs per run.")] = 300,
    rate: Annotated[
        float | None,
        typer.Option(help=f"Mean arrivals per second. Default {_RATE}; recorded arrivals keep their own."),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            help="LLM work that arrives over what the engines can do; machines are made for it, and the rate adjusted. "
            f"A comma list compares several. Default {_LOAD:g}, unless machines are given."
        ),
    ] = None,
    engines: Annotated[int | None, typer.Option(min=1, help="Instead of a load: engines (default 1) …")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="… slots of each (default 16) …")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="… workers for regular tasks (default 4).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per policy, each with other jobs and arrivals.")] = 10,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    traces: Annotated[
        Path | None,
        typer.Option(envvar="LLMSCHED_TRACES", help="Folder of <application>.jsonl.gz; jobs are generated without it."),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Folder of traces to learn from. Without it, 70 % of the queries of --traces are kept for that."
        ),
    ] = None,
    latency: Annotated[
        str, typer.Option(help="Decode and prefill curve: a name, or a file of calibrate.")
    ] = "generic-7b",
    arrivals: Annotated[
        str, typer.Option(help="poisson, gamma, gamma:CV, or a CSV file of recorded arrivals.")
    ] = "poisson",
    failures: Annotated[float, typer.Option(help="Probability that an attempt of a task fails.")] = 0.0,
    losses: Annotated[
        bool, typer.Option("--losses", help="Lose every engine for 30 s, every 300 s on average.")
    ] = False,
    shared_prefixes: Annotated[
        bool,
        typer.Option(
            "--shared-prefixes", help="Calls of one stage share their prompt, as recorded jobs do on a prefix cache."
        ),
    ] = False,
    overhead: Annotated[
        float,
        typer.Option(help="Seconds that a call holds its slot beyond what its engine needs: your service's part."),
    ] = 0.0,
    deadlines: Annotated[
        str | None,
        typer.Option(
            help="FACTOR or FACTOR:SHARE: a share of the jobs should be over in so many times what jobs of their "
            "application take alone. Policies heed it with the option deadlines, as in fcfs:deadlines=1.5."
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default as many as there are processors.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of prompts beside the traces, for policies that read them. Default: ../prompts of --traces."
        ),
    ] = None,
    ranker: Annotated[
        Path | None,
        typer.Option(
            help="Model of answer lengths, as train ranker writes it. Without it one is trained on the jobs to learn "
            "from; where LightGBM is not installed, it is the one that ships."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers into this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write pictures into this folder.")] = None,
) -> None:
    """Compare policies on identical jobs in simulated time.

    The scheduler is that of the service, unmodified; engines and workers are simulated. What policies know of the
    applications is learned from other jobs than those that run.
    """
    for path in (json_file.parent if json_file else None, plot.parent if plot else None):
        if path is not None and not path.is_dir():
            raise InvalidInput(f"there is no folder {str(path)!r} to write into; make it first")
    if not 0 <= failures < 1:
        raise InvalidInput(f"--failures is {failures:g}; it must be a probability, from 0 to below 1")
    if not 0 <= overhead < 3600:
        raise InvalidInput(f"--overhead is {overhead:g}; it must be seconds, 0 or more")
    choices = parse_policies(policy)
    curve = read_latency_curve(latency)
    is_recorded = not arrivals.startswith(("poisson", "gamma"))
    process = read_arrivals(Path(arrivals)) if is_recorded and Path(arrivals).is_file() else arrivals
    learns = any(choice.learns for choice in choices)
    predicts = any(choice.predicts for choice in choices)
    source = prepare(workload, traces, train, learns=learns or predicts)
    model = None if ranker is None else Lengths.load(str(ranker))
    texts = _prompts(prompts, traces, source) if predicts else None
    applications = installed_applications()
    work = Work.of(source.workload, applications, curve)
    given = {"engines": engines, "slots": slots, "workers": workers}
    machines = {name: value for name, value in given.items() if value is not None}
    if load is not None and machines:
        raise InvalidInput(f"--load makes the machines, and --{next(iter(machines))} does too; give one of them")
    sizings: tuple[Sizing, ...]
    if machines:
        sizings = (fixed(work, _RATE if rate is None and not is_recorded else rate, curve, **machines),)
    else:
        wanted = _loads(load) if load is not None else [_LOAD]
        sizings = tuple(size(work, _RATE if rate is None else rate, each, curve) for each in wanted)
    comparison = Comparison(
        source.workload,
        choices,
        sizings,
        tuple(range(seed, seed + seeds)),
        jobs,
        applications,
        curve,
        process=process,
        failures=failures,
        losses=losses,
        shared_prefixes=shared_prefixes,
        overhead=overhead,
        gantt=_GANTT if plot is not None else 0,
        deadlines=None if deadlines is None else Deadlines.parse(deadlines),
    )
    comparison.check()
    for sizing in sizings:
        note(str(sizing))
    if learns:
        comparison = comparison.knowing(_learn(source, comparison))
    if predicts:
        comparison = _predicting(comparison, source, model, texts)
    with _bar(len(comparison.cases) * jobs) as progress:
        runs = compare(comparison, parallel=parallel, progress=progress)
    settings = {
        "workload": workload,
        "policies": [choice.label for choice in choices],
        "jobs": jobs,
        "rate": rate if rate is not None or is_recorded else _RATE,
        **_sizes(sizings),
        "arrivals": arrivals,
        "seeds": seeds,
        "seed": seed,
        "traces": str(traces) if traces else None,
        "train": str(train) if train else None,
        "prompts": comparison.prompts is not None,
        "ranker": str(ranker) if ranker else None,
        "split": source.split,
        "training_jobs": {name: len(learned) for name, learned in source.training.items()},
        "latency": curve.to_json(),
        "failures": failures,
        "losses": losses,
        "shared_prefixes": shared_prefixes,
        "overhead": overhead,
        "deadlines": deadlines,
        "intervals_over": "seeds" if seeds > 1 else "jobs",
        "version": __version__,
    }
    document = to_json(settings, runs)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        note(f"numbers: {json_file}")
    if plot is not None:
        from llmsched.plots import draw

        for picture in draw(document, runs, plot):
            note(f"picture: {picture}")
    for sizing in sizings:
        out.print(report.table(document, load=sizing.load if len(sizings) > 1 else None, machines=str(sizing)))


def _loads(text: str) -> list[float]:
    try:
        loads = [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(f"--load is {text!r}; it must be a number or a comma list: 0.85,1.0,1.2") from None
    if len(set(loads)) < len(loads):
        raise InvalidInput(f"--load is {text!r}; name every load once")
    return loads


def _sizes(sizings: Sequence[Sizing]) -> dict[str, Any]:
    """The machines in the settings; of several loads a list in the order of `load`."""
    each = [
        {
            "load": sizing.load,
            "engines": len(sizing.engines),
            "slots": sizing.engines[0],
            "workers": dict(sizing.workers),
            "effective_rate": sizing.rate,
        }
        for sizing in sizings
    ]
    return each[0] if len(each) == 1 else {key: [one[key] for one in each] for key in each[0]}


def _learn(source: Source, comparison: Comparison) -> Knowledge:
    """Fits the profiles, and says so: it takes seconds."""
    jobs = sum(map(len, source.training.values()))
    with errors.status(f"learning from {jobs} jobs …"):
        knowledge = learn(source.training, comparison.applications, comparison.curve)
    note(f"learned from {jobs} jobs: {source.split}")
    if source.overlap > 0:
        note(
            f"warning: {source.overlap:.0%} of the jobs to simulate are runs of a query that was learned from;"
            " figures of policies that learn are too good"
        )
    return knowledge


def _prompts(folder: Path | None, traces: Path | None, source: Source) -> Prompts | None:
    """Those of a folder, by default of the one beside the traces; None where there are none."""
    if folder is None and traces is not None and (beside := traces.parent / "prompts").is_dir():
        folder = beside
    return None if folder is None else Prompts.load(folder, source.workload.applications)


def _predicting(comparison: Comparison, source: Source, given: Lengths | None, prompts: Prompts | None) -> Comparison:
    """The comparison with a model of lengths, and says which. given: the one that was asked for."""
    if given is not None:
        lengths = given
        if (encoder := lengths.about.get("encoder")) is not None and prompts is not None:
            prompts = prompts.read_by(load_encoder(Path(encoder)))
        note(f"lengths predicted by the given model, trained on {lengths.about.get('trained_on', 'unknown jobs')}")
    elif find_spec("lightgbm") is not None:
        with errors.status("learning lengths …"):
            answers = sample(source.training, comparison.applications, prompts)
            lengths = train_lengths(answers, {"texts": prompts is not None})
        note(f"lengths learned from {len(answers)} answers, {'with' if prompts is not None else 'without'} prompts")
    else:
        lengths = default_lengths()
        note("lengths predicted by the model that ships: LightGBM is not installed; pip install 'llmsched[train]'")
    return replace(comparison, lengths=lengths, prompts=prompts)


@contextmanager
def _bar(jobs: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, fed with the number of simulated jobs that are over."""
    columns: tuple[Any, ...] = (
        TextColumn("simulating", style="bold"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} jobs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("", total=jobs)
        yield lambda over: progress.update(task, completed=over)
        progress.update(task, completed=jobs)
