"""The metric of code generation: pass@1 with the dataset's own tests, which the job never saw."""

from __future__ import annotations

from typing import Any


def score(result: Any, reference: Any) -> float:
    """1.0 if the result's code passes every hidden test, else 0.0; the mean over samples is pass@1.

    result: {"code", …} of a job. reference: {"tests", "setup", "context"} of a sample. Runs the code in the sandbox,
    and raises InvalidSetting where this machine has none.
    """
    from llmsched.apps.code_generation.programs import bare_code, run_program

    code = result.get("code") if isinstance(result, dict) else None
    if not isinstance(code, str):
        return 0.0
    tests, setup, context = reference["tests"], reference.get("setup", ""), reference.get("context", "")
    return float(run_program(bare_code(code), tests, setup=setup, context=context).passed)
