"""`random`: a fresh uniform number per ready task. A reference line: what order is worth when nothing is known.

Each number has a generator of its own, seeded with the task and its attempt, so that a task draws the same whichever
others there are, and a policy that takes over goes on with the same numbers.
Source: reference line; specification 15.
"""

from __future__ import annotations

from random import Random

from llmsched.errors import InvalidInput, show
from llmsched.model.job import Task
from llmsched.policies.base import TaskKeyPolicy, View


class Shuffled(TaskKeyPolicy):
    """Tasks in random order. Raises InvalidInput for a seed that is no whole number from 0 up."""

    key_name = "draw"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InvalidInput(f"seed is {show(seed)}; it must be a whole number from 0 up", field="seed")
        self._seed = seed

    def key(self, task: Task, view: View) -> float:
        job, stage, index = task.ref
        return Random(f"{self._seed}|{job}|{stage}|{index}|{task.attempt}").random()
