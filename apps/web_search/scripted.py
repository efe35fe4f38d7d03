"""Plays a model that answers the examples as a careful reader would: it knows where to look, but not what is there.

For each question there is a way to search. What a step finds is read out of the observation in the prompt, and only
that goes into later steps and the answer; when an observation lacks it, the model gives up and says "unknown".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmsched.testing import Call

Known = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a way to search; `{name}` in its texts is what earlier steps read.

    reads: a regular expression whose named groups are read from the observation.
    """

    thought: str
    action: str
    argument: str | Callable[[Known], str]
    reads: str = ""

    def with_known(self, known: Known) -> Step:
        argument = self.argument(known) if callable(self.argument) else self.argument.format(**known)
        return Step(self.thought.format(**known), self.action, argument)


def _finish(thought: str, argument: str | Callable[[Known], str]) -> Step:
    return Step(thought, "finish", argument)


_WAYS: dict[str, Sequence[Step]] = {
    "Which river flows through the city where Johannes Gutenberg was born?": (
        Step(
            "I need the city where Johannes Gutenberg was born, and then its river.",
            "search",
            "Johannes Gutenberg",
            r"born in (?P<city>\w+)",
        ),
        Step("He was born in {city}. Next I need the river on which {city} lies.", "search", "{city}"),
        Step(
            "The page begins without a river, so I look the word river up.",
            "lookup",
            "river",
            r"river (?P<river>\w+)",
        ),
        _finish("{city} lies on the {river}, which answers the question.", "{river}"),
    ),
    "In which US state was the author of the novel behind Stanley Kubrick's film The Shining born?": (
        Step(
            "I need the author of the novel that the film The Shining is based on.",
            "search",
            "The Shining",
            r"Similar titles: .*?(?P<film>[^;]*\(film\))",
        ),
        Step("Of these pages, {film} is about the film.", "search", "{film}", r"by (?P<author>\w+ \w+)\. J"),
        Step(
            "The novel is by {author}. Next I need the place of birth.",
            "search",
            "{author}",
            r"born in \w+, (?P<state>\w+)",
        ),
        _finish("{author} was born in {state}.", "{state}"),
    ),
    "Were Marie Curie and Frédéric Chopin born in the same city?": (
        Step(
            "I need both places of birth, first Marie Curie's.",
            "search",
            "Marie Curie",
            r"born in (?P<one>\w[\w ]*?),? in",
        ),
        Step("She was born in {one}. Next is Chopin.", "search", "Frédéric Chopin", r"born in (?P<other>\w[\w ]*?),"),
        _finish("She was born in {one} and he in {other}.", lambda k: "yes" if k["one"] == k["other"] else "no"),
    ),
    "Which was completed first, the Eiffel Tower or the Brooklyn Bridge?": (
        Step("I need both years, first that of the tower.", "search", "Eiffel Tower", r"completed in (?P<tower>\d{4})"),
        Step(
            "The tower is of {tower}. Next is the bridge.",
            "search",
            "Brooklyn Bridge",
            r"completed in (?P<bridge>\d{4})",
        ),
        _finish(
            "The tower was completed in {tower} and the bridge in {bridge}.",
            lambda k: "Eiffel Tower" if k["tower"] < k["bridge"] else "Brooklyn Bridge",
        ),
    ),
    "How high is the tower that was built by the company of the engineer of the Statue of Liberty's iron frame?": (
        Step("I need to know who designed the iron frame of the statue.", "search", "Statue of Liberty"),
        Step(
            "The page begins without the frame, so I look it up.", "lookup", "iron frame", r"by (?P<engineer>\w+ \w+)"
        ),
        Step(
            "The engineer is {engineer}; which tower did his company build?",
            "search",
            "{engineer}",
            r"(?P<tower>\w+ Tower)",
        ),
        Step("His company built the {tower}. Next I need its height.", "search", "{tower}"),
        Step(
            "The page begins without the height, so I look up metres.",
            "lookup",
            "metres",
            r"(?P<no>platform)|metres high",
        ),
        Step(
            "That is the first platform; the next result may be the height.",
            "lookup",
            "metres",
            r"(?P<high>\d+ metres) high",
        ),
        _finish("The {tower} is {high} high.", "{high}"),
    ),
    "Are the Rhine and the Rhône both rivers that rise in Switzerland?": (
        Step("I need to know where each river rises, first the Rhine.", "search", "Rhine", r"rises (?P<one>[^.]+)"),
        Step("The Rhine rises {one}. Next is the Rhône.", "search", "Rhône", r"rises (?P<other>[^.]+)"),
        _finish(
            "The Rhine rises {one} and the Rhône {other}.",
            lambda k: "yes" if "Swiss" in k["one"] and "Swiss" in k["other"] else "no",
        ),
    ),
}


def answer(call: Call) -> str:
    """A thought, or an action in JSON. Raises LookupError for what is no prompt of this application."""
    prompt = next((m["content"] for m in call.messages if m["role"] == "user"), "")
    asked = re.match(r"Question: (.*)", prompt)
    if asked is None or not (wanted := re.search(r"^(Write thought|Choose action) \d+", prompt, re.MULTILINE)):
        raise LookupError(f"{prompt[:80]!r} is no prompt of web_search: it asks for no thought and no action")
    way = _WAYS.get(asked[1].strip())
    if way is None:
        raise LookupError(f"the script of web_search knows the questions of its examples, and not {asked[1][:80]!r}")
    step = _next(way, re.findall(r"^Observation \d+: (.*)", prompt, re.MULTILINE))
    if wanted[1] == "Write thought":
        return step.thought
    return json.dumps({"action": step.action, "argument": step.argument}, ensure_ascii=False)


def _next(way: Sequence[Step], observations: Sequence[str]) -> Step:
    known: dict[str, str] = {}
    for step, observation in zip(way, observations, strict=False):
        found = re.search(step.reads, observation)
        if found is None:
            return _finish("The observation does not say what I looked for, so I give up.", "unknown")
        known |= {name: text.strip() for name, text in found.groupdict().items() if text}
    return way[min(len(observations), len(way) - 1)].with_known(known)
