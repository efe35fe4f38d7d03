"""The lists of LLMSched's Algorithm 1, without anything that beliefs are made of.

    S_t   ready stages by est_rd of their job, shortest first                                  lines 1-4
    S_u   ready stages, group after group of jobs whose intervals overlap, by R(X), largest first   lines 5-10
    turns p < ε: a sample of the first stage of S_u; else all tasks of the first of S_t         lines 11-20
    rest  what is left, in the order of S_t                                                    line 21

Of a stage that was sampled, S_t still has the other tasks; a stage of which nothing is left is dropped without a draw
(A27). Both lists are popped from the front (A25), and only the one that was chosen is (A26), lest the shortest job
lose its turn for good.

Turns are taken one by one, as far as somebody asks: most decisions need few of them. Of thousands of ready stages only
those are looked at one by one whose turn comes.
Source: LLMSched (arXiv:2504.03444), section IV-D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from llmsched.model.job import Stage
from llmsched.policies.base import Pick
from llmsched.policies.options import Options
from llmsched.profiler.history import Array

Ranks = npt.NDArray[np.intp]


class Entry:
    """A ready stage in one decision. rank: in S_t, from 0. The ready tasks are those at the time of the decision.

    estimate: est_rd of its job in seconds; group: the number of its job's group, by lower bound.
    """

    __slots__ = ("estimate", "given", "group", "is_explored", "rank", "ready", "stage")

    def __init__(self, stage: Stage, rank: int, estimate: float, group: int) -> None:
        self.stage = stage
        self.rank = rank
        self.estimate = estimate
        self.group = group
        self.ready = tuple(stage.ready)
        #: How many of the ready tasks have their place already.
        self.given = 0
        self.is_explored = False

    @property
    def left(self) -> int:
        return len(self.ready) - self.given


class Lineup:
    """S_t: ready stages by est_rd of their job, shortest first; an entry comes to be when somebody looks at it.

    estimates, groups: (n,) as in `Entry`.
    """

    def __init__(self, stages: Sequence[Stage], estimates: Array, groups: Ranks) -> None:
        self.stages = stages
        #: R(X) by rank, as far as somebody asked; nan: nobody did.
        self.reductions = np.full(len(stages), np.nan)
        self._estimates = estimates
        self._groups = groups
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, rank: int) -> Entry:
        entry = self._entries.get(rank)
        if entry is None:
            estimate, group = float(self._estimates[rank]), int(self._groups[rank])
            entry = self._entries[rank] = Entry(self.stages[rank], rank, estimate, group)
        return entry

    def by_group(self) -> Iterator[Ranks]:
        """The ranks of each group, ascending, group after group."""
        order = np.argsort(self._groups, kind="stable")
        groups, begin = self._groups[order], 0
        while begin < len(order):
            end = int(np.searchsorted(groups, groups[begin], side="right"))
            yield order[begin:end]
            begin = end


def components(lo: Array, hi: Array, *, is_closed: bool = True) -> Ranks:
    """Line 5: of each interval [lo, hi], (n,), the number of its group, counted by the groups' lower bounds.

    Members of a group overlap each other in a chain, and nothing overlaps beyond its group (A23). is_closed: intervals
    that only touch overlap.

    >>> components(np.array([2.0, 15.0, 3.0]), np.array([6.0, 30.0, 7.0])).tolist()
    [0, 1, 0]
    """
    group = np.zeros(len(lo), np.intp)
    if not len(lo):
        return group
    order = np.lexsort((hi, lo))
    reach = np.maximum.accumulate(hi[order])[:-1]
    begins = lo[order][1:]
    apart = begins > reach if is_closed else begins >= reach
    group[order[1:]] = np.cumsum(apart)
    return group


class Merge:
    """One run of lines 5 to 21 over S_t. Every ready task comes up once, in `out[pool]`.

    weigh: R(X) of stages, (n,). draw: the random number p of a turn, where turns draw anew.
    """

    def __init__(
        self, st: Lineup, options: Options, weigh: Callable[[Sequence[Stage]], Array], draw: Callable[[], float]
    ) -> None:
        self._st = st
        self._options = options
        self._weigh = weigh
        self._draw = draw
        #: S_u as far as it is known, by rank in S_t, and the groups beyond it.
        self._su: list[int] = []
        self._groups = st.by_group()
        self._next_st = self._next_su = 0
        #: The first of S_t that may still be in S_u.
        self._next_new = 0
        self._rest: Iterator[Entry] | None = None if options.eps > 0.0 else self._all_of_st()
        #: Whether S_u loses stages only when they are explored. Then nobody needs to know it before that.
        self._is_lazy = options.pop == "one" and options.draw == "call" and not options.su_positive_only
        #: Pool -> picks, as far as they are known.
        self.out: dict[str, list[Pick]] = {}
        #: Pool -> how many picks there are, where somebody has counted.
        self.counts: dict[str, int] = {}

    def extend(self) -> bool:
        """Takes one turn, or places one stage of the rest; False when every task has its place."""
        if self._rest is None:
            if self._turn():
                return True
            self._rest = self._all_of_su() if self._options.rest == "su" else self._all_of_st()
        for entry in self._rest:
            if entry.left:
                self._emit(entry, entry.left, None, explored=False)
                return True
        return False

    def settle(self, ranks: Ranks) -> None:
        """Places what is left of some stages, in the order of S_t: they need no turn, because there is room for all."""
        for rank in ranks:
            entry = self._st[int(rank)]
            self._emit(entry, entry.left, None, explored=False)

    def picks(self, pool: str) -> Iterator[Pick]:
        """Every pick of a pool."""
        k = 0
        while True:
            out = self.out.get(pool, ())
            while k < len(out):
                yield out[k]
                k += 1
            if k == self.counts.get(pool) or not self.extend():
                return

    def _turn(self) -> bool:
        """Lines 11 to 18; False when one of the lists is empty."""
        options = self._options
        exploited = self._head_of_st()
        if exploited is None or not self._is_su_left():
            return False
        if options.draw == "sticky":
            head = self._head_of_su()
            assert head is not None
            p = own_draw(options.seed, head.stage)
        else:
            p = self._draw()
        explores = p <= options.eps if options.inclusive else p < options.eps
        if explores:
            explored = self._head_of_su()
            assert explored is not None
            explored.is_explored = True
            self._emit(explored, min(self._sample(explored), explored.left), p, explored=True)
        else:
            self._emit(exploited, exploited.left, p, explored=False)
        # A stage that its own draw keeps from being explored makes room for the next one (A28).
        if explores or options.pop == "both" or options.draw == "sticky":
            self._next_su += 1
        if not explores or options.pop == "both":
            self._next_st += 1
        return True

    def _is_su_left(self) -> bool:
        """Whether S_u has a stage, if possible without asking which."""
        if not self._is_lazy:
            return self._head_of_su() is not None
        while self._next_new < len(self._st):
            entry = self._st[self._next_new]
            if entry.left and not entry.is_explored:
                return True
            self._next_new += 1
        return False

    def _sample(self, entry: Entry) -> int:
        """How many tasks to explore (A29)."""
        if self._options.base == "pending":
            return self._options.quota(len(entry.ready))
        every = len(entry.stage.tasks or ())
        return max(0, self._options.quota(every) - (every - len(entry.ready)))

    def _emit(self, entry: Entry, count: int, p: float | None, *, explored: bool) -> None:
        if not count:
            return
        reduction = self._st.reductions[entry.rank]
        why = {
            "estimate": entry.estimate,
            "reduction": None if np.isnan(reduction) else float(reduction),
            "draw": p,
            "explored": explored,
            "group": entry.group,
        }
        tasks = entry.stage.tasks
        assert tasks is not None
        out = self.out.setdefault(entry.stage.pool, [])
        out += [Pick(tasks[index], why=why) for index in entry.ready[entry.given : entry.given + count]]
        entry.given += count

    def _head_of_st(self) -> Entry | None:
        while self._next_st < len(self._st):
            if self._st[self._next_st].left:
                return self._st[self._next_st]
            self._next_st += 1
        return None

    def _head_of_su(self) -> Entry | None:
        while True:
            while self._next_su < len(self._su):
                entry = self._st[self._su[self._next_su]]
                if entry.left:
                    return entry
                self._next_su += 1
            if not self._extend_su():
                return None

    def _extend_su(self) -> bool:
        """Lines 7 to 9: the stages of the next group; False if there is none."""
        if (ranks := next(self._groups, None)) is None:
            return False
        reductions = self._st.reductions[ranks] = self._weigh([self._st.stages[rank] for rank in ranks])
        # Sorting is stable, and S_t is in the order of est_rd and what breaks its ties (A24).
        order = np.argsort(-reductions, kind="stable")
        if self._options.su_positive_only:
            order = order[reductions[order] > 0.0]
        self._su += ranks[order].tolist()
        return True

    def _all_of_st(self) -> Iterator[Entry]:
        return map(self._st.__getitem__, range(len(self._st)))

    def _all_of_su(self) -> Iterator[Entry]:
        while self._extend_su():
            pass
        # Stages that S_u leaves out (A21) come last.
        return map(self._st.__getitem__, [*self._su, *range(len(self._st))])


def own_draw(seed: int, stage: Stage) -> float:
    """The random number that belongs to a stage of a job, 0 <= p < 1: always the same (A28)."""
    text = f"{seed}|{stage.job.id}|{stage.name}"
    return (int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 11) / 2.0**53
