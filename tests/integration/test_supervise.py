"""Supervised commands on their tether: real processes, and none of them left over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from llmsched.runtime.engine import EngineClient
from llmsched.runtime.supervise import TETHER, Supervised, emulator_command, free_port, vllm_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descendants are found through /proc")

#: A command with a tree: a child, a grandchild in a session of its own, and an orphan whose parent is gone. All of them
#: refuse SIGTERM when asked to. Announces their process ids.
TREE = textwrap.dedent(
    """
    import json, os, signal, subprocess, sys, time
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    orphan = "import os, subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2, start_new_session=True).pid)"
    pids = [
        os.getpid(),
        subprocess.Popen(sleep).pid,
        subprocess.Popen(sleep, start_new_session=True).pid,
        int(subprocess.check_output([sys.executable, "-S", "-c", orphan, *sleep])),
    ]
    print("hello from", pids, file=sys.stderr, flush=True)
    print(json.dumps({"pids": pids}), flush=True)
    time.sleep(0 if "brief" in sys.argv else 600)
    """
)
QUICK = (0.01, 0.05)


def tree(*words: str) -> list[str]:
    return [sys.executable, "-S", "-c", TREE, *words]


def running(pids: Iterable[int]) -> list[int]:
    """Those of the processes that exist and are not zombies."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def until(condition: Callable[[], bool], timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


class Observer:
    """What a supervised command reported: the process ids of each start, and why it went down."""

    def __init__(self) -> None:
        self.ups: list[list[int]] = []
        self.downs: list[str] = []

    def up(self, announced: list[dict[str, Any]]) -> None:
        self.ups.append([pid for each in announced for pid in each["pids"]])


def supervised(command: list[str], observer: Observer, **options: Any) -> Supervised:
    defaults: dict[str, Any] = {"announcements": 1, "backoff": QUICK, "grace": 5.0}
    return Supervised(
        "it", command, random=Random(0), on_up=observer.up, on_down=observer.downs.append, **(defaults | options)
    )


async def test_it_announces_itself_and_stop_ends_the_whole_tree() -> None:
    observer = Observer()
    it = supervised(tree(), observer)
    it.start()
    assert await it.wait_up(15)
    (pids,) = observer.ups
    assert running(pids) == pids
    assert (it.up, it.status, it.starts) == (True, "up", 1)
    assert f"hello from {pids}" in it.tail
    await it.stop()
    assert running(pids) == []
    assert (it.up, it.status) == (False, "stopped")
    assert observer.downs == ["it was ended by signal 15"]


async def test_a_tree_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    observer = Observer()
    it = supervised(tree("stubborn"), observer, grace=60.0)
    it.start()
    assert await it.wait_up(15)
    (pids,) = observer.ups
    await it.stop(grace=0.2)
    assert running(pids) == []
    assert observer.downs == ["it was ended by signal 9"]


SERVICE = textwrap.dedent(
    """
    import asyncio, json, os, sys, time
    from random import Random
    from llmsched.runtime.supervise import Supervised

    async def main(fork, command):
        def up(announced):
            # A fork of the service that outlives it, as a worker might, holds the tether's pipe open.
            worker = os.fork() if fork == "fork" else 0
            if fork == "fork" and worker == 0:
                os.close(1)
                time.sleep(600)
            print(json.dumps({"worker": worker, "pids": announced[0]["pids"]}), flush=True)
        Supervised("it", command, random=Random(0), announcements=1, on_up=up, grace=0.2).start()
        await asyncio.sleep(600)

    asyncio.run(main(sys.argv[1], sys.argv[2:]))
    """
)


@pytest.mark.parametrize("fork", ["alone", "fork"])
async def test_the_tree_is_gone_after_kill_9_of_the_service(fork: str) -> None:
    service = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", SERVICE, fork, *tree("stubborn")),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert service.stdout is not None
    told = json.loads(await asyncio.wait_for(service.stdout.readline(), 15))
    try:
        assert running(told["pids"]) == told["pids"]
        service.kill()
        await service.wait()
        await until(lambda: not running(told["pids"]))
    finally:
        if told["worker"]:
            os.kill(told["worker"], signal.SIGKILL)


async def test_it_is_started_again_when_it_dies() -> None:
    observer = Observer()
    it = supervised(tree(), observer)
    it.start()
    assert await it.wait_up(15)
    os.kill(observer.ups[0][0], signal.SIGKILL)
    await until(lambda: len(observer.ups) == 2)
    assert running(observer.ups[0]) == []  # what it left behind went first
    assert running(observer.ups[1]) == observer.ups[1]
    assert len(observer.downs) == 1
    assert observer.downs[0].startswith("it was ended by signal 9 after saying ")
    assert it.starts == 2
    await it.stop()


