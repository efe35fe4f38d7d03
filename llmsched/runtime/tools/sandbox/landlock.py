"""The files that code in the sandbox may open, as a rule set for the kernel's Landlock.

Readable: the standard library (without site-packages), the C libraries it loads, time zones, /dev/null and the sources
of randomness. Writable: the directory of the run. Nothing may be executed. A kernel that knows more (version 4: TCP,
5: device control, 6: signals and abstract UNIX sockets) also closes that; the seccomp filter does so on every kernel.
"""

from __future__ import annotations

import ctypes
import glob
import os
import struct
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << n for n in range(6))
_MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14

#: What each version of Landlock knows how to forbid on files: rights 0 to n - 1.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}

CREATE_RULESET = 444

Rule = tuple[bytes, int]


def version() -> int:
    """The version of Landlock that this kernel offers; 0 if it has none, or does not let us."""
    asks_for_version = ctypes.c_uint(1)
    found: int = ctypes.CDLL(None).syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), asks_for_version)
    return max(0, found)


def ruleset(version: int) -> bytes:
    """`struct landlock_ruleset_attr`: everything this version can forbid is forbidden unless a rule allows it."""
    fields = [_handled(version)]
    if version >= 4:
        fields.append(0b11)  # to bind and to connect TCP
    if version >= 6:
        fields.append(0b11)  # abstract UNIX sockets and signals across the border
    return struct.pack(f"={len(fields)}Q", *fields)


def writable(directory: str, version: int) -> Rule:
    """The rule for the directory of a run."""
    rights = _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM
    return os.fsencode(directory), (rights | _REFER | _TRUNCATE) & _handled(version)


@lru_cache(1)
def readable() -> tuple[Rule, ...]:
    """The rules for what every run may read; the same for all runs of this interpreter."""
    return tuple(
        (os.fsencode(path), rights | (_READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE))
        for path, rights in dict(_paths()).items()
        if os.path.exists(path)
    )


def _handled(version: int) -> int:
    return int((1 << _RIGHTS[min(version, max(_RIGHTS))]) - 1)


def _paths() -> Iterator[tuple[str, int]]:
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix, "installed_base": sys.base_prefix}
    base["installed_platbase"] = sys.base_exec_prefix
    for kind in ("stdlib", "platstdlib"):
        library = sysconfig.get_path(kind, vars=base)
        # Entry by entry, for Landlock has no "except".
        for entry in os.listdir(library) if os.path.isdir(library) else ():
            if entry not in ("site-packages", "dist-packages", "__pycache__"):
                yield os.path.join(library, entry), 0
        yield os.path.join(library, "__pycache__"), 0
        yield os.path.dirname(library) + f"/python{sys.version_info.major}{sys.version_info.minor}.zip", 0
    for directory in _library_directories():
        for path in glob.glob(os.path.join(glob.escape(directory), "*.so*")):
            yield path, 0
    multiarch = getattr(sys.implementation, "_multiarch", "")
    if multiarch:
        yield from ((f"/lib/{multiarch}", 0), (f"/usr/lib/{multiarch}", 0))
    yield from (("/etc/ld.so.cache", 0), ("/etc/localtime", 0), ("/usr/share/zoneinfo", 0))
    yield from (("/dev/zero", 0), ("/dev/random", 0), ("/dev/urandom", 0), ("/dev/null", _WRITE_FILE))


def _library_directories() -> list[str]:
    """Where shared libraries may lie, among them things that are no business of the code."""
    own = [os.path.join(sys.base_prefix, "lib"), sysconfig.get_config_var("LIBDIR") or ""]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    return [d for d in dict.fromkeys([*own, *system, *os.environ.get("LD_LIBRARY_PATH", "").split(":")]) if d]
