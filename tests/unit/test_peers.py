"""The benchmark beside peers: where an answer ends, what a path adds and how sure that is, and what its page says."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("wire", "load", "paired", "page", "servers", "crosscheck", "overhead")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules by name, as they find each other when one is run as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in (*MODULES, "marks", "record", "rig"):
        del sys.modules[name]


# ------------------------------------------------------------------------------------------------- answers

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b'Content-Length: 7\r\n\r\n{"a":1}'
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n6\r\ndata:1\r\n6\r\ndata:2\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED], ids=["of a length", "in chunks"])
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_an_answer_is_whole_with_its_last_byte_however_it_arrives(
    peers: dict[str, ModuleType], answer: bytes, size: int
) -> None:
    reading = peers["wire"].Reading()
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]

    ends = [reading.feed(piece, at=float(number)) for number, piece in enumerate(pieces, 1)]

    assert ends == [False] * (len(pieces) - 1) + [True]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (reading.status, reading.body) == (200, body)
    assert reading.first == (len(head) + 4) // size + 1, "the piece with the first byte of the body"


def test_an_empty_answer_is_whole_with_its_head(peers: dict[str, ModuleType]) -> None:
    reading = peers["wire"].Reading()

    assert reading.feed(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", at=1.0)
    assert (reading.status, reading.first, reading.body) == (204, 1.0, b"")


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"SSH-2.0-x\r\n\r\n", "begins no answer"), (HEAD + b"\r\n", "ends with its connection")],
)
def test_what_cannot_be_read_is_refused(peers: dict[str, ModuleType], answer: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        peers["wire"].Reading().feed(answer, at=0.0)


def test_a_body_is_joined_from_its_chunks(peers: dict[str, ModuleType]) -> None:
    assert peers["overhead"]._joined(b'4\r\n{"a"\r\n3\r\n:1}\r\n0\r\n\r\n') == b'{"a":1}'
    assert peers["overhead"]._joined(b'{"a":1}') == b'{"a":1}'


# ----------------------------------------------------------------------------------------------- statistics


def test_what_is_common_to_a_second_cancels_out_of_a_difference(peers: dict[str, ModuleType]) -> None:
    """Direct calls of second k take k ms, those of a path 5 ms more: its p99 is unsure, the difference is not."""
    direct = {(0, second): [second / 1000] * 10 for second in range(20)}
    path = {key: [seconds + 0.005 for seconds in block] for key, block in direct.items()}

    drawn = peers["paired"].Drawn({"direct": direct, "path": path, "other": path}, percentiles=(50, 99))

    assert drawn.difference("path", "direct", 99) == pytest.approx((5.0, 5.0, 5.0))
    assert drawn.difference("path", "other", 99) == (0.0, 0.0, 0.0)
    value, low, high = drawn.added("path", "direct", 99)
    assert value == pytest.approx(19 + 5 - 9.5)  # the p99 of the path less the median of the direct calls
    assert low < value < high, "medians and tails of other draws of seconds differ"


def test_blocks_that_a_path_lacks_count_for_none(peers: dict[str, ModuleType]) -> None:
    drawn = peers["paired"].Drawn({"direct": {(0, 0): [0.001], (0, 1): [9.0]}, "path": {(0, 0): [0.003]}})

    assert drawn.added("path", "direct", 50) == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="no block in common"):
        peers["paired"].Drawn({"direct": {(0, 0): [1.0]}, "path": {(1, 0): [1.0]}})


def test_a_ratio_of_rates_is_one_of_medians(peers: dict[str, ModuleType]) -> None:
    rates = {"ours": [100.0, 900.0, 1000.0], "theirs": [300.0, 300.0, 300.0]}

    value, low, high = peers["paired"].ratio(rates, "ours", "theirs")

    assert value == 3.0
    assert (low, high) == pytest.approx((1 / 3, 10 / 3)), "all three draws may be the slowest, or the fastest"


# ------------------------------------------------------------------------------------------------------ load


class Recorder:
    """A way on which calls end at once; slot and tokens of each."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.is_open = False

    async def open(self) -> None:
        self.is_open = True

    async def call(self, slot: int, tokens: int) -> tuple[float, float, float]:
        sent = perf_counter()
        self.calls.append((slot, tokens))
        await asyncio.sleep(0.001)
        return sent, sent, perf_counter()

    async def close(self) -> None:
        self.is_open = False


