"""Pictures of an application: its graph as text for a terminal, as Mermaid for a document, as SVG for a page.

The graph is the padded one that schedulers and profilers see, every round of a loop with its own stages; `fold` draws
each loop once. The text has a line per stage, parents above children, and a lane for every stage that is waited for,
in which the lines of all its parents meet:

```
●    plan      llm
├─╮
■ │  search_1  regular
│ ■  search_2  regular
├─╯
●    answer    llm
```

The SVG is layered: a stage stands below everything it waits for, rows are ordered so that few lines cross (barycentre
sweeps), and stages are pulled towards the middle of their neighbours. A loop is a frame, laid out by itself; lines from
and to its stages end at the frame.
Source of the method: Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical system structures",
IEEE Trans. SMC 11(2), 1981.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from html import escape
from itertools import pairwise
from textwrap import wrap
from typing import Any, NamedTuple

from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.spec import DEFAULT_POOLS, MAX_TASKS, StageSpec

#: Candidates of a dynamic stage that are named before the rest is counted.
_NAMED = 6


class Node(NamedTuple):
    """A stage as it is drawn. loop: the one it is in; notes: what else there is to say, in a few words each."""

    name: str
    kind: StageKind
    after: tuple[str, ...]
    loop: str | None
    tasks: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order. loops: what is said of each."""

    name: str
    nodes: tuple[Node, ...]
    loops: Mapping[str, str]

    @classmethod
    def of(cls, application: Application, *, fold: bool = False) -> Graph:
        """The graph of an application; with `fold` each loop is drawn once."""
        loops = _loops(application)
        specs = _folded(application) if fold else application.stages
        nodes = []
        said: set[tuple[str | None, str]] = set()
        for spec in specs:
            key = (spec.loop, spec.names[-1])
            nodes.append(_node(spec, _own_condition(application, spec), fold=fold, is_repeated=key in said))
            said.add(key)
        return cls(application.name, tuple(nodes), loops)


def _loops(application: Application) -> dict[str, str]:
    said = {e["loop"]: e.get("while") for e in _entries(application) if "loop" in e}
    rounds: dict[str, dict[int | None, None]] = {}
    for spec in application.stages:
        if spec.loop is not None:
            rounds.setdefault(spec.loop, {})[spec.iteration] = None
    return {
        loop: f"at most {_count(len(numbers), 'round')}" + (f", while {_line(said[loop])}" if said.get(loop) else "")
        for loop, numbers in rounds.items()
    }


def _entries(application: Application) -> Iterable[Mapping[str, Any]]:
    stages: Any = application.definition.get("stages", ())
    return stages  # type: ignore[no-any-return]  # the definition is valid


def _own_condition(application: Application, spec: StageSpec) -> str | None:
    """`when` without the condition of its loop, which the loop says."""
    if spec.loop is None:
        return spec.when
    body: Iterable[Mapping[str, Any]] = next(
        (e["stages"] for e in _entries(application) if e.get("loop") == spec.loop), ()
    )
    return next((e.get("when") for e in body if e["name"] == spec.names[-1]), None)


def _folded(application: Application) -> list[StageSpec]:
    """The stages with every loop once, named without a number, and without lines from one round to the next."""
    by_name = {spec.name: spec for spec in application.stages}
    drawn: dict[tuple[str | None, str], StageSpec] = {}
    for spec in application.stages:
        parents = (by_name[p] for p in spec.after)
        after = [
            p.names[-1] for p in parents if not (p.loop == spec.loop is not None and p.iteration != spec.iteration)
        ]
        key = (spec.loop, spec.names[-1])
        known = drawn.get(key)
        merged = dict.fromkeys([*(known.after if known else ()), *after])
        drawn[key] = replace(known or spec, name=spec.names[-1], after=tuple(merged))
    return list(drawn.values())


