"""Engines that cost next to nothing, so that on a small machine the service is what saturates.

    python benchmarks/scale/engines.py COUNT

The emulator of the service reads prompts, batches and caches as vLLM does, and saturates its core before the service
does. These speak only as much HTTP as the service's client does, on raw connections, and answer each call at its own
pace, however many run beside it: a prompt token takes `PREFILL` seconds, a generated one `DECODE`; one event of the
stream every `CHUNK` seconds, then usage and `[DONE]`. Prints the URL of each engine as a line of JSON, and ends with
its standard input.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

PREFILL, DECODE, CHUNK = 1e-5, 5e-4, 0.020
MODEL = "lean"
#: Slots it says it has, which the service keeps to.
SLOTS = 16

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')
_CARDS = {
    "/health": {},
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 1_000_000}]},
    "/version": {"version": "0"},
    "/server_info": {"vllm_config": {"scheduler_config": {"max_num_seqs": SLOTS, "policy": "priority"}}},
}


def answer(path: str) -> bytes:
    """To a GET."""
    card = _CARDS.get(path.partition("?")[0])
    body = json.dumps({} if card is None else card).encode()
    status = b"404 Not Found" if card is None else b"200 OK"
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def seconds(prompt: int, output: int) -> tuple[float, float]:
    """Until the first token, and from there to the last."""
    return prompt * PREFILL, output * DECODE


def chunks(prompt: int, output: int) -> list[bytes]:
    """The parts of an answer's body, one every `CHUNK` seconds of decoding; the last one ends it."""
    steps = max(1, round(output * DECODE / CHUNK))
    token = _event({"choices": [{"index": 0, "text": " a", "finish_reason": None}]})
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    last = _event({"choices": [{"index": 0, "text": " a", "finish_reason": "length"}]})
    last += _event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    return [_chunk(token)] * (steps - 1) + [_chunk(last) + b"0\r\n\r\n"]


def _event(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def lengths(body: bytes) -> tuple[int, int]:
    """Tokens of prompt and answer that a request asks for: its prompt is a list of numbers, the body's longest."""
    found = _TOKENS.search(body)
    start = body.find(b'"prompt":[')
    prompt = body.count(b",", start, body.find(b"]", start)) + 1 if start >= 0 else 1
    return prompt, int(found[1]) if found else 1


class Connection(asyncio.Protocol):
    """One request at a time, as the service's client sends them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is none

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end])
        found = _LENGTH.search(head)
        whole = end + 4 + (int(found[1]) if found else 0)
        if len(self._received) < whole:
            return
        body = bytes(self._received[end + 4 : whole])
        del self._received[:whole]
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            self._transport.write(answer(path.decode()))
            return
        prompt, output = lengths(body)
        until_first, decoding = seconds(prompt, output)
        parts = chunks(prompt, output)
        self._at = self._loop.time() + until_first
        self._step, self._parts = decoding / len(parts), parts
        self._timer = self._loop.call_at(self._at + self._step, self._first)

    def _first(self) -> None:
        self._transport.write(_HEAD + self._parts[0])
        self._next(1)

    def _next(self, k: int) -> None:
        if k < len(self._parts):
            self._timer = self._loop.call_at(self._at + (k + 1) * self._step, self._send, k)

    def _send(self, k: int) -> None:
        self._transport.write(self._parts[k])
        self._next(k + 1)


async def serve(count: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Connection, "127.0.0.1", 0) for _ in range(count)]
    for server in servers:
        print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
