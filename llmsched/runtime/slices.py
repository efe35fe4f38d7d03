"""Slices: an LLM call in several dispatches, each of which goes on where the last one was cut.

A `Dispatch` with `max_tokens` is a slice. `Slice.of` makes the request to send from the whole one and what the task has
generated so far; `Slice.join` adds the engine's answer and says whether that is all.

| the whole request | what a later slice sends |
|---|---|
| a prompt of token ids | prompt + generated ids (without ids from the engine: as many of the prompt's last id) |
| a prompt of text | prompt + generated text |
| chat messages | one more message of the assistant with the generated text, to be continued |

`max_tokens` and `min_tokens` shrink by what was generated, so the totals are those of the whole request. A stop string
that straddles a cut is one that no engine can see: it is looked for in the joined text, which it then ends, as in one
piece. The tokens behind it were generated, and count.

A request is never cut, whatever the dispatch says, where it could not go on as it was: structured answers (the grammar
would begin anew), tool calls, and prompts without `max_tokens` (the engine's default would apply to each slice). Nor is
a task whose last slice gave no text to go on from, such as one that a reasoning parser took: it begins again, uncut.

Not carried over a cut: the state of a seeded sampler, and penalties that count generated tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmsched.runtime.engine import Completion, CompletionRequest

#: Fields of a request body beside `response_format` that make its answer one piece.
_WHOLE = frozenset(
    {
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "tools",
        "functions",
        "echo",
        "suffix",
        "use_beam_search",
        "continue_final_message",
    }
)


@dataclass(frozen=True, slots=True)
class Partial:
    """What the slices of a task have generated so far.

    prompt_tokens: of the first slice. output_tokens and duration (seconds): of all slices.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    duration: float = 0.0
    #: The last slice brought nothing that a next one could go on from.
    is_stuck: bool = False


NOTHING = Partial()


@dataclass(frozen=True, slots=True)
class Slice:
    """One dispatch of a task: the `request` to send; `cap` is None unless it may end before the answer does."""

    request: CompletionRequest
    so_far: Partial
    cap: int | None

    @classmethod
    def of(cls, whole: CompletionRequest, so_far: Partial, cap: int | None) -> Slice:
        """The slice of at most `cap` tokens (None: all that is left) that follows `so_far`."""
        if (cap is None and so_far is NOTHING) or _is_one_piece(whole):
            return cls(whole, so_far, None)
        request = _with_plain_limits(whole)
        if so_far.token_ids or _is_something(request, so_far.text):
            request = _shortened(_continued(request, so_far), so_far.output_tokens)
        else:
            so_far = replace(so_far, text="")  # it begins, or begins again
        if so_far.is_stuck or (request.max_tokens is not None and cap is not None and request.max_tokens <= cap):
            cap = None
        if cap is not None:
            fewest = None if request.min_tokens is None else min(request.min_tokens, cap)
            asks_ids = request.prompt is not None and not isinstance(request.prompt, str)
            request = replace(request, max_tokens=cap, min_tokens=fewest, return_token_ids=asks_ids)
        return cls(request, so_far, cap)

    def join(self, answer: Completion) -> tuple[Partial, bool]:
        """All that was generated once `answer` has come, and whether that is the whole answer."""
        so_far = self.so_far
        text = so_far.text + answer.text
        is_over = self.cap is None or answer.finish_reason != "length" or answer.output_tokens < self.cap
        if (end := self._straddling_stop(text)) is not None:
            text, is_over = text[:end], True
        prompt = self.request.prompt
        ids = so_far.token_ids
        if self.cap is not None and prompt is not None and not isinstance(prompt, str):
            ids += _exactly(answer.token_ids, answer.output_tokens, prompt[-1])
        is_stuck = not ids and not (answer.text and _is_something(self.request, text))
        joined = Partial(
            text,
            ids,
            so_far.prompt_tokens or answer.prompt_tokens,
            so_far.output_tokens + answer.output_tokens,
            so_far.duration + answer.duration_s,
            is_stuck,
        )
        return joined, is_over

    def _straddling_stop(self, text: str) -> int | None:
        """Where a text ends that has a stop string across the last cut; the one that is complete first counts."""
        cut = len(self.so_far.text)
        if not cut:
            return None
        found = []
        for stop in _stops(self.request):
            at = text.find(stop, max(0, cut - len(stop) + 1), cut + len(stop) - 1)
            if at >= 0:
                found.append((at + len(stop), at))
        if not found:
            return None
        end, at = min(found)
        return end if self.request.extra.get("include_stop_str_in_output") else at


def _is_something(request: CompletionRequest, text: str) -> bool:
    """Whether an engine can go on behind this text; chat templates drop blanks."""
    return bool(text.strip() if request.messages is not None else text)


def _is_one_piece(whole: CompletionRequest) -> bool:
    wanted = whole.response_format or whole.extra.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else wanted
    if kind not in (None, "text") or any(whole.extra.get(name) for name in _WHOLE):
        return True
    if not all(isinstance(whole.extra.get(name) or 0, int) for name in ("min_tokens", "max_completion_tokens")):
        return True  # the engine refuses it in its own words
    return whole.prompt is not None and whole.max_tokens is None


def _with_plain_limits(request: CompletionRequest) -> CompletionRequest:
    """The same request with its limits and stop strings in their own fields, where `extra` had them."""
    extra = dict(request.extra)
    moved: dict[str, Any] = {name: extra.pop(name) for name in ("min_tokens", "stop") if name in extra}
    if request.messages is not None and extra.get("max_completion_tokens") is not None:
        moved["max_tokens"] = extra.pop("max_completion_tokens")
    return replace(request, extra=extra, **moved)


def _continued(request: CompletionRequest, so_far: Partial) -> CompletionRequest:
    """The request with what was generated behind its prompt."""
    if request.messages is not None:
        messages = [*request.messages, {"role": "assistant", "content": so_far.text}]
        going_on = {"add_generation_prompt": False, "continue_final_message": True}
        return replace(request, messages=messages, extra={**request.extra, **going_on})
    assert request.prompt is not None, request
    if isinstance(request.prompt, str):
        return replace(request, prompt=request.prompt + so_far.text)
    return replace(request, prompt=[*request.prompt, *so_far.token_ids])


def _shortened(request: CompletionRequest, tokens: int) -> CompletionRequest:
    """The request with limits that leave out `tokens`, which are generated already."""
    most, fewest = request.max_tokens, request.min_tokens
    if most is not None:
        assert most > tokens, "a slice that reached the limit of the whole is the last one"
        most -= tokens
    if fewest is not None:
        fewest = fewest - tokens if fewest > tokens else None
    return replace(request, max_tokens=most, min_tokens=fewest)


def _exactly(ids: Sequence[int], tokens: int, filler: int) -> tuple[int, ...]:
    """So many ids, whatever the engine told of them."""
    return (*ids[:tokens], *[filler] * (tokens - len(ids)))


def _stops(request: CompletionRequest) -> list[str]:
    """Stop strings that count from the next token on: an engine looks for none before `min_tokens`."""
    if request.min_tokens:
        return []
    stop = request.stop or ()
    return [stop] if isinstance(stop, str) else [s for s in stop if s]
