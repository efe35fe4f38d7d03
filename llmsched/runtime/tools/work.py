"""What a worker is asked to do, and everything that can become of it instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmsched.errors import BackendError
from llmsched.runtime.tools.handlers import TaskContext


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """One call of a handler. arguments: what JSON can say. timeout: seconds the handler may run. pool: of its stage."""

    handler: str
    arguments: dict[str, Any]
    timeout: float
    context: TaskContext
    pool: str = "cpu"


class WorkerError(BackendError):
    """A regular task failed.

    | reason | retryable | what happened |
    |---|---|---|
    | timeout | yes | it ran longer than it may |
    | handler_error | yes, unless it is an InvalidInput | the handler raised |
    | worker_died | yes | its process ended, could not start, or the pool closed |
    | memory | yes, on a fresh process | it needed more memory than a worker has |
    | connect | yes | a tool elsewhere could not be reached, or hung up |
    | http_5xx, http_408, http_425, http_429 | yes | a tool elsewhere answered with that status |
    | every other http_3xx and http_4xx | no | a tool elsewhere answered with that status |
    | bad_arguments | no | what goes in is not JSON, or breaks the handler's schema |
    | bad_result | no | what comes out is not JSON |
    | too_large | no | the result has too many bytes |
    | unknown_handler | no | nobody registered it, or a worker cannot import it |

    retry_after: seconds a tool elsewhere asked us to wait, or None. reached: False where the handler's machine was lost
    or never got to it, which is no fault of the task.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        retryable: bool = True,
        retry_after: float | None = None,
        reached: bool = True,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
        self.retry_after = retry_after
        self.reached = reached
