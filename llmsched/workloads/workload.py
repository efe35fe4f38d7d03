"""A workload: which jobs arrive when. Applications × a source of jobs × an arrival process × a seed.

Random numbers come from separate streams, each seeded with the seed and a name of its own: another rate moves
the arrivals and keeps the jobs, and the k-th job of an application is the same in every workload it is part of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.events import JobClass
from llmsched.model.recording import Recording, ReferenceCurve
from llmsched.workloads.arrivals import arrival_times
from llmsched.workloads.generator import APPLICATIONS, generate
from llmsched.workloads.traces import read_traces, traced

#: The four workloads of the LLMSched paper, and the mix without its heaviest application.
WORKLOADS: Mapping[str, tuple[str, ...]] = {
    "mixed": APPLICATIONS,
    "predefined": ("sequence_sorting", "document_merging"),
    "chain": ("code_generation", "web_search"),
    "planning": ("task_automation", "llm_compiler"),
    "mixed-nodoc": tuple(a for a in APPLICATIONS if a != "document_merging"),
}

#: Generated jobs that stand for an application's average.
_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that arrives `at` seconds after the first one, in a class and from a tenant.

    deadline_s: seconds in which it should be over, if any.
    """

    at: float
    recording: Recording
    job_class: JobClass = JobClass.STANDARD
    tenant: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Applications, drawn uniformly, and where their jobs come from: `traces`, or None for the generator.

    `parameters` chooses the generator's numbers ("measured" or "paper").
    """

    name: str
    applications: tuple[str, ...]
    traces: Mapping[str, Sequence[Recording]] | None = None
    parameters: str = "measured"

    @classmethod
    def load(cls, name: str, traces: Path | None = None, parameters: str = "measured") -> Workload:
        """A workload by name, or a comma list of workloads and applications; reads the trace files once.

        With `traces` any application that has a file there will do. Raises UnknownName, InvalidRecording.
        """
        applications = _applications(name, APPLICATIONS if traces is None else traced(traces))
        loaded = None if traces is None else read_traces(traces, applications)
        return cls(name, applications, loaded, parameters)

    def arrivals(
        self, jobs: int, rate: float | None, seed: int, process: str | Sequence[float] = "poisson"
    ) -> list[Arrival]:
        """`jobs` arrivals at `rate` per second; `process` is what `arrival_times` takes. Raises InvalidInput."""
        times = arrival_times(process, rate, jobs, _stream(seed, "arrivals"))
        drawn = _stream(seed, "applications")
        sources = {name: self._jobs(name, seed) for name in self.applications}
        return [Arrival(at, next(sources[drawn.choice(self.applications)])) for at in times]

    def reference_seconds(self, curve: ReferenceCurve) -> dict[str, float]:
        """Mean reference work of a job, in seconds per kind of pool: over the traces, or over many generated jobs."""
        means = [self._mean(name, curve) for name in self.applications]
        return {kind: sum(mean[kind] for mean in means) / len(means) for kind in means[0]}

    def _mean(self, application: str, curve: ReferenceCurve) -> dict[str, float]:
        if self.traces is None:
            source = self._jobs(application, 0)
            recordings: Sequence[Recording] = [next(source) for _ in range(_SAMPLE)]
        else:
            recordings = self.traces[application]
        work = [recording.reference_seconds(curve) for recording in recordings]
        return {kind: sum(w[kind] for w in work) / len(work) for kind in work[0]}

    def _jobs(self, application: str, seed: int) -> Iterator[Recording]:
        """Endless jobs: generated, or the trace reshuffled each time it is used up."""
        rng = _stream(seed, f"jobs/{application}")
        if self.traces is None:
            while True:
                yield generate(application, rng, self.parameters)
        while True:
            yield from rng.sample(self.traces[application], len(self.traces[application]))


def build_workload(
    name: str,
    jobs: int,
    rate: float | None,
    seed: int,
    traces: Path | None = None,
    arrivals: str | Sequence[float] = "poisson",
) -> list[Arrival]:
    """One workload in one call: `Workload.load(name, traces).arrivals(jobs, rate, seed, arrivals)`.

    >>> [arrival.recording.application for arrival in build_workload("chain", jobs=3, rate=0.9, seed=7)]
    ['code_generation', 'code_generation', 'web_search']
    """
    return Workload.load(name, traces).arrivals(jobs, rate, seed, arrivals)


def _applications(name: str, known: Sequence[str]) -> tuple[str, ...]:
    parts = [part.strip() for part in name.split(",")]
    found: list[str] = []
    for part in parts:
        if part in WORKLOADS:
            found += WORKLOADS[part]
        elif part in known:
            found.append(part)
        else:
            raise UnknownName.of("workload or application", part, [*WORKLOADS, *known], field="workload")
    return tuple(dict.fromkeys(found))


def _stream(seed: int, name: str) -> Random:
    """Random numbers for one purpose. A text seed is hashed whole, the same in every process and version."""
    if type(seed) is not int:
        raise InvalidInput(f"seed is {seed!r}; it must be a whole number", field="seed")
    return Random(f"llmsched/{seed}/{name}")
