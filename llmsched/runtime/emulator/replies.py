"""The JSON that vLLM answers with: whole replies, stream chunks, errors. Shapes as vLLM 0.11 and later."""

from __future__ import annotations

import time
from typing import Any

import orjson

from llmsched.model.decoding import Sequence
from llmsched.runtime.emulator.requests import Generation

DONE = b"data: [DONE]\n\n"


class Reply:
    """Writes the answer to one generation."""

    def __init__(self, generation: Generation, model: str, sequence: Sequence) -> None:
        self._generation = generation
        self._sequence = sequence
        self._created = int(time.time())
        self._model = model
        self._ids = generation.output.token_ids if generation.return_token_ids else None

    def whole(self) -> bytes:
        """The body of an answer that is not streamed."""
        output = self._generation.output
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": None,
            "token_ids": self._ids,
        }
        if self._generation.chat:
            choice["message"] = {"role": "assistant", "content": output.text, "refusal": None, "reasoning": None}
        else:
            choice["text"] = output.text
        usage = {"prompt_tokens_details": None} | self._usage(output.tokens)
        tail = {"service_tier": None, "system_fingerprint": None, "kv_transfer_params": None}
        return orjson.dumps(self._envelope(choices=[choice], chunk=False) | {"usage": usage} | tail)

    def opening(self) -> bytes:
        """What a stream says before its first text: in a chat, the role."""
        return self._event({"role": "assistant", "content": ""}, None, 0, 0) if self._generation.chat else b""

    def delta(self, start: int, stop: int) -> bytes:
        """The event with tokens start..stop-1; the last one carries the finish reason."""
        output = self._generation.output
        text = output.delta(start, stop)
        reason = output.finish_reason if stop == output.tokens else None
        return self._event({"content": text} if self._generation.chat else text, reason, start, stop)

    def closing(self) -> bytes:
        """What ends a stream: the usage where it was asked for, and [DONE]."""
        if not self._generation.include_usage:
            return DONE
        last = self._envelope(choices=[], chunk=True) | {"usage": self._usage(self._generation.output.tokens)}
        return _sse(last) + DONE

    def _event(self, content: str | dict[str, str], reason: str | None, start: int, tokens: int) -> bytes:
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


def error_body(message: str, type: str, status: int, param: str | None = None) -> bytes:
    """An OpenAI error object, as vLLM writes it."""
    return orjson.dumps({"error": {"message": message, "type": type, "param": param, "code": status}})


def _sse(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
