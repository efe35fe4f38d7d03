"""Numbers of many jobs in a few arrays, kept up job by job, so that one decision costs a handful of array operations.

A job has a *place*, one number of each kind, and *rows*, one for each part that its work is seen in. Both stay where
they are while the job is unfinished, unless it comes to have more parts than rows: then it moves to the end. What is
left behind are zeros, which add nothing to any sum, until there is no room: then all move together.

Whatever is computed is computed elementwise, in one order: equal jobs have equal numbers, wherever their rows are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from llmsched.profiler.history import Array

Number = TypeVar("Number", bound=np.generic)

#: Least room for places, and for rows, once there are any.
_FEW = 64


@dataclass(slots=True)
class Spot:
    """Where a job is. start: its first row, of so many."""

    place: int
    start: int = 0
    rows: int = 0


class Parts:
    """columns: C, of the work in a part."""

    def __init__(self, columns: int) -> None:
        self._work = np.zeros((columns, 3, 0))
        self._owners = np.zeros(0, np.intp)
        self._floors = np.zeros((columns, 0))
        self._arrived = np.zeros(0)
        self._numbers = np.zeros(0, np.intp)
        self._is_taken = np.zeros(0, np.bool_)
        #: By job.
        self.places: dict[str, int] = {}
        self._spots: dict[str, Spot] = {}
        self._free: list[int] = []
        #: Used so far; beyond them the arrays have room.
        self._n_places = self._n_rows = 0

    @property
    def work(self) -> Array:
        """(C, 3, rows)"""
        return self._work[:, :, : self._n_rows]

    @property
    def floors(self) -> Array:
        """(C, places)"""
        return self._floors[:, : self._n_places]

    @property
    def arrived(self) -> Array:
        """(places,) seconds"""
        return self._arrived[: self._n_places]

    @property
    def numbers(self) -> npt.NDArray[np.intp]:
        """(places,) of jobs, in submission order"""
        return self._numbers[: self._n_places]

    @property
    def taken(self) -> npt.NDArray[np.intp]:
        """The places of all jobs, ascending."""
        return np.flatnonzero(self._is_taken[: self._n_places])

    def enter(self, job: str, arrived: float, number: int) -> Spot:
        """Takes a place for a job that has none."""
        if self._free:
            place = self._free.pop()
        else:
            place = self._n_places
            self._n_places += 1
            if place == len(self._arrived):
                room = max(_FEW, 2 * place)
                self._floors, self._arrived = _longer(self._floors, room), _longer(self._arrived, room)
                self._numbers, self._is_taken = _longer(self._numbers, room), _longer(self._is_taken, room)
        self._arrived[place], self._numbers[place], self._is_taken[place] = arrived, number, True
        self.places[job] = place
        spot = self._spots[job] = Spot(place)
        return spot

    def put(self, job: str, work: Array, floor: Array | None) -> None:
        """What a job looks like now. work: (parts, 3, C); floor: (C,), None where there is none."""
        spot, n = self._spots[job], len(work)
        if n > spot.rows:
            self._erase(spot)
            if self._n_rows + n > len(self._owners):
                self._gather(n)
            spot.start, spot.rows = self._n_rows, n
            self._owners[spot.start : spot.start + n] = spot.place
            self._n_rows += n
        self._work[:, :, spot.start : spot.start + n] = work.T
        self._work[:, :, spot.start + n : spot.start + spot.rows] = 0.0
        self._floors[:, spot.place] = 0.0 if floor is None else floor

    def leave(self, job: str) -> None:
        """Gives up the place of a job, if it has one."""
        spot = self._spots.pop(job, None)
        if spot is not None:
            self._erase(spot)
            self._floors[:, spot.place] = 0.0
            self._is_taken[spot.place] = False
            self._free.append(self.places.pop(job))

    def sums(self, of_rows: Array) -> Array:
        """(places,) what the rows of each job add up to. of_rows: (rows,)."""
        return cast("Array", np.bincount(self._owners[: self._n_rows], of_rows, self._n_places))

    def _erase(self, spot: Spot) -> None:
        self._work[:, :, spot.start : spot.start + spot.rows] = 0.0
        spot.rows = 0

    def _gather(self, more: int) -> None:
        """Moves all rows together, with room for as many again and `more`."""
        spots = [spot for spot in self._spots.values() if spot.rows]
        kept = np.concatenate([np.arange(s.start, s.start + s.rows) for s in spots] or [np.empty(0, np.intp)])
        room = max(_FEW, 2 * (len(kept) + more))
        self._work = _longer(self._work[:, :, kept], room)
        self._owners = _longer(self._owners[kept], room)
        start = 0
        for spot in spots:
            spot.start, start = start, start + spot.rows
        self._n_rows = start


def _longer(array: npt.NDArray[Number], length: int) -> npt.NDArray[Number]:
    """The array with zeros behind it, so that its last axis has so many."""
    longer = np.zeros((*array.shape[:-1], length), array.dtype)
    longer[..., : array.shape[-1]] = array
    return longer
