"""Code generation without a service: its handler's report, the formats of its datasets, its metric."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmsched import InvalidInput, apps
from llmsched.apps.code_generation import scripted
from llmsched.apps.code_generation.dataset import load
from llmsched.apps.code_generation.programs import bare_code, usable_tests
from llmsched.apps.code_generation.report import write_report
from llmsched.catalogue import installed_applications
from llmsched.datasets import Sample
from llmsched.runtime.scripts.live import check_templates
from llmsched.runtime.tools.handlers import build_registry
from llmsched.runtime.tools.sandbox import Check, Outcome
from llmsched.testing import Call

EXAMPLES = next(folder for folder in apps.folders() if folder.name == "code_generation") / "examples.jsonl"

MBPP = {
    "task_id": 11,
    "text": "Write a function to add two numbers.",
    "code": "def helper(a):\r\n  return a\r\ndef add(a, b = 0):\r\n  return helper(a) + b",
    "test_list": ["assert (add(1, 2)) == 3", "assert add(1) == 1"],
    "test_setup_code": "",
    "challenge_test_list": ["assert add(-1, 1) == 0"],
}
SANITIZED = {
    "source_file": "some.ipynb",
    "task_id": 12,
    "prompt": "Write a function to add two numbers.",
    "code": "def add(a, b):\n  return a + b",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(add(.1, .2), .3)"],
}
HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": (
        "from typing import List\n\n\ndef half(n: int) -> int:\n    return n // 2\n\n\n"
        'def halves(numbers: List[int]) -> List[int]:\n    """ Halve each number.\n    >>> halves([4])\n    [2]\n'
        '    """\n'
    ),
    "entry_point": "halves",
    "canonical_solution": "    return [half(n) for n in numbers]\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate([4, 6]) == [2, 3]\n",
}


def written(path: Path, *entries: Mapping[str, Any]) -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# ------------------------------------------------------------------------------------------------- datasets


def test_mbpp_is_read(tmp_path: Path) -> None:
    assert list(load(written(tmp_path / "mbpp.jsonl", MBPP))) == [
        Sample(
            id="mbpp_11",
            input={
                "description": "Write a function to add two numbers.",
                "entry_point": "add",
                "signature": "def add(a, b=0):",
            },
            reference={
                "tests": ["assert (add(1, 2)) == 3", "assert add(1) == 1"],
                "setup": "",
                "context": "",
                "entry_point": "add",
            },
        )
    ]


def test_sanitized_mbpp_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sanitized-mbpp.json"
    path.write_text(json.dumps([SANITIZED]))
    assert list(load(path)) == [
        Sample(
            id="mbpp_12",
            input={
                "description": "Write a function to add two numbers.",
                "entry_point": "add",
                "signature": "def add(a, b):",
            },
            reference={
                "tests": ["assert math.isclose(add(.1, .2), .3)"],
                "setup": "import math",
                "context": "",
                "entry_point": "add",
            },
        )
    ]


@pytest.mark.parametrize("name", ["HumanEval.jsonl", "HumanEval.jsonl.gz"])
def test_humaneval_is_read(tmp_path: Path, name: str) -> None:
    context = "from typing import List\n\n\ndef half(n: int) -> int:\n    return n // 2"
    assert list(load(written(tmp_path / name, HUMANEVAL))) == [
        Sample(
            id="HumanEval/900",
            input={
                "description": "Halve each number.\n>>> halves([4])\n[2]",
                "entry_point": "halves",
                "signature": "def halves(numbers: List[int]) -> List[int]:",
                "context": context,
            },
            reference={
                "tests": [HUMANEVAL["test"] + "\n\ncheck(halves)"],
                "setup": "",
                "context": context,
                "entry_point": "halves",
            },
        )
    ]


def test_a_docstring_may_stand_behind_an_import(tmp_path: Path) -> None:
    prompt = 'def root(n):\n    import math\n    """ Take the root. """\n'
    (sample,) = load(written(tmp_path / "h.jsonl", HUMANEVAL | {"prompt": prompt, "entry_point": "root"}))
    assert sample.input["description"] == "Take the root."


def test_classes_that_the_tests_are_set_up_with_are_part_of_the_task(tmp_path: Path) -> None:
    code = "class Node:\n    pass\n\nclass Other:\n    pass\n\ndef size(root):\n    return 1"
    entry = MBPP | {"code": code, "test_setup_code": "root = Node()", "test_list": ["assert size(root) == 1"]}
    (sample,) = load(written(tmp_path / "mbpp.jsonl", entry))
    assert sample.input["context"] == sample.reference["context"] == "class Node:\n    pass"


def test_doubtful_escapes_of_a_dataset_are_read_in_silence(tmp_path: Path) -> None:
    (sample,) = load(written(tmp_path / "mbpp.jsonl", MBPP | {"code": "def add(a, b):\n    return '\\d'"}))
    assert sample.input["signature"] == "def add(a, b):"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"question": "?"}, "neither 'test_list' (MBPP) nor 'entry_point' (HumanEval) is among its keys: question"),
        (MBPP | {"task_id": "11"}, "task_id is '11', it must be a whole number"),
        (MBPP | {"text": None}, "text is None, it must be a text"),
        (MBPP | {"test_list": "assert"}, "test_list is 'assert', it must be a list of texts"),
        (MBPP | {"test_list": []}, "test_list is empty, so nothing could be scored"),
        (MBPP | {"test_list": ["assert sub(1) == 1"]}, "the tests call none of the functions of the code: helper, add"),
        (MBPP | {"code": "def add(:"}, "invalid syntax"),
        (HUMANEVAL | {"entry_point": "thirds"}, "the prompt has no function 'thirds'; it has half, halves"),
        (HUMANEVAL | {"entry_point": "half"}, "the function 'half' has no docstring that says what to do"),
        ({k: v for k, v in HUMANEVAL.items() if k != "test"}, "test is None, it must be a text"),
    ],
)
def test_what_is_no_dataset_is_refused_with_its_line(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "data.jsonl", MBPP, entry)
    with pytest.raises(InvalidInput) as error:
        list(load(path))
    assert str(error.value).startswith(f"{path}, line 2: {message}")


