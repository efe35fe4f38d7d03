"""What a recorded job is, and what is refused on the way in."""

import copy
import pickle
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.errors import InvalidRecording
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import RecordedStage, RecordedTask, Recording


def llm(name: str, deps: list[str], *calls: tuple[int, int], **more: Any) -> dict[str, Any]:
    tasks = [{"prompt_tokens": p, "output_tokens": o} for p, o in calls or [(100, 10)]]
    return {"name": name, "kind": "llm", "deps": deps, "tasks": tasks, **more}


def tool(name: str, deps: list[str], seconds: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "regular", "deps": deps, "tasks": [{"tool": "t", "duration_s": seconds}], **more}


def dynamic(name: str, deps: list[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "dynamic", "deps": deps, "tasks": [], **more}


def job(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"app": "planner", "job_id": "q1#run", "stages": list(stages), **more}


PLANNED = job(
    llm("plan", [], (800, 40), iteration=0),
    dynamic("tools", ["plan"], candidates="huggingface", generates=["a", "b"]),
    tool("a", ["plan"], 1.5, parent="tools"),
    tool("b", ["a"], 0.25, parent="tools"),
    llm("join", ["a", "b"], (1600, 60), (800, 20)),
    variant="huggingface",
)


def order(*stages: dict[str, Any]) -> list[str]:
    return [stage.name for stage in Recording.from_json(job(*stages)).stages]


def refusal(obj: object) -> InvalidRecording:
    with pytest.raises(InvalidRecording) as caught:
        Recording.from_json(obj)
    return caught.value


def test_reads_a_job_of_the_trace_format() -> None:
    assert Recording.from_json(PLANNED) == Recording(
        "planner",
        "q1#run",
        (
            RecordedStage("plan", StageKind.LLM, (), (RecordedTask(800, 40),), iteration=0),
            RecordedStage("tools", StageKind.DYNAMIC, ("plan",), (), candidates="huggingface"),
            RecordedStage("a", StageKind.REGULAR, ("plan",), (RecordedTask(duration=1.5, tool="t"),), parent="tools"),
            RecordedStage("b", StageKind.REGULAR, ("a",), (RecordedTask(duration=0.25, tool="t"),), parent="tools"),
            RecordedStage("join", StageKind.LLM, ("a", "b"), (RecordedTask(1600, 60), RecordedTask(800, 20))),
        ),
        {"variant": "huggingface"},
    )


def test_json_goes_there_and_back() -> None:
    recording = Recording.from_json(PLANNED)
    written = recording.to_json()
    assert Recording.from_json(written) == recording
    assert written["stages"][1] == {**PLANNED["stages"][1], "iteration": None}


def test_adds_up_its_work() -> None:
    recording = Recording.from_json(PLANNED)
    assert recording.n_tasks == 5
    assert recording.prompt_tokens == 800 + 1600 + 800
    assert recording.output_tokens == 40 + 60 + 20
    assert recording.regular_seconds == 1.75
    assert recording.longest_context == 1660
    # 3200 prompt tokens at 8000 per second, 120 output tokens at 10 ms
    assert recording.reference_seconds(GENERIC_7B) == pytest.approx({"llm": 0.4 + 1.2, "regular": 1.75})


def test_alone_it_takes_its_longest_path() -> None:
    # plan 0.1 + 0.4, a 1.5, b 0.25, join: the longer of 0.2 + 0.6 and 0.1 + 0.2
    assert Recording.from_json(PLANNED).alone_seconds(GENERIC_7B) == pytest.approx(0.5 + 1.5 + 0.25 + 0.8)
    # plan 100 / 8,000 + 0.1; whoever waits for a dynamic stage waits for its plan
    side = job(llm("plan", []), dynamic("d", ["plan"]), tool("a", ["plan"], 2.0, parent="d"), tool("end", ["d"], 1.0))
    assert Recording.from_json(side).alone_seconds(GENERIC_7B) == pytest.approx(0.1125 + 2.0 + 1.0)


def test_a_job_without_llm_stages_needs_no_context() -> None:
    recording = Recording.from_json(job(tool("only", [])))
    assert (recording.longest_context, recording.output_tokens) == (0, 0)


def test_travels_to_another_process_and_into_a_set() -> None:
    recording = Recording.from_json(PLANNED)
    assert pickle.loads(pickle.dumps(recording)) == recording
    assert len({recording, Recording.from_json(PLANNED)}) == 1


def test_ignores_fields_it_does_not_know() -> None:
    extra = copy.deepcopy(PLANNED)
    extra.update(realism="log", outcome=None, measured={"wall_s": 3}, n_generated_stages=2)
    extra["stages"][0]["note"] = [1]
    extra["stages"][0]["tasks"][0]["measured_s"] = 1.7
    extra["stages"][2]["tasks"][0]["in_catalogue"] = False
    assert Recording.from_json(extra) == Recording.from_json(PLANNED)


def test_keeps_only_features_known_at_submission() -> None:
    recording = Recording.from_json(job(llm("s", []), length=32, doc_tokens=None, variant="len32", n_iterations=5))
    assert recording.features == {"variant": "len32", "length": 32}


def test_an_llm_task_may_have_an_empty_prompt_and_a_tool_no_name() -> None:
    recording = Recording.from_json(
        job(llm("s", [], (0, 1)), {"name": "r", "kind": "regular", "deps": ["s"], "tasks": [{"duration_s": 2}]})
    )
    assert [stage.tasks for stage in recording.stages] == [(RecordedTask(0, 1),), (RecordedTask(duration=2.0),)]


def test_stages_keep_the_order_of_the_trace_where_it_is_one() -> None:
    assert order(llm("b", []), llm("a", []), llm("d", ["a"]), llm("c", ["b"])) == ["b", "a", "d", "c"]


def test_a_stage_listed_before_what_it_waits_for_moves_behind_it() -> None:
    assert order(llm("p", []), llm("x", ["z"]), llm("y", ["p"]), llm("z", ["y"])) == ["p", "y", "z", "x"]


def test_waiting_for_a_dynamic_stage_is_waiting_for_all_it_generated() -> None:
    assert order(llm("p", []), dynamic("d", ["p"]), llm("join", ["d"]), tool("g", ["p"], parent="d")) == [
        "p",
        "d",
        "g",
        "join",
    ]


def test_a_plan_may_be_empty() -> None:
    assert order(llm("p", []), dynamic("d", ["p"], generates=[]), llm("join", ["d"])) == ["p", "d", "join"]


def test_a_generated_stage_without_deps_waits_for_the_planner() -> None:
    recording = Recording.from_json(job(llm("p", []), dynamic("d", ["p"]), tool("g", [], parent="d")))
    assert recording.stages[2].after == ("p",)


def test_a_generated_stage_may_wait_for_what_its_planner_waited_for() -> None:
    assert order(llm("a", []), llm("p", ["a"]), dynamic("d", ["p"]), tool("g", ["a"], parent="d")) == [
        "a",
        "p",
        "d",
        "g",
    ]


def test_equal_tasks_are_one_object() -> None:
    first, second = Recording.from_json(job(llm("s", [], (5, 6), (5, 6)))).stages[0].tasks
    assert first is second


def changed(path: str, value: object) -> dict[str, Any]:
    """PLANNED with one thing replaced, or removed if value is `...`."""
    obj = copy.deepcopy(PLANNED)
    at: Any = obj
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return obj


TEXT = "it must be a text of 1 to 200 printable characters"
COUNT = "it must be a whole number from 0 to 10000000"
POSITIVE = "it must be a whole number from 1 to 10000000"
SECONDS = "it must be seconds from 0 to 2592000"


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        ("app", ..., "app", "{at} is missing; " + TEXT),
        ("app", "", "app", "{at} is ''; " + TEXT),
        ("job_id", 7, "job_id", "{at} is 7; " + TEXT),
        ("job_id", "a\x00b", "job_id", "{at} is 'a\\x00b'; " + TEXT),
        ("job_id", "\ud800", "job_id", "{at} is '\\ud800'; " + TEXT),
        ("variant", 3, "variant", "{at} is 3; " + TEXT),
        ("length", -1, "length", "{at} is -1; " + COUNT),
        ("stages", ..., "stages", "{at} is missing; it must be a list of at least one stage"),
        ("stages", [], "stages", "{at} is []; it must be a list of at least one stage"),
        ("stages.0", 5, "stages[0]", "{at} is 5; it must be an object with name, kind, deps and tasks"),
        ("stages.0.name", None, "stages[0].name", "{at} is null; " + TEXT),
        (
            "stages.1.name",
            "plan",
            "stages[1].name",
            "{at} is 'plan', as stages[0] is called already; give every stage its own name",
        ),
        ("stages.0.kind", "LLM", "stages[0].kind", "{at} is 'LLM'; it must be one of llm, regular, dynamic"),
        ("stages.0.kind", [], "stages[0].kind", "{at} is []; it must be one of llm, regular, dynamic"),
        (
            "stages.0.deps",
            ...,
            "stages[0].deps",
            "{at} is missing; it must be a list of stage names, [] for a first stage",
        ),
        ("stages.3.deps", ["x"], "stages[3].deps", "{at} is 'x'; it must be a list of names of stages of this job"),
        ("stages.3.deps", [1], "stages[3].deps[0]", "{at} is 1; it must be the name of a stage"),
        ("stages.0.iteration", -1, "stages[0].iteration", "{at} is -1; " + COUNT),
        (
            "stages.0.tasks",
            [],
            "stages[0].tasks",
            "{at} is []; it must be a list of at least one task, because the stage is llm",
        ),
        (
            "stages.2.tasks",
            ...,
            "stages[2].tasks",
            "{at} is missing; it must be a list of at least one task, because the stage is regular",
        ),
        ("stages.0.tasks.0", "x", "stages[0].tasks[0]", "{at} is 'x'; it must be an object"),
        ("stages.4.tasks.1.output_tokens", -5, "stages[4].tasks[1].output_tokens", "{at} is -5; " + POSITIVE),
        ("stages.0.tasks.0.output_tokens", 0, "stages[0].tasks[0].output_tokens", "{at} is 0; " + POSITIVE),
        ("stages.0.tasks.0.output_tokens", True, "stages[0].tasks[0].output_tokens", "{at} is true; " + POSITIVE),
        ("stages.0.tasks.0.prompt_tokens", 12.0, "stages[0].tasks[0].prompt_tokens", "{at} is 12.0; " + COUNT),
        (
            "stages.0.tasks.0.prompt_tokens",
            10**100,
            "stages[0].tasks[0].prompt_tokens",
            "{at} is an integer of 333 bits; " + COUNT,
        ),
        ("stages.2.tasks.0.duration_s", float("nan"), "stages[2].tasks[0].duration_s", "{at} is nan; " + SECONDS),
        ("stages.2.tasks.0.duration_s", False, "stages[2].tasks[0].duration_s", "{at} is false; " + SECONDS),
        (
            "stages.2.tasks.0.duration_s",
            10**400,
            "stages[2].tasks[0].duration_s",
            "{at} is an integer of 1329 bits; " + SECONDS,
        ),
        (
            "stages.1.tasks",
            [{"duration_s": 1}],
            "stages[1].tasks",
            "{at} is [{'duration_s': 1}]; it must be []: a dynamic stage runs nothing, the stages it generates do",
        ),
        (
            "stages.1.parent",
            "tools",
            "stages[1].parent",
            "{at} is 'tools'; no dynamic stage generates another: leave it out",
        ),
        (
            "stages.1.deps",
            [],
            "stages[1].deps",
            "{at} is []; it must be a list that names the stage whose output decides what is generated",
        ),
        (
            "stages.2.parent",
            "plan",
            "stages[2].parent",
            "{at} is 'plan'; it must be the name of a dynamic stage of this job",
        ),
        (
            "stages.2.parent",
            ...,
            "stages[2].parent",
            "stages[1].generates names 'a', but stages[2].parent is null; it must be 'tools'",
        ),
        (
            "stages.2.deps",
            ["b"],
            "stages[2].deps",
            "stages wait for each other in a circle: a -> b -> a; drop one of these deps",
        ),
        (
            "stages.0.deps",
            ["plan"],
            "stages[0].deps",
            "stages wait for each other in a circle: plan -> plan; drop one of these deps",
        ),
        (
            "stages.0.deps",
            ["join"],
            "stages[0].deps",
            "stages wait for each other in a circle: plan -> join -> a -> plan; drop one of these deps",
        ),
    ],
)
def test_refuses_with_a_sentence_that_names_the_culprit(path: str, value: object, field: str, message: str) -> None:
    error = refusal(changed(path, value))
    assert (error.field, str(error)) == (field, message.replace("{at}", field))


