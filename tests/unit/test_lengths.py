"""What a prompt is like, which numbers a task becomes, how trees are read, and what predictions do to a belief."""

from __future__ import annotations

import gzip
import pickle
from dataclasses import replace
from math import isnan, log1p
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from llmsched.errors import InvalidInput, ProfileError
from llmsched.model.application import Application
from llmsched.model.job import Job
from llmsched.model.prompt import BUCKETS, PromptText, describe
from llmsched.model.recording import Recording
from llmsched.policies import make_policy
from llmsched.policies.base import reads_prompts
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.pool import LlmschedPool
from llmsched.profiler import Knowledge, fit
from llmsched.profiler.lengths import Features, Lengths, Predictions, Trees, default_lengths
from llmsched.profiler.lengths.features import NAMES
from llmsched.profiler.walk import walk
from llmsched.scheduler import Scheduler
from llmsched.simulator import Setup, World
from llmsched.workloads import Arrival, Prompts
from tests.unit.learned import CURVES, REPAIR, VOTE, job_at, llm, repair, repairs

TEXTS = {("repair", "q1#1", "draft"): "Sort 3, 1, 2.\nSort them well."}


# ------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_is_known_by_its_sizes_and_its_hashed_words() -> None:
    text = describe("Sort 12, sort 7.\nNow.")

    assert (text.characters, text.lines, text.digits) == (21, 2, 3)
    buckets, counts = np.frombuffer(text.grams, "<u2").reshape(2, -1)
    # sort (twice), 12, 7, now; sort 12, 12 sort, sort 7, 7 now
    assert counts.sum() == 9
    assert sorted(buckets.tolist()) == buckets.tolist()
    assert buckets.max() < BUCKETS
    assert describe("sort! SORT?").grams == describe("Sort sort").grams


def test_only_the_beginning_of_a_prompt_counts() -> None:
    assert describe("x" * 2_000 + " y 1\n") == describe("x" * 2_000)


def test_a_text_without_words_is_described() -> None:
    assert describe("") == PromptText(0, 1, 0)
    assert describe("\ud800").characters == 1


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(gzip.compress(b"\n".join(orjson.dumps(row) for row in rows)))
    return path.parent


def test_prompts_belong_to_the_jobs_of_a_trace(tmp_path: Path) -> None:
    row = {"job_id": "q1#1", "stage": "draft", "prompt_text": "Sort it"}
    prompts = Prompts.load(write(tmp_path / "repair.jsonl.gz", row), ["repair", "unheard"])

    of = prompts.of(repair("q1#1", 5))
    assert of("draft") == describe("Sort it")
    assert of("draft") is of("draft"), "read once"
    assert of("check") is None
    assert prompts.of(repair("q2#1", 5))("draft") is None
    assert pickle.loads(pickle.dumps(prompts)).of(repair("q1#1", 5))("draft") == describe("Sort it")


def test_a_bad_line_of_prompts_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "repair.jsonl.gz", {"job_id": "q1#1", "stage": "draft", "prompt_text": 7})

    with pytest.raises(InvalidInput, match=r"^repair\.jsonl\.gz:1: a prompt must be an object with job_id"):
        Prompts.load(folder, ["repair"])


def test_what_an_encoder_says_travels_with_the_text() -> None:
    prompts = Prompts(TEXTS).read_by(lambda text: -float(len(text)))

    text = prompts.of(repair("q1#1", 5))("draft")

    assert text is not None
    assert text == replace(describe(TEXTS["repair", "q1#1", "draft"]), score=-29.0)


def test_the_simulator_shows_what_prompts_are_like_and_no_more() -> None:
    """Only stages that have a text get one; all calls of a stage share it."""
    seen: dict[str, list[PromptText | None]] = {}

    class Looking(Fcfs):
        def key(self, stage: Any, view: Any) -> float:
            seen[stage.name] = [task.text for task in stage.tasks]
            return super().key(stage, view)

    recording = Recording("vote", "q1#1", (llm("vote", *[10] * 5),))
    prompts = Prompts({("vote", "q1#1", "vote"): "Which?"})
    World(Scheduler(Looking()), [Arrival(0.0, recording)], {"vote": VOTE}, Setup(), prompts=prompts).run()

    assert seen == {"vote": [describe("Which?")] * 5}


