"""Plays a model that plans, calculates and joins for the examples: it knows how to find out, but not what comes out.

Every fact of an answer is read from a result in the prompt, and every number of a calculation from what was given for
it. Where a result lacks what the answer needs, the joiner asks for another plan.

To HAMBURG the first plan cannot be enough: which river to look for is only known when the page of Hamburg is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsched.testing import Call

HAMBURG = "How much longer than the Weser is the river on which Hamburg lies, in kilometres?"

_KILOMETRES = r"([\d,]+) kilometres"


class _Missing(Exception):
    """A result that an answer needs does not say what it should."""


class _Results:
    """What calls found, by what was asked: `search[Rhine]: …`, `math[…]: 3 (1 + 2 = 3)`."""

    def __init__(self, prompt: str) -> None:
        found = re.findall(r"^(search|math)\[(.*?)\]: (.*)$", prompt, re.MULTILINE)
        self.searches = {asked: said for kind, asked, said in found if kind == "search"}
        self.numbers = [float(said.split()[0]) for kind, _, said in found if kind == "math"]

    def read(self, page: str, pattern: str) -> str:
        found = re.search(pattern, self.searches.get(page, ""))
        if found is None:
            raise _Missing(f"The results do not say what is needed about {page}.")
        return found[1]

    def number(self, index: int) -> float:
        if index >= len(self.numbers):
            raise _Missing("The results lack a calculation.")
        return self.numbers[index]


@dataclass(frozen=True, slots=True)
class _Way:
    """How a question is answered. calculations: problem and context. conclude: thought and answer, or it is missing."""

    searches: Sequence[str]
    conclude: Callable[[_Results], tuple[str, str]]
    calculations: Sequence[tuple[str, Sequence[str]]] = ()

    def plan(self) -> list[dict[str, Any]]:
        calls: list[tuple[str, dict[str, Any]]] = [("search", {"query": title}) for title in self.searches]
        calls += [("math", {"problem": problem, "context": list(given)}) for problem, given in self.calculations]
        return [{"name": str(k), "candidate": c, "arguments": a} for k, (c, a) in enumerate(calls, 1)]


def _born(results: _Results) -> tuple[str, str]:
    years = {name: int(results.read(name, r"born in \w+ in (\d+)")) for name in results.searches}
    told = " and ".join(f"{name} in {year}" for name, year in years.items())
    return f"{told}: the earlier year counts.", min(years, key=lambda name: years[name])


def _both_flow(results: _Results) -> tuple[str, str]:
    seas = {river: results.read(river, r"flows into the (\w+ Sea)") for river in results.searches}
    told = " and ".join(f"the {river} into the {sea}" for river, sea in seas.items())
    return f"It is {told}.", "yes" if set(seas.values()) == {"Mediterranean Sea"} else "no"


def _higher(results: _Results) -> tuple[str, str]:
    heights = {tower: int(results.read(tower, r"(\d+) metres high")) for tower in results.searches}
    told = " and ".join(f"{tower} is {height} m high" for tower, height in heights.items())
    return f"{told}.", max(heights, key=lambda tower: heights[tower])


def _longer(results: _Results) -> tuple[str, str]:
    rhine, elbe = results.number(0), results.number(1)
    return f"The Rhine would have {rhine:g} km and the Elbe {elbe:g} km.", "Rhine" if rhine > elbe else "Elbe"


def _last_number(results: _Results) -> tuple[str, str]:
    last = results.number(len(results.numbers) - 1) if results.numbers else results.number(0)
    return f"The last calculation gives {last:g}.", f"{last:g}"


def _hamburg(results: _Results) -> tuple[str, str]:
    river = results.read("Hamburg", r"on the river (\w+)")
    if not results.numbers:
        raise _Missing(f"Hamburg lies on the {river}, and the length of the {river} is not in the results.")
    return f"Hamburg lies on the {river}.", f"{results.number(0):g}"


_WAYS: Mapping[str, _Way] = {
    "Who was born earlier, Johann Sebastian Bach or Antonio Vivaldi?": _Way(
        ["Johann Sebastian Bach", "Antonio Vivaldi"], _born
    ),
    "Do the Danube and the Rhône both flow into the Mediterranean Sea?": _Way(["Danube", "Rhône"], _both_flow),
    "Which tower is higher, the Eiffel Tower or Tokyo Tower?": _Way(["Eiffel Tower", "Tokyo Tower"], _higher),
    "If the Rhine were 10% shorter and the Elbe 20% longer, which of the two rivers would be longer?": _Way(
        ["Rhine", "Elbe"],
        _longer,
        [
            ("Decrease the length of the Rhine in kilometres by 10%.", ["$1"]),
            ("Increase the length of the Elbe in kilometres by 20%.", ["$2"]),
        ],
    ),
    "If Mount Kenya grew by 10% and Mont Blanc lost 5% of its height, what would be the difference in their heights in"
    " metres?": _Way(
        ["Mount Kenya", "Mont Blanc"],
        _last_number,
        [
            ("Increase the height of Mount Kenya in metres by 10%.", ["$1"]),
            ("Decrease the height of Mont Blanc in metres by 5%.", ["$2"]),
            ("Take the difference of the two heights.", ["$3", "$4"]),
        ],
    ),
    "What is the average length of the Rhine, the Elbe and the Weser in kilometres?": _Way(
        ["Rhine", "Elbe", "Weser"],
        _last_number,
        [("Take the average of the lengths in kilometres.", ["$1", "$2", "$3"])],
    ),
    HAMBURG: _Way(["Weser", "Hamburg"], _hamburg),
}


def answer(call: Call) -> str:
    """A plan, a result or an answer, as JSON. Raises LookupError for what is no prompt of this application."""
    prompt = next((m["content"] for m in call.messages if m["role"] == "user"), "")
    if problem := re.search(r"^Problem: (.*)", prompt, re.MULTILINE):
        return json.dumps(_calculated(problem[1], re.findall(r"^Given: (.*)", prompt, re.MULTILINE)))
    asked = re.match(r"Question: (.*)", prompt)
    if asked is None or not (wanted := re.search(r"^Write (plan|the plan|thought)", prompt, re.MULTILINE)):
        raise LookupError(f"{prompt[:80]!r} is no prompt of llm_compiler: it asks for no plan, sum or answer")
    way = _WAYS.get(asked[1].strip())
    if way is None:
        raise LookupError(f"the script of llm_compiler knows the questions of its examples, and not {asked[1][:80]!r}")
    results = _Results(prompt)
    if wanted[1] == "thought":
        return json.dumps(_joined(way, results), ensure_ascii=False)
    return json.dumps({"stages": _replanned(results) if results.searches else way.plan()}, ensure_ascii=False)


def _joined(way: _Way, results: _Results) -> dict[str, str]:
    try:
        thought, said = way.conclude(results)
    except _Missing as missing:
        return {"thought": str(missing), "action": "replan", "answer": ""}
    return {"thought": thought, "action": "finish", "answer": said}


def _replanned(results: _Results) -> list[dict[str, Any]]:
    """The next plan for HAMBURG, made of what the first one found."""
    weser, river = results.read("Weser", _KILOMETRES), results.read("Hamburg", r"on the river (\w+)")
    known = f"The Weser is {weser} kilometres long."
    problem = "Take the difference of the two lengths in kilometres."
    return [
        {"name": "1", "candidate": "search", "arguments": {"query": river}},
        {"name": "2", "candidate": "math", "arguments": {"problem": problem, "context": ["$1", known]}},
    ]


def _calculated(problem: str, given: Sequence[str]) -> dict[str, Any]:
    unit = found[1] if (found := re.search(r"in (kilometres|metres)", problem)) else ""
    numbers = [_number(text, unit) for text in given]
    if not numbers or None in numbers:
        return {"working": "What is given lacks a number that the problem needs.", "answer": 0}
    known = [number for number in numbers if number is not None]
    match re.search(r"(Increase|Decrease) .* by (\d+)%|(difference)|(average)", problem):
        case None:
            raise LookupError(f"the script of llm_compiler cannot solve {problem[:80]!r}")
        case changed if changed[1]:
            share = int(changed[2]) / 100
            factor = 1 + share if changed[1] == "Increase" else 1 - share
            working, result = f"{known[0]:g} * {factor:g}", known[0] * factor
        case asked if asked[3]:
            working, result = f"{max(known):g} - {min(known):g}", max(known) - min(known)
        case _:
            working, result = f"({' + '.join(f'{n:g}' for n in known)}) / {len(known)}", sum(known) / len(known)
    result = round(result, 2)
    return {"working": f"{working} = {result:g}", "answer": result}


def _number(text: str, unit: str) -> float | None:
    """The number in a text that has this unit, or the text itself, the result of another calculation."""
    found = re.search(rf"([\d,]+) {unit}", text) if unit else None
    try:
        return float((found[1] if found else text).replace(",", ""))
    except ValueError:
        return None
