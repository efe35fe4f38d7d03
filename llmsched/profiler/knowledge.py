"""All that is believed at one time: a profile per application, and the latency curve of every pool's engines.

Policies and the service ask it about running jobs. `put` swaps a profile in at once; `revision` tells policies that
what they were told before may be different now. Applications without a profile that fits them are estimated by what
their template declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmsched.errors import UnknownName
from llmsched.model.application import Application
from llmsched.model.job import Job
from llmsched.model.kinds import StageKind
from llmsched.model.spec import DEFAULT_POOLS
from llmsched.profiler.bayesnet import BayesEstimator
from llmsched.profiler.cases import CasesEstimator, MeanEstimator, Tables
from llmsched.profiler.declared import DeclaredEstimator
from llmsched.profiler.estimator import Estimator, Outlook, Predicted, Remaining, Running
from llmsched.profiler.history import Curves
from llmsched.profiler.kernel import HistoryEstimator
from llmsched.profiler.profile import Profile

#: Estimators a profile can serve, what each is, best first where they tie.
ESTIMATORS: Mapping[str, str] = {
    "history": "finished jobs that looked alike at this point, weighted by a kernel",
    "bayesnet": "posterior of a Bayesian network over the stages, given what is over",
    "mean": "the historical mean of each stage that is left",
}

#: Outlooks that are kept.
_OUTLOOKS = 16

#: What serves an application that has no profile.
DECLARED = "declared"


class Knowledge:
    """profiles: one per application. curves: of the pools' reference engines."""

    def __init__(self, profiles: Iterable[Profile] = (), curves: Curves | None = None) -> None:
        self.curves = curves or Curves()
        #: Grows with everything that changes what is answered.
        self.revision = 0
        self._revisions: dict[str, int] = {}
        self._profiles: dict[str, Profile] = {}
        self._overrides: dict[str, str] = {}
        self._tables: dict[str, Tables] = {}
        self._made: dict[tuple[str, int, str], Estimator] = {}
        #: Job -> (its revision, that of its application, the answer).
        self._answers: dict[str, tuple[int, int, Remaining]] = {}
        #: The same of the last few outlooks: whoever asks next asks about the same job, and each may hold 100 kB.
        self._outlooks: dict[str, tuple[int, int, Outlook]] = {}
        for profile in profiles:
            self.put(profile)

    @property
    def profiles(self) -> Mapping[str, Profile]:
        return self._profiles

    def revision_of(self, application: str) -> int:
        """Grows with everything that changes what is answered about jobs of this application."""
        return self._revisions.get(application, 0)

    def put(self, profile: Profile) -> None:
        """From now on jobs of its application are estimated by this profile."""
        self._profiles[profile.application] = profile
        self._overrides.pop(profile.application, None)
        self._changed(profile.application)

    def drop(self, application: str) -> None:
        """Forgets what was learned of an application; nothing happens if that is nothing."""
        if self._profiles.pop(application, None) is not None:
            self._overrides.pop(application, None)
            self._changed(application)

    def use(self, application: str, estimator: str | None) -> None:
        """Overrules the estimator that the profile chose; None: its own choice again.

        Raises UnknownName for an estimator that does not exist.
        """
        name = self.known_estimator(estimator)
        if name is None:
            self._overrides.pop(application, None)
        else:
            self._overrides[application] = name
        self._changed(application)

    def estimator_of(self, application: str) -> str:
        """The name of the estimator at work; "declared" where nothing was learned."""
        profile = self._profiles.get(application)
        return DECLARED if profile is None else self._overrides.get(application, profile.estimator)

    def estimator(self, application: Application, name: str | None = None) -> Estimator:
        """The estimator of an application, by name or the one at work.

        Raises UnknownName for a name that does not exist. Jobs of a version with other stages than the profile was
        learned from get the declared means.
        """
        name = self.known_estimator(name)
        profile = self._profiles.get(application.name)
        chosen = DECLARED if profile is None else name or self.estimator_of(application.name)
        key = (application.name, application.version, chosen)
        if key not in self._made:
            self._made[key] = self._make(application, profile, chosen)
        return self._made[key]

    def known_estimator(self, name: str | None) -> str | None:
        """The name itself. Raises UnknownName if there is no such estimator."""
        if name is not None and name not in ESTIMATORS:
            raise UnknownName.of("estimator", name, ESTIMATORS, field="estimator")
        return name

    def remaining(self, job: Job) -> Remaining:
        """Expected work that is left of a job; what running tasks have had counts as still to do."""
        at = job.revision, self.revision_of(job.application.name)
        known = self._answers.get(job.id)
        if known is not None and known[:2] == at:
            return known[2]
        estimator = self.estimator(job.application)
        is_cases = isinstance(estimator, CasesEstimator)  # whose outlook is kept, and has the same means
        answer = self.outlook(job).means() if is_cases else estimator.remaining(job)
        self._answers[job.id] = *at, answer
        return answer

    def mean_remaining(self, job: Job) -> Remaining:
        """The same by historical means, which know nothing of this job but its structure so far."""
        return self.estimator(job.application, "mean").remaining(job)

    def outlook(self, job: Job, running: Running | None = None) -> Outlook:
        """The distribution of what is left of a job."""
        if running:
            return self.estimator(job.application).outlook(job, running)
        at = job.revision, self.revision_of(job.application.name)
        known = self._outlooks.get(job.id)
        if known is None or known[:2] != at:
            if len(self._outlooks) >= _OUTLOOKS:
                self._outlooks.pop(next(iter(self._outlooks)))
            known = self._outlooks[job.id] = *at, self.estimator(job.application).outlook(job)
        return known[2]

    def foresee(self, job: Job, predicted: Predicted, name: str | None = None) -> Outlook:
        """The same, where a model predicts lengths, by the estimator of this name or the one at work.

        Not kept: it is the asker's model. Estimators that know no cases go by what they have.
        """
        estimator = self.estimator(job.application, name)
        if isinstance(estimator, CasesEstimator | BayesEstimator):
            return estimator.outlook(job, predicted=predicted)
        return estimator.outlook(job)

    def mean_work(self, application: Application) -> float:
        """Mean reference work of a whole job in seconds, all pools; as declared where nothing is learned."""
        tables = self.tables(application.name)
        if tables is None:
            return application.expected_work(self.curves[DEFAULT_POOLS[StageKind.LLM]])
        return float((tables.fixed + tables.decode).sum(axis=1).mean())

    def tables(self, application: str) -> Tables | None:
        """The history behind an application's profile, ready to be read; None where nothing was learned."""
        profile = self._profiles.get(application)
        if profile is None:
            return None
        if application not in self._tables:
            self._tables[application] = Tables(profile.history, self.curves)
        return self._tables[application]

    def forget(self, job_id: str) -> None:
        """The job is over."""
        self._answers.pop(job_id, None)
        self._outlooks.pop(job_id, None)

    def _changed(self, application: str) -> None:
        self.revision += 1
        self._revisions[application] = self.revision_of(application) + 1
        self._tables.pop(application, None)
        for key in [key for key in self._made if key[0] == application]:
            del self._made[key]

    def _make(self, application: Application, profile: Profile | None, name: str) -> Estimator:
        tables = self.tables(application.name)
        if profile is None or tables is None or not profile.fits(application):
            return DeclaredEstimator(application, self.curves)
        return make_estimator(name, profile, tables)


def make_estimator(name: str, profile: Profile, tables: Tables) -> Estimator:
    """A fresh estimator of a profile."""
    match name:
        case "bayesnet" if profile.network is not None:
            return BayesEstimator(tables, profile.network)
        case "history":
            return HistoryEstimator(tables)
        case _:
            return MeanEstimator(tables)
