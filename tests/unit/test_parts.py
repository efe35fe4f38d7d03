"""Numbers of many jobs in a few arrays: whatever jobs come, change and leave, each sum is of its own job's parts."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.policies.parts import Parts

COLUMNS = 4


def looks(n: int, value: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A job of n parts, every number of which is different."""
    return value + np.arange(n * 3 * COLUMNS, dtype=float).reshape(n, 3, COLUMNS)


def summed(parts: Parts) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(C, 3, places)"""
    return np.array([[parts.sums(kind) for kind in column] for column in parts.work])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_sums_are_those_of_the_job_whatever_happens_to_others(data: Any) -> None:
    parts, now = Parts(COLUMNS), dict[str, tuple[int, Any, float]]()
    for step in range(data.draw(st.integers(1, 40))):
        job = data.draw(st.sampled_from("abcdefgh"))
        if job in now and data.draw(st.integers(0, 3)) == 0:
            del now[job]
            parts.leave(job)
            continue
        place = now[job][0] if job in now else parts.enter(job, float(step), 10 * step).place
        work, floor = looks(data.draw(st.integers(0, 40)), float(step)), float(step)
        parts.put(job, work, np.full(COLUMNS, floor) if step % 2 else None)
        now[job] = place, work, floor if step % 2 else 0.0

    assert sorted(parts.taken) == sorted(place for place, _, _ in now.values())
    found = summed(parts)
    for place, work, floor in now.values():
        assert found[:, :, place].tolist() == work.sum(axis=0).T.tolist()
        assert parts.floors[:, place].tolist() == [floor] * COLUMNS


def test_jobs_have_their_own_numbers_and_places_are_used_again() -> None:
    parts = Parts(COLUMNS)
    places = [parts.enter(f"job {k}", k / 2, 100 + k).place for k in range(200)]

    assert places == list(range(200))
    assert (parts.arrived[150], parts.numbers[150]) == (75.0, 250)
    parts.leave("job 150")
    parts.leave("job 150")
    assert 150 not in parts.taken
    assert parts.enter("another", 1.0, 7).place == 150
    assert (parts.arrived[150], parts.numbers[150], len(parts.numbers)) == (1.0, 7, 200)


def test_a_job_that_changes_for_ever_takes_no_more_room() -> None:
    parts = Parts(COLUMNS)
    for job in "abc":
        parts.enter(job, 0.0, 0)
    for k in range(2_000):
        parts.put("abc"[k % 3], looks(1 + k % 7, 1.0), None)

    assert len(pickle.dumps(parts)) < 20_000
