"""Training of length models on small generated data: what it learns, trees that read as LightGBM does, the command."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from llmsched.catalogue import installed_applications
from llmsched.cli.main import application
from llmsched.errors import InvalidInput
from llmsched.model.job import StageState
from llmsched.model.kinds import StageKind
from llmsched.model.recording import Recording
from llmsched.profiler.lengths import Lengths, Trees, default_lengths
from llmsched.profiler.walk import walk
from llmsched.simulator.experiment import Choice
from llmsched.training import ranker
from llmsched.training.ranker import Sample, assess, published, sample, train
from llmsched.workloads import Prompts, generate
from tests.unit.learned import REPAIR, repair

lightgbm = pytest.importorskip("lightgbm")

Jobs = Mapping[str, Sequence[Recording]]
WORDS = {True: "describe at length and in detail", False: "yes or no"}


def spoken(n: int, seed: int) -> tuple[Jobs, Prompts]:
    """Drafts that only the words of their prompt tell apart: 300 tokens, or 30, and noise."""
    rng = Random(seed)
    jobs, texts = [], {}
    for k in range(n):
        is_long = rng.random() < 0.5
        jobs.append(repair(f"q{seed}-{k}#1", (300 if is_long else 30) + rng.randint(-9, 9)))
        texts["repair", jobs[-1].job_id, "draft"] = f"{WORDS[is_long]} {rng.choice('abcdefgh')} {rng.choice('xyz')}"
    return {"repair": jobs}, Prompts(texts)


@pytest.fixture(scope="module")
def learned() -> tuple[Lengths, Sample]:
    jobs, prompts = spoken(400, 1)
    calls = sample(jobs, {"repair": REPAIR}, prompts)
    return train(calls), calls


def test_words_tell_lengths_apart(learned: tuple[Lengths, Sample]) -> None:
    model, calls = learned
    jobs, prompts = spoken(100, 2)
    report = assess(model, sample(jobs, {"repair": REPAIR}, prompts), calls)

    # half of all pairs are told apart, the others are noise: two groups, and scores that vary within both, give 1/2
    assert report.ranker.within == pytest.approx(0.5, abs=0.1)
    assert report.regressor.mae is not None
    assert report.regressor.mae < 15 < 100 < (report.constant.mae or 0.0)
    assert report.regressor.close is not None
    assert report.regressor.close > 0.8
    assert report.constant.within == 0.0


def test_features_of_training_are_those_of_tasks(learned: tuple[Lengths, Sample]) -> None:
    """The matrix that trains and the rows that are predicted come from two places."""
    features = learned[0].features
    applications = installed_applications()
    job = generate("llm_compiler", Random(3))
    prompts = Prompts({("llm_compiler", job.job_id, "plan"): "describe 12 things"})
    named = ranker._features(sample({"llm_compiler": [job]}, applications, prompts))
    features = type(features)(named.applications, named.stages, features.basis)

    matrix = sample({"llm_compiler": [job]}, applications, prompts).matrix(features)

    rows, seen = [], set()
    for state in walk(applications["llm_compiler"], job, "job", prompts.of(job)):
        for stage in state.stages.values():
            if stage.state is StageState.READY and stage.kind is StageKind.LLM and stage.name not in seen:
                seen.add(stage.name)
                rows.append(features.rows((stage.tasks or ())[: ranker.CALLS]))
    np.testing.assert_array_equal(matrix, np.vstack(rows))


def test_trees_go_where_lightgbm_goes() -> None:
    """Leaf by leaf, with missing values in training and others where there were none."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3_000, 5)).astype(np.float32)
    rows[rng.random(rows.shape) < [0.3, 0.0, 0.1, 0.0, 0.5]] = np.nan
    rows[:, 3] = np.round(rows[:, 3] * 2)
    y = np.nan_to_num(rows[:, 0]) + np.abs(rows[:, 1]) * np.isnan(rows[:, 2]) + rows[:, 3] ** 2
    booster = lightgbm.train(
        {"num_leaves": 31, "verbosity": -1, "seed": 0, "num_threads": 1}, lightgbm.Dataset(rows, y), 50
    )
    new = rng.normal(size=(2_000, 5)).astype(np.float32)
    new[rng.random(new.shape) < 0.2] = np.nan  # in columns 1 and 3, too
    new[:500] = rows[:500]

    trees = Trees.of(booster.dump_model()["tree_info"], 5)
    reached = trees.leaves(new)

    # LightGBM numbers leaves within a tree: the pairs of numbers agree one to one
    theirs = booster.predict(new, pred_leaf=True).astype(int)
    for tree in range(50):
        pairs = {*zip(reached[:, tree].tolist(), theirs[:, tree].tolist(), strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    np.testing.assert_allclose(trees.predict(new), booster.predict(new), rtol=1e-5, atol=1e-5)
    read = Trees.from_arrays(trees.to_arrays())
    assert read.predict(new).tolist() == trees.predict(new).tolist()


def test_the_same_answers_give_the_same_model(learned: tuple[Lengths, Sample], tmp_path: Path) -> None:
    model, calls = learned
    for name, each in (("a", model), ("b", train(calls))):
        each.save(str(tmp_path / f"{name}.npz"))

    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.npz").stat().st_size < 200_000


def test_an_encoder_ranks_in_the_place_of_trees() -> None:
    jobs, prompts = spoken(60, 3)
    read = prompts.read_by(lambda text: -1.0 if text.startswith("describe") else 1.0)
    calls = sample(jobs, {"repair": REPAIR}, read)

    model = train(calls, {"encoder": "somewhere"})

    assert assess(model, calls, calls).ranker.within == pytest.approx(0.7, abs=0.1)  # ties within both groups
    assert (model.quantiles[0], model.quantiles[-1]) == (-1.0, 1.0)


def test_parallel_calls_of_a_stage_count_a_few_times() -> None:
    application = installed_applications()["document_merging"]
    calls = sample({"document_merging": [generate("document_merging", Random(1))]}, {"document_merging": application})

    assert len(calls) == 6 * ranker.CALLS


def test_jobs_without_llm_calls_teach_nothing() -> None:
    with pytest.raises(InvalidInput, match="nothing to learn lengths from"):
        sample({"repair": []}, {"repair": REPAIR})


def test_training_without_lightgbm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, prompts = spoken(5, 4)
    monkeypatch.setitem(sys.modules, "lightgbm", None)

    with pytest.raises(InvalidInput) as caught:
        train(sample(jobs, {"repair": REPAIR}, prompts))
    assert str(caught.value) == "training a ranker needs LightGBM; pip install 'llmsched[train]'"


def test_a_published_predictor_is_shown_at_its_own_error(tmp_path: Path) -> None:
    rows = ["output_tokens,pred_2class,pred_5class,model", "10,0,0,v", "20,0,0,v", "90,1,1,v", "30,1,1,v"]
    path = tmp_path / "ssjf_lmsys.csv.gz"
    path.write_bytes(gzip.compress("\n".join(rows).encode()))

    # class means 15 and 60: errors 5, 5, 30, 30; halves of the median 25: all four right
    # tau-b: of 6 pairs 4 agree and 2 are tied in the prediction: 4 / sqrt(6 x 4)
    assert published(path) == (4, pytest.approx(4 / 24**0.5), 1.0, 17.5)
    with pytest.raises(InvalidInput, match="is no table of output_tokens"):
        published(tmp_path / "none.csv.gz")


# ------------------------------------------------------------------------------------------------------- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(application(), ["train", "ranker", *arguments])


def test_the_command_writes_a_model_of_traces(tmp_path: Path) -> None:
    from llmsched.workloads import write_trace

    rng = Random(5)
    write_trace(tmp_path / "web_search.jsonl.gz", [generate("web_search", rng) for _ in range(120)])
    to = tmp_path / "lengths.npz"

    result = run("--traces", str(tmp_path), "--out", str(to))

    assert result.exit_code == 0, result.output
    model = Lengths.load(str(to))
    assert model.about["trained_on"] == "traces"
    assert model.about["figures"]["ranker"]["answers"] > 0
    assert {a for a, _ in model.features.stages} == {"web_search"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x.bin"], "must end in .npz"),
        (["--out", "x.npz", "--prompts", "p"], "give --traces too"),
        (["--out", "x.npz", "--traces", "t", "--encoder", "e"], "give --prompts too"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(arguments: list[str], sentence: str) -> None:
    result = run(*arguments)

    assert isinstance(result.exception, InvalidInput)
    assert sentence in str(result.exception)


def test_the_shipped_model_is_what_the_command_makes_without_traces() -> None:
    """Not byte by byte, for another version of LightGBM may round otherwise."""
    assert default_lengths().about["jobs"] == 6 * 300


def test_choices_say_whether_they_predict() -> None:
    predicting = ["ltr", "ssjf", "magnus", "hrrn", "ltr:max_wait=60", "llmsched-pool:predicted=on"]
    assert all(Choice.parse(text).predicts for text in predicting)
    assert not any(Choice.parse(text).predicts for text in ("fcfs", "llmsched-pool", "sjf:max_wait=60"))
