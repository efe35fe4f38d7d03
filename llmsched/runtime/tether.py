"""A leash for one command: it ends, with everything it started, when we do, even after `kill -9`.

    python -I -S tether.py FD GRACE -- COMMAND [ARGUMENT …]

FD is the reading end of a pipe whose writing end only the service holds: it reads as closed when the service is gone,
however it went. Then, or on SIGTERM, every descendant gets SIGTERM and, GRACE seconds later, SIGKILL; a second SIGTERM
ends the grace. Exits with the status of the command, or 128 + the signal that ended it; what outlives the command is
ended too.

On Linux the tether is a child subreaper: descendants that lost their parent, or made their own session, become its
children instead of init's, so that none escapes. Elsewhere it ends the command's process group. Standard library
only, and no import of ours: it runs in its own bare interpreter, which starts in 20 ms and stays small.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
#: A fork of the service could hold the pipe open after its death, so who our parent is counts as well. Seconds.
PARENT_CHECK_S = 1.0
#: How often descendants are looked for while they are being ended, and how long after SIGKILL we wait for them.
LOOK_S = 0.02
KILLED_S = 10.0


class Tether:
    """The command, and what we have been asked to do about it."""

    def __init__(self, fd: int, grace: float, command: list[str]) -> None:
        self.fd = fd
        self.grace = grace
        self.parent = os.getppid()
        #: Signals that asked us to end.
        self.asked = 0
        #: Exit status of the command, once it has one.
        self.status: int | None = None
        self.wake, alarm = os.pipe()
        os.set_blocking(alarm, False)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Kept: a Popen that is forgotten collects its child by itself, and the status is lost.
        self.process = _start(command)

    def run(self) -> int:
        """Wait for the end of the command or of the service, leave nothing behind, return the exit status."""
        while self.status is None and not self.asked and os.getppid() == self.parent:
            if self.fd in self._wait(PARENT_CHECK_S) and not os.read(self.fd, 1):
                break
            self._reap()
        self._end()
        self._reap()  # who died between the last two looks
        return 1 if self.status is None else self.status

    def _end(self) -> None:
        """End every descendant. New ones may appear while we look, so look until there are none."""
        deadline = time.monotonic() + self.grace
        told: set[int] = set()
        while living := self._living():
            now = time.monotonic()
            if self.asked > 1:
                deadline = min(deadline, now)
            if now > deadline + KILLED_S:
                return
            for pid in living:
                if now >= deadline:
                    _kill(pid, signal.SIGKILL)
                elif pid not in told:
                    _kill(pid, signal.SIGTERM)
            told.update(living)
            self._wait(LOOK_S, watch=False)

    def _living(self) -> list[int]:
        """Whom to signal: living descendants, or the command's process group where these cannot be found."""
        self._reap()
        if LINUX:
            return descendants(os.getpid())
        try:
            os.kill(-self.process.pid, 0)
        except OSError:
            return []
        return [-self.process.pid]

    def _wait(self, seconds: float, *, watch: bool = True) -> list[int]:
        """Sleep until a signal comes, the pipe moves or the time is up; the readable descriptors."""
        ready, _, _ = select.select([self.wake, self.fd] if watch else [self.wake], [], [], seconds)
        if self.wake in ready:
            os.read(self.wake, 512)
        return ready

    def _reap(self) -> None:
        """Collect the dead: the command, and the orphans we adopted."""
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self.process.pid:
                    code = os.waitstatus_to_exitcode(found[1])
                    self.status = code if code >= 0 else 128 - code
        except ChildProcessError:
            return

    def _ask(self, *_: object) -> None:
        self.asked += 1


def descendants(root: int) -> list[int]:
    """Living descendants of a process, parents first, from /proc.

    Zombies are not living, except our own: threads of one may still run, and it can be collected when they have ended.
    """
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # "pid (any name) state ppid …"
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state != b"Z" or int(parent) == root:
            children.setdefault(int(parent), []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the command in its own session."""
    if not LINUX:
        return subprocess.Popen(command, start_new_session=True)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Should somebody kill -9 the tether itself, the kernel asks at least the command to end.
    leash = (PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: prctl(*leash))


def main(arguments: list[str]) -> int:
    """Run as a script; 2 on wrong usage, 127 when the command cannot be started."""
    match arguments:
        case [fd, grace, "--", *command] if command:
            try:
                tether = Tether(int(fd), float(grace), command)
            except OSError as error:
                print(f"cannot start {command[0]}: {error}", file=sys.stderr)
                return 127
            return tether.run()
    print("usage: tether.py FD GRACE -- COMMAND [ARGUMENT ...]", file=sys.stderr)
    return 2


if __name__ == "__main__":
    # Not sys.exit: a Popen whose child was reaped by hand has nothing to say at shutdown.
    os._exit(main(sys.argv[1:]))
