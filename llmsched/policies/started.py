"""`finish-started`: jobs that were begun before jobs that were not, each in order of arrival.

What users of workflows ask for: finish what was begun. It keeps few jobs open at a time, and knows nothing of lengths.
Source: ours; specification 15.
"""

from __future__ import annotations

from llmsched.model.job import Stage
from llmsched.policies.base import Change, KeyPolicy, TaskEnded, TaskStarted, View


class FinishStarted(KeyPolicy):
    """0 for a job with a finished or running task, else 1. A job that lost its only attempt was not begun."""

    key_name = "not_started"

    def key(self, stage: Stage, view: View) -> int:
        job = stage.job
        return 0 if job.running or any(s.done_tasks for s in job.stages.values()) else 1

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        match change:
            case TaskStarted(task) if len(task.job.running) == 1:
                self.rekey(task.job, view)
            case TaskEnded(task) if not task.job.running:
                self.rekey(task.job, view)
            case _:
                pass
