"""The handler of code generation: runs code against the tests that were written for it, and says what happened."""

from __future__ import annotations

from typing import Any

from llmsched import handler

_SCHEMA = {
    "type": "object",
    "properties": {
        "code": {"type": "string"},
        "tests": {"type": "array", "items": {"type": "string"}},
        "context": {"type": "string"},
    },
    "required": ["code", "tests"],
    "additionalProperties": False,
}


@handler(name="code_generation.run_tests", schema=_SCHEMA)
def run_tests(arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs `context` and `code`, and then each of `tests`, in the sandbox.

    Returns {"passed": whether all went well, "report": what a model needs to know, "failed": [{"test", "message"}],
    "code": the program without a Markdown fence}. Tests that are not Python are left out; where none are left, code
    that runs is code that passes.

    Raises InvalidSetting where this machine has no sandbox.
    """
    from llmsched.apps.code_generation.programs import bare_code, run_program, usable_tests
    from llmsched.apps.code_generation.report import write_report

    code, tests = bare_code(arguments["code"]), usable_tests(arguments["tests"])
    outcome = run_program(code, tests, context=arguments.get("context", ""))
    checks = list(zip(tests, outcome.checks[1:], strict=True))
    return {
        "passed": outcome.passed,
        "report": write_report(outcome, checks),
        "failed": [{"test": test, "message": check.message} for test, check in checks if not check.passed],
        "code": code,
    }
