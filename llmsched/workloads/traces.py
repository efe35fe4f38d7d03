"""Trace files: recorded jobs as JSON lines, plain or gzip, one file per application.

Only `<application>.jsonl.gz` or `<application>.jsonl` belongs to an application; files with other names in
the same folder (partial logs, single-tool jobs) are never read on their own account.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import orjson

from llmsched.errors import InvalidInput, InvalidRecording, UnknownName
from llmsched.model.recording import Recording
from llmsched.workloads.lines import read_lines

_SUFFIXES = (".jsonl.gz", ".jsonl")


def read_trace(path: Path) -> Iterator[Recording]:
    """The jobs of one file, one at a time.

    Raises InvalidRecording at the first bad line: `code_generation.jsonl.gz:17: stages[2].tasks[0].output_tokens
    is -5; it must be …`.
    """
    for at, line in read_lines(path, InvalidRecording):
        try:
            job: object = orjson.loads(line)
        except orjson.JSONDecodeError as cause:
            raise InvalidRecording(
                f"{at}: the line is not JSON in UTF-8 ({cause}); a trace has one job per line"
            ) from cause
        try:
            recording = Recording.from_json(job)
        except InvalidRecording as fault:
            raise InvalidRecording(f"{at}: {fault}", field=fault.field) from None
        yield recording


def read_traces(directory: Path, applications: Iterable[str]) -> dict[str, list[Recording]]:
    """All recorded jobs of these applications.

    Raises UnknownName if `directory` has no file for one of them, InvalidRecording for a bad file or a job of another
    application in it.
    """
    traces: dict[str, list[Recording]] = {}
    for application in dict.fromkeys(applications):
        path = trace_path(directory, application)
        traces[application] = jobs = list(read_trace(path))
        for k, job in enumerate(jobs):
            if job.application != application:
                raise InvalidRecording(
                    f"{path.name}: job {k + 1} ({job.job_id!r}) is of {job.application!r}; the file of an application"
                    " must hold only its own jobs",
                    field="app",
                )
    return traces


def trace_path(directory: Path, application: str) -> Path:
    """The file of an application. Raises UnknownName if there is none, InvalidInput if there are two."""
    found = [path for suffix in _SUFFIXES if (path := directory / f"{application}{suffix}").is_file()]
    if not found:
        known = ", ".join(traced(directory)) or "nothing"
        raise UnknownName(f"there is no trace of {application!r} in {directory}; it has traces of: {known}")
    if len(found) > 1:
        raise InvalidInput(f"both {found[0].name} and {found[1].name} are in {directory}; keep one of them")
    return found[0]


def traced(directory: Path) -> list[str]:
    """Names that `directory` has a trace file for, sorted. Raises InvalidInput if it is no folder."""
    if not directory.is_dir():
        raise InvalidInput(f"{directory} is not a folder; traces are found in one as <application>.jsonl.gz")
    names = {path.name.removesuffix(suffix) for suffix in _SUFFIXES for path in directory.glob(f"*{suffix}")}
    return sorted(names)


def write_trace(path: Path, jobs: Iterable[Recording]) -> int:
    """Write jobs as a trace, gzip if the name ends in `.gz`; the same jobs give the same bytes. Returns how many.

    The file appears under its name only when it is complete. Raises InvalidInput if it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    n = 0
    try:
        with ExitStack() as stack:
            sink: BinaryIO | gzip.GzipFile = stack.enter_context(part.open("wb"))
            if path.suffix == ".gz":
                sink = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=sink, mtime=0))
            for job in jobs:
                sink.write(orjson.dumps(job.to_json(), option=orjson.OPT_APPEND_NEWLINE))
                n += 1
        part.replace(path)
    except OSError as cause:
        raise InvalidInput(
            f"cannot write {path}: {cause.strerror}; give a path in a folder you may write to"
        ) from cause
    finally:
        part.unlink(missing_ok=True)
    return n
