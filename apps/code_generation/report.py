"""What a run of the tests says to the model that has to write the code again."""

from __future__ import annotations

from collections.abc import Sequence

from llmsched.runtime.tools.sandbox import Check, Outcome, Status

#: Longest test, and most characters of the end of stderr, that a report repeats.
TEST_CHARS, STDERR_CHARS = 400, 1500

_WHY: dict[Status, str] = {
    "timeout": "The code took too long and was stopped.",
    "memory": "The code needed more memory than it may have.",
    "output": "The code printed more than it may and was stopped.",
    "disk": "The code wrote more to files than it may and was stopped.",
    "threads": "The code started more threads than it may and was stopped.",
    "killed": "The code crashed its interpreter.",
    "error": "The code ended with an error before its tests were done.",
}


def write_report(outcome: Outcome, checks: Sequence[tuple[str, Check]]) -> str:
    """Tests that passed, tests that failed and why, and what kept the code from its end. The same run, the same text.

    checks: each test with what became of it.
    """
    parts = []
    if outcome.status in _WHY:
        parts.append(_WHY[outcome.status])
        if outcome.stderr.strip():
            parts.append(_end(outcome.stderr.strip("\n")))
    passed = [_short(test) for test, check in checks if check.passed]
    failed = [f"{_short(test)}  # {check.message}" for test, check in checks if not check.passed]
    if outcome.status == "ok" or passed:
        parts.append(_listed("Tests passed:", passed))
        parts.append(_listed("Tests failed:", failed))
    if not checks:
        parts.append("There were no usable tests.")
    return "\n\n".join(parts)


def _listed(title: str, entries: Sequence[str]) -> str:
    return "\n".join([title, *(entries or ["none"])])


def _short(test: str) -> str:
    return test if len(test) <= TEST_CHARS else test[: TEST_CHARS - 1] + "…"


def _end(text: str) -> str:
    return text if len(text) <= STDERR_CHARS else "…" + text[-STDERR_CHARS + 1 :]
