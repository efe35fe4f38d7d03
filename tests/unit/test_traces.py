"""Reading and writing files of recorded jobs."""

import gzip
import os
from pathlib import Path

import orjson
import pytest

from llmsched.errors import InvalidInput, InvalidRecording, UnknownName
from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.workloads.generator import APPLICATIONS
from llmsched.workloads.traces import read_trace, read_traces, traced, write_trace


def job(number: int, application: str = "toy") -> Recording:
    stages = (
        RecordedStage("ask", StageKind.LLM, (), (RecordedTask(10, 20 + number),)),
        RecordedStage("run", StageKind.REGULAR, ("ask",), (RecordedTask(duration=0.5, tool="search"),)),
    )
    return Recording(application, f"q{number}#a", stages, {"length": number})


JOBS = [job(1), job(2), job(3)]


@pytest.mark.parametrize("name", ["toy.jsonl", "toy.jsonl.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    assert write_trace(tmp_path / name, iter(JOBS)) == 3
    assert list(read_trace(tmp_path / name)) == JOBS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_same_jobs_give_the_same_bytes(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.jsonl.gz", JOBS)
    write_trace(tmp_path / "b.jsonl.gz", JOBS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_write_that_fails_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    write_trace(path, JOBS)
    with pytest.raises(ZeroDivisionError):
        write_trace(path, (job(1 // n) for n in (1, 0)))
    assert list(read_trace(path)) == JOBS
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot write .*toy\.jsonl: No such file or directory"):
        write_trace(tmp_path / "none" / "toy.jsonl", JOBS)


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    path.write_bytes(b"\n" + orjson.dumps(job(1).to_json()) + b"\r\n\n{}\n")
    assert refusal(path).startswith("toy.jsonl:4: app is missing")


def refusal(path: Path) -> str:
    with pytest.raises(InvalidRecording) as caught:
        list(read_trace(path))
    return str(caught.value)


def test_a_bad_job_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    bad = job(2).to_json()
    bad["stages"][0]["tasks"][0]["output_tokens"] = -5
    path = tmp_path / "toy.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(orjson.dumps(j) for j in (job(1).to_json(), bad))))
    with pytest.raises(InvalidRecording) as caught:
        list(read_trace(path))
    assert str(caught.value) == (
        "toy.jsonl.gz:2: stages[0].tasks[0].output_tokens is -5; it must be a whole number from 1 to 10000000"
    )
    assert caught.value.field == "stages[0].tasks[0].output_tokens"


WHOLE = gzip.compress(b"\n".join(orjson.dumps(j.to_json()) for j in JOBS), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"", "t.jsonl is empty; it must have at least one line"),
        ("t.jsonl", b"\n \n", "t.jsonl is empty; it must have at least one line"),
        ("t.jsonl.gz", gzip.compress(b"", mtime=0), "t.jsonl.gz is empty; it must have at least one line"),
        ("t.jsonl.gz", b"{}\n", "t.jsonl.gz:1: the gzip data is broken"),
        ("t.jsonl.gz", WHOLE[:-20], "the gzip data is broken"),
        ("t.jsonl.gz", WHOLE[:40] + b"\xff\xff\xff" + WHOLE[43:], "the gzip data is broken"),
        ("t.jsonl", WHOLE, "t.jsonl:1: the line is not JSON in UTF-8"),
        ("t.jsonl", b'{"app": "\xff"}', "t.jsonl:1: the line is not JSON in UTF-8"),
        ("t.jsonl", b'{"app": NaN}', "t.jsonl:1: the line is not JSON in UTF-8"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl:1: the line is not JSON in UTF-8"),
        ("t.jsonl", b"7\n", "t.jsonl:1: a recording must be an object with app, job_id and stages, not 7"),
    ],
)
def test_a_broken_file_is_refused_with_a_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_missing_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.jsonl").endswith(
        "no.jsonl: No such file or directory; give the path of a readable file"
    )


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    path.write_bytes(orjson.dumps(job(1).to_json()) + b"\nbroken")
    jobs = read_trace(path)
    assert next(jobs) == job(1)
    with pytest.raises(InvalidRecording, match=r"toy\.jsonl:2:"):
        next(jobs)


def test_only_the_file_of_an_application_is_read(tmp_path: Path) -> None:
    write_trace(tmp_path / "toy.jsonl.gz", JOBS)
    write_trace(tmp_path / "toy_partial.jsonl.gz", [job(9)])
    write_trace(tmp_path / "toy_single.jsonl", [job(9)])
    write_trace(tmp_path / "other.jsonl", [job(4, "other")])
    assert read_traces(tmp_path, ["toy", "other", "toy"]) == {"toy": JOBS, "other": [job(4, "other")]}
    assert traced(tmp_path) == ["other", "toy", "toy_partial", "toy_single"]


def test_a_missing_trace_names_those_there_are(tmp_path: Path) -> None:
    write_trace(tmp_path / "toy.jsonl.gz", JOBS)
    with pytest.raises(UnknownName, match=r"there is no trace of 'tory' in .*; it has traces of: toy"):
        read_traces(tmp_path, ["tory"])
    with pytest.raises(InvalidInput, match="is not a folder"):
        read_traces(tmp_path / "none", ["toy"])


def test_two_files_of_one_application_are_one_too_many(tmp_path: Path) -> None:
    write_trace(tmp_path / "toy.jsonl.gz", JOBS)
    write_trace(tmp_path / "toy.jsonl", JOBS)
    with pytest.raises(InvalidInput, match=r"both toy\.jsonl\.gz and toy\.jsonl are in"):
        read_traces(tmp_path, ["toy"])


def test_a_job_of_another_application_is_refused(tmp_path: Path) -> None:
    write_trace(tmp_path / "toy.jsonl", [job(1), job(2, "other")])
    with pytest.raises(InvalidRecording, match=r"toy\.jsonl: job 2 \('q2#a'\) is of 'other'"):
        read_traces(tmp_path, ["toy"])


@pytest.mark.skipif("LLMSCHED_TRACES" not in os.environ, reason="LLMSCHED_TRACES names no traces")
def test_the_published_traces_are_read_whole() -> None:
    directory = Path(os.environ["LLMSCHED_TRACES"])
    for name, jobs in read_traces(directory, APPLICATIONS).items():
        assert jobs, name
        assert all(Recording.from_json(recording.to_json()) == recording for recording in jobs)
