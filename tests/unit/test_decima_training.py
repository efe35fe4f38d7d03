"""Decima's training runs, in seconds and on few jobs: that it learns something shows on the checkpoints that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from typer.testing import CliRunner

from llmsched.cli.main import application
from llmsched.policies import make_policy
from llmsched.policies.decima.network import Network
from llmsched.training.decima.episodes import Episode
from llmsched.training.decima.learn import advantages


@pytest.mark.timeout(180)
def test_training_makes_a_checkpoint_that_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMSCHED_TRACES", raising=False)
    out = tmp_path / "mine.npz"
    arguments = ["--workload", "llm_compiler", "--budget-seconds", "20", "--jobs", "15", "--loads", "1.0"]

    result = CliRunner().invoke(application(), ["train", "decima", *arguments, "--processes", "1", "--out", str(out)])

    assert result.exit_code == 0, result.output
    about = Network.load(str(out)).about
    assert about["applications"] == ["llm_compiler"]
    assert about["iterations"] >= 0
    assert about["teacher"] in about["validation"]
    assert about["validation"]["decima"] == min(about["history"])
    make_policy("decima", checkpoint=str(out))


def test_advantages_of_episodes_on_the_same_arrivals_cancel() -> None:
    # Two episodes with choices at 0 and 2, one job each; that of the first ends at 4, that of the second at 2.
    choice = (None,) * 9
    slow = Episode([(*choice, 0.0), (*choice, 2.0)], [(0.0, 4.0)], 4.0)
    fast = Episode([(*choice, 0.0), (*choice, 2.0)], [(0.0, 2.0)], 2.0)

    a, b = advantages([slow, fast])

    # Rewards -2, -2 and -2, 0; 6 job seconds in 8: 0.75 jobs. Returns -1, -0.5 and 1, 1.5; their means 0 and 0.5.
    assert a.tolist() == pytest.approx([-1.0, -1.0])
    assert b.tolist() == pytest.approx([1.0, 1.0])
