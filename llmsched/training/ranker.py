"""Trains the models of answer lengths: a ranker (LightGBM lambdarank) and a regressor (L1 of log(1 + tokens)).

Jobs are relived (`profiler.walk`), and every LLM stage that becomes ready gives rows with what was known then, by the
code that predicts later. At most `CALLS` parallel calls of a stage count, for they are nearly alike and an application
with eighty of them would be all there is. A share of the jobs is kept for validation (early stopping, residuals), query
by query; a share is seen a second time with names and prompt lengths hidden, so that applications nobody trained on are
predicted by what remains.

Source of the ranker: vllm-ltr (Fu et al., 2024), with trees and lambdarank in the place of its OPT encoder and ListMLE
and sixteen grades of length with linear gains. Source of the regressor: SSJF (Qiu et al., 2024), L1 in logarithms in
the place of BERT. Both need `pip install 'llmsched[train]'`; reading a model does not.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.job import StageState, Task
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import BUCKETS, PromptText
from llmsched.model.recording import Recording
from llmsched.profiler.history import Array
from llmsched.profiler.lengths import Features, Lengths, Trees, template_stage
from llmsched.profiler.lengths.features import NAMES, Rows, log_counts
from llmsched.profiler.walk import walk
from llmsched.workloads import Prompts

K = TypeVar("K")

#: Parallel calls of a stage that count.
CALLS = 4
#: Grades of length; the shortest answers have the highest.
GRADES = 16
#: Prompts that are ranked among each other.
GROUP = 64
#: Coordinates of the words of a prompt.
DIMS = 24
#: More coordinates, and rounds, that the search for them takes.
_SPARE, _POWERS = 10, 4
TREES = 200
#: Rounds without a better one, after which no tree is added.
_PATIENCE = 30
#: Queries kept for validation, and queries seen again with their names hidden, in thousandths.
_VALIDATED, _HIDDEN = 150, 150
#: Residuals of fewer answers say nothing of a stage of its own; no residual is taken to be smaller.
_FEWEST, _LEAST_SPREAD = 20, 0.05
_SHARED: dict[str, Any] = {
    "num_leaves": 31,
    "learning_rate": 0.05,
    "verbosity": -1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 0,
    "num_threads": 1,  # more wait for each other wherever something else runs
}
_PROMPT, _APPLICATION, _STAGE = (NAMES.index(name) for name in ("prompt_tokens", "application", "stage"))
_LMSYS = ("output_tokens", "pred_2class", "pred_5class")


@dataclass(frozen=True, slots=True)
class Sample:
    """LLM calls as they were when they became ready; n of each.

    known: (n, len(NAMES)) features, without those that names become. tokens: (n,) what was answered. queries: what
    their job was about.
    """

    known: Rows
    texts: list[PromptText | None]
    tokens: Array
    applications: list[str]
    stages: list[str]
    queries: list[str]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, wanted: npt.NDArray[np.bool_]) -> Sample:
        """Some of them, in the same order."""
        rows = np.flatnonzero(wanted).tolist()
        lists = (self.texts, self.applications, self.stages, self.queries)
        texts, applications, stages, queries = ([every[k] for k in rows] for every in lists)
        return Sample(self.known[rows], texts, self.tokens[rows], applications, stages, queries)  # type: ignore[arg-type]

    def matrix(self, features: Features) -> Rows:
        """(n, features.width), what `features` would say of the tasks."""
        rows = np.full((len(self), features.width), np.nan, dtype=np.float32)
        rows[:, : len(NAMES)] = self.known
        codes = {name: k for k, name in enumerate(features.applications)}
        stage_codes = {key: k for k, key in enumerate(features.stages)}
        rows[:, _APPLICATION] = [codes.get(a, np.nan) for a in self.applications]
        rows[:, _STAGE] = [stage_codes.get(key, np.nan) for key in zip(self.applications, self.stages, strict=True)]
        words: dict[PromptText, Rows] = {}
        for row, text in zip(rows, self.texts, strict=True):
            if text is not None:
                if text not in words:
                    words[text] = features.words(text)
                row[len(NAMES) :] = words[text]
        return rows


class Quality(NamedTuple):
    """How good predictions are. tau: Kendall's tau-b of shorter and longer; within: the same within (application,
    stage), weighted by answers. mae: tokens. close: share within 25 %. None where there is nothing to say.
    """

    answers: int
    tau: float | None
    within: float | None
    mae: float | None = None
    close: float | None = None

    def to_json(self) -> dict[str, float | int | None]:
        return {name: value if value is None else round(value, 4) for name, value in self._asdict().items()}


class Report(NamedTuple):
    """Of answers nobody trained on: the ranker, the regressor, and the mean of each stage in their place."""

    ranker: Quality
    regressor: Quality
    constant: Quality


def sample(
    jobs: Mapping[str, Iterable[Recording]], applications: Mapping[str, Application], prompts: Prompts | None = None
) -> Sample:
    """The LLM calls of these jobs, at most `CALLS` of each stage. Raises InvalidInput if there are none."""
    nothing = Features((), (), np.empty((BUCKETS, 0), dtype=np.int8))
    known: list[Rows] = []
    found = Sample(np.empty((0, len(NAMES)), dtype=np.float32), [], np.empty(0), [], [], [])
    tokens: list[float] = []
    for name, recordings in jobs.items():
        for recording in recordings:
            for tasks, answers in _calls(applications[name], recording, prompts):
                known.append(nothing.rows(tasks))
                tokens += answers
                found.texts.extend(task.text for task in tasks)
                found.applications.extend([name] * len(tasks))
                found.stages.extend([template_stage(tasks[0].stage.spec)] * len(tasks))
                found.queries.extend([recording.job_id.partition("#")[0]] * len(tasks))
    if not tokens:
        raise InvalidInput("these jobs have no LLM calls; there is nothing to learn lengths from")
    return replace(found, known=np.vstack(known), tokens=np.array(tokens))


def _calls(
    application: Application, recording: Recording, prompts: Prompts | None
) -> Iterator[tuple[list[Task], list[float]]]:
    """The first tasks of every LLM stage when it becomes ready, and what they will answer."""
    real = {stage.name: stage.tasks for stage in recording.stages}
    seen: set[str] = set()
    for job in walk(application, recording, recording.job_id, None if prompts is None else prompts.of(recording)):
        for stage in job.stages.values():
            if stage.state is StageState.READY and stage.kind is StageKind.LLM and stage.name not in seen:
                seen.add(stage.name)
                tasks = list(stage.tasks or ())[:CALLS]
                yield tasks, [float(real[stage.name][task.index].output_tokens) for task in tasks]


# ------------------------------------------------------------------------------------------------------------ training


def train(learned: Sample, about: Mapping[str, Any] | None = None) -> Lengths:
    """Models of these answers; the same answers give the same models.

    about: what they are, for whoever reads the file. With an "encoder" in it, the ranker's scores are those in the
    texts. Raises InvalidInput where LightGBM is not installed.
    """
    lightgbm = _lightgbm()
    is_validated = np.array([_falls_into(f"validated|{q}", _VALIDATED) for q in learned.queries])
    if is_validated.all() or not is_validated.any():  # a handful of queries
        is_validated = np.arange(len(learned)) % 5 == 0
    fitted, validated = learned.take(~is_validated), learned.take(is_validated)
    features = _features(fitted)
    rows, tokens = _with_hidden(fitted, features)
    kept = validated.matrix(features)
    ranker = _ranker(lightgbm, rows, tokens, kept, validated)
    regressor = _regressor(lightgbm, rows, tokens, kept, validated.tokens)
    scores = ranker.predict(fitted.matrix(features))
    if about and "encoder" in about:
        scores = np.array([text.score for text in fitted.texts if text is not None and text.score is not None])
        if not len(scores):
            raise InvalidInput("no answer has a prompt that the encoder could read; give --prompts")
    quantiles = np.quantile(scores, np.linspace(0.0, 1.0, 101))
    residual = np.log1p(validated.tokens) - regressor.predict(kept)
    return Lengths(features, ranker, regressor, quantiles, _spreads(validated, residual), dict(about or {}))


def _lightgbm() -> ModuleType:
    try:
        import lightgbm
    except ImportError:
        raise InvalidInput("training a ranker needs LightGBM; pip install 'llmsched[train]'") from None
    return lightgbm  # type: ignore[no-any-return,unused-ignore]


def _falls_into(text: str, thousandths: int) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 1000 < thousandths


def _features(fitted: Sample) -> Features:
    logs = np.log1p(fitted.tokens)
    stages = list(zip(fitted.applications, fitted.stages, strict=True))
    texts = list(dict.fromkeys(text for text in fitted.texts if text is not None))
    return Features(_by_length(fitted.applications, logs), _by_length(stages, logs), _basis(texts))


def _by_length(keys: Sequence[K], logs: Array) -> tuple[K, ...]:
    sums: dict[K, tuple[float, int]] = {}
    for key, log in zip(keys, logs.tolist(), strict=True):
        total, n = sums.get(key, (0.0, 0))
        sums[key] = total + log, n + 1
    return tuple(sorted(sums, key=lambda key: sums[key][0] / sums[key][1]))


def _basis(texts: Sequence[PromptText]) -> npt.NDArray[np.int8]:
    """(BUCKETS, dims) right singular vectors of the texts' log counts; no dims for too few texts.

    By subspace iteration from a random start (Halko, Martinsson, Tropp, 2011): a second, where Lanczos takes twenty.
    """
    if len(texts) <= DIMS:
        return np.empty((BUCKETS, 0), dtype=np.int8)
    from scipy.sparse import csr_matrix

    counted = [log_counts(text) for text in texts]
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in counted)])
    buckets, weights = (np.concatenate([pair[k] for pair in counted]) for k in (0, 1))
    counts = csr_matrix((weights.astype(float), buckets.astype(np.int32), ends), shape=(len(texts), BUCKETS))
    guess = np.random.default_rng(0).standard_normal((BUCKETS, DIMS + _SPARE))
    for _ in range(_POWERS):
        guess, _ = np.linalg.qr(counts.T @ (counts @ guess))
    _, _, turn = np.linalg.svd(counts @ guess, full_matrices=False)
    basis = (guess @ turn.T)[:, :DIMS]
    return np.asarray(np.rint(127.0 * basis / np.abs(basis).max(axis=0)), dtype=np.int8)


def _with_hidden(fitted: Sample, features: Features) -> tuple[Rows, Array]:
    """Rows, and copies of some queries without names; half of these without the length of their prompts, too."""
    rows = fitted.matrix(features)
    is_hidden = np.array([_falls_into(f"hidden|{q}", _HIDDEN) for q in fitted.queries])
    hidden = rows[is_hidden].copy()
    hidden[:, [_APPLICATION, _STAGE]] = np.nan
    hidden[::2, _PROMPT] = np.nan
    return np.vstack([rows, hidden]), np.concatenate([fitted.tokens, fitted.tokens[is_hidden]])


def _ranker(lightgbm: ModuleType, rows: Rows, tokens: Array, kept: Rows, validated: Sample) -> Trees:
    """Stops by tau-b overall and within stages, half each: by the first alone it stops once it tells stages apart."""
    edges = np.quantile(tokens, np.linspace(0.0, 1.0, GRADES + 1)[1:-1])

    def groups(of: Rows, lengths: Array, reference: Any = None) -> Any:
        order = np.random.default_rng(0).permutation(len(of))
        sizes = [min(GROUP, len(of) - k) for k in range(0, len(of), GROUP)]
        grades = GRADES - 1 - np.searchsorted(edges, lengths[order])
        return lightgbm.Dataset(of[order], grades, group=sizes, reference=reference, free_raw_data=False)

    stages = _rows_by_key(validated)

    def tau(scores: Array, _: Any) -> tuple[str, float, bool]:
        ordered = np.empty(len(scores))
        ordered[np.random.default_rng(0).permutation(len(scores))] = -scores
        within = _tau_within(ordered, validated.tokens, stages) or 0.0
        return "tau", ((_tau(ordered, validated.tokens) or 0.0) + within) / 2, True

    parameters = _SHARED | {
        "objective": "lambdarank",
        "label_gain": list(range(GRADES)),
        "lambdarank_truncation_level": GROUP,
        "metric": "None",
    }
    training = groups(rows, tokens)
    booster = lightgbm.train(
        parameters,
        training,
        TREES,
        valid_sets=[groups(kept, validated.tokens, training)],
        feval=tau,
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
    )
    return _exported(booster, rows.shape[1])


def _regressor(lightgbm: ModuleType, rows: Rows, tokens: Array, kept: Rows, answers: Array) -> Trees:
    training = lightgbm.Dataset(rows, np.log1p(tokens))
    booster = lightgbm.train(
        _SHARED | {"objective": "l1", "metric": "l1"},
        training,
        TREES,
        valid_sets=[lightgbm.Dataset(kept, np.log1p(answers), reference=training)],
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
    )
    return _exported(booster, rows.shape[1])


def _exported(booster: Any, width: int) -> Trees:
    return Trees.of(booster.dump_model(num_iteration=booster.best_iteration)["tree_info"], width)


def _spreads(validated: Sample, residual: Array) -> dict[tuple[str, str], float]:
    """Root mean square of the residuals; of all answers, and of each stage that has enough of them."""
    spreads = {("", ""): _spread(residual)}
    keys = list(zip(validated.applications, validated.stages, strict=True))
    for key in sorted(set(keys)):
        own = residual[[k == key for k in keys]]
        if len(own) >= _FEWEST:
            spreads[key] = _spread(own)
    return spreads


def _spread(residual: Array) -> float:
    return max(_LEAST_SPREAD, float(np.sqrt((residual**2).mean())))


# ------------------------------------------------------------------------------------------------------------- figures


def assess(lengths: Lengths, held_out: Sample, learned: Sample) -> Report:
    """How good a model is on answers it has not seen; `learned` gives the means of the stages."""
    rows = held_out.matrix(lengths.features)
    scores = lengths.ranker.predict(rows)
    if "encoder" in lengths.about:
        usual = float(np.median(lengths.quantiles))
        read = [None if text is None else text.score for text in held_out.texts]
        scores = np.array([usual if score is None else score for score in read])
    predicted = np.clip(np.expm1(lengths.regressor.predict(rows)), 1.0, None)
    means: dict[tuple[str, str], list[float]] = {}
    for key, tokens in zip(_keys(learned), learned.tokens.tolist(), strict=True):
        means.setdefault(key, []).append(tokens)
    usual_tokens = float(learned.tokens.mean())
    constant = np.array([np.mean(means.get(key, usual_tokens)) for key in _keys(held_out)])
    return Report(_quality(held_out, -scores), _quality(held_out, predicted, True), _quality(held_out, constant, True))


def _keys(calls: Sample) -> list[tuple[str, str]]:
    return list(zip(calls.applications, calls.stages, strict=True))


def _quality(held_out: Sample, predicted: Array, is_tokens: bool = False) -> Quality:
    """predicted: (n,) larger, longer; in tokens, or in a unit of its own."""
    tokens = held_out.tokens
    within = _tau_within(predicted, tokens, _rows_by_key(held_out))
    wrong = np.abs(predicted - tokens)
    return Quality(
        len(tokens),
        _tau(predicted, tokens),
        within,
        float(wrong.mean()) if is_tokens else None,
        float((wrong <= 0.25 * tokens).mean()) if is_tokens else None,
    )


def _rows_by_key(calls: Sample) -> list[npt.NDArray[np.intp]]:
    """Rows of each (application, stage)."""
    rows: dict[tuple[str, str], list[int]] = {}
    for k, key in enumerate(_keys(calls)):
        rows.setdefault(key, []).append(k)
    return [np.array(own) for own in rows.values()]


def _tau_within(predicted: Array, tokens: Array, stages: Sequence[npt.NDArray[np.intp]]) -> float | None:
    """Over stages whose answers differ; a prediction that does not vary there is worth 0."""
    varied = [own for own in stages if np.ptp(tokens[own])]
    if not varied:
        return None
    taus = [_tau(predicted[own], tokens[own]) or 0.0 for own in varied]
    return float(np.average(taus, weights=[len(own) for own in varied]))


def _tau(x: Array, y: Array) -> float | None:
    """Kendall's tau-b; None where one of the two does not vary. O(n log n), for samples too large for `kendall_tau`."""
    from scipy.stats import kendalltau

    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    return float(kendalltau(x, y).statistic)


class Published(NamedTuple):
    """What SSJF's own predictor says of its own data. two_class: share of answers whose half it names."""

    answers: int
    tau: float
    two_class: float
    mae: float


def published(path: Path) -> Published:
    """The error level of a BERT that was published, from `ssjf_lmsys.csv.gz`: lengths, and the classes it predicted.

    Raises InvalidInput for a file that has something else.
    """
    try:
        with gzip.open(path, "rt", newline="") as file:
            rows = [[int(row[key]) for key in _LMSYS] for row in csv.DictReader(file)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path} is no table of {', '.join(_LMSYS)} ({error}); leave --lengths out") from None
    if not rows:
        raise InvalidInput(f"{path} has no rows; leave --lengths out")
    tokens, halves, classes = np.array(rows, dtype=float).T
    means = {k: tokens[classes == k].mean() for k in np.unique(classes)}
    mae = np.abs(tokens - np.array([means[k] for k in classes])).mean()
    right = (halves > 0) == (tokens > np.median(tokens))
    return Published(len(rows), _tau(classes, tokens) or 0.0, float(right.mean()), float(mae))
