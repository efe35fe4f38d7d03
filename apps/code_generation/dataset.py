"""The datasets of code generation as they are published: MBPP, sanitized MBPP, and HumanEval.

* MBPP, `mbpp.jsonl`: `{"task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"}` a line;
* sanitized MBPP, `sanitized-mbpp.json`: one list of `{"task_id", "prompt", "code", "test_imports", "test_list"}`;
* HumanEval, `HumanEval.jsonl.gz`: `{"task_id", "prompt", "entry_point", "canonical_solution", "test"}` a line.

The job gets the description, the name and the first line of the function, and code that has to stand before it; the
tests and the solution are for the scorer. MBPP tells the name only in its tests and solution, so it is taken from them.
Its challenge tests are left out, as in the published scores.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any

import orjson

from llmsched import InvalidInput
from llmsched.apps.code_generation.programs import parse
from llmsched.datasets import Sample, lines, text


def load(path: Path) -> Iterator[Sample]:
    """The samples of a file. Raises InvalidInput, with the place, for what is none of the three formats."""
    for where, entry in _entries(path):
        try:
            yield _read(entry)
        except (ValueError, SyntaxError, RecursionError) as error:
            raise InvalidInput(f"{where}: {error}", field="data") from None


def _entries(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.name.removesuffix(".gz").endswith(".json"):
        try:
            entries = orjson.loads(text(path))
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"{path} is no JSON: {error}; call JSON lines .jsonl", field="data") from None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InvalidInput(f"{path} is no list of objects; is this sanitized-mbpp.json?", field="data")
        yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1))
    else:
        yield from ((f"{path}, line {number}", entry) for number, entry in lines(path))


def _read(entry: Mapping[str, Any]) -> Sample:
    """Raises ValueError or SyntaxError."""
    if "test_list" in entry:
        return _read_mbpp(entry)
    if "entry_point" in entry:
        return _read_humaneval(entry)
    raise ValueError(
        f"neither 'test_list' (MBPP) nor 'entry_point' (HumanEval) is among its keys: {', '.join(entry) or 'none'}"
    )


def _read_mbpp(entry: Mapping[str, Any]) -> Sample:
    if type(entry.get("task_id")) is not int:
        raise ValueError(f"task_id is {entry.get('task_id')!r}, it must be a whole number")
    description = _text(entry, "text" if "text" in entry else "prompt")
    code, tests = _text(entry, "code").replace("\r\n", "\n"), _texts(entry, "test_list")
    setup = "\n".join([*_texts(entry, "test_imports", default=[]), _text(entry, "test_setup_code", default="")]).strip()
    if not tests:
        raise ValueError("test_list is empty, so nothing could be scored")
    program = parse(code)
    function = _tested(program, tests)
    context = "\n\n".join(ast.unparse(node) for node in _classes(program, setup))
    return _sample(f"mbpp_{entry['task_id']}", description, function, context, tests, setup)


def _read_humaneval(entry: Mapping[str, Any]) -> Sample:
    prompt, name, test = _text(entry, "prompt"), _text(entry, "entry_point"), _text(entry, "test")
    _text(entry, "canonical_solution")
    functions = {node.name: node for node in parse(prompt).body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        raise ValueError(f"the prompt has no function {name!r}; it has {', '.join(functions) or 'none'}")
    function = functions[name]
    description = _description(function)
    context = "\n".join(prompt.split("\n")[: function.lineno - 1]).strip()
    return _sample(_text(entry, "task_id"), description, function, context, [f"{test}\n\ncheck({name})"], "")


def _sample(
    name: str, description: str, function: ast.FunctionDef, context: str, tests: list[str], setup: str
) -> Sample:
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    given = {
        "description": description,
        "entry_point": function.name,
        "signature": f"def {function.name}({ast.unparse(function.args)}){returns}:",
    }
    return Sample(
        id=name,
        input=given | ({"context": context} if context else {}),
        reference={"tests": tests, "setup": setup, "context": context, "entry_point": function.name},
    )


def _tested(program: ast.Module, tests: list[str]) -> ast.FunctionDef:
    """The function of the solution that the tests call."""
    functions = {node.name: node for node in program.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(parse("\n".join(tests))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            return functions[node.func.id]
    raise ValueError(f"the tests call none of the functions of the code: {', '.join(functions) or 'it has none'}")


def _description(function: ast.FunctionDef) -> str:
    """The docstring, which in one published task stands behind an import."""
    for node in function.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return cleandoc(node.value.value).strip()
    raise ValueError(f"the function {function.name!r} has no docstring that says what to do")


def _classes(program: ast.Module, setup: str) -> list[ast.ClassDef]:
    """Classes of the solution that the tests are set up with: part of the task, and nothing one could guess."""
    used = {node.id for node in ast.walk(parse(setup)) if isinstance(node, ast.Name)}
    return [node for node in program.body if isinstance(node, ast.ClassDef) and node.name in used]


def _text(entry: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.80}, it must be a text")
    return value


def _texts(entry: Mapping[str, Any], key: str, *, default: list[str] | None = None) -> list[str]:
    value = entry.get(key, default)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{key} is {value!r:.80}, it must be a list of texts")
    return value