async def test_what_begins_in_the_window_is_counted_and_lengths_are_the_same_each_time(
    peers: dict[str, ModuleType],
) -> None:
    load = peers["load"]
    way = Recorder()

    timings = await load.phase(way, load.Load(slots=3, call_s=0.01, window_s=0.02), seed=7)

    assert not way.is_open
    assert timings
    assert all(0.0 <= timing.at < 0.03 for timing in timings), "sent a moment after it was decided"
    for slot in range(3):
        lengths = load.tokens_of(7, slot)
        asked = [tokens for of, tokens in way.calls if of == slot]
        assert asked == [next(lengths) for _ in asked]
        assert set(asked) <= set(range(load.SHORTEST, load.LONGEST + 1))


async def test_a_call_that_fails_ends_the_phase(peers: dict[str, ModuleType]) -> None:
    class Broken(Recorder):
        async def call(self, slot: int, tokens: int) -> tuple[float, float, float]:
            raise RuntimeError("answered 500")

    load, way = peers["load"], Broken()

    with pytest.raises(RuntimeError, match="answered 500"):
        await load.phase(way, load.Load(slots=2, call_s=0.01, window_s=10.0), seed=1)
    assert not way.is_open


async def test_a_rate_counts_every_call_once(peers: dict[str, ModuleType]) -> None:
    way = Recorder()

    assert await peers["load"].rate(way, slots=4, calls=10) > 0
    assert [tokens for _, tokens in way.calls] == [8] * 10


# ------------------------------------------------------------------------------------------------------ page


def estimate(value: float) -> list[float]:
    return [value, value - 0.5, value + 0.5]


def document(ours: float = 3.0, theirs: float = 20.0, times: float = 5.0) -> dict[str, Any]:
    """Results of one point and one ceiling, as JSON has them."""
    added = {
        "llmsched": {"p50": estimate(ours), "p99": estimate(2 * ours)},
        "LiteLLM, 2 workers": {"p50": estimate(theirs), "p99": estimate(2 * theirs)},
    }
    point = {
        "in flight": 16,
        "mode": "streamed",
        "call_s": 0.64,
        "calls": {"direct": 600, "llmsched": 600, "LiteLLM, 2 workers": 600},
        "direct": {"p50": 1.0, "p99": 2.0},
        "load": 0.5,
        "run": "2026-01-31 12:00",
        "added": added,
        "added to the first token": added,
        "less than the peer": {"p50": estimate(theirs - ours), "p99": estimate(2 * (theirs - ours))},
    }
    ceiling = {
        "mode": "streamed",
        "in flight": 64,
        "load": 2.0,
        "run": "2026-01-31 12:00",
        "rates": {"direct": [4000.0], "llmsched": [1000.0], "LiteLLM, 2 workers": [1000.0 / times]},
        "times the peer": {"LiteLLM, 2 workers": [times, times, times]},
    }
    conditions = {
        "at": "2026-01-31 12:00",
        "command": "python benchmarks/peers/overhead.py",
        "commit": "abc1234",
        "machine": "2 CPUs",
        "versions": {"uvicorn": "0.54.0"},
        "litellm": "1.0",
        "aiperf": "0.1",
        "rounds": 3,
        "window_s": 8.0,
        "rate": 25.0,
        "tokens": 8.0,
        "load before": 0.1,
        "minutes": 25,
    }
    found = {"direct": {"p50": 650.0, "p99": 660.0, "rate": 24.0}}
    again = {"in flight": 16, "call_s": 0.64, "found": found, "load": 1.0, "run": "2026-01-31 12:00"}
    told = {"runs": [conditions], "points": [point], "ceilings": [ceiling], "crosscheck": again}
    copy: dict[str, Any] = json.loads(json.dumps(told))
    return copy


def test_goals_are_missed_in_words(peers: dict[str, ModuleType]) -> None:
    assert peers["page"].missed(document()) == []
    assert peers["page"].missed(document(ours=20.0, times=1.5)) == [
        "p50 at 16 in flight, streamed, is not lower than that of LiteLLM, 2 workers",
        "p99 at 16 in flight, streamed, is not lower than that of LiteLLM, 2 workers",
        "only 1.5 times the throughput of LiteLLM, 2 workers, streamed; the goal is 2",
    ]


