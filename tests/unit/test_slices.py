"""Slices: what each dispatch of a cut call sends, when the answer is over, and when what was generated is forgotten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest

from llmsched.model.application import Application
from llmsched.model.events import Dispatch, SliceEnded, TaskFailed, TaskFinished, TaskRef
from llmsched.model.kinds import StageKind
from llmsched.model.recording import Recording
from llmsched.model.records import JobRecord
from llmsched.runtime.attempts import Attempt, Attempts
from llmsched.runtime.clock import Clock, WallClock
from llmsched.runtime.engine import Completion, CompletionRequest, EngineClient
from llmsched.runtime.engines import Engines
from llmsched.runtime.run import JobRun
from llmsched.runtime.scripts.live import LiveScript
from llmsched.runtime.scripts.script import RecordedScript, Script
from llmsched.runtime.slices import NOTHING, Partial, Slice
from llmsched.runtime.tools.workers import WorkerPool

CHAT = CompletionRequest(messages=[{"role": "user", "content": "Count."}], max_tokens=20, extra={"top_p": 0.5})
IDS = CompletionRequest(prompt=[5, 6, 7], max_tokens=20, min_tokens=20, ignore_eos=True, keep_text=False)
TEXT = CompletionRequest(prompt="Count:", max_tokens=20, temperature=0.0)


def answer(text: str = "", tokens: int = 8, finish: str = "length", ids: tuple[int, ...] = ()) -> Completion:
    return Completion(text, 3, tokens, finish, 0.1, 0.5, ids)


def after(whole: CompletionRequest, *answers: Completion, cap: int = 8) -> Partial:
    """What there is after slices that the engine answered so."""
    so_far = NOTHING
    for each in answers:
        so_far, is_over = Slice.of(whole, so_far, cap).join(each)
        assert not is_over
    return so_far


# ------------------------------------------------------------------------------------------------ what is sent


def test_a_dispatch_without_a_cap_sends_the_request_as_it_is() -> None:
    for whole in (CHAT, IDS, TEXT):
        piece = Slice.of(whole, NOTHING, None)
        assert piece == Slice(whole, NOTHING, None)
        assert piece.join(answer("all", 20)) == (Partial("all", (), 3, 20, 0.5), True)


def test_a_cap_that_holds_the_whole_answer_cuts_nothing() -> None:
    assert Slice.of(IDS, NOTHING, 20) == Slice(IDS, NOTHING, None)
    assert Slice.of(replace(CHAT, max_tokens=7), NOTHING, 8).request.max_tokens == 7


def test_token_ids_go_on_behind_those_the_engine_told() -> None:
    first = Slice.of(IDS, NOTHING, 8)
    assert first.request == replace(IDS, max_tokens=8, min_tokens=8, return_token_ids=True)
    so_far, is_over = first.join(answer(ids=tuple(range(100, 108))))
    assert (so_far, is_over) == (Partial("", tuple(range(100, 108)), 3, 8, 0.5), False)
    second = Slice.of(IDS, so_far, 8).request
    assert second == replace(IDS, prompt=[5, 6, 7, *range(100, 108)], max_tokens=8, min_tokens=8, return_token_ids=True)
    last = Slice.of(IDS, so_far, None)
    assert last.request == replace(IDS, prompt=[5, 6, 7, *range(100, 108)], max_tokens=12, min_tokens=12)
    assert last.join(answer(tokens=12)) == (replace(so_far, output_tokens=20, duration=1.0), True)


@pytest.mark.parametrize("told", [(), (9,), tuple(range(50))])
def test_ids_an_engine_does_not_tell_are_filled_to_the_right_length(told: tuple[int, ...]) -> None:
    so_far = after(IDS, answer(ids=told))
    assert so_far.token_ids == (*told, *[7] * 8)[:8]


def test_text_goes_on_behind_the_generated_text() -> None:
    so_far = after(TEXT, answer(" one two"))
    assert Slice.of(TEXT, so_far, 8).request == replace(TEXT, prompt="Count: one two", max_tokens=8)


def test_a_chat_goes_on_within_the_message_of_the_assistant() -> None:
    so_far = after(CHAT, answer("one "), answer("two ", 8))
    assert so_far.text == "one two "
    assert Slice.of(CHAT, so_far, 8).request == replace(
        CHAT,
        messages=[{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two "}],
        max_tokens=4,
        extra={"top_p": 0.5, "add_generation_prompt": False, "continue_final_message": True},
    )


def test_limits_and_stop_strings_count_wherever_the_request_has_them() -> None:
    sampling = {"max_completion_tokens": 30, "min_tokens": 12, "stop": ["END"], "seed": 3}
    whole = CompletionRequest(messages=CHAT.messages, extra=sampling)
    first = Slice.of(whole, NOTHING, 8).request
    assert (first.max_tokens, first.min_tokens, first.stop, first.extra) == (8, 8, ["END"], {"seed": 3})
    rest = Slice.of(whole, after(whole, answer("one")), None).request
    assert (rest.max_tokens, rest.min_tokens, rest.stop) == (22, 4, ["END"])


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"extra": {"structured_outputs": {"regex": "a+"}}},
        {"extra": {"tools": [{"type": "function"}]}},
        {"extra": {"min_tokens": "many"}},
    ],
)
def test_an_answer_that_must_be_one_piece_is_never_cut(more: dict[str, Any]) -> None:
    whole = replace(CHAT, **more)
    assert Slice.of(whole, NOTHING, 8) == Slice(whole, NOTHING, None)


def test_text_is_no_structure_and_a_prompt_without_a_limit_is_not_cut() -> None:
    assert Slice.of(replace(CHAT, response_format={"type": "text"}), NOTHING, 8).cap == 8
    assert Slice.of(replace(CHAT, max_tokens=None), NOTHING, 8).cap == 8
    assert Slice.of(replace(TEXT, max_tokens=None), NOTHING, 8).cap is None


# ----------------------------------------------------------------------------------------- when the answer is over


def test_an_answer_that_ends_by_itself_or_at_the_end_of_the_context_is_over() -> None:
    piece = Slice.of(CHAT, NOTHING, 8)
    assert piece.join(answer("done", 8, "stop"))[1]
    assert piece.join(answer("no room", 7, "length"))[1]
    assert not piece.join(answer("more", 8, "length"))[1]


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["one EN", "D two"], "one "),
        (["one E", "N", "D"], "one "),
        (["one EN", "d two"], None),
        (["one", " END"], None),  # the engine's own business, as it sees the whole of it
        (["one ST", "OP END"], "one "),
    ],
)
def test_a_stop_string_across_the_cut_ends_the_answer(pieces: list[str], text: str | None) -> None:
    whole = replace(TEXT, stop=["END", "STOP"], max_tokens=100)
    *before, last = pieces
    so_far = after(whole, *map(answer, before))
    joined, is_over = Slice.of(whole, so_far, 8).join(answer(last))
    assert (joined.text, is_over) == (("".join(pieces), False) if text is None else (text, True))
    assert joined.output_tokens == 8 * len(pieces)


def test_a_stop_string_stays_where_the_request_wants_it_and_waits_for_min_tokens() -> None:
    def joined(whole: CompletionRequest) -> tuple[str, bool]:
        so_far, is_over = Slice.of(whole, after(whole, answer("one EN")), 8).join(answer("D two"))
        return so_far.text, is_over

    included = replace(TEXT, stop="END", extra={"include_stop_str_in_output": True})
    assert joined(included) == ("one END", True)
    assert joined(replace(TEXT, stop="END", min_tokens=10)) == ("one END two", False)
    assert joined(replace(TEXT, stop="END", min_tokens=8)) == ("one ", True)


def test_a_slice_without_text_to_go_on_from_is_the_last_cut() -> None:
    """A reasoning parser keeps the text to itself; cut again and again, the task would never come to its answer."""
    so_far = after(CHAT, answer(" \n"))
    again = Slice.of(CHAT, so_far, 8)
    assert (again.request, again.cap) == (CHAT, None)
    joined, is_over = again.join(answer("one", 20, "stop"))
    assert (joined.text, joined.output_tokens, is_over) == ("one", 28, True)


def test_a_slice_that_adds_no_text_is_the_last_cut() -> None:
    so_far = after(CHAT, answer("one"), answer(""))
    rest = Slice.of(CHAT, so_far, 2)
    assert (rest.cap, rest.request.max_tokens) == (None, 4)


# ---------------------------------------------------------------------------------------------------- attempts


class Engine:
    """One engine for `Attempts`, its HTTP made up: `say` gives the next answer to a request body."""

    def __init__(self, say: Callable[[dict[str, Any]], tuple[str, list[int] | None, str, int]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._say = say
        self.client = EngineClient("http://e:1", model="m", transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append({k: v for k, v in body.items() if k not in ("stream", "stream_options", "model")})
        text, ids, finish, tokens = self._say(body)
        said: dict[str, Any] = {"delta": {"content": text}} if "messages" in body else {"text": text}
        if ids is not None:
            said["token_ids"] = ids
        usage = {"prompt_tokens": 3, "completion_tokens": tokens}
        events = [{"choices": [said | {"finish_reason": finish}]}, {"choices": [], "usage": usage}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return httpx.Response(
            200, headers={"content-type": "text/event-stream"}, text="".join([*lines, "data: [DONE]\n\n"])
        )

    async def complete(self, request: CompletionRequest, clock: Clock) -> Completion:
        return await self.client.complete(request)


class Desk:
    """`Attempts` with one job and one engine; `reports` is what came back."""

    def __init__(self, script: Script, application: Application, engine: Engine) -> None:
        self.reports: list[tuple[TaskFinished | TaskFailed | SliceEnded, Any]] = []
        self._told = asyncio.Event()
        engines = cast("Engines", {"e": engine})
        self.attempts = Attempts(engines, cast("WorkerPool", None), WallClock(), self._report)
        self.run = JobRun(JobRecord("job_1", 1, "app", 1, 0.0), application, script)
        self.run.unfold(script.begin(), 0.0)
        self.ref = TaskRef("job_1", "ask", 0)

    def _report(self, attempt: Attempt, event: TaskFinished | TaskFailed | SliceEnded, output: Any) -> None:
        self.reports.append((event, output))
        self._told.set()

    def start(self, attempt: int, cap: int | None) -> None:
        self.attempts.start(self.run, Dispatch(self.ref, attempt, "e", cap), StageKind.LLM)

    async def dispatch(self, attempt: int, cap: int | None) -> tuple[TaskFinished | TaskFailed | SliceEnded, Any]:
        self._told.clear()
        self.start(attempt, cap)
        await asyncio.wait_for(self._told.wait(), 5)
        return self.reports[-1]

    @property
    def kept(self) -> list[str]:
        """Jobs of which anything is kept."""
        return list(self.attempts._partials)


def live(engine: Engine, **stage: Any) -> Desk:
    ask = {"name": "ask", "kind": "llm", "prompt": "Count.", "max_tokens": 20} | stage
    application = Application.parse({"name": "app", "stages": [ask]})
    return Desk(LiveScript("job_1", application, None), application, engine)


def recorded(engine: Engine) -> Desk:
    application = Application.parse({"name": "app", "stages": [{"name": "ask", "kind": "llm"}]})
    tasks = [{"prompt_tokens": 2, "output_tokens": 20}]
    recording = Recording.from_json(
        {"app": "app", "job_id": "r", "stages": [{"name": "ask", "kind": "llm", "deps": [], "tasks": tasks}]}
    )
    return Desk(RecordedScript("job_1", application, recording), application, engine)


def cut(body: dict[str, Any]) -> tuple[str, list[int] | None, str, int]:
    """An engine that has more to say than it may."""
    return "more ", None, "length", body.get("max_tokens", 99)


async def test_a_chat_in_slices_finishes_as_one_answer() -> None:
    answers = iter([("one ", None, "length", 8), ("two ", None, "length", 8), ("three", None, "stop", 2)])
    engine = Engine(lambda body: next(answers))
    desk = live(engine, sampling={"temperature": 0.5})
    assert await desk.dispatch(1, 8) == (SliceEnded(desk.ref, 1, 8), None)
    assert await desk.dispatch(2, 8) == (SliceEnded(desk.ref, 2, 8), None)
    assert desk.kept == ["job_1"]
    event, output = await desk.dispatch(3, None)
    assert output == "one two three"
    assert isinstance(event, TaskFinished)
    assert (event.result.prompt_tokens, event.result.output_tokens) == (3, 18)
    assert desk.kept == []
    user = {"role": "user", "content": "Count."}
    going_on = {"add_generation_prompt": False, "continue_final_message": True}
    assert engine.bodies == [
        {"messages": [user], "max_tokens": 8, "temperature": 0.5},
        {"messages": [user, {"role": "assistant", "content": "one "}], "max_tokens": 8, "temperature": 0.5} | going_on,
        {"messages": [user, {"role": "assistant", "content": "one two "}], "max_tokens": 4, "temperature": 0.5}
        | going_on,
    ]


async def test_a_recorded_call_in_slices_generates_exactly_its_tokens() -> None:
    engine = Engine(lambda body: ("x", list(range(body["max_tokens"])), "length", body["max_tokens"]))
    desk = recorded(engine)
    prompt = cast("list[int]", desk.run.script.llm("ask", 0).prompt)
    reports = [await desk.dispatch(number, 8) for number in (1, 2, 3)]
    assert [type(event) for event, _ in reports] == [SliceEnded, SliceEnded, TaskFinished]
    event = reports[-1][0]
    assert isinstance(event, TaskFinished)
    assert (event.result.prompt_tokens, event.result.output_tokens) == (3, 20)
    exact = {"ignore_eos": True, "temperature": 0.0}
    assert engine.bodies == [
        {"prompt": prompt, "max_tokens": 8, "min_tokens": 8, "return_token_ids": True} | exact,
        {"prompt": [*prompt, *range(8)], "max_tokens": 8, "min_tokens": 8, "return_token_ids": True} | exact,
        {"prompt": [*prompt, *range(8), *range(8)], "max_tokens": 4, "min_tokens": 4} | exact,
    ]


async def test_a_stage_with_structure_ignores_the_cap() -> None:
    engine = Engine(lambda body: ('{"a": 1}', None, "stop", 12))
    event, output = await live(engine, response_format={"type": "json_object"}).dispatch(1, 8)
    assert (type(event), output) == (TaskFinished, {"a": 1})
    assert engine.bodies[0]["max_tokens"] == 20


async def test_a_failed_slice_begins_the_task_again() -> None:
    answers = iter([("one ", None, "length", 8), ("", None, "abort", 1), ("one ", None, "length", 8)])
    engine = Engine(lambda body: next(answers))
    desk = live(engine)
    await desk.dispatch(1, 8)
    event, _ = await desk.dispatch(2, 8)
    assert isinstance(event, TaskFailed)
    assert desk.kept == []
    await desk.dispatch(3, 8)
    assert engine.bodies[2] == engine.bodies[0]


@pytest.mark.parametrize("how", ["executor", "task"])
async def test_a_slice_that_is_given_up_begins_the_task_again(how: str) -> None:
    desk = live(Engine(cut))
    await desk.dispatch(1, 8)
    desk.start(2, 8)
    if how == "executor":
        desk.attempts.give_up_on(executor="e")
    else:
        desk.attempts.give_up(desk.ref)
    assert (desk.kept, len(desk.reports)) == ([], 1)


async def test_the_loss_of_an_executor_leaves_tasks_that_wait_what_they_have() -> None:
    desk = live(Engine(cut))
    await desk.dispatch(1, 8)
    desk.attempts.give_up_on(executor="e")  # the scheduler counts it too: nothing of the task ran there
    desk.attempts.give_up(desk.ref)
    assert desk.kept == ["job_1"]


@pytest.mark.parametrize("how", ["cancelled", "over", "stopped"])
async def test_nothing_is_kept_of_a_job_that_is_over(how: str) -> None:
    desk = live(Engine(cut))
    await desk.dispatch(1, 8)
    match how:
        case "cancelled":
            desk.attempts.give_up_on(job="job_1")
        case "over":
            desk.attempts.forget("job_1")
        case _:
            desk.attempts.give_up_all()
    assert desk.kept == []
