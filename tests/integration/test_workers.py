"""Workers, both kinds: what every pool promises, and what only processes can promise."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import uvloop

from llmsched.errors import InvalidSetting
from llmsched.runtime.tools.handlers import HandlerRegistry, TaskContext, build_registry
from llmsched.runtime.tools.worker_process import HEADER
from llmsched.runtime.tools.workers import InlineWorkers, ProcessWorkers, WorkerError, WorkerPool, WorkerTask

pytestmark = pytest.mark.asyncio(loop_scope="module")

HERE = Path(__file__).parent
#: Far more than anything here takes on a busy machine.
LONG = 60.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, or needs prctl")

OpenPool = Callable[..., Awaitable[WorkerPool]]


def task(handler: str, timeout: float = LONG, **arguments: Any) -> WorkerTask:
    return WorkerTask(handler, arguments, timeout, TaskContext("job_1", "search", 2, 3, "job_1/search/2"))


async def failure(running: Awaitable[object]) -> tuple[str, bool, str]:
    """Reason, retryable and message of the WorkerError that `running` must raise."""
    with pytest.raises(WorkerError) as caught:
        await running
    return caught.value.reason, caught.value.retryable, str(caught.value)


async def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LONG
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)
    return value


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def pid_of(pool: WorkerPool) -> int:
    """The process that runs the next task; there must be a slot."""
    pid = await pool.run(task("tell_pid"))
    assert isinstance(pid, int)
    return pid


async def pid_in(file: Path) -> int:
    return int(await until(lambda: file.exists() and file.read_text()))


@pytest.fixture(scope="module", autouse=True)
def _importable_handlers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        yield


@pytest.fixture
def registry() -> HandlerRegistry:
    return build_registry(["worker_handlers"], installed=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[InlineWorkers, ProcessWorkers])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[WorkerPool]:
    """A pool of either kind with one slot, which all tests share: none may break it for the next."""
    pool: WorkerPool = request.param(build_registry(["worker_handlers"], installed=False), 1, max_result_bytes=300_000)
    await pool.start()
    yield pool
    await pool.close()


@pytest_asyncio.fixture(loop_scope="module", params=[InlineWorkers, ProcessWorkers])
async def open_pool(request: pytest.FixtureRequest, registry: HandlerRegistry) -> AsyncIterator[OpenPool]:
    """Opens pools of either kind, and closes them."""
    async with _pools(request.param, registry) as open_pool:
        yield open_pool


@pytest_asyncio.fixture(loop_scope="module")
async def processes(registry: HandlerRegistry) -> AsyncIterator[OpenPool]:
    """Opens pools of processes, and closes them."""
    async with _pools(ProcessWorkers, registry) as open_pool:
        yield open_pool


@asynccontextmanager
async def _pools(kind: Callable[..., WorkerPool], registry: HandlerRegistry) -> AsyncIterator[OpenPool]:
    pools: list[WorkerPool] = []

    async def open_pool(slots: int = 1, **settings: Any) -> WorkerPool:
        pools.append(kind(registry, slots, **settings))
        await pools[-1].start()
        return pools[-1]

    yield open_pool
    for pool in pools:
        await pool.close(0.0)


# ------------------------------------------------------------------------------------- what every pool promises


async def test_a_handler_returns_its_result(pool: WorkerPool) -> None:
    words: dict[str, Any] = {"text": "naïve ☃ \N{GRINNING FACE}", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    assert await pool.run(task("echo", **words)) == words
    assert await pool.run(task("add", a=2, b=3)) == 5
    assert await pool.run(task("say_later", seconds=0, text="done")) == "done"


async def test_a_handler_that_wants_the_context_gets_it(pool: WorkerPool) -> None:
    assert await pool.run(task("tell_context")) == ["job_1", "search", 2, 3, "job_1/search/2"]


async def test_a_handler_cannot_change_the_arguments_of_its_caller(pool: WorkerPool) -> None:
    scribble = task("scribble", a=1)
    await pool.run(scribble)
    assert scribble.arguments == {"a": 1}


async def test_an_exception_of_a_handler_tells_what_and_where(pool: WorkerPool) -> None:
    reason, retryable, message = await failure(pool.run(task("fail", message="no  such\npage")))
    assert (reason, retryable) == ("handler_error", True)
    assert message.startswith("ValueError: no such page (worker_handlers.py, line ")
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_the_message_of_an_exception_has_a_bounded_length(pool: WorkerPool) -> None:
    _, _, message = await failure(pool.run(task("fail", message="x" * 1_000_000)))
    assert 1000 < len(message) < 1100


async def test_invalid_input_is_not_worth_another_attempt(pool: WorkerPool) -> None:
    reason, retryable, message = await failure(pool.run(task("refuse")))
    assert (reason, retryable) == ("handler_error", False)
    assert "no such page" in message


async def test_sys_exit_in_a_handler_is_an_exception_like_others(pool: WorkerPool) -> None:
    reason, retryable, message = await failure(pool.run(task("leave")))
    assert (reason, retryable) == ("handler_error", True)
    assert message.startswith("SystemExit: 3")


async def test_a_memory_error_is_told_from_others(pool: WorkerPool) -> None:
    reason, retryable, _ = await failure(pool.run(task("run_out_of_memory")))
    assert (reason, retryable) == ("memory", True)
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_an_unknown_handler_is_named_with_the_nearest(pool: WorkerPool) -> None:
    reason, retryable, message = await failure(pool.run(task("ecko")))
    assert (reason, retryable) == ("unknown_handler", False)
    assert message.startswith("unknown handler 'ecko'; did you mean 'echo'?")


async def test_arguments_that_are_not_json_are_refused(pool: WorkerPool) -> None:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    for arguments in ({"set": {1}}, {"nest": nest}):
        reason, retryable, message = await failure(pool.run(task("echo", **arguments)))
        assert (reason, retryable) == ("bad_arguments", False)
        assert message.startswith("the handler's arguments are not JSON: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "arguments is not what handler 'add_up' takes: 'numbers' is a required property"),
        (
            {"numbers": [1, 2, "three"]},
            "arguments.numbers[2] is not what handler 'add_up' takes: 'three' is not of type 'integer'",
        ),
        (
            {"numbers": [], "text": "x" * 1_000_000},
            f"arguments.text is not what handler 'add_up' takes: '{'x' * 37}...{'x' * 38}' is too long",
        ),
        (
            {"numbers": [], "x": 1},
            "arguments is not what handler 'add_up' takes: Additional properties are not allowed ('x' was unexpected)",
        ),
        (
            {"numbers": [*range(10_000), None]},
            "arguments.numbers[10000] is not what handler 'add_up' takes: None is not of type 'integer'",
        ),
    ],
    ids=["missing", "wrong", "long", "unknown", "many"],
)
async def test_arguments_that_break_the_schema_are_refused(
    pool: WorkerPool, arguments: dict[str, Any], message: str
) -> None:
    assert await failure(pool.run(task("add_up", **arguments))) == ("bad_arguments", False, message)
    assert await pool.run(task("add_up", numbers=[1, 2])) == 3


async def test_the_event_loop_stays_free_while_many_arguments_are_checked(pool: WorkerPool) -> None:
    """200,000 values take about a second; the loop must not notice."""
    longest, last = 0.0, time.monotonic()
    running = asyncio.create_task(pool.run(task("add_up", numbers=[1] * 200_000)))
    began = time.monotonic()
    while not running.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert await running == 200_000
    assert longest < (time.monotonic() - began) / 2


@pytest.mark.parametrize("kind", ["set", "nan", "surrogate", "bytes", "nest"])
async def test_a_result_that_is_not_json_is_refused(pool: WorkerPool, kind: str) -> None:
    reason, retryable, message = await failure(pool.run(task("return_what_json_cannot_say", kind=kind)))
    assert (reason, retryable) == ("bad_result", False)
    assert message.startswith("the handler's result is not JSON: ")


async def test_a_result_may_be_as_large_as_allowed_and_no_larger(pool: WorkerPool) -> None:
    assert await pool.run(task("return_much", bytes=299_998)) == "x" * 299_998  # and two quotes
    error = await failure(pool.run(task("return_much", bytes=299_999)))
    assert error == ("too_large", False, "the handler's result has 300001 bytes and may have 300000")
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_a_handler_that_takes_too_long_is_stopped_and_the_slot_comes_back(pool: WorkerPool) -> None:
    error = await failure(pool.run(task("sleep", timeout=0.05, seconds=600)))
    assert error == ("timeout", True, "handler 'sleep' ran longer than its 0.05 s")
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_the_timeout_does_not_count_the_wait_for_a_slot(pool: WorkerPool) -> None:
    first = asyncio.create_task(pool.run(task("sleep", seconds=0.6)))
    second = asyncio.create_task(pool.run(task("sleep", timeout=0.5, seconds=0.0)))
    assert (await first, await second) == (None, None)


async def test_no_more_tasks_run_at_once_than_there_are_slots(open_pool: OpenPool) -> None:
    pool = await open_pool(slots=2)
    assert pool.slots == 2
    await asyncio.gather(pool.run(task("sleep", seconds=0)), pool.run(task("sleep", seconds=0)))
    began = time.monotonic()
    runs = [pool.run(task("sleep", seconds=0.1)) for _ in range(3)]
    await asyncio.gather(*runs, pool.hold(0.1), pool.hold(0.1))
    assert time.monotonic() - began >= 0.3  # five times 0.1 s in two slots


async def test_cancelling_stops_the_handler_and_the_slot_comes_back(pool: WorkerPool) -> None:
    await pool.run(task("sleep", seconds=0))
    running = asyncio.create_task(pool.run(task("sleep", seconds=600)))
    waiting = asyncio.create_task(pool.run(task("sleep", seconds=600)))
    await asyncio.sleep(0)
    waiting.cancel()
    running.cancel()
    await asyncio.wait([running, waiting])
    assert running.cancelled()
    assert waiting.cancelled()
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_200_quick_tasks_over_4_slots_all_return(open_pool: OpenPool) -> None:
    pool = await open_pool(slots=4)
    results = await asyncio.gather(*[pool.run(task("add", a=n, b=1)) for n in range(200)])
    assert results == [n + 1 for n in range(200)]


async def test_closing_lets_what_runs_finish_and_fails_what_waits(open_pool: OpenPool) -> None:
    pool = await open_pool(slots=1)
    running = asyncio.create_task(pool.run(task("say_later", seconds=0.1, text="finished")))
    waiting = asyncio.create_task(failure(pool.run(task("add", a=1, b=1))))
    await asyncio.sleep(0)
    await pool.close(grace=LONG)
    assert await running == "finished"
    assert await waiting == ("worker_died", True, "the worker pool closed before the task was done")


async def test_closing_kills_what_still_runs_after_the_grace(open_pool: OpenPool) -> None:
    pool = await open_pool(slots=2)
    running = asyncio.create_task(failure(pool.run(task("sleep", seconds=600))))
    holding = asyncio.create_task(failure(pool.hold(600)))
    await asyncio.sleep(0)
    await pool.close(grace=0.05)
    closed = ("worker_died", True, "the worker pool closed before the task was done")
    assert (await running, await holding) == (closed, closed)


async def test_a_pool_works_between_start_and_close_only(open_pool: OpenPool, registry: HandlerRegistry) -> None:
    pool = await open_pool()
    await pool.start()
    assert await pool.run(task("add", a=1, b=1)) == 2
    await asyncio.gather(pool.close(), pool.close())
    await pool.close()
    await pool.start()
    for unopened in (pool, type(pool)(registry)):  # type: ignore[call-arg]
        error = await failure(unopened.run(task("add", a=1, b=1)))
        assert error == ("worker_died", True, "the worker pool is not open")
        assert (await failure(unopened.hold(1.0)))[0] == "worker_died"
    await InlineWorkers(registry).close()


@pytest.mark.parametrize("kind", [InlineWorkers, ProcessWorkers])
async def test_a_pool_without_slots_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidSetting, match="at least one slot, not 0"):
        kind(HandlerRegistry(), 0)


# ---------------------------------------------------------------------------------- what only processes promise


async def test_processes_start_when_needed_and_are_used_again(processes: OpenPool) -> None:
    me = psutil.Process()
    before = len(me.children())
    pool = await processes(slots=3)
    await pool.hold(0.0)
    assert len(me.children()) == before
    pids = [await pid_of(pool) for _ in range(5)]
    assert len(set(pids)) == 1
    assert len(me.children()) == before + 1


@pytest.mark.parametrize("runaway", ["spin", "spin_and_ignore_signals", "spin_in_c", "start_a_program"])
async def test_a_runaway_is_dead_when_its_timeout_is_reported(
    processes: OpenPool, tmp_path: Path, runaway: str
) -> None:
    pool = await processes(slots=1)
    file = tmp_path / "pid"
    running = asyncio.create_task(failure(pool.run(task(runaway, timeout=0.5, pid_file=str(file)))))
    pid = await pid_in(file)
    assert (await running)[:2] == ("timeout", True)
    assert is_gone(pid)
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_a_cancelled_runaway_is_dead_when_the_cancellation_arrives(processes: OpenPool, tmp_path: Path) -> None:
    pool = await processes(slots=1)
    running = asyncio.create_task(pool.run(task("spin_and_ignore_signals", pid_file=str(tmp_path / "pid"))))
    pid = await pid_in(tmp_path / "pid")
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert is_gone(pid)
    assert await pool.run(task("add", a=1, b=1)) == 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segfault", "the worker process was killed by SIGSEGV during the task"),
        ("kill", "the worker process was killed by SIGKILL during the task"),
        (0, "the worker process exited with code 0 during the task"),
        (3, "the worker process exited with code 3 during the task"),
    ],
)
async def test_a_crash_costs_one_attempt_and_no_slot(processes: OpenPool, how: Any, message: str) -> None:
    pool = await processes(slots=1)
    assert await failure(pool.run(task("crash", how=how))) == ("worker_died", True, message)
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_what_a_crashed_handler_had_started_dies_with_it(processes: OpenPool, tmp_path: Path) -> None:
    pool = await processes()
    running = pool.run(task("start_a_program", pid_file=str(tmp_path / "pid"), crash=True))
    assert (await failure(running))[0] == "worker_died"
    assert is_gone(await pid_in(tmp_path / "pid"))


async def test_what_a_fork_of_the_handler_says_is_never_an_answer(processes: OpenPool) -> None:
    pool = await processes()
    answers = [await pool.run(task("fork")), await pool.run(task("fork")), await pool.run(task("add", a=1, b=1))]
    assert answers == ["parent", "parent", 2]


async def test_children_of_children_die_with_a_crashed_handler(processes: OpenPool, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    pool = await processes()
    assert (await failure(pool.run(task("fork_children", pid_file=str(tmp_path / "pid")))))[0] == "worker_died"
    assert is_gone(await pid_in(tmp_path / "pid"))
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_handler_may_print_megabytes(processes: OpenPool) -> None:
    assert await (await processes()).run(task("print_much", kilobytes=3000)) == 3000


async def test_a_result_of_many_megabytes_costs_an_error_and_nothing_else(processes: OpenPool) -> None:
    pool = await processes()
    pid = await pid_of(pool)
    error = await failure(pool.run(task("return_much", bytes=50_000_000)))
    assert error == ("too_large", False, "the handler's result has 50000002 bytes and may have 1048576")
    assert await pid_of(pool) == pid


async def test_a_worker_killed_while_idle_is_replaced_unnoticed(processes: OpenPool) -> None:
    pool = await processes(slots=1)
    pid = await pid_of(pool)
    keeper = psutil.Process(pid).ppid()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: is_gone(keeper))
    await pool.hold(0.01)  # the loop hears of it
    assert await pid_of(pool) != pid


@linux_only
async def test_a_handler_dies_with_its_keeper(processes: OpenPool, tmp_path: Path) -> None:
    pool = await processes(slots=1)
    running = asyncio.create_task(failure(pool.run(task("spin", pid_file=str(tmp_path / "pid")))))
    pid = await pid_in(tmp_path / "pid")
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert await running == ("worker_died", True, "the worker process was killed by SIGKILL during the task")
    await until(lambda: is_gone(pid))


async def test_a_memory_bomb_is_contained(processes: OpenPool) -> None:
    pool = await processes(slots=1, memory_mib=256)
    assert await pool.run(task("hoard", mib=20)) == 20
    pid = await pid_of(pool)
    reason, retryable, _ = await failure(pool.run(task("hoard", mib=1000)))
    assert (reason, retryable) == ("memory", True)
    assert await pid_of(pool) != pid
    assert await pool.run(task("hoard", mib=20)) == 20


async def test_the_memory_limit_can_be_lifted(processes: OpenPool) -> None:
    pool = await processes(slots=1, memory_mib=None)
    assert await pool.run(task("hoard", mib=300)) == 300


async def test_a_memory_limit_below_what_an_interpreter_needs_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="at least 64 MiB, not 10"):
        ProcessWorkers(HandlerRegistry(), memory_mib=10)


async def test_sigterm_for_the_whole_service_does_not_break_tasks(processes: OpenPool) -> None:
    pool = await processes()
    assert await pool.run(task("wait_for_a_signal")) == "alive"
    pid = await pid_of(pool)
    os.kill(psutil.Process(pid).ppid(), signal.SIGTERM)
    assert await pool.run(task("wait_for_a_signal")) == "alive"
    assert await pid_of(pool) == pid


@linux_only
async def test_a_handler_sees_nothing_of_the_service(processes: OpenPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSCHED_API_KEYS", "secret")
    monkeypatch.setenv("SEARCH_KEY", "for the handler")
    with socket.create_server(("127.0.0.1", 0)):
        pool = await processes(slots=2)
        await asyncio.gather(pool.run(task("sleep", seconds=0)), pool.run(task("sleep", seconds=0)))
        seen: Any = await pool.run(task("look_around"))
    descriptors = {int(n): link for n, link in seen["descriptors"].items()}
    assert descriptors.pop(0) == "/dev/null"
    assert descriptors.pop(1) == descriptors.pop(2)
    assert [link.split(":")[0] for link in descriptors.values()] == ["socket"]
    assert seen["stdin"] == ""
    assert "LLMSCHED_API_KEYS" not in seen["environment"]
    assert seen["environment"]["SEARCH_KEY"] == "for the handler"


async def test_a_handler_no_worker_can_import_is_unknown(registry: HandlerRegistry, processes: OpenPool) -> None:
    registry.register("local", lambda arguments: arguments)
    reason, retryable, message = await failure((await processes()).run(task("local")))
    assert (reason, retryable) == ("unknown_handler", False)
    assert "make it a function at the top of a module" in message


async def test_a_module_that_only_the_service_can_import_makes_its_handlers_unknown(
    registry: HandlerRegistry, processes: OpenPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "vanishing_handlers.py").write_text("def vanish(arguments): ...\nHANDLERS = {'vanish': vanish}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.load("vanishing_handlers")
    (tmp_path / "vanishing_handlers.py").unlink()
    pool = await processes()
    reason, retryable, message = await failure(pool.run(task("vanish")))
    assert (reason, retryable) == ("unknown_handler", False)
    assert "cannot be imported: ModuleNotFoundError" in message
    assert await pool.run(task("add", a=1, b=1)) == 2


async def test_an_interpreter_that_does_not_start_is_a_dead_worker(
    processes: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await processes()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    reason, retryable, message = await failure(pool.run(task("add", a=1, b=1)))
    assert (reason, retryable) == ("worker_died", True)
    assert message.startswith("a worker process could not start: ")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert await failure(pool.run(task("add", a=1, b=1))) == (
        "worker_died",
        True,
        "the worker process exited with code 1 during the task",
    )


async def test_closing_leaves_no_process_thread_or_descriptor(registry: HandlerRegistry, tmp_path: Path) -> None:
    async def use_a_pool() -> list[int]:
        pool = ProcessWorkers(registry, 3)
        await pool.start()
        spinning = asyncio.create_task(failure(pool.run(task("spin", pid_file=str(tmp_path / "spin")))))
        pids = [await pid_in(tmp_path / "spin"), await pid_of(pool)]
        await failure(pool.run(task("crash", how=1)))
        await failure(pool.run(task("sleep", timeout=0.01, seconds=600)))
        await pool.run(task("leave_a_thread"))
        await pool.close(grace=0.0)
        await spinning
        (tmp_path / "spin").unlink()
        return pids

    me = psutil.Process()
    descriptors, threads, children = me.num_fds(), me.num_threads(), set(me.children(recursive=True))
    tasks = asyncio.all_tasks()
    pids = await use_a_pool()
    assert all(is_gone(pid) for pid in pids)
    assert set(me.children(recursive=True)) <= children
    assert asyncio.all_tasks() == tasks
    gc.collect()  # what is not closed complains now
    # The loop's thread that collected a child may take a moment longer.
    await until(lambda: me.num_fds() <= descriptors and me.num_threads() <= threads)


async def test_closing_lets_idle_workers_leave_in_peace(processes: OpenPool, tmp_path: Path) -> None:
    pool = await processes()
    await pool.run(task("do_something_at_exit", pid_file=str(tmp_path / "pid")))
    await pool.close()
    assert (tmp_path / "pid").exists()


@linux_only
async def test_nothing_outlives_a_killed_service(tmp_path: Path) -> None:
    runaways = ("spin", "spin_in_c", "start_a_program")
    files = [tmp_path / name for name in runaways]
    service = textwrap.dedent(f"""
        import asyncio, sys
        sys.path[:0] = {[str(HERE), *sys.path]!r}
        from llmsched.runtime.tools.handlers import TaskContext, build_registry
        from llmsched.runtime.tools.workers import ProcessWorkers, WorkerTask

        async def main():
            pool = ProcessWorkers(build_registry(["worker_handlers"], installed=False), 4)
            await pool.start()
            nobody = TaskContext("", "", 0, 0, "")
            runs = [
                asyncio.create_task(
                    pool.run(WorkerTask(name, {{"pid_file": {str(tmp_path)!r} + "/" + name}}, 600, nobody))
                )
                for name in {runaways!r}
            ]
            await asyncio.sleep(0)
            print(await pool.run(WorkerTask("tell_pid", {{}}, 600, nobody)), flush=True)
            await asyncio.gather(*runs)

        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", service, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    idle = int(await process.stdout.readline())
    pids = {idle, *[await pid_in(file) for file in files]}
    pids |= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert len(pids) == 4 * 2 + 1  # four keepers with their runners, and a program
    process.kill()
    await process.wait()
    await until(lambda: all(is_gone(pid) for pid in pids))


