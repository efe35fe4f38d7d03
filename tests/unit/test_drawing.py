"""Graphs of applications as text, Mermaid and SVG: whole pictures of small graphs, and what must hold of all."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from llmsched import drawing
from llmsched.catalogue import installed_applications
from llmsched.model.application import Application

SVG = "{http://www.w3.org/2000/svg}"


def llm(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "llm", "after": list(after)} | more


def regular(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return llm(name, *after, **more) | {"kind": "regular"}


def of(*stages: dict[str, Any]) -> Application:
    return Application.parse({"name": "a", "stages": list(stages)})


DIAMOND = of(llm("plan"), regular("one", "plan"), regular("two", "plan"), llm("join", "one", "two", "plan"))
REPAIR = of(
    llm("write"),
    {
        "loop": "repair",
        "max_iterations": 2,
        "after": ["write"],
        "while": "not last.passed",
        "stages": [llm("fix"), regular("run", "fix", handler="echo")],
    },
    llm("end", "repair"),
)
#: Waits for the first round of a loop whose later stages wait for it: no frame can hold that loop.
KNOTTED = of(
    {"loop": "l", "max_iterations": 2, "stages": [llm("x"), regular("y", "x", "outside")]}, llm("outside", "x_0")
)
PLANNED = of(
    llm("plan"),
    {
        "name": "tools",
        "kind": "dynamic",
        "after": ["plan"],
        "planner": "plan",
        "max_stages": 3,
        "candidates": ["a & b", {"name": "<think>", "kind": "llm"}, *(f"tool {k}" for k in range(9))],
    },
)


# ------------------------------------------------------------------------------------------------------ as text


def test_lanes_fork_and_meet() -> None:
    assert drawing.text(DIAMOND).splitlines() == [
        "●      plan  llm",
        "├─┬─╮",
        "■ │ │  one   regular",
        "╰─┼─┤",
        "  ■ │  two   regular",
        "  ╰─┤",
        "    ●  join  llm",
    ]


def test_rounds_of_a_loop_are_stages_and_say_the_rest_once() -> None:
    assert drawing.text(REPAIR).splitlines() == [
        "●    write  llm",
        "├─╮",
        "● │  fix_0  llm      loop repair, round 0",
        "■ │  run_0  regular  loop repair, round 0; calls echo",
        "├─┤",
        "● │  fix_1  llm      loop repair, round 1",
        "■ │  run_1  regular  loop repair, round 1",
        "╰─┤",
        "  ●  end    llm",
        "",
        "loop repair: at most 2 rounds, while not last.passed",
    ]


def test_a_folded_loop_is_drawn_once() -> None:
    assert drawing.text(REPAIR, fold=True).splitlines() == [
        "●    write  llm",
        "├─╮",
        "● │  fix    llm      loop repair",
        "■ │  run    regular  loop repair; calls echo",
        "╰─┤",
        "  ●  end    llm",
        "",
        "loop repair: at most 2 rounds, while not last.passed",
    ]


def test_what_has_nothing_to_do_with_each_other_does_not_touch() -> None:
    assert drawing.text(of(llm("a"), llm("b"), llm("c", "b"))).splitlines() == [
        "●  a  llm",
        "",
        "●  b  llm",
        "●  c  llm",
    ]


def test_tasks_conditions_pools_and_candidates_are_told() -> None:
    stages = [
        llm("few", tasks=3),
        llm("some", tasks=3, max_tasks=5),
        llm("each", for_each="input.items"),
        llm("most", for_each="input.items", max_tasks=7, when="input.x\n  > 1"),
        llm("big", model="large"),
    ]
    told = [line.split("llm", 1)[1].strip() for line in drawing.text(of(*stages)).splitlines() if "llm" in line]

    assert told == [
        "3 tasks",
        "3 tasks, at most 5",
        "one task per item",
        "one task per item, at most 7; when input.x > 1",
        "pool large",
    ]
    assert (
        drawing.text(PLANNED)
        .splitlines()[1]
        .endswith(
            "planned by plan, at most 3 stages; of a & b, <think> (llm), tool 0, tool 1, tool 2, tool 3 and 5 more"
        )
    )


# --------------------------------------------------------------------------------------------------- as Mermaid


def test_mermaid_has_shapes_lines_and_a_subgraph_for_a_loop() -> None:
    assert drawing.mermaid(REPAIR, fold=True).splitlines()[:-3] == [
        "flowchart TD",
        '    s0(["<b>write</b><br/>llm"]):::llm',
        '    s3(["<b>end</b><br/>llm"]):::llm',
        '    subgraph loop0["loop repair: at most 2 rounds, while not last.passed"]',
        '        s1(["<b>fix</b><br/>llm"]):::llm',
        '        s2["<b>run</b><br/>regular<br/>calls echo"]:::regular',
        "    end",
        "    s0 --> s1",
        "    s1 --> s2",
        "    s0 --> s3",
        "    s2 --> s3",
    ]


def test_mermaid_quotes_what_would_be_its_own_language() -> None:
    drawn = drawing.mermaid(PLANNED)

    assert "of a #amp; b, #lt;think#gt; (llm), tool 0" in drawn
    assert "a & b" not in drawn


# ------------------------------------------------------------------------------------------------------- as SVG


ALL = {**installed_applications(), "diamond": DIAMOND, "repair": REPAIR, "knotted": KNOTTED, "planned": PLANNED}


def boxes(picture: str) -> list[tuple[str, float, float, float, float]]:
    """Name, left, top, width and height of every box of a stage."""
    found = []

    def walk(node: ElementTree.Element, x: float, y: float) -> None:
        if moved := re.fullmatch(r"translate\((\S+) (\S+)\)", node.get("transform", "")):
            x, y = x + float(moved[1]), y + float(moved[2])
        box, name = node.find(f"{SVG}rect"), node.find(f"{SVG}text")
        if box is not None and name is not None and node.find(f"{SVG}title") is not None and name.text:
            found.append((name.text, x, y, float(box.get("width", "")), float(box.get("height", ""))))
        for child in node:
            walk(child, x, y)

    walk(ElementTree.fromstring(picture), 0.0, 0.0)
    return found


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_stage_has_a_box_inside_the_picture_and_none_lies_on_another(name: str, fold: bool) -> None:
    application = ALL[name]
    picture = drawing.svg(application, fold=fold)
    root = ElementTree.fromstring(picture)
    placed = boxes(picture)

    expected = {s.name.removesuffix(f"_{s.iteration}") if fold and s.loop else s.name for s in application.stages}
    assert {box[0] for box in placed} == expected
    assert len(placed) == len(expected)
    for k, (_, x, y, width, height) in enumerate(placed):
        assert 0 <= x <= x + width <= float(root.get("width", ""))
        assert 0 <= y <= y + height <= float(root.get("height", ""))
        for other, left, top, wide, high in placed[:k]:
            assert x >= left + wide or left >= x + width or y >= top + high or top >= y + height, other


@pytest.mark.parametrize("name", ALL)
def test_a_stage_stands_below_what_it_waits_for(name: str) -> None:
    application = ALL[name]
    tops = {stage: (y, y + height) for stage, _, y, _, height in boxes(drawing.svg(application))}
    for spec in application.stages:
        for parent in spec.after:
            assert tops[parent][1] < tops[spec.name][0], (parent, spec.name)


def test_lines_do_not_cross_where_they_need_not() -> None:
    crossed = of(llm("a"), llm("b"), regular("c", "b"), regular("d", "a"))
    left = {name: x for name, x, *_ in boxes(drawing.svg(crossed))}

    assert (left["a"] < left["b"]) == (left["d"] < left["c"])


def test_the_picture_is_one_file_for_light_and_dark() -> None:
    picture = drawing.svg(PLANNED)

    assert "@media (prefers-color-scheme: dark)" in picture
    assert set(re.findall(r"https?://[^\"]+", picture)) == {"http://www.w3.org/2000/svg"}
    assert "a &amp; b" in picture
    assert "&lt;think&gt;" in picture


def test_the_same_application_is_drawn_the_same() -> None:
    definition = dict(ALL["sequence_sorting"].definition)

    assert drawing.svg(Application.parse(definition)) == drawing.svg(Application.parse(definition))