async def test_it_is_ended_even_when_the_tether_is_killed() -> None:
    observer = Observer()
    it = supervised(tree(), observer)
    it.start()
    assert await it.wait_up(15)
    tether = psutil.Process(observer.ups[0][0]).ppid()
    os.kill(tether, signal.SIGKILL)
    await until(lambda: not running(observer.ups[0][:1]))
    await until(lambda: len(observer.ups) == 2)
    await it.stop()
    for pid in running(observer.ups[0]):  # nobody was left to find the others
        os.kill(pid, signal.SIGKILL)


async def test_a_command_that_cannot_start_is_tried_again_and_reported() -> None:
    observer = Observer()
    it = supervised(["/no/such/program"], observer)
    it.start()
    await until(lambda: it.starts >= 3)
    assert not await it.wait_up(0)
    assert "exited with status 127 after saying 'cannot start /no/such/program:" in it.status or it.status == "starting"
    await it.stop()
    assert (observer.ups, observer.downs) == ([], [])


async def test_a_command_that_is_not_ready_in_time_is_started_anew() -> None:
    observer = Observer()
    answers = iter([False, True])

    async def ready() -> bool:
        answer = next(answers)
        if not answer:
            await asyncio.Event().wait()
        return answer

    it = supervised(tree(), observer, ready=ready, ready_timeout=1.0)
    it.start()
    assert await it.wait_up(15)
    assert (it.starts, len(observer.ups), observer.downs) == (2, 1, [])
    await it.stop()


async def test_endless_lines_are_logged_in_pieces_and_never_block() -> None:
    program = "import sys; sys.stderr.write('x' * 10_000_000); print('{}', flush=True); sys.stdin.read()"
    ups: list[object] = []
    it = Supervised(
        "it", [sys.executable, "-c", program], random=Random(0), announcements=1, on_up=ups.append, backoff=QUICK
    )
    it.start()
    await until(lambda: bool(ups))
    assert ups[0] == [{}]
    assert max(len(line) for line in it.tail) == 500
    await it.stop()


async def test_stopping_what_never_started_is_no_error() -> None:
    await Supervised("it", ["true"], random=Random(0)).stop()


async def test_stopping_while_it_waits_to_start_again_returns_at_once() -> None:
    it = Supervised("it", ["false"], random=Random(0), backoff=(600.0, 600.0))
    it.start()
    await until(lambda: "starting again" in it.status)
    async with asyncio.timeout(5):
        await it.stop()


def tether(*arguments: str) -> int:
    reading, writing = os.pipe()
    words = [str(reading) if argument == "FD" else argument for argument in arguments]
    command = [sys.executable, "-I", "-S", str(TETHER), *words]
    try:
        return subprocess.run(command, pass_fds=(reading,), capture_output=True, timeout=30).returncode
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("FD", "1", "--", "sh", "-c", "exit 3"), 3),
        (("FD", "1", "--", "sh", "-c", "kill -9 $$"), 128 + 9),
        (("FD", "1", "--", "/no/such/program"), 127),
        (("FD", "1", "--"), 2),
        ((), 2),
    ],
)
def test_the_tether_hands_on_the_status(arguments: tuple[str, ...], status: int) -> None:
    assert tether(*arguments) == status


def test_the_tether_ends_what_outlives_its_command(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    assert tether("FD", "5", "--", "sh", "-c", f"setsid sleep 600 & echo $! > {note}") == 0
    assert running([int(note.read_text())]) == []


async def test_emulated_engines_announce_themselves_and_serve() -> None:
    announced: list[dict[str, Any]] = []
    it = Supervised(
        "emulators",
        emulator_command(2, model="tiny", max_batch=3, speed=100.0),
        random=Random(0),
        announcements=2,
        on_up=announced.extend,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    it.start()
    assert await it.wait_up(30), it.status
    assert [(each["model"], each["slots"]) for each in announced] == [("tiny", 3), ("tiny", 3)]
    for each in announced:
        client = EngineClient(each["url"])
        assert await client.alive()
        told = await client.discover()
        assert (told.models, told.priority) == (("tiny",), True)
        await client.aclose()
    await it.stop()


def test_a_vllm_command_takes_an_interpreter_or_what_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--host", "127.0.0.1", "--port", "8001", "--scheduling-policy", "priority"]
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", "m"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vllm_command("m", 8001) == [sys.executable, *module, *flags]
    program = tmp_path / "vllm"
    program.touch(mode=0o755)
    assert vllm_command("m", 8001, max_num_seqs=4, extra_args=["--enforce-eager"]) == [
        *(str(program), "serve", "m", *flags),
        *("--max-num-seqs", "4", "--enforce-eager"),
    ]
    assert vllm_command("m", 8001, python="/p") == ["/p", *module, *flags]


def test_a_free_port_can_be_listened_on() -> None:
    assert 1024 <= free_port() < 65536
