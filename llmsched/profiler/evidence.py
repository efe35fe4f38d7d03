"""What a running job has shown of itself so far, in the columns of its application's history."""

from __future__ import annotations

from typing import NamedTuple

from llmsched.model.job import Job, Stage, StageState, Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.profiler.history import NUMBERS, Layout

#: What is known of a column: nothing; that it runs, with its tasks and prompts; all of it; that it does not run.
UNKNOWN, OPEN, OVER, ABSENT = range(4)


class Evidence(NamedTuple):
    """pattern: one of the four states per column. costs: per column tasks, prompt tokens, output tokens, seconds, as
    far as known: of an open column the last two count finished tasks only, of which there are `done[column]`.
    numbers: features by `NUMBERS`, NaN where unknown. variant: "" where unknown.
    """

    pattern: tuple[int, ...]
    costs: list[list[float]]
    done: list[int]
    numbers: list[float]
    variant: str

    @classmethod
    def of(cls, layout: Layout, job: Job) -> Evidence:
        """Reads it off the job. O(stages + tasks)."""
        pattern = [UNKNOWN] * len(layout.columns)
        costs = [[0.0] * 4 for _ in layout.columns]
        done = [0] * len(layout.columns)
        inner: dict[str, list[Stage]] = {}
        for stage in job.stages.values():
            if stage.spec.parent is not None:
                inner.setdefault(stage.spec.parent, []).append(stage)
                continue
            columns = layout.of_stage.get(stage.name)
            if columns is None or stage.kind is StageKind.DYNAMIC:
                continue
            k = columns[0]
            if stage.state is StageState.SKIPPED:
                pattern[k] = ABSENT
            elif stage.tasks is not None:
                pattern[k] = OVER if stage.done_tasks == len(stage.tasks) else OPEN
                done[k] = _add(costs[k], stage.tasks)
        for name, columns in layout.of_stage.items():
            if not layout.columns[columns[0]].is_plan:
                continue
            stage = job.stages[name]
            if stage.state is StageState.WAITING and not stage.is_revealed:
                continue
            for k in columns:
                pool = layout.columns[k].pool
                own = [s for s in inner.get(name, ()) if s.pool == pool and s.tasks is not None]
                for s in own:
                    assert s.tasks is not None
                    done[k] += _add(costs[k], s.tasks)
                if not own or stage.state is StageState.SKIPPED:
                    pattern[k] = ABSENT
                else:
                    pattern[k] = OVER if done[k] == costs[k][0] else OPEN
        numbers = [float(job.features[name]) if name in job.features else float("nan") for name in NUMBERS]
        return cls(tuple(pattern), costs, done, numbers, str(job.features.get("variant", "")))


def _add(cost: list[float], tasks: tuple[Task, ...]) -> int:
    """Adds what is known of tasks to a column's cost; how many of them are done."""
    done = 0
    for task in tasks:
        cost[0] += 1
        if task.state is TaskState.DONE and task.result is not None:
            done += 1
            result = task.result
            cost[1] += result.prompt_tokens or task.prompt_tokens
            if task.stage.kind is StageKind.LLM:
                cost[2] += result.output_tokens
            else:
                cost[3] += result.duration
        else:
            cost[1] += task.prompt_tokens
    return done
