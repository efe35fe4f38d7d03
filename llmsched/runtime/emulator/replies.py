"""The JSON that vLLM answers with: whole replies, stream chunks, errors. Shapes as vLLM 0.11 and later.

Where a request offers tools, a model that says `<tool_call>{"name": …, "arguments": {…}}</tool_call>` calls one,
as with vLLM's `--enable-auto-tool-choice --tool-call-parser hermes`; in a stream with the last event.
"""

from __future__ import annotations

import re
import time
from typing import Any

import orjson

from llmsched.model.decoding import Sequence
from llmsched.runtime.emulator.requests import Generation

DONE = b"data: [DONE]\n\n"

_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Reply:
    """Writes the answer to one generation."""

    def __init__(self, generation: Generation, model: str, sequence: Sequence) -> None:
        self._generation = generation
        self._sequence = sequence
        self._created = int(time.time())
        self._model = model
        self._ids = generation.output.token_ids if generation.return_token_ids else None
        self._calls = _tool_calls(generation) if generation.tools else []
        self._finish_reason = "tool_calls" if self._calls else generation.output.finish_reason

    def whole(self) -> bytes:
        """The body of an answer that is not streamed."""
        output = self._generation.output
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": None,
            "finish_reason": self._finish_reason,
            "stop_reason": None,
            "token_ids": self._ids,
        }
        if self._generation.chat:
            text = output.text if not self._calls else _TOOL_CALL.sub("", output.text).strip() or None
            choice["message"] = {"role": "assistant", "content": text, "refusal": None, "reasoning": None}
            if self._generation.tools:
                choice["message"]["tool_calls"] = self._calls
        else:
            choice["text"] = output.text
        usage = {"prompt_tokens_details": None} | self._usage(output.tokens)
        tail = {"service_tier": None, "system_fingerprint": None, "kv_transfer_params": None}
        return orjson.dumps(self._envelope(choices=[choice], chunk=False) | {"usage": usage} | tail)

    def opening(self) -> bytes:
        """What a stream says before its first text: in a chat, the role."""
        return self._event({"role": "assistant", "content": ""}, None, 0, 0) if self._generation.chat else b""

    def delta(self, start: int, stop: int) -> bytes:
        """The event with tokens start..stop-1; the last one carries the finish reason. b"" if nothing is to be told."""
        output = self._generation.output
        text = output.delta(start, stop)
        reason = self._finish_reason if stop == output.tokens else None
        if self._calls:
            told = [{"index": index, **call} for index, call in enumerate(self._calls)]
            return b"" if reason is None else self._event({"tool_calls": told}, reason, start, stop)
        return self._event({"content": text} if self._generation.chat else text, reason, start, stop)

    def closing(self) -> bytes:
        """What ends a stream: the usage where it was asked for, and [DONE]."""
        if not self._generation.include_usage:
            return DONE
        last = self._envelope(choices=[], chunk=True) | {"usage": self._usage(self._generation.output.tokens)}
        return _sse(last) + DONE

    def _event(self, content: str | dict[str, Any], reason: str | None, start: int, tokens: int) -> bytes:
        key = "delta" if self._generation.chat else "text"
        choice: dict[str, Any] = {
            "index": 0,
            key: content,
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": None,
        }
        if self._ids is not None:
            choice["token_ids"] = self._ids[start:tokens]
        envelope = self._envelope(choices=[choice], chunk=True)
        if self._generation.continuous_usage:
            envelope["usage"] = self._usage(tokens)
        return _sse(envelope)

    def _envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        chat = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self._generation.id,
            "object": chat if self._generation.chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _usage(self, tokens: int) -> dict[str, Any]:
        """As vLLM with --enable-prompt-tokens-details: it says nothing of a cache that did not help."""
        prompt, cached = len(self._generation.prompt), self._sequence.cached_tokens
        usage = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
        return usage | ({"prompt_tokens_details": {"cached_tokens": cached}} if cached else {})


def _tool_calls(generation: Generation) -> list[dict[str, Any]]:
    """The calls in what the model says; none where one of them cannot be read, as then it is text."""
    calls = []
    for number, said in enumerate(_TOOL_CALL.findall(generation.output.text)):
        try:
            call = orjson.loads(said)
            function = {"name": call["name"], "arguments": orjson.dumps(call.get("arguments") or {}).decode()}
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return []
        calls.append({"id": f"call-{generation.id}-{number}", "type": "function", "function": function})
    return calls


def error_body(message: str, type: str, status: int, param: str | None = None) -> bytes:
    """An OpenAI error object, as vLLM writes it."""
    return orjson.dumps({"error": {"message": message, "type": type, "param": param, "code": status}})


def _sse(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
