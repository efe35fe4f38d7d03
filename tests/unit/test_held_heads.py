"""The head of an answer goes out with the beginning of its body, and never waits for it."""

from __future__ import annotations

import asyncio
from typing import cast

from llmsched.gateway.protocol import HeldHeads

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Sent:
    """A transport that notes what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def held(sent: Sent) -> HeldHeads:
    return HeldHeads(cast("asyncio.Transport", sent))


async def test_head_and_body_are_one_packet_and_what_follows_is_sent_as_it_comes() -> None:
    sent = Sent()
    transport = held(sent)

    transport.write(HEAD)
    transport.write(b"bo")
    transport.write(b"dy")
    await asyncio.sleep(0)

    assert sent.written == [HEAD + b"bo", b"dy"]


async def test_a_head_without_a_body_is_sent_in_the_next_round_of_the_loop() -> None:
    sent = Sent()
    transport = held(sent)

    transport.write(HEAD)
    assert sent.written == []
    await asyncio.sleep(0)

    assert sent.written == [HEAD]


async def test_closing_sends_the_head_first() -> None:
    sent = Sent()
    transport = held(sent)

    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)

    assert (sent.written, sent.is_closed) == ([HEAD], True)
    assert transport.is_closing(), "everything else is the transport's"


async def test_a_connection_that_broke_meanwhile_is_left_alone() -> None:
    sent = Sent()

    held(sent).write(HEAD)
    sent.is_closed = True
    await asyncio.sleep(0)

    assert sent.written == []
