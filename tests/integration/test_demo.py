"""`llmsched demo`: what it shows, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest

from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.workloads import Workload
from tests.integration.service import until

#: Every process of a demo inherits it, and is found by it wherever it has moved to.
MARK = "PYTEST_DEMO"


def processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextmanager
def a_demo(folder: Path, mark: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Settings for a service in the environment are not the demo's: it must run the same everywhere."""
    (folder / "tmp").mkdir(exist_ok=True)
    strange = {"LLMSCHED_ENGINES": "http://127.0.0.1:9", "LLMSCHED_API_KEYS": "ann:sesame-open", "LLMSCHED_PORT": "1"}
    environment = os.environ | strange | {MARK: mark, "TMPDIR": str(folder / "tmp"), "COLUMNS": "140"}
    process = subprocess.Popen(
        [sys.executable, "-m", "llmsched", "demo", *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        for left in processes(mark):
            left.kill()


def test_it_shows_a_comparison_and_writes_numbers_and_a_picture(tmp_path: Path) -> None:
    mark = uuid4().hex
    options = ("--jobs", "8", "--workload", "planning", "--speed", "100", "--load", "2", "--engines", "2")
    with a_demo(tmp_path, mark, *options) as process:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert processes(mark) == []
    assert re.search(r"^ fcfs +8 .*\n sjf +8 .*%.*\n llmsched-pool +8 .*%", out, re.MULTILINE), out
    assert "One of the recorded jobs, in emulated seconds" in out
    assert re.search(r"^A live job of web_search .*\nAnswer: Rhine, after 4 steps in ", out, re.MULTILINE), out
    assert re.search(r"^ tools +dynamic +done", out, re.MULTILINE), out
    assert "offered load" in err
    assert "8/8 jobs done" in err
    assert "Traceback" not in out + err
    assert list((tmp_path / "tmp").iterdir()) == []
    folder = tmp_path / "demo-output"
    assert sorted(path.name for path in folder.iterdir()) == ["completion_times.png", "demo.json"]
    document = json.loads((folder / "demo.json").read_text())
    settings = document["settings"]
    planned = Workload.load("planning").arrivals(8, settings["rate"], settings["seed"])
    # emulated time is faithful: nothing is over before its longest call could be, alone
    calls = [task for arrival in planned for task in arrival.recording.tasks(StageKind.LLM)]
    longest = max(GENERIC_7B.reference(task.prompt_tokens, task.output_tokens) for task in calls)
    for run in document["runs"]:
        assert (run["jobs"], run["failed"]) == (8, 0)
        assert run["makespan"] > longest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_it_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    mark = uuid4().hex
    with a_demo(tmp_path, mark, "--jobs", "50", "--speed", "1") as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"listens on (http://\S+)", line)))
        async with httpx.AsyncClient(base_url=url, timeout=20) as service:
            while not (await service.get("/v1/jobs")).json()["items"]:  # noqa: ASYNC110 (of another process)
                await asyncio.sleep(0.05)
        # demo, tether, service, a tether and its emulator, workers
        assert len(processes(mark)) >= 5
        process.send_signal(number)
        _, err = await asyncio.to_thread(process.communicate, timeout=30)
        await until(lambda: not processes(mark), 20, what="the end of all processes of the demo")
        assert process.returncode in (130, -number)
        assert "Traceback" not in err
    if number is signal.SIGINT:
        assert list((tmp_path / "tmp").iterdir()) == []
