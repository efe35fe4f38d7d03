"""What a gateway adds to a call, and how many calls it carries: this service beside the LiteLLM proxy, in one run.

    python benchmarks/peers/overhead.py [--quick] [--rounds N] [--window S] [--levels 1,16,64,256] [--before CHECKOUT]
                                        [--parts latency,ceiling,aiperf] [--add]

Ways to the same engines take turns, on the same machine, asked by the same client process: directly, through the
OpenAI-compatible door of llmsched, through LiteLLM, and as jobs of one call. Latency is measured at a rate that leaves
every one of them room (calls last as long as that needs), the ceiling with engines that answer at once. Writes
benchmarks/results/peers.json and, from it, the numbers in docs/peers.md. `--add` keeps what is there of other levels,
so that it can be measured in pieces; `--before` measures another checkout of llmsched beside this one. Exit
status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import crosscheck
import orjson
import page
import paired
import servers
from load import LONGEST, MEAN_TOKENS, Chat, Jobs, Load, phase, rate
from wire import Connection, request

sys.path.append(str(Path(__file__).parents[1]))
import record
import rig
from rig import Figure

RESULTS = servers.ROOT / "benchmarks" / "results" / "peers.json"
#: Calls a second at which latency is measured: less than half of what LiteLLM streams on two cores.
RATE = 25.0
#: Seconds of a call, alone.
SHORTEST_CALL = 0.05
#: Slots that look for the ceiling.
SLOTS = 64
MODES = ("whole", "streamed")
#: What can be measured, in this order.
PARTS = ("latency", "ceiling", "aiperf")
DIRECT, DOOR, JOBS, BEFORE = "direct", "llmsched", "llmsched jobs", "llmsched before"
#: Ways that carry less are asked for fewer calls, so that a round takes seconds.
_CALLS = {DIRECT: 6_000, DOOR: 2_000, BEFORE: 2_000, JOBS: 1_000}
_CALLS_OF_OTHERS = 400


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how long."""

    levels: tuple[int, ...]
    rounds: int
    window_s: float
    before: Path | None
    parts: tuple[str, ...]
    #: The arguments, for the page.
    words: tuple[str, ...]

    def load(self, slots: int) -> Load:
        return Load(slots, max(SHORTEST_CALL, slots / RATE), self.window_s)


def litellm_name(workers: int) -> str:
    return f"LiteLLM, {workers} workers" if workers > 1 else "LiteLLM, 1 worker"


PEER = litellm_name(os.cpu_count() or 1)


@asynccontextmanager
async def engines(plan: Plan, stack: AsyncExitStack) -> AsyncIterator[dict[str, str]]:
    """URL of the engine by the name of its pool: one for each level, and one that answers at once."""
    found = {}
    for slots in plan.levels:
        seconds = plan.load(slots).token_s
        curve = {"name": f"e{slots}", "prefill_tokens_per_s": 1e9, "decode": [[1, seconds]]}
        (found[f"e{slots}"],) = await stack.enter_async_context(rig.engines(latency=curve, max_batch=2 * slots))
    (found["instant"],) = await stack.enter_async_context(rig.engines(max_batch=2 * SLOTS))
    yield found


