"""Run a command that must not outlive its parent, together with everything that it starts.

    python leash.py COMMAND ARGUMENT...        (started in a session of its own)

A vLLM server is a tree of processes, and killing one of them leaves others behind for a while. So the leash
is the leader of their process group and kills the whole group, itself included, as soon as either the
command ends or the standard input is closed. The parent holds the other end of that pipe: the system closes
it however the parent ends, SIGKILL included, when no code of ours runs any more.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys


def main(command: list[str]) -> None:
    """Start `command` and kill the process group when it ends or when standard input does."""
    if os.getpgrp() != os.getpid():
        raise SystemExit("leash.py must lead a process group of its own: start it with start_new_session=True")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(child.pid)
    # Nobody writes to the pipe: readable means closed.
    select.select([sys.stdin.fileno(), ended], [], [])
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