def test_a_number_too_long_to_print_is_refused_like_any_other() -> None:
    huge = changed("stages.0.tasks.0.prompt_tokens", 10**5000)
    assert refusal(huge).field == "stages[0].tasks[0].prompt_tokens"


def test_a_generated_stage_cannot_wait_for_something_that_may_not_exist_yet() -> None:
    late = job(llm("p", []), llm("slow", ["p"]), dynamic("d", ["p"]), tool("g", ["slow"], parent="d"))
    assert refusal(late).field == "stages[3].deps"
    assert str(refusal(late)).startswith("stages[3].deps names 'slow', unknown when 'd' generates this stage")


def test_a_circle_through_all_that_a_plan_generated_is_found() -> None:
    loop = job(llm("p", []), dynamic("d", ["p"]), llm("after", ["d"]), tool("g", ["after"], parent="d"))
    assert "circle: after -> d -> g -> after" in str(refusal(loop))


@pytest.mark.parametrize(
    ("obj", "what"),
    [
        (job(*(llm(f"s{i}", []) for i in range(10_001))), "10001 stages"),
        (job(llm("s", [], *[(1, 1)] * 10_001)), "10001 tasks"),
        (job(llm("s", [], *[(1_000_000, 1)] * 10)), "10000010 tokens"),
        (job(*(llm(f"s{i}", [f"s{k}" for k in range(i)]) for i in range(500))), "124750 dependencies"),
    ],
)
def test_refuses_absurd_sizes(obj: object, what: str) -> None:
    assert what in str(refusal(obj))