def _node(spec: StageSpec, condition: str | None, *, fold: bool, is_repeated: bool) -> Node:
    """is_repeated: of a later round, of which everything but the number was said."""
    notes = []
    if spec.loop is not None:
        notes.append(f"loop {spec.loop}" if fold else f"loop {spec.loop}, round {spec.iteration}")
    if is_repeated:
        return Node(spec.name, spec.kind, spec.after, spec.loop, "", tuple(notes))
    if spec.handler is not None:
        notes.append(f"calls {spec.handler}")
    if spec.pool not in (DEFAULT_POOLS[spec.kind], ""):
        notes.append(f"pool {spec.pool}")
    if condition:
        notes.append(f"when {_line(condition)}")
    if spec.kind is StageKind.DYNAMIC:
        notes.append(f"planned by {spec.planner}, at most {_count(spec.max_stages, 'stage')}")
        notes.append(f"of {_candidates(spec)}")
    return Node(spec.name, spec.kind, spec.after, spec.loop, _tasks(spec), tuple(notes))


def _tasks(spec: StageSpec) -> str:
    if spec.for_each is not None:
        bound = "" if spec.max_tasks == MAX_TASKS else f", at most {spec.max_tasks}"
        return f"one task per item{bound}"
    if spec.max_tasks == 1:
        return ""
    return f"{_count(spec.tasks, 'task')}" + ("" if spec.max_tasks == spec.tasks else f", at most {spec.max_tasks}")


def _candidates(spec: StageSpec) -> str:
    named = [c.name + ("" if c.kind is StageKind.REGULAR else f" ({c.kind})") for c in spec.candidates[:_NAMED]]
    more = len(spec.candidates) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _line(source: object) -> str:
    return " ".join(str(source).split())


# ----------------------------------------------------------------------------------------------------- as text

_SIGNS = {StageKind.LLM: "●", StageKind.REGULAR: "■", StageKind.DYNAMIC: "◆"}


class Row(NamedTuple):
    """A line of the text. lanes: the drawing; node: None where lines only turn."""

    lanes: str
    node: Node | None


def text(application: Application, *, fold: bool = False) -> str:
    """The graph for a terminal, a line per stage: name, kind, tasks and what else there is to say; then the loops."""
    graph = Graph.of(application, fold=fold)
    lines = rows(graph)
    cells = [
        (row.lanes, row.node.name, row.node.kind.value, "; ".join(filter(None, (row.node.tasks, *row.node.notes))))
        if row.node
        else (row.lanes, "", "", "")
        for row in lines
    ]
    wide = [max(len(line[k]) for line in cells) for k in range(3)]
    drawn = ["  ".join(c.ljust(w) for c, w in zip(line, [*wide, 0], strict=True)).rstrip() for line in cells]
    said = [f"loop {loop}: {bound}" for loop, bound in graph.loops.items()]
    return "\n".join([*drawn, *([""] if said else []), *said])


def rows(graph: Graph) -> list[Row]:
    """The lines of the text, stages and turns."""
    children: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
    for node in graph.nodes:
        for parent in node.after:
            children[parent].append(node.name)
    drawn: list[Row] = []
    lanes: list[str | None] = []  # by column: the stage that is waited for there
    for node in graph.nodes:
        at = lanes.index(node.name) if node.name in lanes else _free(lanes, 0)
        if lanes[at] is None and drawn and drawn[-1].lanes[2 * at : 2 * at + 1].strip():
            drawn.append(Row(_cells(lanes, {}), None))  # what ended just above has nothing to do with it
        lanes[at] = node.name
        drawn.append(Row(_cells(lanes, {at: _SIGNS[node.kind]}), node))
        known = [c for c in children[node.name] if c in lanes]
        fresh = [c for c in children[node.name] if c not in lanes]
        lanes[at] = fresh.pop(0) if fresh else None
        if fresh:
            fork = {at: "├"}
            for child in fresh:
                column = _free(lanes, at + 1)
                lanes[column] = child
                fork[column] = "┬"
            fork[max(fork)] = "╮"
            drawn.append(Row(_joined(lanes, fork), None))
        while known:
            child = known.pop(0)
            goes_on = lanes[at] is not None or bool(known)
            drawn.append(Row(_joined(lanes, _merge(at, lanes.index(child), goes_on)), None))
    return drawn