async def measure(plan: Plan) -> dict[str, Any]:
    """The document that `page` reads."""
    told = conditions(plan)
    with tempfile.TemporaryDirectory(prefix="llmsched-peers-") as folder:
        async with AsyncExitStack() as stack:
            urls = await stack.enter_async_context(engines(plan, stack))
            chats: dict[str, tuple[str, str]] = {}
            own = await stack.enter_async_context(servers.llmsched(Path(folder), urls))
            chats[DOOR] = own.url, servers.KEY
            if plan.before is not None:
                other = servers.llmsched(Path(folder), urls, checkout=plan.before, name="before")
                chats[BEFORE] = (await stack.enter_async_context(other)).url, servers.KEY
            workers = os.cpu_count() or 1
            peer = await stack.enter_async_context(servers.litellm(Path(folder), urls, workers=workers))
            chats[PEER] = peer.url, servers.KEY
            for pool in urls:
                await _put_application(own.url, pool)
            await _check(urls, chats)
            points = []
            for slots in plan.levels if "latency" in plan.parts else ():
                for mode in MODES:
                    points.append(await _point(plan, slots, mode, urls, chats, own.url))
                    print(page.line(points[-1]), flush=True)
            again = await _crosscheck(Path(folder), plan, urls, chats) if "aiperf" in plan.parts else None
            ceilings = []
            if "ceiling" in plan.parts:
                if workers > 1:
                    alone = servers.litellm(Path(folder), urls, workers=1)
                    chats[litellm_name(1)] = (await stack.enter_async_context(alone)).url, servers.KEY
                ceilings = [await _ceiling(plan, mode, urls["instant"], chats, own.url) for mode in MODES]
    return {"runs": [told], "points": points, "ceilings": ceilings, "crosscheck": again}


def joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured before, with what was measured now in its place; only the runs of which something is left."""

    def merged(name: str, *key: str) -> list[dict[str, Any]]:
        by_key = {tuple(part[k] for k in key): part for part in (*old[name], *new[name])}
        return [by_key[k] for k in sorted(by_key, key=lambda k: (k[-1] != "whole", k))]

    points, ceilings = merged("points", "in flight", "mode"), merged("ceilings", "mode")
    again = new["crosscheck"] or old["crosscheck"]
    left = {part["run"] for part in (*points, *ceilings, *([again] if again else []))}
    runs = [run for run in (*old["runs"], *new["runs"]) if run["at"] in left]
    return {"runs": runs, "points": points, "ceilings": ceilings, "crosscheck": again}


async def _crosscheck(
    folder: Path, plan: Plan, urls: Mapping[str, str], chats: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """The second level (or the only one) with the public load tool."""
    slots = sorted(plan.levels)[:2][-1]
    load, pool = plan.load(slots), f"e{slots}"
    ways = {DIRECT: (urls[pool], "emulated", "")}
    ways |= {name: (chats[name][0], pool, chats[name][1]) for name in (DOOR, PEER)}
    found = await crosscheck.crosscheck(folder, ways, slots=slots, call_s=load.call_s)
    return {"in flight": slots, "call_s": load.call_s, "found": found, "load": _machine_load()}


def _ways(engine: str, pool: str, mode: str, chats: Mapping[str, tuple[str, str]], own: str) -> dict[str, Chat | Jobs]:
    """Every way to one engine; jobs have no streamed answer, so they are beside the whole ones."""
    is_stream = mode == "streamed"
    ways: dict[str, Chat | Jobs] = {DIRECT: Chat(engine, "emulated", stream=is_stream)}
    ways |= {name: Chat(url, pool, stream=is_stream, key=key) for name, (url, key) in chats.items()}
    if not is_stream:
        ways[JOBS] = Jobs(own, f"bench_{pool}", key=servers.KEY)
    return ways


async def _point(
    plan: Plan, slots: int, mode: str, urls: Mapping[str, str], chats: Mapping[str, tuple[str, str]], own: str
) -> dict[str, Any]:
    load, pool = plan.load(slots), f"e{slots}"
    ways = _ways(urls[pool], pool, mode, chats, own)
    for way in ways.values():  # connections to the engine, first imports
        await rate(way, min(slots, 16), 32)
    whole: dict[str, dict[tuple[int, int], list[float]]] = {name: defaultdict(list) for name in ways}
    first: dict[str, dict[tuple[int, int], list[float]]] = {name: defaultdict(list) for name in ways}
    for number in range(plan.rounds):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        for name in order:
            for timing in await phase(ways[name], load, seed=1_000 * slots + number):
                block = number, int(timing.at)
                whole[name][block].append(timing.whole - timing.tokens * load.token_s)
                first[name][block].append(timing.first - load.token_s)
    point: dict[str, Any] = {
        "in flight": slots,
        "mode": mode,
        "call_s": load.call_s,
        "calls": {name: sum(map(len, blocks.values())) for name, blocks in whole.items()},
        "direct": _percentiles(whole[DIRECT]),
        "load": _machine_load(),
    }
    drawn = paired.Drawn(whole)
    point["added"] = _added(drawn, ways)
    point["less than the peer"] = _less(drawn, PEER)
    if BEFORE in whole:
        point["less than before"] = _less(drawn, BEFORE)
    if mode == "streamed":
        point["added to the first token"] = _added(paired.Drawn(first), ways)
    return point


def _machine_load() -> float:
    return round(os.getloadavg()[0], 1)


def _percentiles(blocks: paired.Blocks) -> dict[str, float]:
    p50, p99 = rig.percentiles([seconds for block in blocks.values() for seconds in block], 50, 99)
    return {"p50": p50, "p99": p99}


def _added(drawn: paired.Drawn, names: Iterable[str]) -> dict[str, dict[str, paired.Estimate]]:
    return {name: {f"p{q}": drawn.added(name, DIRECT, q) for q in (50, 99)} for name in names if name != DIRECT}


def _less(drawn: paired.Drawn, name: str) -> dict[str, paired.Estimate]:
    """How much less the door adds than another way."""
    return {f"p{q}": drawn.difference(name, DOOR, q) for q in (50, 99)}


async def _ceiling(
    plan: Plan, mode: str, engine: str, chats: Mapping[str, tuple[str, str]], own: str
) -> dict[str, Any]:
    ways = _ways(engine, "instant", mode, chats, own)
    for way in ways.values():
        await rate(way, SLOTS, 2 * SLOTS)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(2 * plan.rounds):
        for name in list(ways) if number % 2 == 0 else list(reversed(ways)):
            rates[name].append(await rate(ways[name], SLOTS, _CALLS.get(name, _CALLS_OF_OTHERS)))
    peers = [name for name in rates if name.startswith("LiteLLM")]
    return {
        "mode": mode,
        "in flight": SLOTS,
        "rates": rates,
        "load": _machine_load(),
        "times the peer": {peer: paired.ratio(rates, DOOR, peer) for peer in peers},
    } | ({"times before": paired.ratio(rates, DOOR, BEFORE)} if BEFORE in rates else {})


async def _put_application(url: str, pool: str) -> None:
    stages = [{"name": "answer", "kind": "llm", "pool": pool}]
    connection = Connection(url)
    body = orjson.dumps({"stages": stages})
    answer = await connection.ask(request("PUT", f"{url}/v1/applications/bench_{pool}", body, key=servers.KEY))
    assert answer.status == 200, answer
    connection.close()


async def _check(urls: Mapping[str, str], chats: Mapping[str, tuple[str, str]]) -> None:
    """Every way gives the same answer. Raises RuntimeError where one does not."""
    ways = {DIRECT: Chat(urls["instant"], "emulated", stream=False)}
    ways |= {name: Chat(url, "instant", stream=False, key=key) for name, (url, key) in chats.items()}
    said = {}
    for name, way in ways.items():
        await way.open()
        # uvicorn sends a body with a length in one piece; chunks would have to be joined first
        document = orjson.loads(_joined((await way.ask(0, LONGEST)).body))
        said[name] = document["choices"][0]["message"]["content"], document["usage"]["completion_tokens"]
        await way.close()
    if len(set(said.values())) != 1:
        raise RuntimeError(f"the ways do not give the same answer: {said}")


def _joined(body: bytes) -> bytes:
    """A body without the framing of chunks."""
    if body.startswith(b"{"):
        return body
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(pieces)


def conditions(plan: Plan) -> dict[str, Any]:
    told = record.conditions()
    return {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["python", "benchmarks/peers/overhead.py", *plan.words]),
        "commit": told["commit"],
        "machine": told["machine"],
        "versions": {name: version(name) for name in ("uvicorn", "aiohttp", "httptools", "uvloop")},
        "litellm": servers.LITELLM[1],
        "aiperf": servers.AIPERF[1],
        "rounds": plan.rounds,
        "window_s": plan.window_s,
        "rate": RATE,
        "tokens": MEAN_TOKENS,
        "load before": told["load"],
    }


def figures(document: Mapping[str, Any]) -> list[Figure]:
    """What the door adds, held against what the peer adds; how many times its throughput."""
    found = []
    for point in document["points"]:
        for quantile in ("p50", "p99"):
            added, others = point["added"][DOOR][quantile][0], point["added"][PEER][quantile][0]
            where = f"{quantile} at {point['in flight']} in flight, {point['mode']}"
            found.append(Figure(f"added {where}; goal: {PEER}", added, "ms", others))
    for ceiling in document["ceilings"]:
        found.append(Figure(f"calls a second, {ceiling['mode']}", median(ceiling["rates"][DOOR]), "/s"))
        for peer, times in ceiling["times the peer"].items():
            found.append(Figure(f"times the throughput of {peer}, {ceiling['mode']}", times[0], "", page.TIMES, False))
    return found


def put_on_record(document: Mapping[str, Any]) -> None:
    """With the conditions of the last run."""
    last = document["runs"][-1]
    told = {"machine": last["machine"], "load": last["load before"], "date": last["at"].split()[0]}
    title = "Peers: a call through the door beside LiteLLM"
    record.save("peers", title, "make bench-peers", figures(document), told | {"commit": last["commit"]})


def _shown(words: Sequence[str]) -> tuple[str, ...]:
    """Arguments as the page names them: another checkout lies wherever its owner put it."""
    return tuple("CHECKOUT" if k and words[k - 1] == "--before" else word for k, word in enumerate(words))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--levels", default="1,16,64,256", help="calls in flight, a comma list")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every way at every point")
    parser.add_argument("--window", type=float, default=8.0, help="seconds of a turn in which calls are counted")
    parser.add_argument("--quick", action="store_true", help="to see that it runs: one round of 2 s, nothing written")
    parser.add_argument("--before", type=Path, help="another checkout of llmsched to measure beside this one")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, a comma list")
    parser.add_argument("--add", action="store_true", help="keep what is there of other levels and parts")
    parser.add_argument("--only-page", action="store_true", help="measure nothing, write the page from what is there")
    parser.add_argument("--out", type=Path, help="write the results there, and no page")
    given = parser.parse_args(argv)
    if given.only_page:
        document = json.loads(RESULTS.read_text())
        page.write(document)
        put_on_record(document)
        return 0
    levels = tuple(int(level) for level in given.levels.split(","))
    parts = tuple(given.parts.split(","))
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    rounds, window = (1, 2.0) if given.quick else (given.rounds, given.window)
    if given.quick:
        parts = tuple(part for part in parts if part != "aiperf")
    plan = Plan(levels, rounds, window, given.before, parts, _shown(sys.argv[1:] if argv is None else argv))
    servers.environment(servers.LITELLM)
    if "aiperf" in parts:
        servers.environment(servers.AIPERF)
    began = time.perf_counter()
    # Through JSON, so that the page is made of the same values now and later.
    document = json.loads(json.dumps(rig.run(measure(plan))))
    (run,) = document["runs"]
    run["minutes"] = round((time.perf_counter() - began) / 60)
    for part in (*document["points"], *document["ceilings"], *([document["crosscheck"]] * ("aiperf" in parts))):
        part["run"] = run["at"]
    if given.add and (given.out or RESULTS).exists():
        document = joined(json.loads((given.out or RESULTS).read_text()), document)
    if given.out is not None or not given.quick:
        (given.out or RESULTS).write_text(json.dumps(document, indent=1) + "\n")
    if given.out is None and not given.quick:
        page.write(document)
        put_on_record(document)
    print(page.text(document))
    missed = page.missed(document)
    print("\n".join(missed) or "every goal met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