@linux_only
async def test_a_handler_that_returns_to_a_dead_service_makes_no_noise(tmp_path: Path) -> None:
    """Its keeper is stopped here: it would kill the runner, most of the time before the handler returns."""
    (tmp_path / "late.py").write_text(
        textwrap.dedent("""
            import os, pathlib, signal, time

            def late(arguments):
                os.kill(os.getppid(), signal.SIGSTOP)
                pathlib.Path(arguments["began"]).write_text(str(os.getpid()))
                while not os.path.exists(arguments["service_is_dead"]):
                    time.sleep(0.01)
        """)
    )
    ours, theirs = socket.socketpair()
    program = "import sys; from llmsched.runtime.tools.worker_process import main; main(int(sys.argv[1]), None, 1000)"
    with ours, theirs, (tmp_path / "said").open("wb") as said:
        worker = subprocess.Popen(  # noqa: ASYNC220 (returns at once)
            [sys.executable, "-c", program, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stderr=said,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )
        theirs.close()
        context = {"job_id": "", "stage": "", "index": 0, "attempt": 1, "idempotency_key": ""}
        arguments = {"began": str(tmp_path / "began"), "service_is_dead": str(tmp_path / "dead")}
        call = {"call": ["late", "late"], "arguments": arguments, "context": context}
        for question in ({"load": ["late", "late"]}, call):
            body = json.dumps(question).encode()
            ours.sendall(HEADER.pack(len(body)) + body)
        runner = await pid_in(tmp_path / "began")
        assert ours.recv(1000) == HEADER.pack(15) + b'{"result":null}'
    (tmp_path / "dead").touch()
    await until(lambda: is_gone(runner))
    worker.send_signal(signal.SIGCONT)
    await until(lambda: worker.poll() is not None)
    assert (worker.returncode, (tmp_path / "said").read_text()) == (0, "")


async def test_processes_work_in_uvloop(registry: HandlerRegistry, tmp_path: Path) -> None:
    async def use_a_pool() -> list[Any]:
        pool = ProcessWorkers(registry, 2)
        await pool.start()
        results = [
            await pool.run(task("add", a=1, b=1)),
            await failure(pool.run(task("spin", timeout=0.2, pid_file=str(tmp_path / "pid")))),
            await failure(pool.run(task("crash", how=3))),
            await pool.run(task("add", a=2, b=2)),
        ]
        await pool.close()
        return results

    before = psutil.Process().children(recursive=True)
    assert await asyncio.to_thread(uvloop.run, use_a_pool()) == [
        2,
        ("timeout", True, "handler 'spin' ran longer than its 0.2 s"),
        ("worker_died", True, "the worker process exited with code 3 during the task"),
        4,
    ]
    assert psutil.Process().children(recursive=True) == before
