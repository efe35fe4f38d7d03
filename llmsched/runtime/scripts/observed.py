"""Jobs that are watched, not driven: somebody else's agent decides which call comes next, and each call is a stage.

An *observed application* is an ordinary padded chain, `call_1`, `call_2`, …: a loop named `calls` of one LLM stage
`call` without a prompt. So policies, estimators and profiles need to know nothing new. An observed job of it unfolds as
its calls arrive:

```
first call    JobSubmitted, which reveals call_1
call k ends   its row is written; the stage stays open (EXPANDING) unless other calls of the job are
call k + 1    StagesRevealed (it waits for nothing that is not over), then StageExpanded of the open stage
job ends      StageExpanded of the open stage, which skips the rest of the chain
```

Calls run side by side where the agent asks for them side by side: a stage is said to come after the calls that were
over when it arrived and that no other call came after, which is what traces show. A call that fails is a stage that is
done all the same: the agent knows, and the job is the agent's. Calls beyond the chain are stages off its profile.

Two sides look at a job at different moments, the client's (`arrive`, `over`, `end`: at once) and the scheduler's
(`complete`, `take`: in the order of its batch), and everything here says which one it is of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import orjson

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import Reveal, TaskResult
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import LONGEST, describe
from llmsched.model.spec import StageSpec
from llmsched.model.unfolding import Unfolded
from llmsched.runtime.engine import CompletionRequest
from llmsched.runtime.tools.workers import WorkerTask
from llmsched.runtime.tracing.context import TraceContext

LOOP, STAGE = "calls", "call"
#: Calls that a chain foresees, and that one job may have in all.
FORESEEN, MOST_CALLS = 64, 1_000
#: What is taken for true of a call before anything is learned.
_EXPECTED = {"prompt_tokens": 500, "output_tokens": 200}
_CONTINUES = 0.75
#: Characters of a token, roughly, for policies that go by the length of a prompt.
_TOKEN_CHARS = 4


def chain(name: str, calls: int = FORESEEN) -> Application:
    """The observed application of a name, for jobs of so many calls."""
    stage = {"name": STAGE, "kind": "llm", "expected": _EXPECTED}
    loop: dict[str, object] = {"loop": LOOP, "first": 1, "max_iterations": calls, "stages": [stage]}
    if calls > 1:
        loop["continues"] = _CONTINUES
    return Application.parse(
        {
            "name": name,
            "description": "Calls of an agent, observed at the OpenAI-compatible API: one stage each.",
            "stages": [loop],
        }
    )


def is_observed(application: Application) -> bool:
    """Whether an application is a chain of calls that somebody else decides about."""
    return all(
        s.name == f"{STAGE}_{k}" and s.loop == LOOP and s.kind is StageKind.LLM and s.prompt is None
        for k, s in enumerate(application.stages, 1)
    )


class Failure(NamedTuple):
    """Why a client gets no answer. body: an engine's own words, as JSON; else `message` is ours.

    retry_after: seconds after which another try may help; None: it would not.
    """

    status: int
    message: str
    code: str | None = None
    body: bytes | None = None
    retry_after: float | None = None


class Client(Protocol):
    """The waiting end of a call. Both methods return once the client's side has room for more."""

    async def begin(self, content_type: str) -> None:
        """The answer is there and begins."""

    async def send(self, chunk: bytes, *, last: bool) -> None:
        """More of the answer."""


@dataclass(slots=True, eq=False)
class Call:
    """One request of a client, from its arrival until its client has the answer, or none.

    fields: the body as the client sent it (`raw`), read. model: what it asks for; None: whatever the pool serves.
    """

    path: str
    raw: bytes
    fields: Mapping[str, Any]
    pool: str
    model: str | None
    client: Client
    arrived_at: float
    #: Where the client's trace goes on.
    trace: TraceContext | None = None
    #: Set by the job it belongs to.
    job: str = ""
    stage: str = ""
    is_grouped: bool = False
    #: An answer has begun: a byte may have reached the client, so that no other attempt can follow.
    has_begun: bool = False
    #: The attempt at it that runs; None: it waits, since `waits_since`.
    attempt: str | None = None
    waits_since: float = 0.0
    #: Attempts that reached an engine and failed.
    failures: int = 0
    #: Its answer will not come, and no attempt reports that.
    is_cut: bool = False
    #: Resolves when the call is over. None: the client has its answer.
    over: asyncio.Future[Failure | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, failure: Failure | None) -> None:
        """The call is over; what comes first counts."""
        if not self.over.done():
            self.over.set_result(failure)

    def cut(self, failure: Failure) -> None:
        """The call is over although it was neither answered nor refused: nothing is to be done for it any more."""
        if not self.over.done():
            self.is_cut = True
            self.over.set_result(failure)

    @property
    def is_stream(self) -> bool:
        return self.fields.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """The client asked for the usage at the end of the stream."""
        options = self.fields.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    def body(self, model: str | None, priority: int) -> bytes:
        """What an engine that serves `model` is sent. priority: 0 sends none, and none of the client's either."""
        changes: dict[str, Any] = {}
        if model is not None and self.fields.get("model") != model:
            changes["model"] = model
        if self.is_stream and not self.wants_usage:
            options = self.fields.get("stream_options")
            asked = options if isinstance(options, dict) else {}
            changes["stream_options"] = asked | {"include_usage": True, "continuous_usage_stats": False}
        if priority:
            changes["priority"] = priority
        if not changes and "priority" not in self.fields:
            return self.raw
        body = {**self.fields, **changes}
        if not priority:
            body.pop("priority", None)
        return orjson.dumps(body)

    def text(self) -> str:
        """The beginning of its prompt, for policies that read prompts."""
        pieces: list[str] = []
        size = 0
        for piece in _texts(self.fields):
            pieces.append(piece[: LONGEST - size])
            size += len(piece)
            if size >= LONGEST:
                break
        return "\n".join(pieces)

    def prompt_tokens(self) -> int:
        """About how long its prompt is; 0 where nothing in it is text."""
        prompt = self.fields.get("prompt")
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return len(prompt)
        return sum(map(len, _texts(self.fields))) // _TOKEN_CHARS


