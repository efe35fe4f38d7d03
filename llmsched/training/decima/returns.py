"""What an episode is worth: rewards between choices, differential returns, and a baseline that knows the arrivals.

    r_k = - integral over [t_{k-1}, t_k) of (number of jobs in the system) dt
    R_k = sum over k' >= k of (r_{k'+1} + mean number of jobs * (t_{k'+1} - t_{k'}))        no discount
    baseline of choice k of one episode = mean over episodes of the same arrivals of R interpolated at t_k

Episodes that share their arrivals differ only by the agent's choices, so that what the arrivals do cancels.
Source: Decima, sections 5.3 (rewards, input-dependent baselines) and appendix B (average reward).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def job_seconds(lives: Sequence[tuple[float, float]], times: Floats) -> Floats:
    """(len(times),) integral of the number of jobs from 0 to each time. lives: (arrival, end) of every job.

    >>> job_seconds([(0.0, 5.0), (2.0, 9.0)], np.array([0.0, 2.0, 5.0]))
    array([0., 2., 8.])
    """
    spans = np.array(lives, dtype=float).reshape(-1, 2)
    lived = np.minimum(times[:, None], spans[None, :, 1]) - spans[None, :, 0]
    return np.asarray(lived.clip(0.0).sum(axis=1))


def rewards(lives: Sequence[tuple[float, float]], times: Floats, end: float) -> Floats:
    """(k,) what follows each of k choices until the next, the last until `end`: minus the job seconds of that span."""
    reached = job_seconds(lives, np.append(times, end))
    return -np.diff(reached)


def differential_returns(rewards: Floats, times: Floats, end: float, mean_jobs: float) -> Floats:
    """(k,) rewards to go, each with `mean_jobs` times the length of its span added."""
    spans = np.diff(np.append(times, end))
    return np.asarray(np.cumsum((rewards + mean_jobs * spans)[::-1])[::-1])


def baselines(times: Sequence[Floats], returns: Sequence[Floats]) -> list[Floats]:
    """Per episode (k,), the mean over all episodes of the return at that time, interpolated.

    >>> t, r = [np.array([0.0, 4.0]), np.array([0.0, 2.0])], [np.array([-10.0, -6.0]), np.array([-8.0, -7.0])]
    >>> [b.tolist() for b in baselines(t, r)]
    [[-9.0, -6.5], [-9.0, -7.5]]
    """
    return [
        np.mean([np.interp(own, t, r) for t, r in zip(times, returns, strict=True) if len(t)], axis=0) for own in times
    ]
