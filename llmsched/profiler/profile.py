"""A profile: what was learned about one application, as a value that can be stored and read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmsched.errors import ProfileError, show
from llmsched.model.application import Application
from llmsched.profiler.history import History, Layout
from llmsched.profiler.stages import StageNetwork

#: Of the file format; another one is refused.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Profile:
    """history: the jobs. network: over their stages; None where a network has nothing to say (one variable).

    estimator: the name of the one that predicted best in cross-validation; scores: by estimator, what it reached.
    learned_at: unix seconds, as the caller said.
    """

    application: str
    version: int
    history: History
    network: StageNetwork | None
    estimator: str
    scores: Mapping[str, Mapping[str, float | int | None]] = field(default_factory=dict)
    learned_at: float = 0.0

    @property
    def jobs(self) -> int:
        """How many jobs it was learned from."""
        return len(self.history)

    def fits(self, application: Application) -> bool:
        """Whether it can speak of jobs of this version: its stages and pools are the same."""
        if application.name != self.application:
            return False
        return application.version == self.version or Layout.of(application).columns == self.history.layout.columns

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "application": self.application,
            "version": self.version,
            "learned_at": self.learned_at,
            "estimator": self.estimator,
            "scores": {name: dict(scores) for name, scores in self.scores.items()},
            "network": None if self.network is None else self.network.to_json(),
            "history": self.history.to_json(),
        }

    @classmethod
    def from_json(cls, document: Any, application: Application) -> Profile:
        """Reads what `to_json` wrote.

        Raises ProfileError, in one sentence, if it is damaged, of another format or application, or was learned from
        other stages than this version of the application has.
        """
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, Mapping) else document
            raise ProfileError(f"this is no profile of format {FORMAT} but {show(found)}; fit it again")
        if document.get("application") != application.name:
            raise ProfileError(
                f"the profile is of application {show(document.get('application'))}, not of {application.name!r}"
            )
        try:
            history = History.from_json(document["history"], application)
            network = document["network"]
            return cls(
                application.name,
                int(document["version"]),
                history,
                None if network is None else StageNetwork.from_json(network),
                str(document["estimator"]),
                {str(name): dict(scores) for name, scores in document["scores"].items()},
                float(document["learned_at"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ProfileError(
                f"the profile of {application.name!r} is damaged ({type(error).__name__}: {error}); fit it again"
            ) from None