def test_the_page_keeps_what_stands_around_the_numbers(peers: dict[str, ModuleType], tmp_path: Path) -> None:
    page, path = peers["page"], tmp_path / "peers.md"
    path.write_text(f"# Before\n\n{page.BEGIN}\nold numbers\n{page.marks.END}\n\n# After\n")

    page.write(document(), path)
    page.write(document(), path)

    text = path.read_text()
    assert text.startswith(f"# Before\n\n{page.BEGIN}\n")
    assert text.endswith(f"{page.marks.END}\n\n# After\n")
    assert "old numbers" not in text
    assert "| 16 | 0.64 s | 0.5 | 1.0 / 2.0 | 3.0 (2.5 to 3.5) | 6.0 (5.5 to 6.5) | 20.0 (19.5 to 20.5)" in text
    assert "at 2 of 2 figures beyond doubt" in text
    assert "5.0 (5.0 to 5.0) times that of LiteLLM, 2 workers, streamed" in text
    path.write_text("no marks")
    with pytest.raises(ValueError, match="lacks"):
        page.write(document(), path)


def test_pieces_are_joined_and_runs_that_nothing_is_left_of_are_dropped(peers: dict[str, ModuleType]) -> None:
    old, new = document(ours=3.0), document(ours=1.0)
    new["runs"][0]["at"] = "2026-02-01 12:00"
    new["points"][0]["run"] = "2026-02-01 12:00"
    new |= {"ceilings": [], "crosscheck": None}

    both = peers["overhead"].joined(old, new)

    assert both == old | {"runs": [*old["runs"], *new["runs"]], "points": new["points"]}
    assert peers["overhead"].joined(both, document() | {"runs": new["runs"]})["runs"] == old["runs"]


def test_the_page_says_what_became_better_since_another_checkout(peers: dict[str, ModuleType]) -> None:
    told = document()
    told["points"][0]["less than before"] = {"p50": estimate(1.0), "p99": estimate(4.0)}
    told["ceilings"][0]["times before"] = [1.5, 1.4, 1.6]

    text = peers["page"].text(told)

    assert "| 16 | streamed | 1.0 (0.5 to 1.5) | 4.0 (3.5 to 4.5) |" in text
    assert "Ceiling, beside the checkout before: 1.50 (1.40 to 1.60) times as many calls per second, streamed." in text
    assert "checkout before" not in peers["page"].text(document())


def test_a_way_that_was_not_measured_at_every_point_leaves_its_cells_empty(peers: dict[str, ModuleType]) -> None:
    told = document()
    second = document()["points"][0] | {"in flight": 64}
    for added in ("added", "added to the first token"):
        told["points"][0][added] = told["points"][0][added] | {
            "llmsched before": {"p50": estimate(9.0), "p99": estimate(9.0)}
        }
    told["points"].append(second)

    text = peers["page"].text(told)

    assert "| 9.0 (8.5 to 9.5) | 9.0 (8.5 to 9.5) |" in text
    assert "| 40.0 (39.5 to 40.5) |  |  |" in text
    assert "| 64 | 3.0 / 6.0 | 20.0 / 40.0 |  |" in text


def test_the_page_in_the_documentation_has_its_marks(peers: dict[str, ModuleType]) -> None:
    text = peers["page"].PAGE.read_text()

    assert text.index(peers["page"].BEGIN) < text.index(peers["page"].marks.END)


def test_aiperf_is_read_and_failed_requests_are_no_result(peers: dict[str, ModuleType]) -> None:
    told = {
        "request_throughput": {"unit": "requests/sec", "avg": 23.1},
        "request_latency": {"unit": "ms", "avg": 652.7, "p50": 649.5, "p99": 680.2},
        "request_count": {"unit": "requests", "avg": 400.0},
    }
    latency = peers["crosscheck"].latency

    assert latency(told) == {"p50": 649.5, "p99": 680.2, "rate": 23.1}
    with pytest.raises(RuntimeError, match="3 of them failed"):
        latency(told | {"error_request_count": {"unit": "requests", "avg": 3.0}})
    with pytest.raises(RuntimeError, match="397 requests of 400"):
        latency(told | {"request_count": {"unit": "requests", "avg": 397.0}})


def test_figures_for_the_record_are_held_against_the_peer(peers: dict[str, ModuleType]) -> None:
    told = document()
    figures = peers["overhead"].figures(told | {"points": [], "ceilings": told["ceilings"]})
    assert [f.goal for f in figures if f.name.startswith("times")] == [2.0] * (len(figures) - len(told["ceilings"]))