def _free(lanes: list[str | None], start: int) -> int:
    """The first column from `start` that nothing is drawn in."""
    while len(lanes) <= start or None in lanes[start:]:
        if None in lanes[start:]:
            return lanes.index(None, start)
        lanes.append(None)
    lanes.append(None)
    return len(lanes) - 1


def _merge(at: int, to: int, goes_on: bool) -> dict[int, str]:
    if to > at:
        return {at: "├" if goes_on else "╰", to: "┤"}
    return {to: "├", at: "┤" if goes_on else "╯"}


def _cells(lanes: Sequence[str | None], signs: Mapping[int, str]) -> str:
    cells = [signs.get(k) or ("│" if lane else " ") for k, lane in enumerate(lanes)]
    return " ".join(cells).rstrip()


def _joined(lanes: Sequence[str | None], signs: Mapping[int, str]) -> str:
    """A turn: a line from the first to the last sign, across the lanes between."""
    first, last = min(signs), max(signs)
    cells = ""
    for k, lane in enumerate(lanes):
        is_inside = first <= k <= last
        cells += signs.get(k) or (("┼" if lane else "─") if is_inside else ("│" if lane else " "))
        cells += "─" if first <= k < last else " "
    return cells.rstrip()


# -------------------------------------------------------------------------------------------------- as Mermaid

_SHAPES = {StageKind.LLM: ('(["', '"])'), StageKind.REGULAR: ('["', '"]'), StageKind.DYNAMIC: ('{{"', '"}}')}
_CLASSES = """\
    classDef llm fill:#e8f0fe,stroke:#3b6fd4,color:#1f2328
    classDef regular fill:#e6f4ea,stroke:#2e8b57,color:#1f2328
    classDef dynamic fill:#fdf3e1,stroke:#c77f0a,color:#1f2328,stroke-dasharray:5 3"""


