"""The numbers in docs/peers.md, from the results: tables and the sentences with numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import marks

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
BEGIN = marks.begin("benchmarks/peers/overhead.py")

DOOR, JOBS, DIRECT = "llmsched", "llmsched jobs", "direct"
#: How many times the throughput of the peer this service has to have.
TIMES = 2.0


def write(document: Mapping[str, Any], path: Path = PAGE) -> None:
    """Replaces what stands between the two marks. Raises ValueError where a mark is missing."""
    marks.put(text(document), path, BEGIN)


def text(document: Mapping[str, Any]) -> str:
    """All that was measured."""
    parts = ["\n".join(map(_conditions, document["runs"]))]
    for mode, title in (("whole", "not streamed"), ("streamed", "streamed")):
        points = [point for point in document["points"] if point["mode"] == mode]
        if points:
            parts.append(f"**Added to a call, {title}** (milliseconds; in brackets the 95 % interval)")
            parts.append(_latencies(points))
    if document["ceilings"]:
        parts.append("**Ceiling** (calls per second, engines that answer at once)")
        parts.append(_ceilings(document["ceilings"]))
    parts.append(_verdict(document))
    if document["crosscheck"]:
        parts.append(_crosscheck(document["crosscheck"], document["runs"][-1]["aiperf"]))
    if changes := _changes(document):
        parts.append(changes)
    return "\n\n".join(parts)


def missed(document: Mapping[str, Any]) -> list[str]:
    """A sentence for each goal that is not met."""
    told = [
        f"{q} at {point['in flight']} in flight, {point['mode']}, is not lower than that of {peer}"
        for point in document["points"]
        for peer in filter(_is_peer, point["added"])
        for q in ("p50", "p99")
        if point["added"][DOOR][q][0] >= point["added"][peer][q][0]
    ]
    for ceiling in document["ceilings"]:
        told += [
            f"only {times[0]:.1f} times the throughput of {peer}, {ceiling['mode']}; the goal is {TIMES:g}"
            for peer, times in ceiling["times the peer"].items()
            if times[0] < TIMES
        ]
    return told


def line(point: Mapping[str, Any]) -> str:
    """One point, while others are still measured."""
    ways = ", ".join(f"{name} {_pair(added)}" for name, added in point["added"].items())
    return f"{point['in flight']} in flight, {point['mode']}: added p50 / p99: {ways} ms"


def _conditions(c: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in c["versions"].items())
    return (
        f"* {c['at']} UTC, commit {c['commit']}; {c['machine']}; {versions}; LiteLLM {c['litellm']}; load before"
        f" {c['load before']}. `{c['command']}`, {c['minutes']} minutes: {c['rounds']} turns of {c['window_s']:g} s for"
        f" each way at each point, about {c['rate']:g} calls a second, {c['tokens']:g} tokens in an answer."
    )


def _latencies(points: Sequence[Mapping[str, Any]]) -> str:
    names = _names(point["added"] for point in points)
    head = ["in flight", "a call lasts", "load", "direct p50 / p99"]
    head += [f"{name} {q}" for name in names for q in ("p50", "p99")]
    rows = []
    for point in points:
        direct = point["direct"]
        row = [str(point["in flight"]), f"{point['call_s']:g} s", str(point["load"])]
        row += [f"{direct['p50']:.1f} / {direct['p99']:.1f}"]
        added = point["added"]
        row += [_interval(added[name][q]) if name in added else "" for name in names for q in ("p50", "p99")]
        rows.append(row)
    parts = [_table(head, rows)]
    if first := [point for point in points if "added to the first token" in point]:
        names = _names(point["added to the first token"] for point in first)
        told = []
        for point in first:
            added = point["added to the first token"]
            told.append([str(point["in flight"]), *(_pair(added[name]) if name in added else "" for name in names)])
        parts.append("The same to the first token, p50 / p99:")
        parts.append(_table(["in flight", *names], told))
    return "\n\n".join(parts)


def _ceilings(ceilings: Sequence[Mapping[str, Any]]) -> str:
    names = _names(ceiling["rates"] for ceiling in ceilings)
    rows = []
    for ceiling in ceilings:
        rates = ceiling["rates"]
        rows.append(
            [
                ceiling["mode"],
                str(ceiling["load"]),
                *(f"{median(rates[name]):,.0f}" if name in rates else "" for name in names),
            ]
        )
    return _table(["", "load", *names], rows)


def _crosscheck(again: Mapping[str, Any], number: str) -> str:
    found = again["found"]
    base = found[DIRECT]["p50"]
    rows = [
        [name, f"{told['p50']:.1f} / {told['p99']:.1f}", "" if name == DIRECT else _beyond(told, base)]
        for name, told in found.items()
    ]
    title = (
        f"**Cross-check with AIPerf {number}**, {again['in flight']} in flight, streamed, calls of"
        f" {again['call_s']:g} s, load {again['load']} (milliseconds)"
    )
    return f"{title}\n\n{_table(['', 'latency p50 / p99', 'added p50 / p99'], rows)}"


def _changes(document: Mapping[str, Any]) -> str:
    """What became better since another checkout, where one was measured in the same rounds."""
    rows = [
        [str(point["in flight"]), point["mode"], *(_interval(point["less than before"][q]) for q in ("p50", "p99"))]
        for point in document["points"]
        if "less than before" in point
    ]
    told = [
        f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f}) times as many calls per second, {ceiling['mode']}"
        for ceiling in document["ceilings"]
        if (found := ceiling.get("times before"))
    ]
    parts = []
    if rows:
        title = "**Beside the checkout before** (milliseconds that the door adds less; in brackets the 95 % interval)"
        parts = [title, _table(["in flight", "", "p50", "p99"], rows)]
    if told:
        parts.append(f"Ceiling, beside the checkout before: {'; '.join(told)}.")
    return "\n\n".join(parts)


def _beyond(told: Mapping[str, float], base: float) -> str:
    return f"{told['p50'] - base:.1f} / {told['p99'] - base:.1f}"


def _verdict(document: Mapping[str, Any]) -> str:
    told = missed(document)
    times = [
        f"{found[0]:.1f} ({found[1]:.1f} to {found[2]:.1f}) times that of {peer}, {ceiling['mode']}"
        for ceiling in document["ceilings"]
        for peer, found in ceiling["times the peer"].items()
    ]
    surely = [point["less than the peer"][q][1] > 0 for point in document["points"] for q in ("p50", "p99")]
    verdict = (
        f"The door adds less than LiteLLM at {sum(surely)} of {len(surely)} figures beyond doubt (the interval of the"
        f" paired difference lies above 0). Its throughput is {'; '.join(times)}."
    )
    goals = "Goals (lower p50 and p99 at every point, twice the throughput): " + ("; ".join(told) or "all met") + "."
    return f"{verdict}\n\n{goals}"


def _names(measured: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every way that was measured anywhere."""
    return list(dict.fromkeys(name for ways in measured for name in ways))


def _is_peer(name: str) -> bool:
    return name.startswith("LiteLLM")


def _pair(added: Mapping[str, Sequence[float]]) -> str:
    return f"{added['p50'][0]:.1f} / {added['p99'][0]:.1f}"


def _interval(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