def _texts(fields: Mapping[str, Any]) -> list[str]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(messages, list):
        return []
    texts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)]
    return texts


class ObservedScript:
    """What is known of an observed job. describes: as in `LiveScript`."""

    def __init__(self, application: Application, describes: Callable[[], bool] = lambda: False) -> None:
        self.off_profile: tuple[str, ...] = ()
        #: Calls whose clients wait, by stage. (The client's side.)
        self.calls: dict[str, Call] = {}
        #: No more calls will come. (The client's side.)
        self.is_ended = False
        #: When the last call was over; None: none was yet. (The client's side.)
        self.last_end: float | None = None
        self._application = application
        self._describes = describes
        #: Stages there are: of the client's side, of the scheduler's, and those that are complete.
        self._arrived = self._taken = self._completed = 0
        #: Calls that are over and that none came after. (The client's side.)
        self._ends: dict[str, None] = {}
        self._after: dict[str, tuple[str, ...]] = {}
        #: The last complete stage, while nobody knows whether another one follows. (The scheduler's side.)
        self._open: str | None = None
        self._totals = {"calls": 0, "prompt_tokens": 0, "output_tokens": 0}

    # ------------------------------------------------------------------------------------- the client's side

    @property
    def is_full(self) -> bool:
        return self._arrived >= MOST_CALLS

    def arrive(self, call: Call) -> Reveal:
        """The stage of a call that came in just now."""
        self._arrived += 1
        call.stage = f"{STAGE}_{self._arrived}"
        after = self._after[call.stage] = tuple(self._ends)
        self.calls[call.stage] = call
        texts = (describe(call.text()),) if self._describes() else ()
        return Reveal(self._spec(call, after), (call.prompt_tokens(),), texts)

    def over(self, call: Call, at: float) -> None:
        """The client of a call has its answer, or gets none."""
        if self.calls.pop(call.stage, None) is None:
            return
        for before in self._after.pop(call.stage):
            self._ends.pop(before, None)
        self._ends[call.stage] = None
        self.last_end = at

    def end(self) -> tuple[str, tuple[str, ...]] | None:
        """No more calls will come: the stage to expand now, if there is one to, and what it skips."""
        self.is_ended = True
        if self._open is None or self._taken < self._arrived:
            return None  # `complete` of the last call sees it
        ending, self._open = self._open, None
        return ending, self._rest()

    def _spec(self, call: Call, after: tuple[str, ...]) -> StageSpec:
        if call.stage not in self._application:
            self.off_profile = (f"it has more calls than the {len(self._application.stages)} its chain foresees",)
            return StageSpec(
                call.stage, StageKind.LLM, after, call.pool, iteration=self._arrived, loop=LOOP, max_tasks=1
            )
        spec = self._application[call.stage]
        return spec if (spec.after, spec.pool) == (after, call.pool) else replace(spec, after=after, pool=call.pool)

    def _rest(self) -> tuple[str, ...]:
        return tuple(s.name for s in self._application.stages[self._arrived :])

    # ---------------------------------------------------------------------------------- the scheduler's side

    def begin(self) -> Unfolded:
        """Never asked: an observed job begins with its first call."""
        raise InvalidInput("an observed job cannot be run again: its calls ended with their connections")

    def take(self, reveals: Sequence[Reveal]) -> str | None:
        """The scheduler hears of these stages now: the stage to expand behind them, if one was left open."""
        self._taken += len(reveals)
        following, self._open = self._open, None
        return following

    def complete(self, stage: str, outputs: Sequence[Any]) -> Unfolded | None:
        self._completed += 1
        if self._completed < self._taken:
            return Unfolded()
        if self.is_ended and self._taken == self._arrived:
            return Unfolded(skipped=self._rest())
        self._open = stage
        return None

    def llm(self, stage: str, index: int) -> CompletionRequest:
        raise AssertionError("the calls of an observed job are relayed")

    def work(self, stage: str, index: int) -> WorkerTask | float:
        raise AssertionError("an observed job has LLM stages only")

    def tool(self, stage: str, index: int) -> str | None:
        return None

    def read(self, stage: str, index: int, text: str) -> None:
        """Nothing is kept of what calls say."""

    def count(self, cost: TaskResult) -> None:
        """A call has cost so much."""
        self._totals["prompt_tokens"] += cost.prompt_tokens
        self._totals["output_tokens"] += cost.output_tokens

    def result(self) -> dict[str, int]:
        return self._totals | {"calls": self._arrived}
