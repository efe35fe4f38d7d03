"""Numbers of jobs: the order of submission, unique among all services of a store."""

from __future__ import annotations

from collections.abc import Callable

#: Bits that tell gateways of one database apart; the rest is time.
_BITS = 10
#: Steps of a second.
_STEPS = 10_000


class Numbers:
    """Hands out numbers; set `last` to the highest one there is, and to each that was used.

    gateway: what tells this service from others of the same store, below 1024. Then a number is the time of submission,
    so that nobody has to be asked for one; a clock that goes wrong costs order and nothing else. None: there are no
    others, and numbers are 1, 2, 3, …

    >>> alone, among = Numbers(), Numbers(gateway=lambda: 3)
    >>> alone.after(7.0), among.after(7.0), among.after(7.0001) - among.after(7.0)
    (1, 71680003, 1024)
    """

    def __init__(self, gateway: Callable[[], int] | None = None) -> None:
        self.last = 0
        self._gateway = gateway

    def after(self, now: float) -> int:
        """The number of a job that is submitted now (unix seconds)."""
        if self._gateway is None:
            return self.last + 1
        step = max(int(now * _STEPS), (self.last >> _BITS) + 1)
        return step << _BITS | self._gateway()
