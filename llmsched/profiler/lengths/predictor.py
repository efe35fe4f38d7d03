"""A trained model of answer lengths as one value and one `.npz` file, and its answers about the tasks of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, Self
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from llmsched.errors import ProfileError
from llmsched.model.job import Stage, Task
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import PromptText
from llmsched.profiler.history import Array
from llmsched.profiler.lengths.features import Features, template_stage
from llmsched.profiler.lengths.trees import Trees

#: Of the file; another one is refused.
FORMAT = 1
#: Where a model says nothing about how wrong it is: by a factor of 2.
_SPREAD = 0.7
_MOST_TOKENS = 1e7


class Model(Protocol):
    """Says of tasks of one stage, when they become ready, how long their answers will be."""

    def scores(self, tasks: Sequence[Task]) -> Array:
        """(n,) larger: a shorter answer. Only the order means something."""
        ...

    def tokens(self, tasks: Sequence[Task]) -> Array:
        """(n,) expected output tokens, at least 1."""
        ...

    def quantile(self, score: float) -> float:
        """Share of the answers seen in training that looked shorter; 0: predicted shortest."""
        ...

    def spread(self, stage: Stage) -> float:
        """Standard deviation of log(1 + tokens) around what is predicted for this stage."""
        ...


@dataclass(frozen=True, slots=True)
class Lengths:
    """ranker, regressor: trees over `features`, the second of log(1 + tokens). quantiles: scores of the training set,
    ascending, evenly spaced. spreads: validation residual by (application, template stage); ("", ""): of all.
    about: what it was trained on, and figures; its key "encoder" names the encoder whose score is the ranker's.
    """

    features: Features
    ranker: Trees
    regressor: Trees
    quantiles: Array
    spreads: Mapping[tuple[str, str], float]
    about: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, tasks: Sequence[Task]) -> Array:
        if "encoder" in self.about:
            read = [task.text.score if task.text is not None else None for task in tasks]
            usual = float(np.median(self.quantiles))
            return np.array([usual if score is None else score for score in read], dtype=float)
        return self._predict(self.ranker, tasks)

    def tokens(self, tasks: Sequence[Task]) -> Array:
        predicted = np.expm1(self._predict(self.regressor, tasks))
        most = [float(task.stage.spec.max_tokens or _MOST_TOKENS) for task in tasks]
        return np.asarray(np.clip(predicted, 1.0, np.array(most, dtype=float)))

    def quantile(self, score: float) -> float:
        places = np.linspace(0.0, 1.0, len(self.quantiles))
        return 1.0 - float(np.interp(score, self.quantiles, places))

    def spread(self, stage: Stage) -> float:
        key = stage.job.application.name, template_stage(stage.spec)
        return self.spreads.get(key, self.spreads.get(("", ""), _SPREAD))

    def _predict(self, trees: Trees, tasks: Sequence[Task]) -> Array:
        """(n,) of tasks of one stage; those with the same prompt are looked at once."""
        alike: dict[tuple[int, PromptText | None], Task] = {}
        keys = [(task.prompt_tokens, task.text) for task in tasks]
        for key, task in zip(keys, tasks, strict=True):
            alike.setdefault(key, task)
        places = {key: k for k, key in enumerate(alike)}
        return trees.predict(self.features.rows(list(alike.values())))[[places[key] for key in keys]]

    # -------------------------------------------------------------------------------------------- as a file

    def save(self, path: str) -> None:
        """Writes one `.npz`; the same model gives the same bytes. Raises OSError."""
        about = {
            "format": FORMAT,
            "applications": self.features.applications,
            "stages": self.features.stages,
            "spreads": [[*key, round(spread, 6)] for key, spread in self.spreads.items()],
            "about": dict(self.about),
        }
        text = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
        arrays: dict[str, npt.NDArray[Any]] = {
            "about": np.frombuffer(text, dtype=np.uint8),
            "basis": self.features.basis,
            "quantiles": self.quantiles.astype(np.float32),
        }
        for name, trees in (("ranker", self.ranker), ("regressor", self.regressor)):
            arrays |= {f"{name}.{key}": array for key, array in trees.to_arrays().items()}
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str) -> Self:
        """Reads what `save` wrote. Raises ProfileError, in one sentence, for anything else."""
        try:
            with ZipFile(path):  # NumPy leaves what is none open
                pass
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, npt.NDArray[Any]] = {name: file[name] for name in file.files}
            about = json.loads(arrays["about"].tobytes())
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']}, not {FORMAT}")
            stages = tuple((a, s) for a, s in about["stages"])
            features = Features(tuple(about["applications"]), stages, arrays["basis"])
            ranker, regressor = (
                Trees.from_arrays({key.partition(".")[2]: a for key, a in arrays.items() if key.startswith(f"{name}.")})
                for name in ("ranker", "regressor")
            )
            if {ranker.width, regressor.width} != {features.width}:
                raise ValueError("its trees are of other features")
            spreads = {(a, s): float(spread) for a, s, spread in about["spreads"]}
            return cls(features, ranker, regressor, arrays["quantiles"].astype(float), spreads, about["about"])
        except OSError as error:
            raise ProfileError(
                f"cannot read {path}: {error.strerror or error}; train it with `llmsched train ranker`"
            ) from None
        except (KeyError, TypeError, ValueError, AssertionError, AttributeError, BadZipFile, EOFError) as error:
            raise ProfileError(
                f"{path} is no model of lengths ({error}); train one with `llmsched train ranker`"
            ) from None


@cache
def default_lengths() -> Lengths:
    """The model that ships: trained on generated jobs of the six applications, without texts."""
    return Lengths.load(__file__.removesuffix("predictor.py") + "default.npz")


class Predictions:
    """What a model says of the tasks of one run, asked once per stage. model: None for the one that ships."""

    def __init__(self, model: Model | None = None) -> None:
        self._model = model
        #: Job -> stage -> by task.
        self._scores: dict[str, dict[str, list[float]]] = {}
        self._tokens: dict[str, dict[str, list[float]]] = {}

    @property
    def model(self) -> Model:
        return default_lengths() if self._model is None else self._model

    def score(self, task: Task) -> float:
        """How short its answer will be: larger, shorter."""
        return self._of(task.stage, self._scores, tokens=False)[task.index]

    def tokens(self, task: Task) -> float:
        """Expected output tokens, at least 1."""
        return self._of(task.stage, self._tokens, tokens=True)[task.index]

    def mean_tokens(self, stage: Stage) -> float:
        """Expected output tokens of a task of the stage."""
        each = self._of(stage, self._tokens, tokens=True)
        return sum(each) / len(each)

    def forget(self, job_id: str) -> None:
        """The job is over."""
        self._scores.pop(job_id, None)
        self._tokens.pop(job_id, None)

    def _of(self, stage: Stage, known: dict[str, dict[str, list[float]]], *, tokens: bool) -> list[float]:
        assert stage.kind is StageKind.LLM, stage
        assert stage.tasks, stage
        own = known.setdefault(stage.job.id, {})
        if stage.name not in own:
            answer = self.model.tokens(stage.tasks) if tokens else self.model.scores(stage.tasks)
            own[stage.name] = answer.tolist()
        return own[stage.name]