# ------------------------------------------------------------------------------------------------------ features

LOOP = Application.parse(
    {
        "name": "loop",
        "stages": [
            {"name": "plan", "kind": "llm", "max_tasks": 2},
            {
                "loop": "again",
                "first": 1,
                "max_iterations": 2,
                "after": ["plan"],
                "stages": [{"name": "think", "kind": "llm", "max_tokens": 300}],
            },
        ],
    }
)
LOOPED = Recording("loop", "q#1", (llm("plan", 30, 50, prompt=7), llm("think_1", 9, after=["plan"], prompt=0)))


def features(dims: int = 0) -> Features:
    basis = np.zeros((BUCKETS, dims), dtype=np.int8)
    basis[:, :1] = 100
    return Features(("loop",), (("loop", "plan"), ("loop", "think")), basis)


def test_a_task_becomes_a_row_of_what_is_known_when_it_is_ready() -> None:
    first = job_at(LOOP, LOOPED, 0).stages["plan"].tasks
    assert first is not None
    rows = features().rows(first)

    nan = np.nan
    expected = [7, nan, nan, nan, 0, 0, nan, nan, nan, nan, nan]
    np.testing.assert_array_equal(rows, np.array([expected] * 2, dtype=np.float32))

    later = job_at(LOOP, LOOPED, 1).stages["think_1"].tasks
    assert later is not None
    # no prompt length; stage "think", turn 1, at most 300 tokens; earlier calls had 30 and 50
    expected = [nan, nan, nan, nan, 0, 1, 1, 300, 40, 80, 50]
    np.testing.assert_array_equal(features().rows(later), np.array([expected], dtype=np.float32))


def test_words_become_coordinates() -> None:
    (task,) = job_at(REPAIR, repair("q", 5), 0).stages["draft"].tasks or ()
    assert np.isnan(features(2).rows([task])[0, len(NAMES) :]).all()

    task.text = describe("one two")
    (row,) = features(2).rows([task])

    # three grams once each: weights 1/sqrt(3) each, times 100
    np.testing.assert_allclose(row[len(NAMES) :], [100 * 3**0.5, 0.0], rtol=1e-6)
    assert row[NAMES.index("characters")] == 7
    assert isnan(row[NAMES.index("application")]), "nobody trained on this application"


# --------------------------------------------------------------------------------------------------------- trees


def leaf(value: float) -> dict[str, Any]:
    return {"leaf_value": value}


def split(feature: int, threshold: float, left: Any, right: Any, missing: str = "None", default: bool = True) -> Any:
    return {
        "split_feature": feature, "threshold": threshold, "decision_type": "<=", "missing_type": missing,
        "default_left": default, "left_child": left, "right_child": right,
    }  # fmt: skip


def trees(*structures: Any, width: int = 2) -> Trees:
    return Trees.of([{"tree_structure": structure} for structure in structures], width)


def test_trees_add_up() -> None:
    inner = split(1, -1.0, leaf(10.0), leaf(20.0))
    made = trees(split(0, 0.5, inner, leaf(30.0)), leaf(0.25))

    rows = np.array([[0.5, -1.0], [0.0, 0.0], [0.6, 5.0]], dtype=np.float32)

    assert made.predict(rows).tolist() == [10.25, 20.25, 30.25]
    assert made.predict(rows[:0]).tolist() == []


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ({"missing": "NaN", "default": True}, 1.0),
        ({"missing": "NaN", "default": False}, 2.0),
        ({"missing": "None", "threshold": 0.5}, 1.0),  # NaN counts as 0, which is not above
        ({"missing": "None", "threshold": -0.5}, 2.0),
        ({"missing": "NaN", "default": False, "threshold": 1.7976931348623157e308}, 2.0),  # NaN against all others
    ],
)
def test_a_missing_feature_goes_where_lightgbm_sends_it(node: dict[str, Any], value: float) -> None:
    made = trees(split(0, node.pop("threshold", 7.0), leaf(1.0), leaf(2.0), **node))

    assert made.predict(np.array([[np.nan, 0.0]], dtype=np.float32)).tolist() == [value]


