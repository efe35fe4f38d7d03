"""TaskBench's files: JSON lines of requests, each with the graph of tools that solves it.

`data.json` of a domain has `user_request`, `task_nodes` and `task_links`; other releases call these `instruction`,
`tool_nodes` and `tool_links`, and write lists as JSON inside a string. `user_requests.json` has the requests alone.
Source: TaskBench (arXiv:2311.18760), microsoft/JARVIS, folder taskbench.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from llmsched import InvalidInput
from llmsched.datasets import Sample, lines

_NODE = re.compile(r"<node-(\d+)>")


def load(path: Path) -> Iterator[Sample]:
    """The samples of a file. reference: {"nodes": tools, "links": [[source, target]]}; None where there is no graph.

    Links are those that the arguments state (`<node-0>`), as TaskBench scores them, else those listed.
    Raises InvalidInput, naming file and line.
    """
    for number, entry in lines(path):
        where = f"{path}, line {number}"
        request = entry.get("user_request", entry.get("instruction"))
        if not isinstance(request, str) or not request.strip():
            raise InvalidInput(
                f"{where} has no user_request (or instruction); is this TaskBench's data.json?", field="data"
            )
        yield Sample(str(entry.get("id", number)), {"request": request}, _graph(entry, where))


def _graph(entry: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    if "task_nodes" not in entry and "tool_nodes" not in entry:
        return None
    nodes = _list(entry, "nodes", where)
    if not all(isinstance(node, Mapping) and isinstance(node.get("task"), str) for node in nodes):
        raise InvalidInput(f"{where} has nodes without a 'task': the name of a tool", field="data")
    names = [node["task"] for node in nodes]
    stated = (
        (int(source), target)
        for target, node in enumerate(nodes)
        for source in _NODE.findall(orjson.dumps(node.get("arguments", [])).decode())
    )
    links = [[names[source], names[target]] for source, target in stated if source < len(names) and source != target]
    if not links:
        listed = _list(entry, "links", where)
        if not all(isinstance(link, Mapping) and {"source", "target"} <= link.keys() for link in listed):
            raise InvalidInput(f"{where} has links without 'source' and 'target'", field="data")
        links = [[link["source"], link["target"]] for link in listed]
    return {"nodes": names, "links": links}


def _list(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = entry.get(f"task_{key}", entry.get(f"tool_{key}", []))
    try:
        value = orjson.loads(found) if isinstance(found, str) else found
    except orjson.JSONDecodeError:
        value = found
    if not isinstance(value, list):
        raise InvalidInput(f"{where}: its {key} are {found!r:.60}, they must be a list", field="data")
    return value
