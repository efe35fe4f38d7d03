"""Imports go down only, and the core stays silent: read off the source, so that it stays true."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmsched

PACKAGE = Path(llmsched.__file__).parent

#: Everything else stands on the top floor: people, processes, settings.
FLOORS = {
    "errors": 0,
    "model": 1,
    "workloads": 1,
    "profiler": 2,
    "policies": 3,
    "scheduler": 4,
    "apps": 5,
    "simulator": 5,
    "runtime": 5,
    "store": 5,
}
TOP = 6

#: Imports between parts of one floor. On the top floor everything may.
SIDEWAYS = {("workloads", "model"), ("runtime", "apps")}

#: Library -> the parts of llmsched that may know it.
KEPT_TO = {
    "aiohttp": {"runtime"},
    "httpx": {"runtime"},
    "opentelemetry": {"runtime"},
    "httpx_aiohttp": {"runtime"},
    "aiosqlite": {"store"},
    "alembic": {"store"},
    "asyncpg": {"store"},
    "sqlalchemy": {"store"},
    "fastapi": {"gateway"},
    "prometheus_client": {"gateway"},
    "starlette": {"gateway"},
    "pydantic": {"gateway", "config"},
    "pydantic_settings": {"config"},
    "pyagrum": {"profiler"},
    "lightgbm": {"training"},
    "torch": {"training"},
    "transformers": {"training"},
}

#: What the floors up to the scheduler never touch: clocks, concurrency, the network, processes, the environment.
NOISE = {
    "asyncio", "concurrent", "contextvars", "datetime", "http", "logging", "multiprocessing", "os", "queue", "select",
    "secrets", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading",
    "time", "urllib", "uuid",
}  # fmt: skip
#: Reading files is the business of workloads alone.
FILES = {"gzip", "importlib", "io", "pathlib"}
CALLS = {"__import__", "breakpoint", "exec", "eval", "input", "open", "print"}

Module = tuple[str, Path]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The part of llmsched a file belongs to: `model` for llmsched/model/job.py, `config` for llmsched/config.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file with its line, wherever it stands: the full name of each module or thing."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = part(path)
    floor = FLOORS.get(own, TOP)
    for line, name in imports(path):
        if not name.startswith("llmsched."):
            continue
        other = name.split(".")[1]
        if other in ("__version__", own):
            continue
        below = FLOORS.get(other, TOP)
        allowed = below < floor or (own, other) in SIDEWAYS or below == floor == TOP
        assert allowed, f"{path}:{line}: {own} (floor {floor}) imports {name} (floor {below})"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_are_kept_to_their_part(path: Path) -> None:
    for line, name in imports(path):
        owners = KEPT_TO.get(name.split(".")[0])
        assert owners is None or part(path) in owners, f"{path}:{line}: only {sorted(owners)} may import {name}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if FLOORS.get(part(p), TOP) <= 4], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_core_is_silent(path: Path) -> None:
    reads_files = part(path) == "workloads"
    for line, name in imports(path):
        root = name.split(".")[0]
        assert root not in NOISE, f"{path}:{line}: the core does not import {name}"
        assert reads_files or root not in FILES, f"{path}:{line}: only workloads reads files"
        if root == "random":
            assert name == "random.Random", f"{path}:{line}: randomness is handed in as a Random, not {name}"
        if root == "sys":
            assert name == "sys.intern", f"{path}:{line}: the core does not look at the process"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in CALLS - ({"open"} if reads_files else set()), f"{path}:{node.lineno}"


def test_the_floors_exist() -> None:
    parts = {part(path) for path in modules()}

    assert {"errors", "model", "workloads", "policies", "scheduler", "runtime", "store", "gateway"} <= parts
