"""The directory of one run: its own, watched while it fills, and gone afterwards.

All of them lie in one directory of this user's, `llmsched-sandbox-<uid>` among the temporary files. Whoever uses one
holds a lock on it, which ends with its process however that ends, so the next run finds what a killed one left, and
deletes it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from llmsched.errors import BackendError

#: How deep we look, and at how much, when we add up what is there; code that needs more has more than it may.
MAX_DEPTH, MAX_ENTRIES = 64, 100_000


@contextmanager
def fresh_directory() -> Iterator[Path]:
    """An empty directory of our own, deleted at the end. Raises BackendError, or OSError when the disk is full."""
    home = _home()
    _sweep(home)
    while True:
        path = home / secrets.token_hex(8)
        path.mkdir(0o700)
        lock = _lock(path)
        if lock is not None:
            break
    try:
        yield path
    finally:
        remove(path)
        os.close(lock)


def usage(path: Path) -> tuple[int, int]:
    """(bytes on disk, entries) below a directory; beyond MAX_DEPTH or MAX_ENTRIES it is more than anybody may have.

    It changes while we look, even to a link that leads out of it: so we only count, and not for long.
    """
    size = entries = 0
    todo = [(str(path), 0)]
    while todo:
        directory, depth = todo.pop()
        if depth > MAX_DEPTH or entries > MAX_ENTRIES:
            return 1 << 62, 1 << 62
        with suppress(OSError), os.scandir(directory) as found:  # it may vanish while we look
            for entry in islice(found, MAX_ENTRIES + 1):
                entries += 1
                with suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append((entry.path, depth + 1))
    return size, entries


def remove(path: Path) -> None:
    """Deletes a directory with all it holds, however deep: `shutil.rmtree` recurses, and follows no path this long.

    What cannot be deleted stays; nothing is raised.
    """
    top = _open(path)
    if top is None:
        return
    try:
        while names := os.listdir(top):
            changed = [_empty(top, name) for name in names]
            if not any(changed):  # a read-only file system, say
                return
    finally:
        os.close(top)
    with suppress(OSError):
        path.rmdir()


def _empty(top: int, name: str) -> bool:
    """Deletes an entry of `top`, having moved the directories that it holds up into `top`. Whether anything changed."""
    with suppress(OSError):
        os.unlink(name, dir_fd=top)
        return True
    changed = False
    with suppress(OSError):
        os.chmod(name, 0o700, dir_fd=top)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            for entry in os.listdir(inner):
                with suppress(OSError):
                    _take_out(entry, inner, top)
                    changed = True
        finally:
            os.close(inner)
        # Not before it is empty: the kernel would look through all that is below it, and then refuse.
        os.rmdir(name, dir_fd=top)
        changed = True
    return changed


def _take_out(entry: str, inner: int, top: int) -> None:
    if stat.S_ISDIR(os.stat(entry, dir_fd=inner, follow_symlinks=False).st_mode):
        os.chmod(entry, 0o700, dir_fd=inner)
        os.rename(entry, secrets.token_hex(8), src_dir_fd=inner, dst_dir_fd=top)
    else:
        os.unlink(entry, dir_fd=inner)


def _home() -> Path:
    home = Path(tempfile.gettempdir()) / f"llmsched-sandbox-{os.geteuid()}"
    with suppress(FileExistsError):
        home.mkdir(0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise BackendError(f"{home} is not a directory of our own with mode 700; remove it, or set TMPDIR")
    return home


def _sweep(home: Path) -> None:
    """Deletes what killed runs left."""
    for name in os.listdir(home):
        lock = _lock(home / name)
        if lock is not None:
            remove(home / name)
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a directory; None if somebody else has it, or it is gone."""
    opened = _open(path)
    if opened is None:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Deleted between the two, it would be a directory that nobody can find.
        if os.path.samestat(os.fstat(opened), path.lstat()):
            return opened
    except OSError:
        pass
    os.close(opened)
    return None


def _open(path: Path) -> int | None:
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return None
