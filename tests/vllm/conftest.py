"""Fixtures for tests against a real vLLM: one engine for the whole session, found by LLMSCHED_VLLM_PYTHON."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.engine import RealEngine, running

# Imported by the tests only later, or else their assertions would say nothing but AssertionError.
pytest.register_assert_rewrite("tests.integration.service", "tests.vllm.checks")

HERE = Path(__file__).parent
#: Changes the interpreter that imports it.
collect_ignore = ["naps"]

#: Seconds for one test; the first one also pays for the engine's start.
TIMEOUT = 420


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder, before `-m` selects; without an interpreter, say what to do."""
    ours = [item for item in items if HERE in item.path.parents]
    named = os.environ.get("LLMSCHED_VLLM_PYTHON", "")
    if ours and shutil.which(named) is None:
        raise pytest.UsageError(
            "LLMSCHED_VLLM_PYTHON must name the interpreter that has vLLM: run `make test-vllm`, which makes one "
            f"and sets it (now: {named!r})"
        )
    for item in ours:
        item.add_marker(pytest.mark.vllm)
        item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter that has vLLM."""
    return os.environ["LLMSCHED_VLLM_PYTHON"]


@pytest.fixture(scope="session")
def engine(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """A real vLLM with 16 slots, shared by all tests: compare its counters before and after.

    A test may kill it if it starts it again.
    """
    log = tmp_path_factory.mktemp("vllm") / "engine.log"
    with running(RealEngine(vllm_python, log, slots=16)) as started:
        yield started
