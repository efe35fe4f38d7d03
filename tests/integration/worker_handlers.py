"""Handlers that behave in every way a handler can; `test_workers.py` loads them as an operator would, by name."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from llmsched.errors import InvalidInput
from llmsched.runtime.tools.handlers import TaskContext, handler

# ------------------------------------------------------------------------------------ results and errors


@handler
def add(arguments: dict[str, Any]) -> int:
    return int(arguments["a"] + arguments["b"])


@handler
async def say_later(arguments: dict[str, Any]) -> Any:
    await asyncio.sleep(arguments["seconds"])
    return arguments["text"]


@handler
def tell_context(arguments: dict[str, Any], *, context: TaskContext) -> list[Any]:
    return [context.job_id, context.stage, context.index, context.attempt, context.idempotency_key]


@handler
def scribble(arguments: dict[str, Any]) -> None:
    arguments["scribbled"] = True


@handler
def fail(arguments: dict[str, Any]) -> NoReturn:
    raise ValueError(arguments["message"])


@handler
def refuse(arguments: dict[str, Any]) -> NoReturn:
    raise InvalidInput("no such page")


@handler
def leave(arguments: dict[str, Any]) -> NoReturn:
    sys.exit(3)


@handler
def return_what_json_cannot_say(arguments: dict[str, Any]) -> Any:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    results: dict[str, Any] = {"set": {1}, "nan": float("nan"), "surrogate": "\ud800", "bytes": b"x", "nest": nest}
    return results[arguments["kind"]]


@handler
def return_much(arguments: dict[str, Any]) -> str:
    return "x" * int(arguments["bytes"])


@handler
def run_out_of_memory(arguments: dict[str, Any]) -> NoReturn:
    raise MemoryError


@handler(
    schema={
        "type": "object",
        "properties": {"numbers": {"type": "array", "items": {"type": "integer"}}, "text": {"maxLength": 9}},
        "required": ["numbers"],
        "additionalProperties": False,
    }
)
def add_up(arguments: dict[str, Any]) -> int:
    return sum(arguments["numbers"])


# ------------------------------------------------------------------------- what only a process survives


def _leave_word(arguments: dict[str, Any], pid: int | None = None) -> None:
    """Writes a process id where the test looks for it, in one step."""
    target = Path(arguments["pid_file"])
    draft = target.with_suffix(".draft")
    draft.write_text(str(pid or os.getpid()))
    draft.rename(target)


@handler
def tell_pid(arguments: dict[str, Any]) -> int:
    return os.getpid()


@handler
def spin(arguments: dict[str, Any]) -> NoReturn:
    _leave_word(arguments)
    while True:
        pass


@handler
def spin_and_ignore_signals(arguments: dict[str, Any]) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    spin(arguments)


@handler
def spin_in_c(arguments: dict[str, Any]) -> None:
    """Holds the interpreter's lock for ages."""
    _leave_word(arguments)
    re.match(r"(a+)+$", "a" * 60 + "b")


@handler
def start_a_program(arguments: dict[str, Any]) -> None:
    """A program that detaches itself as well as it can, and that the handler waits for."""
    program = subprocess.Popen(["sleep", "600"], start_new_session=True)
    _leave_word(arguments, program.pid)
    if arguments.get("crash"):
        os._exit(1)
    program.wait()


@handler
def wait_for_a_signal(arguments: dict[str, Any]) -> str:
    """Sends itself what a supervisor sends to every process of a service, and is still there afterwards."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
    return "alive"


@handler
def crash(arguments: dict[str, Any]) -> None:
    match arguments["how"]:
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case code:
            os._exit(code)


@handler
def hoard(arguments: dict[str, Any]) -> int:
    return len([bytearray(1 << 20) for _ in range(arguments["mib"])])


@handler
def look_around(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a handler finds: its descriptors, its environment, its standard input; it prints, too."""
    print("a handler may print")
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    links = {n: os.readlink(f"/proc/self/fd/{n}") for n in numbers if Path(f"/proc/self/fd/{n}").exists()}
    return {"descriptors": links, "environment": dict(os.environ), "stdin": sys.stdin.read()}


@handler
def print_much(arguments: dict[str, Any]) -> int:
    for _ in range(arguments["kilobytes"]):
        print("x" * 1023)
    return int(arguments["kilobytes"])


@handler
def fork(arguments: dict[str, Any]) -> str:
    """Goes on twice, in a parent and a child, and only the parent may be heard."""
    child = os.fork()
    if not child:
        return "child"
    os.waitid(os.P_PID, child, os.WEXITED)
    return "parent"


@handler
def fork_children(arguments: dict[str, Any]) -> str:
    """Children that have children, all of which would stay."""
    if not os.fork():
        for _ in range(3):
            os.fork()
        time.sleep(600)
    _leave_word(arguments)
    os._exit(3)


@handler
def do_something_at_exit(arguments: dict[str, Any]) -> None:
    atexit.register(_leave_word, arguments)


@handler
def leave_a_thread(arguments: dict[str, Any]) -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()