def test_a_json_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sanitized-mbpp.json"
    path.write_text(json.dumps(SANITIZED))
    with pytest.raises(InvalidInput, match=r"is no list of objects; is this sanitized-mbpp\.json\?"):
        list(load(path))
    path.write_text(json.dumps(MBPP) + "\n" + json.dumps(MBPP))
    with pytest.raises(InvalidInput, match=r"is no JSON: .*; call JSON lines \.jsonl"):
        list(load(path))


# ---------------------------------------------------------------------------------------- answers and reports


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("\nx = 1\n", "x = 1"),
        ("```python\nx = 1\n\ny = 2\n```", "x = 1\n\ny = 2"),
        ("Use it so:\n```\nf()\n```\nwith\n```py\ndef f():\n    return 1\n```\n", "def f():\n    return 1"),
        ("~~~\nx = '```'\n~~~", "x = '```'"),
        ("x = 1  # no ``` fence", "x = 1  # no ``` fence"),
        ("```python\nnever closed", "```python\nnever closed"),
    ],
)
def test_code_comes_out_of_its_fence(text: str, code: str) -> None:
    assert bare_code(text) == code


def test_tests_that_are_no_python_are_left_out() -> None:
    tests = ["assert f(1) == 1", "", "f(1) is 1", "assert f(", "assert f('\\d')", "assert f(1) == 1 ", "x\0y"]
    assert usable_tests(tests) == ["assert f(1) == 1", "f(1) is 1", "assert f('\\d')"]


def outcome(status: Any, stderr: str = "", exit_code: int = 0) -> Outcome:
    return Outcome(status, exit_code, "", stderr, 0.1)


@pytest.mark.parametrize(
    ("run", "checks", "report"),
    [
        (outcome("ok"), [("assert a", Check(True))], "Tests passed:\nassert a\n\nTests failed:\nnone"),
        (
            outcome("ok"),
            [("assert a == 1", Check(False, "AssertionError: the left side is 2"))],
            "Tests passed:\nnone\n\nTests failed:\nassert a == 1  # AssertionError: the left side is 2",
        ),
        (
            outcome("error", "NameError: x\n", 1),
            [("assert a", Check(False, "not decided"))],
            "The code ended with an error before its tests were done.\n\nNameError: x",
        ),
        (
            outcome("timeout", exit_code=-9),
            [("assert a", Check(True)), ("assert b", Check(False, "not decided"))],
            "The code took too long and was stopped.\n\n"
            "Tests passed:\nassert a\n\nTests failed:\nassert b  # not decided",
        ),
        (outcome("ok"), [], "Tests passed:\nnone\n\nTests failed:\nnone\n\nThere were no usable tests."),
    ],
)
def test_a_report_says_what_passed_what_failed_and_why(
    run: Outcome, checks: Sequence[tuple[str, Check]], report: str
) -> None:
    assert write_report(run, checks) == report


def test_a_report_has_a_bounded_length() -> None:
    tests = [("assert " + "x" * 10_000, Check(False, "y"))]
    assert len(write_report(outcome("ok"), tests)) < 500
    assert len(write_report(outcome("error", "z" * 100_000, 1), tests)) < 1600


# ------------------------------------------------------------------------------------ the script, the template


def test_the_template_is_whole() -> None:
    application = installed_applications()["code_generation"]
    registry = build_registry(["llmsched.apps.code_generation.handlers"], installed=False)

    check_templates(application, registry)

    assert application.is_executable
    loop = [f"{stage}_{k}" for k in (1, 2, 3, 4) for stage in ("reflect", "code_gen", "code_exec")]
    assert [stage.name for stage in application.stages] == ["test_gen", "code_gen_0", "code_exec_0", *loop]


def test_the_script_refuses_what_it_does_not_know() -> None:
    with pytest.raises(LookupError, match=r"knows count_vowels, .* and not what this asks for: 'What `fly` has to do"):
        scripted.answer(Call(messages=[{"role": "user", "content": "What `fly` has to do: fly."}]))


def test_the_script_writes_the_next_attempt_after_the_one_it_is_shown() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "code", "schema": {"properties": {"code": {}}}}}
    asked = "What `roman_to_int` has to do: convert."
    first = json.loads(scripted.answer(Call([{"role": "user", "content": asked}], schema)))["code"]
    shown = f"{asked}\n\n```python\n{first}\n```"
    second = json.loads(scripted.answer(Call([{"role": "user", "content": shown}], schema)))["code"]
    assert "total += -value" not in first
    assert "total += -value" in second


def test_the_examples_are_mbpp() -> None:
    samples = list(load(EXAMPLES))
    assert [sample.input["entry_point"] for sample in samples] == list(scripted.SKILLS)
