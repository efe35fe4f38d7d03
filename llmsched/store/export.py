"""History as a trace: completed jobs as JSON lines that `Recording.from_json` reads, to learn from or to run again."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import orjson

from llmsched.model.kinds import StageKind
from llmsched.model.recording import FEATURES, input_features
from llmsched.model.records import JobRecord, StageRecord
from llmsched.store.store import Store


async def export(
    store: Store, out: Path | IO[bytes], application: str | None = None, since: float | None = None
) -> int:
    """Writes the completed jobs in order of submission; how many it were.

    out: a file (gzipped if its name ends in .gz; it appears when it is complete) or something opened for bytes.
    since: only jobs that finished at this unix time or later.
    """
    count = 0
    with _opened(out) as lines:
        async for job, recording, stages in store.history(application=application, since=since):
            line = trace_of(job, stages, features_of(job, recording))
            lines.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def features_of(job: JobRecord, recording: bytes | None) -> Mapping[str, Any]:
    """Where what was known of a stored job at its submission is found: in its recording, or in its input."""
    return input_features(job.input) if recording is None else orjson.loads(recording)


def trace_of(
    job: JobRecord, stages: Sequence[StageRecord], features: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One completed job in the trace format: the stages that ran, with what they really cost.

    features: where to find what was known at submission (`FEATURES`), if anywhere: see `features_of`.
    What waited for a skipped stage waits for what that one waited for.
    """
    known = {stage.name: stage for stage in _with_placeholders(stages)}
    inner: dict[str, list[str]] = {}
    for stage in known.values():
        if stage.parent is not None:
            inner.setdefault(stage.parent, []).append(stage.name)
    iterations = {s.iteration for s in known.values() if s.state == "done" and s.iteration is not None}
    return {
        "app": job.application,
        "job_id": f"{job.id}#live",
        "source": "llmsched",
        "realism": "log",
        "n_iterations": len(iterations) or None,
        **{key: features[key] for key in FEATURES if features and features.get(key) is not None},
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "stages": [_stage(s, known, inner) for s in known.values() if s.state == "done"],
    }


def _with_placeholders(stages: Sequence[StageRecord]) -> Iterator[StageRecord]:
    """By position, but every dynamic stage ahead of what it generated; one that was not stored is made up."""
    stored = {stage.name: stage for stage in stages if stage.kind is StageKind.DYNAMIC}
    given: set[str] = set()
    for stage in sorted(stages, key=lambda s: s.position):
        parent = stage.parent
        if parent is not None and parent not in given:
            given.add(parent)
            yield stored.get(parent) or _placeholder(parent, [s for s in stages if s.parent == parent])
        if stage.name not in given:
            given.add(stage.name)
            yield stage


def _placeholder(name: str, inner: list[StageRecord]) -> StageRecord:
    """A dynamic stage as its inner ones tell: it waited for what they waited for besides each other."""
    own = {name, *(stage.name for stage in inner)}
    after = dict.fromkeys(a for stage in inner for a in stage.after if a not in own)
    first = inner[0]
    return StageRecord(
        job=first.job,
        name=name,
        position=first.position,
        state="done",
        kind=StageKind.DYNAMIC,
        finished_at=max(stage.finished_at for stage in inner),
        after=tuple(after),
    )


def _stage(stage: StageRecord, known: Mapping[str, StageRecord], inner: Mapping[str, list[str]]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": stage.name,
        "kind": stage.kind.value,
        "iteration": stage.iteration,
        "deps": list(dict.fromkeys(_deps(stage, known))),
        "tasks": list(_tasks(stage)),
    }
    if stage.kind is StageKind.DYNAMIC:
        line["generates"] = inner.get(stage.name, [])
    if stage.parent is not None:
        line["parent"] = stage.parent
    return line


def _deps(stage: StageRecord, known: Mapping[str, StageRecord]) -> Iterator[str]:
    for name in stage.after:
        parent = known.get(name)
        if parent is not None and parent.state == "done":
            yield name
        elif parent is not None:
            yield from _deps(parent, known)


def _tasks(stage: StageRecord) -> Iterator[dict[str, Any]]:
    tools = stage.tools or (None,) * len(stage.results)
    for result, tool in zip(stage.results, tools, strict=True):
        if stage.kind is StageKind.LLM:
            # A trace knows no call without output; an engine that reports no usage leaves 0 here.
            yield ({} if tool is None else {"tool": tool}) | {
                "prompt_tokens": result.prompt_tokens,
                "output_tokens": max(1, result.output_tokens),
                "measured_s": result.duration,
            }
        else:
            yield {"tool": tool, "duration_s": max(0.0, result.duration), "duration_from": "measured"}


@contextmanager
def _opened(out: Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(out, Path):
        yield out
        return
    unfinished = out.with_name(f".{out.name}.part")
    try:
        with gzip.open(unfinished, "wb") if out.suffix == ".gz" else unfinished.open("wb") as file:
            yield cast("IO[bytes]", file)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