def mermaid(application: Application, *, fold: bool = False) -> str:
    """The graph as a Mermaid flowchart, loops as subgraphs."""
    graph = Graph.of(application, fold=fold)
    ids = {node.name: f"s{k}" for k, node in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for loop in (None, *graph.loops):
        inside = [node for node in graph.nodes if node.loop == loop]
        indent = "    "
        if loop is not None:
            lines.append(f'    subgraph {_mermaid_id(loop, graph)}["{_quoted(f"loop {loop}: {graph.loops[loop]}")}"]')
            indent *= 2
        for node in inside:
            opening, closing = _SHAPES[node.kind]
            said = "<br/>".join([f"<b>{node.name}</b>", *(_quoted(line) for line in _said(node))])
            lines.append(f"{indent}{ids[node.name]}{opening}{said}{closing}:::{node.kind}")
        if loop is not None:
            lines.append("    end")
    lines += [f"    {ids[parent]} --> {ids[node.name]}" for node in graph.nodes for parent in node.after]
    return "\n".join([*lines, _CLASSES])


def _mermaid_id(loop: str, graph: Graph) -> str:
    return f"loop{list(graph.loops).index(loop)}"


def _quoted(said: str) -> str:
    return said.translate(_ENTITIES)


_ENTITIES = str.maketrans({"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;"})


def _said(node: Node) -> list[str]:
    """What stands below the name in a box; what the frame of its loop says is left out."""
    notes = [note for note in node.notes if not note.startswith("loop ")]
    return [f"{node.kind} · {node.tasks}" if node.tasks else node.kind.value, *notes]


# ------------------------------------------------------------------------------------------------------ as SVG

_GAP, _RISE, _PAD = 24.0, 36.0, 16.0
#: Pixels: of a line of text, and of a character in it (names are bold).
_LEADING, _NAME, _NOTE = 16.0, 7.8, 6.3
#: Characters in a line of a note, and lines of it before it is cut; the whole of it is the box's tooltip.
_WIDEST, _LINES = 44, 3
_SWEEPS = 8

_STYLE = """
.llmsched-graph { font-family: system-ui, sans-serif; color-scheme: light dark }
.llmsched-graph .page { fill: #ffffff }
.llmsched-graph .name { font-size: 13px; font-weight: 600; fill: #1f2328 }
.llmsched-graph .note { font-size: 11px; fill: #59636e }
.llmsched-graph .box { stroke-width: 1.5 }
.llmsched-graph .llm { fill: #e8f0fe; stroke: #3b6fd4 }
.llmsched-graph .regular { fill: #e6f4ea; stroke: #2e8b57 }
.llmsched-graph .dynamic { fill: #fdf3e1; stroke: #c77f0a; stroke-dasharray: 6 3 }
.llmsched-graph .loop { fill: #f6f8fa; stroke: #8c959f; stroke-dasharray: 3 3 }
.llmsched-graph .line { fill: none; stroke: #8c959f; stroke-width: 1.5 }
.llmsched-graph .head { fill: #8c959f }
@media (prefers-color-scheme: dark) {
.llmsched-graph .page { fill: #0d1117 }
.llmsched-graph .name { fill: #e6edf3 }
.llmsched-graph .note { fill: #9198a1 }
.llmsched-graph .llm { fill: #17233d; stroke: #6ea0ff }
.llmsched-graph .regular { fill: #142a1d; stroke: #56c27d }
.llmsched-graph .dynamic { fill: #2f2410; stroke: #e0a84a }
.llmsched-graph .loop { fill: #151b23; stroke: #6e7681 }
.llmsched-graph .line { stroke: #6e7681 }
.llmsched-graph .head { fill: #6e7681 }
}
"""


@dataclass(frozen=True, slots=True)
class _Box:
    """Something with a size in pixels and what is drawn in it, its corner at (0, 0)."""

    width: float
    height: float
    drawn: str


def svg(application: Application, *, fold: bool = False) -> str:
    """The graph as an SVG document of its own, in light or dark as whoever looks at it prefers."""
    graph = Graph.of(application, fold=fold)
    whole = _framed(graph) or _flat(graph)
    width, height = whole.width + 2 * _PAD, whole.height + 2 * _PAD
    title = escape(f"Stages of the application {graph.name}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="llmsched-graph" role="img" width="{width:.0f}"'
        f' height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n"
        '<defs><marker id="llmsched-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto"><path class="head" d="M0,0.5 L8,4 L0,7.5 z"/></marker></defs>\n'
        f'<rect class="page" width="{width:.0f}" height="{height:.0f}" rx="8"/>\n'
        f"{_placed(whole, _PAD, _PAD)}</svg>\n"
    )


def _framed(graph: Graph) -> _Box | None:
    """Loops as frames; None where a stage waits for one round and a later one for that stage: no frame holds those."""
    place = {node.name: f"loop {node.loop}" if node.loop else node.name for node in graph.nodes}
    waits: dict[str, dict[str, None]] = {place[node.name]: {} for node in graph.nodes}
    for node in graph.nodes:
        waits[place[node.name]] |= dict.fromkeys(place[p] for p in node.after if place[p] != place[node.name])
    try:
        order = list(TopologicalSorter(waits).static_order())
    except CycleError:
        return None
    boxes = {node.name: _stage_box(node) for node in graph.nodes if not node.loop}
    boxes |= {f"loop {loop}": _loop_box(graph, loop) for loop in graph.loops}
    return _laid_out({name: boxes[name] for name in order}, [(p, n) for n in waits for p in waits[n]])


def _flat(graph: Graph) -> _Box:
    lines = [(parent, node.name) for node in graph.nodes for parent in node.after]
    return _laid_out({node.name: _stage_box(node) for node in graph.nodes}, lines)


def _loop_box(graph: Graph, loop: str) -> _Box:
    inside = {node.name: node for node in graph.nodes if node.loop == loop}
    lines = [(p, node.name) for node in inside.values() for p in node.after if p in inside]
    body = _laid_out({name: _stage_box(node) for name, node in inside.items()}, lines)
    head, said = f"↻ {loop}", wrap(graph.loops[loop], _WIDEST, max_lines=_LINES, placeholder=" …")
    width = max(body.width, _NAME * len(head), *(_NOTE * len(line) for line in said)) + 2 * _PAD
    top = _PAD + _LEADING * (1 + len(said)) + 4
    notes = "".join(
        f'<text class="note" x="{_PAD:.0f}" y="{_PAD + 8 + _LEADING * k:.0f}">{escape(line)}</text>\n'
        for k, line in enumerate(said, 1)
    )
    drawn = (
        f'<rect class="box loop" width="{width:.0f}" height="{top + body.height + _PAD:.0f}" rx="10"/>\n'
        f'<text class="name" x="{_PAD:.0f}" y="{_PAD + 8:.0f}">{escape(head)}</text>\n'
        + notes
        + _placed(body, (width - body.width) / 2, top)
    )
    return _Box(width, top + body.height + _PAD, drawn)


def _stage_box(node: Node) -> _Box:
    said = _said(node)
    shown = [part for line in said for part in wrap(line, _WIDEST, max_lines=_LINES, placeholder=" …")]
    width = max(96.0, _NAME * len(node.name), *(_NOTE * len(line) for line in shown)) + 2 * 12
    height = 14 + _LEADING * (1 + len(shown))
    middle = width / 2
    lines = "".join(
        f'<text class="note" text-anchor="middle" x="{middle:.0f}" y="{19 + _LEADING * k:.0f}">{escape(line)}</text>\n'
        for k, line in enumerate(shown, 1)
    )
    drawn = (
        f"<g><title>{escape('; '.join([node.name, *said]))}</title>"
        f'<rect class="box {node.kind}" width="{width:.0f}" height="{height:.0f}" rx="{_corner(node.kind)}"/>\n'
        f'<text class="name" text-anchor="middle" x="{middle:.0f}" y="19">{escape(node.name)}</text>\n{lines}</g>\n'
    )
    return _Box(width, height, drawn)


def _corner(kind: StageKind) -> int:
    return 4 if kind is StageKind.REGULAR else 14


def _placed(box: _Box, x: float, y: float) -> str:
    return f'<g transform="translate({x:.1f} {y:.1f})">\n{box.drawn}</g>\n'


# ------------------------------------------------------------------------------------------------------ layout


def _laid_out(boxes: Mapping[str, _Box], lines: Sequence[tuple[str, str]]) -> _Box:
    """Boxes in rows, and the lines (parent, child) between them. boxes: parents before children."""
    row = _rows_of(boxes, lines)
    widths = {name: box.width for name, box in boxes.items()}
    paths: list[list[str]] = []
    links: list[tuple[str, str]] = []
    for parent, child in lines:  # a line across a row goes through a place of its own there
        path = [parent, *(f"{parent} → {child} in {k}" for k in range(row[parent] + 1, row[child])), child]
        for k, name in enumerate(path[1:-1], row[parent] + 1):
            row[name], widths[name] = k, 8.0
        paths.append(path)
        links += pairwise(path)
    layers: list[list[str]] = [[] for _ in range(1 + max(row.values()))]
    for name, k in row.items():
        layers[k].append(name)
    layers = _ordered(layers, links)
    middle = _middles(layers, links, widths)
    tops, heights = [], []
    height = -_RISE
    for layer in layers:
        tops.append(height + _RISE)
        heights.append(max((boxes[n].height for n in layer if n in boxes), default=0.0))
        height = tops[-1] + heights[-1]
    left = min(middle[n] - widths[n] / 2 for n in middle)
    drawn = "".join(_curve(path, middle, left, row, tops, heights, boxes) for path in paths)
    for name, box in boxes.items():
        drawn += _placed(box, middle[name] - box.width / 2 - left, tops[row[name]])
    return _Box(max(middle[n] + widths[n] / 2 for n in middle) - left, height, drawn)


def _rows_of(boxes: Iterable[str], lines: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The row of each box: one below the lowest of its parents."""
    parents: dict[str, list[str]] = {name: [] for name in boxes}
    for parent, child in lines:
        parents[child].append(parent)
    row: dict[str, int] = {}
    for name in boxes:
        row[name] = 1 + max((row[p] for p in parents[name]), default=-1)
    return row


def _ordered(layers: list[list[str]], links: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The order in each row that crossed the fewest lines in a few sweeps down and up."""
    best, fewest = layers, _crossings(layers, links)
    for sweep in range(_SWEEPS):
        goes_down = sweep % 2 == 0
        beside = _neighbours(links, above=goes_down)
        swept = [list(layer) for layer in layers]
        for k in range(1, len(swept)) if goes_down else range(len(swept) - 2, -1, -1):
            at = {name: i for i, name in enumerate(swept[k - 1 if goes_down else k + 1])}
            own = {name: i for i, name in enumerate(swept[k])}
            swept[k].sort(key=lambda n, at=at, own=own: _mean([at[m] for m in beside.get(n, ())], own[n]))  # type: ignore[misc]
        layers = swept
        crossed = _crossings(layers, links)
        if crossed < fewest:
            best, fewest = layers, crossed
    return best


def _neighbours(links: Iterable[tuple[str, str]], *, above: bool) -> dict[str, list[str]]:
    beside: dict[str, list[str]] = {}
    for parent, child in links:
        beside.setdefault(child if above else parent, []).append(parent if above else child)
    return beside


def _crossings(layers: Sequence[Sequence[str]], links: Sequence[tuple[str, str]]) -> int:
    at = {name: (k, i) for k, layer in enumerate(layers) for i, name in enumerate(layer)}
    by_row: dict[int, list[tuple[int, int]]] = {}
    for parent, child in links:
        by_row.setdefault(at[parent][0], []).append((at[parent][1], at[child][1]))
    return sum(
        (a[0] - b[0]) * (a[1] - b[1]) < 0 for ends in by_row.values() for i, a in enumerate(ends) for b in ends[:i]
    )


def _middles(
    layers: Sequence[Sequence[str]], links: Sequence[tuple[str, str]], widths: Mapping[str, float]
) -> dict[str, float]:
    """Where the middle of each place is: near those of its neighbours, at least a gap from the next in its row."""
    beside = [_neighbours(links, above=True), _neighbours(links, above=False)]
    middle: dict[str, float] = {}
    for layer in layers:
        middle |= dict(zip(layer, _spread([0.0] * len(layer), [widths[n] for n in layer]), strict=True))
    for sweep in range(_SWEEPS):
        goes_down = sweep % 2 == 0
        for layer in layers if goes_down else reversed(layers):
            near = [[middle[m] for m in beside[0 if goes_down else 1].get(n, ())] for n in layer]
            wished = [_mean(places, middle[n]) for places, n in zip(near, layer, strict=True)]
            middle |= dict(zip(layer, _spread(wished, [widths[n] for n in layer]), strict=True))
    return middle


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _spread(wished: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Middles in the given order without overlaps, as near to those wished for as least squares allow.

    Taking off each one's offset in a packed row leaves a monotone regression, which pooling neighbours solves.
    """
    offsets = [0.0]
    for a, b in pairwise(widths):
        offsets.append(offsets[-1] + (a + b) / 2 + _GAP)
    pools: list[tuple[float, int]] = []  # mean, how many
    for wish, offset in zip(wished, offsets, strict=True):
        mean, n = wish - offset, 1
        while pools and pools[-1][0] > mean:
            other, m = pools.pop()
            mean, n = (mean * n + other * m) / (n + m), n + m
        pools.append((mean, n))
    free = [mean for mean, n in pools for _ in range(n)]
    return [place + offset for place, offset in zip(free, offsets, strict=True)]


def _curve(
    path: Sequence[str],
    middle: Mapping[str, float],
    left: float,
    row: Mapping[str, int],
    tops: Sequence[float],
    heights: Sequence[float],
    boxes: Mapping[str, _Box],
) -> str:
    """The line through the places of `path`: straight down across rows, bent between them."""
    x, y = middle[path[0]] - left, tops[row[path[0]]] + boxes[path[0]].height
    steps = [f"M{x:.1f},{y:.1f}"]
    for name in path[1:]:
        to, top = middle[name] - left, tops[row[name]]
        floor = tops[row[name] - 1] + heights[row[name] - 1]
        if floor > y:
            steps.append(f"V{floor:.1f}")
        half = (floor + top) / 2
        steps.append(f"C{x:.1f},{half:.1f} {to:.1f},{half:.1f} {to:.1f},{top:.1f}")
        x, y = to, top
    return f'<path class="line" marker-end="url(#llmsched-head)" d="{" ".join(steps)}"/>\n'