def test_the_largest_accepted_chain_is_read() -> None:
    stages = [llm(f"s{i}", [f"s{i - 1}"] if i else []) for i in range(10_000)]
    assert Recording.from_json(job(*reversed(stages))).stages[-1].name == "s9999"


def test_reading_is_fast() -> None:
    # The heaviest published shape: 80 calls in 6 stages. Promise: well under 1 ms; the best of many is not noise.
    sizes = [("g", 5), ("s1", 15), ("a", 5), ("s2", 15), ("i", 10), ("s3", 30)]
    stages = [llm(n, [], *((1000 + k, 200 + k) for k in range(size))) for n, size in sizes]
    best = min(_seconds(job(*stages)) for _ in range(50))
    assert best < 1e-3


def _seconds(obj: object) -> float:
    start = time.perf_counter()
    Recording.from_json(obj)
    return time.perf_counter() - start


@pytest.mark.parametrize("obj", [None, [], "x", 3, {}, {"app": "a"}])
def test_refuses_what_is_no_job(obj: object) -> None:
    refusal(obj)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
names = st.sampled_from(["plan", "tools", "a", "b", "join", "x"])
stages = st.fixed_dictionaries(
    {
        "name": names,
        "kind": st.sampled_from(["llm", "regular", "dynamic"]),
        "deps": st.lists(names, max_size=3),
        "tasks": st.just([]) | st.just([{"prompt_tokens": 1, "output_tokens": 2, "duration_s": 0.5}]),
    },
    optional={"parent": names, "generates": st.lists(names, max_size=2), "iteration": st.integers(0, 3)},
)


@settings(deadline=None)
@given(json_values)
def test_arbitrary_json_raises_nothing_but_invalid_recording(obj: object) -> None:
    _reads_or_refuses(obj)


@settings(deadline=None)
@given(st.lists(stages, min_size=1, max_size=6))
def test_arbitrary_graphs_are_ordered_or_refused(listed: list[dict[str, Any]]) -> None:
    recording = _reads_or_refuses(job(*listed))
    if recording is not None:
        seen: set[str] = set()
        for stage in recording.stages:
            assert seen.issuperset(stage.after)
            assert stage.parent is None or stage.parent in seen
            seen.add(stage.name)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_job_is_read_or_refused(data: st.DataObject) -> None:
    obj: Any = copy.deepcopy(PLANNED)
    at = obj
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans())):
            break
        at = at[key]
    at[key] = data.draw(json_values)
    _reads_or_refuses(obj)


def _reads_or_refuses(obj: object) -> Recording | None:
    try:
        recording = Recording.from_json(obj)
    except InvalidRecording:
        return None
    assert Recording.from_json(recording.to_json()) == recording
    return recording
