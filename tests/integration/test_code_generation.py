"""Code generation at work: it writes tests and code, runs them in the sandbox, and repairs what fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from llmsched import apps
from llmsched.apps.code_generation import scripted
from llmsched.apps.code_generation.dataset import load
from llmsched.apps.code_generation.handlers import run_tests
from llmsched.apps.code_generation.scorer import score
from llmsched.datasets import Sample, lines
from llmsched.runtime.tools.sandbox.run import lack
from llmsched.testing import Answer, Call
from tests.integration.applications import running_application

pytestmark = pytest.mark.skipif(lack() is not None, reason=f"nothing to lock code in with: {lack()}")

EXAMPLES = next(folder for folder in apps.folders() if folder.name == "code_generation") / "examples.jsonl"
SAMPLES = {sample.input["entry_point"]: sample for sample in load(EXAMPLES)}
#: Attempts that the script needs for each example.
ATTEMPTS = {
    "count_vowels": 1, "merge_intervals": 3, "roman_to_int": 2, "is_balanced": 2, "days_between": 2, "tree_height": 1,
}  # fmt: skip


def ran(job: dict[str, Any]) -> list[str]:
    return [stage["name"] for stage in job["stages"] if stage["state"] == "done"]


def rounds(attempts: int) -> list[str]:
    """The stages of a job that needs so many attempts."""
    repairs = [f"{stage}_{k}" for k in range(1, attempts) for stage in ("reflect", "code_gen", "code_exec")]
    return ["test_gen", "code_gen_0", "code_exec_0", *repairs]


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_the_code_passes_its_tests_and_the_hidden_ones(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    async with running_application(tmp_path, "code_generation") as app:
        job = await app.run(sample.input)
    assert (job["status"], job["error"]) == ("completed", None)
    assert (job["result"]["passed"], job["result"]["attempts"]) == (True, ATTEMPTS[name])
    assert ran(job) == rounds(ATTEMPTS[name])
    assert score(job["result"], sample.reference) == 1.0


async def test_the_code_passes_its_tests_on_the_third_attempt(tmp_path: Path) -> None:
    async with running_application(tmp_path, "code_generation") as app:
        job = await app.run(SAMPLES["merge_intervals"].input)
    first, second, third = scripted.SKILLS["merge_intervals"].attempts
    assert job["result"] == {
        "code": scripted.dedent(third).strip(),
        "passed": True,
        "attempts": 3,
        "report": "\n".join(["Tests passed:", *scripted.SKILLS["merge_intervals"].tests, "", "Tests failed:", "none"]),
    }
    asked = [call.prompt for call in app.calls]
    assert [scripted.dedent(code).strip() in asked[2] for code in (first, second)] == [True, False]
    failed = "assert merge_intervals([(1, 9), (2, 3)]) == [(1, 9)]"
    assert f"Tests failed:\n{failed}  # AssertionError: the left side is [(1, 3)]" in asked[4]
    assert scripted.SKILLS["merge_intervals"].insights[1] in asked[5]


def wrong_forever(attempts: Iterator[int]) -> Answer:
    def answer(call: Call) -> str:
        asked_for = (call.schema or {}).get("properties", {})
        if "tests" in asked_for:
            return json.dumps({"tests": ["assert double(2) == 4"]})
        if "code" in asked_for:
            return json.dumps({"code": f"def double(n):\n    return n + {100 + next(attempts)}"})
        return "It adds where it should double."

    return answer


DOUBLE = {"description": "Double a number.", "entry_point": "double"}


async def test_it_gives_up_after_five_attempts(tmp_path: Path) -> None:
    async with running_application(tmp_path, "code_generation", answer=wrong_forever(count(1))) as app:
        job = await app.run(DOUBLE)
    assert job["status"] == "completed"
    assert job["result"] == {
        "code": "def double(n):\n    return n + 105",
        "passed": False,
        "attempts": 5,
        "report": (
            "Tests passed:\nnone\n\nTests failed:\nassert double(2) == 4  # AssertionError: the left side is 107"
        ),
    }
    assert ran(job) == rounds(5)
    assert len(app.calls) == 1 + 5 + 4


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(6): os.fork()",
        "import os\nos.kill(os.getppid(), 0)\nos.kill(-1, 0)",
        "x = []\nwhile True: x.append('x' * 10**7)",
        "while True: print('Tests passed: all')",
        "import os\nprint('passed')\nos._exit(0)",
        "import socket\nsocket.create_connection(('127.0.0.1', 8000))",
        "print(open('/etc/passwd').read())",
    ],
)
async def test_hostile_code_neither_passes_nor_stops_the_service(tmp_path: Path, code: str) -> None:
    def answer(call: Call) -> str:
        if "`double`" not in call.prompt:
            return scripted.answer(call)
        asked_for = (call.schema or {}).get("properties", {})
        return json.dumps({"tests": ["assert double(2) == 4"]} if "tests" in asked_for else {"code": code})

    async with running_application(tmp_path, "code_generation", answer=answer) as app:
        hostile = await app.run(DOUBLE)
        good = await app.run(SAMPLES["count_vowels"].input)
    assert (hostile["status"], hostile["result"]["passed"], hostile["result"]["attempts"]) == ("completed", False, 5)
    assert (good["status"], good["result"]["passed"]) == ("completed", True)


async def test_an_input_without_a_description_is_refused(tmp_path: Path) -> None:
    async with running_application(tmp_path, "code_generation") as app:
        reply = await app.service.post("/v1/jobs", json={"application": app.name, "input": {"entry_point": "f"}})
    assert reply.status_code == 422
    assert "'description' is a required property" in reply.json()["detail"]


# ------------------------------------------------------------------------------------- the handler, the metric


def test_the_handler_says_what_passed_and_what_failed() -> None:
    code = "Here:\n```python\ndef add(a, b):\n    return a + b\n```"
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add("]
    assert run_tests({"code": code, "tests": tests}) == {
        "passed": False,
        "report": (
            "Tests passed:\nassert add(1, 2) == 3\n\n"
            "Tests failed:\nassert add(1, 2) == 4  # AssertionError: the left side is 3"
        ),
        "failed": [{"test": "assert add(1, 2) == 4", "message": "AssertionError: the left side is 3"}],
        "code": "def add(a, b):\n    return a + b",
    }


def test_code_that_cannot_be_read_is_reported_with_its_line() -> None:
    result = run_tests({"code": "def add(a, b):\n    return (a + b", "tests": ["assert add(1, 2) == 3"]})
    assert result["passed"] is False
    assert result["report"] == (
        "The code ended with an error before its tests were done.\n\n"
        "  File \"main.py\", line 2\n    return (a + b\n           ^\nSyntaxError: '(' was never closed"
    )


def test_context_stands_before_the_code() -> None:
    arguments = {"code": "def f():\n    return SEVEN", "tests": ["assert f() == 7"], "context": "SEVEN = 7\n"}
    assert run_tests(arguments)["passed"] is True


@pytest.mark.parametrize("name", SAMPLES)
def test_canonical_solutions_score_one(name: str) -> None:
    solutions = {f"mbpp_{entry['task_id']}": entry["code"] for _, entry in lines(EXAMPLES)}
    sample = SAMPLES[name]
    assert score({"code": solutions[sample.id]}, sample.reference) == 1.0


@pytest.mark.parametrize(
    ("result", "points"),
    [
        ({"code": "def count_vowels(text):\n    return 3"}, 0.0),  # right on one of the hidden tests
        ({"code": "def count(text): return 0"}, 0.0),
        ({"code": "import os\nos._exit(0)"}, 0.0),
        ({"code": "print('1 passed')"}, 0.0),
        ({"code": ""}, 0.0),
        ({"code": None}, 0.0),
        (None, 0.0),
    ],
)
def test_anything_less_scores_nothing(result: Any, points: float) -> None:
    assert score(result, SAMPLES["count_vowels"].reference) == points


def test_a_humaneval_solution_is_checked_by_its_own_function(tmp_path: Path) -> None:
    prompt = 'from math import sqrt\n\ndef root(n: int) -> float:\n    """ The square root. """\n'
    solution = "    return sqrt(n)\n"
    entry = {
        "task_id": "HumanEval/901",
        "prompt": prompt,
        "entry_point": "root",
        "canonical_solution": solution,
        "test": "def check(candidate):\n    assert candidate(9) == 3\n    assert abs(candidate(2) - 1.414) < 1e-3\n",
    }
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(json.dumps(entry))
    (sample,) = load(path)
    assert isinstance(sample, Sample)
    assert score({"code": prompt + solution}, sample.reference) == 1.0
    assert score({"code": "def root(n):\n    return sqrt(n)"}, sample.reference) == 1.0
    assert score({"code": "def root(n):\n    return n / 3"}, sample.reference) == 0.0
