"""Decima: what it sees, what it may choose, and what its rewards are; no training needed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from llmsched.catalogue import installed_applications
from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.events import Batch, ExecutorJoined, JobClass, JobSubmitted, Reveal
from llmsched.policies import make_policy
from llmsched.policies.base import Policy
from llmsched.policies.decima import Decima
from llmsched.policies.decima.agents import AGENTS, CHECKPOINTS, agent_for, network_of
from llmsched.policies.decima.graph import DEPTH, FEATURES, Graph, Observer, limits_of
from llmsched.policies.decima.network import SHAPES, Network
from llmsched.policies.fcfs import Fcfs
from llmsched.profiler import Knowledge
from llmsched.profiler.prior import Priors
from llmsched.scheduler import Scheduler
from llmsched.simulator import Setup, World
from llmsched.training.decima.returns import baselines, differential_returns, job_seconds, rewards
from llmsched.workloads import build_workload


def stage(name: str, *after: str, kind: str = "llm", seconds: float = 1.0) -> dict[str, object]:
    expected = {"output_tokens": seconds * 100} if kind == "llm" else {"duration": seconds}
    return {"name": name, "kind": kind, "after": list(after), "max_tasks": 9, "expected": expected}


#: a1 and a2 side by side, then the tool b, then c.
FORK = Application.parse(
    {
        "name": "fork",
        "stages": [stage("a1"), stage("a2", seconds=3.0), stage("b", "a1", "a2", kind="regular"), stage("c", "b")],
    }
)


def submitted(n: int, *, tasks: int = 1, job_class: JobClass = JobClass.STANDARD) -> JobSubmitted:
    reveals = (Reveal(FORK["a1"], (0,) * tasks), Reveal(FORK["a2"], (0,)))
    return JobSubmitted(f"J{n}", n, FORK, float(n), reveals, (), job_class)


def network(seed: int) -> Network:
    """Random weights."""
    rng = np.random.default_rng(seed)
    weights = {}
    for part, shape in SHAPES.items():
        for k, (before, after) in enumerate(itertools.pairwise(shape)):
            weights[f"{part}.{k}.weight"] = rng.normal(0, 0.5, (before, after)).astype(np.float32)
            weights[f"{part}.{k}.bias"] = rng.normal(0, 0.5, after).astype(np.float32)
    return Network(weights)


def waiting(*jobs: JobSubmitted, slots: int = 0) -> Scheduler:
    """Everything waits; so many slots of one engine came too late to be used."""
    scheduler = Scheduler(Fcfs())
    scheduler.handle(Batch(9.0, jobs))
    if slots:
        scheduler.view.executors.clear()
        joined = Scheduler(Fcfs())
        joined.handle(Batch(9.0, (ExecutorJoined("e", "llm", slots),)))
        scheduler.view.executors.update(joined.view.executors)
    return scheduler


def graph(scheduler: Scheduler) -> Graph:
    return Observer(Priors(Knowledge())).look(scheduler.view, list(scheduler.view.jobs.values()))


def simulated(policy: Policy, workload: str = "planning", jobs: int = 30) -> list[tuple[int, float]]:
    arrivals = build_workload(workload, jobs, 0.9, 1)
    world = World(Scheduler(policy), arrivals, installed_applications(), Setup((4,), {"cpu": 2})).run()
    return [(f.number, f.finished_at) for f in world.finished]


# -------------------------------------------------------------------------------------------------- what it sees


def test_a_node_for_every_unfinished_stage_with_means_for_what_is_not_known() -> None:
    seen = graph(waiting(submitted(1, tasks=4), slots=2))

    assert [s.name for s in seen.stages] == ["a1", "a2", "b", "c"]
    x = seen.features()
    assert x.shape == (4, FEATURES)
    # a1: four tasks of 1 s, ready, an LLM stage, nothing held, both slots of its pool free
    assert x[0] == pytest.approx([0.4, 4 / 60, 1 / 60, 0, 0, 1, 0, 1, 0, 0, 1])
    # b: one regular task of 1 s, not ready; its pool has no slots at all
    assert x[2] == pytest.approx([0.1, 1 / 60, 1 / 60, 0, 1, 0, 0, 0, 0, 0, 0])


def test_messages_go_up_from_the_sinks() -> None:
    levels = graph(waiting(submitted(1), submitted(2))).levels

    # Level 1: b hears c; level 2: a1 and a2 hear b. Four nodes of J1, then four of J2.
    assert [(e.parents.tolist(), e.starts.tolist(), e.children.tolist()) for e in levels] == [
        ([2, 6], [0, 1], [3, 7]),
        ([0, 1, 4, 5], [0, 1, 2, 3], [2, 2, 6, 6]),
    ]


def test_a_long_chain_has_no_more_levels_than_messages_go() -> None:
    long = Application.parse(
        {"name": "long", "stages": [stage("s0"), *(stage(f"s{k}", f"s{k - 1}") for k in range(1, 2 * DEPTH))]}
    )
    job = JobSubmitted("J1", 1, long, 0.0, (Reveal(long["s0"], (0,)),))

    assert len(graph(waiting(job)).levels) == DEPTH


def test_only_stages_that_can_start_may_be_chosen() -> None:
    scheduler = waiting(submitted(1, tasks=2), slots=2)
    seen = graph(scheduler)
    assert seen.choosable().tolist() == [True, True, False, False]

    seen.take(0, 2)  # both slots, and with them the largest limit of the job

    assert not seen.choosable().any()
    assert graph(waiting(submitted(1))).choosable().tolist() == [False] * 4  # no slots


def test_limits_are_powers_of_two_above_what_the_job_holds() -> None:
    assert limits_of(6) == [6, 4, 2, 1]
    seen = graph(waiting(submitted(1, tasks=9), slots=6))
    seen.take(0, 2)

    options, x = seen.limits(0)

    assert options.tolist() == [6, 4]
    # two of six slots held, four free; seven tasks of 1 s, one of 3 s, b and c of 1 s each wait
    assert x[0] == pytest.approx([2 / 6, 4 / 6, 12 / 60, 1.0])


def test_scores_do_not_depend_on_the_order_of_the_jobs() -> None:
    scheduler = waiting(submitted(1, tasks=3), submitted(2), submitted(3, tasks=7), slots=3)
    jobs = list(scheduler.view.jobs.values())
    net = network(3)
    observer = Observer(Priors(Knowledge()))

    forwards = net.embed(observer.look(scheduler.view, jobs))
    backwards = net.embed(observer.look(scheduler.view, jobs[::-1]))

    blocks = [forwards.q[k : k + 4] for k in (0, 4, 8)]
    assert np.concatenate(blocks[::-1]) == pytest.approx(backwards.q, rel=1e-4, abs=1e-5)
    assert forwards.z == pytest.approx(backwards.z, rel=1e-4, abs=1e-5)


# ------------------------------------------------------------------------------------------------ what it chooses


def test_with_all_weights_zero_it_is_fcfs() -> None:
    assert simulated(Decima(network=Network.zero())) == simulated(Fcfs())


def test_weights_decide_and_the_same_weights_decide_the_same() -> None:
    first, again, other = (simulated(Decima(network=network(seed)), "mixed-nodoc") for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_classes_stay_apart() -> None:
    policy = Decima(network=network(5))
    scheduler = Scheduler(policy)
    jobs = [submitted(n, tasks=2, job_class=JobClass(n % 3)) for n in range(6)]

    scheduler.handle(Batch(9.0, (*jobs, ExecutorJoined("e", "llm", 9))))

    started = [ref.job for ref in scheduler.view.executors["e"].running]
    assert sorted(set(started)) == ["J0", "J1", "J3", "J4"]  # all six tasks of interactive jobs, three of standard ones
    assert started[:6].count("J0") == started[:6].count("J3") == 3


def test_every_ready_task_is_in_the_order_also_of_more_jobs_than_it_looks_at() -> None:
    policy = Decima(network=network(5))
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(9.0, tuple(submitted(n, tasks=2) for n in range(300))))
    policy.begin(scheduler.view)

    picks = [pick.task.ref for pick in policy.picks("llm", scheduler.view)]

    assert len(picks) == len(set(picks)) == 900


def test_one_action_chooses_once_and_gives_the_rest_by_score() -> None:
    assert simulated(Decima(network=network(4), mode="one_action")) != []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"agent": "chian"}, "unknown agent of decima 'chian'; did you mean 'chain'?"),
        ({"mode": "all"}, "unknown mode of decima 'all'"),
        ({"checkpoint": "nowhere.npz"}, "nowhere.npz is no checkpoint of decima"),
    ],
)
def test_bad_options_get_a_sentence(options: dict[str, str], sentence: str) -> None:
    with pytest.raises((InvalidInput, UnknownName)) as caught:
        make_policy("decima", **options)

    assert str(caught.value).startswith(sentence)


# ------------------------------------------------------------------------------------------------- checkpoints


def test_the_agent_is_that_of_the_fewest_applications_that_cover_those_seen() -> None:
    assert agent_for([]) == "chain"
    assert agent_for(["task_automation"]) == "planning"
    assert agent_for(["document_merging"]) == "predefined"
    assert agent_for(["sequence_sorting", "web_search"]) == "mixed-nodoc"
    assert agent_for(["document_merging", "web_search"]) == "mixed"
    assert agent_for(["something of my own"]) == "mixed"


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_ships_small_and_says_how_it_came_to_be(agent: str) -> None:
    about = network_of(agent).about

    assert Path(f"{CHECKPOINTS}{agent}.npz").stat().st_size < 200_000
    assert about["workload"] == agent
    assert about["validation"].keys() >= {"decima", "fair", "srtf-prior"}
    within = about["validation"]["decima"] <= min(about["validation"]["fair"], 1.1 * about["validation"]["srtf-prior"])
    assert about["is_trained"] is within


def test_a_checkpoint_goes_there_and_back(tmp_path: Path) -> None:
    net = network(1)
    net.about["workload"] = "mine"
    net.save(str(tmp_path / "a.npz"))

    again = Network.load(str(tmp_path / "a.npz"))

    seen = graph(waiting(submitted(1), slots=1))
    assert again.about == {"workload": "mine"}
    assert np.array_equal(net.embed(seen).q, again.embed(seen).q)


# --------------------------------------------------------------------------------------------- what it is paid for


def test_the_reward_is_minus_the_job_seconds() -> None:
    # one job on [0, 2), two on [2, 5)
    lives = [(0.0, 9.0), (2.0, 5.0)]

    assert job_seconds(lives, np.array([5.0])).tolist() == [8.0]
    assert rewards(lives, np.array([0.0]), 5.0).tolist() == [-8.0]
    assert rewards(lives, np.array([0.0, 2.0]), 5.0).tolist() == [-2.0, -6.0]


def test_returns_are_differential() -> None:
    # -2 + 1.6 * 2 = 1.2 and -6 + 1.6 * 3 = -1.2: an average second is worth nothing
    times = np.array([0.0, 2.0])

    assert differential_returns(np.array([-2.0, -6.0]), times, 5.0, 1.6) == pytest.approx([0.0, -1.2])


def test_the_baseline_is_the_mean_of_the_episodes_at_that_time() -> None:
    times = [np.array([0.0, 4.0]), np.array([0.0, 2.0])]
    returns = [np.array([-10.0, -6.0]), np.array([-8.0, -7.0])]

    lines = baselines(times, returns)

    assert [line.tolist() for line in lines] == [[-9.0, -6.5], [-9.0, -7.5]]
    assert (returns[0] - lines[0]).tolist() == [-1.0, 0.5]
    assert (returns[1] - lines[1]).tolist() == [1.0, 0.5]


def test_torch_and_numpy_are_one_network() -> None:
    torch = pytest.importorskip("torch")
    from llmsched.training.decima.model import Batch as Choices
    from llmsched.training.decima.model import Choice, Model

    model = Model(seed=2)
    net = model.export()
    seen = [graph(waiting(*(submitted(n, tasks=n) for n in range(1, k + 2)), slots=3)) for k in range(3)]
    choices = []
    for each in seen:
        _, limits = each.limits(1)
        sight = (each.features(), each.starts, each.job_of, each.levels, each.choosable())
        choices.append(Choice(*sight, 1, limits, 0, 0.0, 0.0))
    with torch.no_grad():
        _, _, stage_log = model(Choices.of(choices))
        both, _, _ = model(Choices.of(choices))

    for k, each in enumerate(seen):
        q = np.where(each.choosable(), net.embed(each).q, -np.inf)
        w = net.limit_scores(net.embed(each), int(each.job_of[1]), each.limits(1)[1])
        expected = q[1] - np.log(np.exp(q).sum())
        assert float(stage_log[k]) == pytest.approx(expected, abs=1e-4)
        assert float(both[k]) == pytest.approx(expected + w[0] - np.log(np.exp(w).sum()), abs=1e-4)
