"""`fastserve` and `mlfq`: multi-level feedback queues, which know no length and age a request by the service it had.

There are `levels` queues with quanta q_i = q0 x ratio^i seconds; the lowest queue that has anyone goes first, each is
first come, first served. A request runs for the quantum of its level; if it is not over then, it goes to the end of the
next queue. So short requests are over in the first queues, and long ones make way without anyone having foretold them.

    join      mlfq: level 0;  fastserve: the smallest i with q_i >= time to first token ("skip-join")
    slice     as many tokens as fit into what is left of the quantum at l(b), at least 16; on the last level: no cap
    demotion  a slice ended: next level; levels whose quantum is shorter than an iteration are passed over
    promotion waited for promote_after: level 0, as if nothing had been served
    loss      the executor is lost, or the attempt failed: what was generated is gone, and the request joins anew

An engine cannot be told to stop a request it runs, so the quantum is turned into tokens beforehand: by the pool's
latency curve at a full batch (b = slots of the pool's largest engine), the first slice paying for the prompt, later
ones nothing (prefix caching). A slice that ended has therefore used its quantum up, whatever the clock says, and no
request comes back to a level with a part of it left. Times to first token are taken at a full batch as well.

Source: FastServe (arXiv:2305.05920) for skip-join, demotion and promotion, specification 12; plain MLFQ as in vllm-ltr
(q0 = 0.01 s, ratio 2, promotion after 3 s there). Quanta of a second and a promotion after a minute are ours: each
slice is a request of its own here, and many short ones would cost more than they save. Within level 0, a promoted
request stands where it would had it joined the moment its time was up.
Requests are not told apart by job: see `las` for the queues of whole programs. Regular tasks are first come, first
served by the arrival of their job.
"""

from __future__ import annotations

from itertools import accumulate, islice, repeat
from operator import mul
from typing import Any

from llmsched.errors import InvalidInput, show
from llmsched.model.events import JobClass
from llmsched.model.job import Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.policies.base import Change, JobLeft, Pick, TaskEnded, TaskKeyPolicy, View
from llmsched.profiler import Knowledge

#: No slice is shorter: below this, what a dispatch costs outweighs what it generates.
LEAST_TOKENS = 16
#: Requests of one level that one decision promotes: with thousands overdue at once, it must not stop the world.
_PROMOTED = 50