def test_thresholds_are_rounded_down() -> None:
    """0.1 as a 32-bit float is above 0.1: the next one below is the last that goes left."""
    above = np.float32(0.1)
    made = trees(split(0, 0.1, leaf(1.0), leaf(2.0)))

    rows = np.array([[above, 0.0], [np.nextafter(above, np.float32(0.0)), 0.0]], dtype=np.float32)

    assert made.predict(rows).tolist() == [2.0, 1.0]


# ------------------------------------------------------------------------------------------------------- models


def model(**about: Any) -> Lengths:
    """Predicts log(1 + tokens) = 3 for prompts up to 100 tokens, and 5 for others; scores them 1 and 0."""
    width = len(NAMES)
    regressor = trees(split(0, 100.0, leaf(3.0), leaf(5.0)), width=width)
    ranker = trees(split(0, 100.0, leaf(1.0), leaf(0.0)), width=width)
    quantiles = np.linspace(-1.0, 1.0, 101)
    return Lengths(features(), ranker, regressor, quantiles, {("", ""): 0.5, ("loop", "plan"): 0.25}, about)


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    path = str(tmp_path / "lengths.npz")
    model(jobs=3).save(path)
    read = Lengths.load(path)
    (task,) = job_at(REPAIR, repair("q", 5, prompt=100), 0).stages["draft"].tasks or ()

    assert read.about == {"jobs": 3}
    assert read.features.stages == model().features.stages
    assert read.spreads == model().spreads
    assert read.scores([task]).tolist() == [1.0]
    assert read.tokens([task])[0] == pytest.approx(np.expm1(3.0))
    assert [read.quantile(score) for score in (1.0, 0.0, -5.0)] == [0.0, 0.5, 1.0]
    read.save(str(tmp_path / "again.npz"))
    assert (tmp_path / "again.npz").read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", None])
def test_what_is_no_model_is_refused_in_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "lengths.npz"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ProfileError, match=r"train it with|train one with"):
        Lengths.load(str(path))


def test_the_model_that_ships_is_small_and_says_what_it_is() -> None:
    shipped = default_lengths()

    assert shipped.about["trained_on"] == "generated jobs"
    assert shipped.about["texts"] is False
    assert ("web_search", "thought") in shipped.features.stages
    assert default_lengths() is shipped, "shared"


def test_tokens_stay_within_what_the_call_may_answer() -> None:
    tasks = job_at(LOOP, LOOPED, 1).stages["think_1"].tasks or ()
    tasks[0].prompt_tokens = 500
    width = len(NAMES)
    endless = replace(model(), regressor=trees(leaf(20.0), width=width))
    nothing = replace(model(), regressor=trees(leaf(-3.0), width=width))

    assert endless.tokens(tasks).tolist() == [300.0]
    assert nothing.tokens(tasks).tolist() == [1.0]


def test_a_ranker_with_an_encoder_ranks_by_it() -> None:
    tasks = job_at(VOTE, Recording("vote", "q#1", (llm("vote", *[10] * 5),)), 0).stages["vote"].tasks or ()
    tasks[1].text = replace(describe("short?"), score=0.75)

    assert model(encoder="dir").scores(tasks).tolist() == [0.0, 0.75, 0.0, 0.0, 0.0], "a call without text is usual"


