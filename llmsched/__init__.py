"""llmsched: a scheduling service for compound LLM applications in front of vLLM.

What applications and handlers are written with can be imported from here: `App`, `handler`, `TaskContext`,
`InvalidInput`. It is imported when it is asked for, because every worker process imports this file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsched.builder import App
    from llmsched.errors import InvalidInput
    from llmsched.runtime.tools.handlers import TaskContext, handler

__version__ = "0.1.0"
__all__ = ["App", "InvalidInput", "TaskContext", "__version__", "handler"]

_HOMES = {
    "App": "llmsched.builder",
    "InvalidInput": "llmsched.errors",
    "TaskContext": "llmsched.runtime.tools.handlers",
    "handler": "llmsched.runtime.tools.handlers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