class Mlfq(TaskKeyPolicy):
    """Plain multi-level feedback queue: every request enters level 0.

    q0: quantum of level 0 in seconds; ratio: of each quantum to the one before. promote_after: seconds of waiting.
    slices: False orders by level only, and as nothing is cut short, nothing is demoted (for comparison).
    Raises InvalidInput for a value that cannot be.
    """

    def __init__(
        self,
        knowledge: Knowledge | None = None,
        q0: float = 1.0,
        ratio: float = 2,
        levels: int = 6,
        promote_after: float = 60.0,
        slices: bool = True,
    ) -> None:
        super().__init__()
        _check_number("q0", q0, 0, 1e6)
        _check_number("ratio", ratio, 1, 1e3)
        _check_number("promote_after", promote_after, 0, float("inf"))
        if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= 32:
            raise InvalidInput(f"levels is {show(levels)}; it must be a whole number from 1 to 32", field="levels")
        if not isinstance(slices, bool):
            raise InvalidInput(f"slices is {show(slices)}; it must be true or false", field="slices")
        self.knowledge = knowledge or Knowledge()
        #: Seconds of each level.
        self.quanta = tuple(accumulate(repeat(float(ratio), levels - 1), mul, initial=float(q0)))
        self._promote_after = promote_after
        self._slices = slices
        #: Job -> (stage, task) -> its level and since when it queues there; of requests that joined and are not over.
        self._places: dict[str, dict[tuple[str, int], tuple[int, float]]] = {}

    def entry_level(self, task: Task, view: View) -> int:
        """Where a request joins."""
        return 0

    def key(self, task: Task, view: View) -> tuple[int, float]:
        """(level, since when). Regular tasks: (0, arrival of the job)."""
        if task.stage.kind is not StageKind.LLM:
            return 0, task.job.arrived_at
        places = self._places.setdefault(task.job.id, {})
        place = places.get((task.stage.name, task.index))
        if place is None:
            place = places[task.stage.name, task.index] = self.entry_level(task, view), task.ready_at
        return place

    def pick(self, task: Task, key: Any, view: View) -> Pick:
        level, since = key
        if task.stage.kind is not StageKind.LLM:
            return Pick(task, why={"arrived_at": since})
        return Pick(task, self.slice_tokens(task, level, view), priority=level, why={"level": level})

    def slice_tokens(self, task: Task, level: int, view: View) -> int | None:
        """Tokens a request may generate at a level before it has to queue again; None: as many as it likes."""
        iteration = self.iteration(task.pool, view)
        if not self._slices or level == len(self.quanta) - 1 or not iteration:
            return None
        prefill = 0.0 if task.generated else self.knowledge.curves[task.pool].prefill(task.prompt_tokens)
        # The tiny number is for quotients such as 0.3 / 0.1 that end just below a whole one.
        return max(LEAST_TOKENS, int((self.quanta[level] - prefill) / iteration + 1e-9))

    def iteration(self, pool: str, view: View) -> float:
        """l(b): seconds per token in a full batch of the pool's largest engine."""
        return self.knowledge.curves[pool].decode(max(1, max((e.slots for e in view.in_pool(pool)), default=1)))

    def on(self, change: Change, view: View) -> None:
        match change:
            case TaskEnded(task) if task.stage.kind is StageKind.LLM:
                self._ended(task, view)
            case JobLeft(job):
                self._places.pop(job.id, None)
            case _:
                pass
        super().on(change, view)

    def begin(self, view: View) -> None:
        """Promotes who has waited for too long: a look at the head of each queue."""
        due = view.now - self._promote_after
        for queue in self._queues.values():
            if not queue:
                continue
            for job_class in JobClass:
                for level in range(1, len(self.quanta)):
                    head, last = (job_class, (level,)), (job_class, (level, due), float("inf"))
                    for *_, task in list(islice(queue.irange_key(head, last), _PROMOTED)):
                        self._promote(task, view)

    def _ended(self, task: Task, view: View) -> None:
        places = self._places.get(task.job.id, {})
        place = places.pop((task.stage.name, task.index), None)
        if task.state is TaskState.READY and task.generated:
            level = self.entry_level(task, view) if place is None else place[0]  # None: another policy started it
            self._places.setdefault(task.job.id, {})[task.stage.name, task.index] = (
                self._next_level(level, task.pool, view),
                view.now,
            )

    def _next_level(self, level: int, pool: str, view: View) -> int:
        last, iteration = len(self.quanta) - 1, self.iteration(pool, view)
        return next((i for i in range(level + 1, last) if self.quanta[i] >= iteration), last)

    def _promote(self, task: Task, view: View) -> None:
        places = self._places[task.job.id]
        _, since = places[task.stage.name, task.index]
        places[task.stage.name, task.index] = 0, since + self._promote_after
        self.rekey(task, view)


class Fastserve(Mlfq):
    """Skip-join MLFQ: a request joins the first level whose quantum it needs for its first token.

    A long prompt would use up the quanta of the first levels before it generated anything, and only be in the way.
    Options are those of `Mlfq`.
    """

    def entry_level(self, task: Task, view: View) -> int:
        """The smallest i with q_i >= prefill of the prompt and one iteration; the last level if there is none."""
        first = self.knowledge.curves[task.pool].prefill(task.prompt_tokens) + self.iteration(task.pool, view)
        # A rounding error is no reason to join a level later.
        return next((i for i, quantum in enumerate(self.quanta) if quantum >= first - 1e-9), len(self.quanta) - 1)


def _check_number(name: str, value: float, above: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
        raise InvalidInput(
            f"{name} is {show(value)}; it must be a number above {above:g}, at most {most:g}", field=name
        )