def test_a_stage_is_asked_about_once_and_forgotten_with_its_job() -> None:
    class Counting:
        asked = 0

        def tokens(self, tasks: Any) -> Any:
            self.asked += 1
            return np.arange(1.0, len(tasks) + 1)

        scores = tokens

    counting = Counting()
    predictions = Predictions(counting)  # type: ignore[arg-type]
    stage = job_at(VOTE, Recording("vote", "q#1", (llm("vote", *[10] * 5),)), 0).stages["vote"]
    assert stage.tasks is not None

    assert [predictions.tokens(task) for task in stage.tasks] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert predictions.mean_tokens(stage) == 3.0
    assert counting.asked == 1
    predictions.forget(stage.job.id)
    assert predictions.mean_tokens(stage) == 3.0
    assert counting.asked == 2


# ------------------------------------------------------------------------------------- predictions as evidence

#: Every draft is as long as the fix after it; half of all jobs need one. Nothing tells a draft's length beforehand.
MIXED = [repair(f"q{k}#1", 100 + 8 * (k % 50), (100 + 8 * (k % 50)) if k % 50 >= 25 else 0) for k in range(100)]


def first(recording: Recording) -> Job:
    return next(walk(REPAIR, recording))


def test_a_predicted_length_moves_all_that_goes_with_it() -> None:
    """Short drafts pass at once here, long ones need a fix: a long prediction brings more than its own tokens."""
    knowledge = Knowledge([fit(REPAIR, MIXED, curves=CURVES)], CURVES)
    job = first(repair("new#1", 300))
    drafts = np.array([job.stages[0].tasks[0].output_tokens for job in MIXED], dtype=float)
    seconds = np.array([job.output_tokens * 0.01 for job in MIXED])  # 10 ms a token, the fix included
    usual = knowledge.estimator(REPAIR, "history").outlook(job).means()["llm"].total
    assert usual == pytest.approx(seconds.mean(), rel=1e-6)

    for tokens, roughly in ((120.0, 4.4), (450.0, 6.3)):
        outlook = knowledge.foresee(job, {"draft": (log1p(tokens), 0.1)}, "history")

        likelihood = 0.7 * np.exp(-0.5 * ((np.log1p(drafts) - log1p(tokens)) / 0.1) ** 2) + 0.3
        expected = (likelihood * seconds).sum() / likelihood.sum()
        assert outlook.means()["llm"].total == pytest.approx(expected, rel=1e-6)
        assert expected == pytest.approx(roughly, abs=0.05)


def test_a_prediction_that_no_case_agrees_with_changes_nothing() -> None:
    knowledge = Knowledge([fit(REPAIR, MIXED, curves=CURVES)], CURVES)
    job = first(repair("new#1", 300))
    usual = knowledge.estimator(REPAIR, "history").outlook(job)

    absurd = knowledge.foresee(job, {"draft": (log1p(1e6), 0.1)}, "history")

    np.testing.assert_allclose(absurd.weights, usual.weights)


def test_the_network_sees_predictions_too() -> None:
    knowledge = Knowledge([fit(REPAIR, repairs(200), curves=CURVES)], CURVES)
    job = first(repair("new#1", 200, prompt=200))

    low, high = (
        knowledge.foresee(job, {"draft": (log1p(tokens), 0.1)}, "bayesnet").means()["llm"].total
        for tokens in (150.0, 250.0)
    )

    assert low < high


def test_the_default_policy_goes_by_predictions_where_it_is_told_to() -> None:
    assert not reads_prompts(make_policy("llmsched-pool"))
    policy = make_policy("llmsched-pool", knowledge=Knowledge([fit(REPAIR, MIXED, curves=CURVES)], CURVES),
                         lengths=model(), predicted="on")  # fmt: skip
    assert reads_prompts(policy)
    assert isinstance(policy, LlmschedPool)
    plain = LlmschedPool(policy.knowledge)

    # the model says 148 tokens: a short draft
    job = first(repair("new#1", 300, prompt=101))
    assert policy.outlook(job).means()["llm"].total < plain.outlook(job).means()["llm"].total
    assert policy.remaining(job) == policy.outlook(job).means()


def test_predicted_is_on_or_off() -> None:
    with pytest.raises(InvalidInput, match="unknown value of predicted 'yes'"):
        make_policy("llmsched-pool", predicted="yes")
