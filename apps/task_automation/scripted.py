"""Plays a planner that understands plain requests: what is to be done, in the order in which it is said.

Verbs and things ("splice", "the sentiment") name tools; file names, quoted texts and URLs are arguments; "the summary",
"the transcript" and the like are what an earlier tool gave. It knows the tools and their arguments from the prompt. Its
one mistake: asked for the spelling, it first chooses a tool that does not exist, and another one when told so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from llmsched.testing import Call

#: What is said, the tool that is meant, and what its output is called later on.
_RULES = [
    (r"\bdownload the image", "Image Downloader", "image"),
    (r"\bdownload the text|\bdownload the page", "Text Downloader", "page"),
    (r"\b(find|extract) the (link|url)\b", "URL Extractor", "link"),
    (r"\bsummari[sz]e|\bsum up", "Text Summarizer", "summary"),
    (r"\bkeywords", "Keyword Extractor", "keywords"),
    (r"\bspelling", "Text Grammar Checker", "corrected text"),
    (r"\bsentiment|\bhow positive", "Text Sentiment Analysis", "sentiment"),
    (r"\btranscribe", "Audio-to-Text", "transcript"),
    (r"\b(reduce|remove) the noise", "Audio Noise Reduction", "sound"),
    (r"\bsplice", "Audio Splicer", "sound"),
    (r"\badd (an echo|reverb)", "Audio Effects", "sound"),
    (r"\bspectrogram", "Audio-to-Image", "spectrogram"),
    (r"\bblur|\brotate|\bblack and white", "Image Editing", "image"),
    (r"\badd colou?r|\bcolou?ri[sz]e", "Image Colorizer", "image"),
    (r"\bstitch", "Image Stitcher", "image"),
    (r"\bslideshow", "Image-to-Video", "video"),
    (r"\b(play|speed) it\b", "Video Speed Changer", "video"),
    (r"\bstill\b", "Video-to-Image", "still"),
]
#: Tools whose text is not what they work on but what they shall do.
_INSTRUCTED = ("Audio Effects", "Image Editing", "Video Speed Changer")
_LISTED = re.compile(r"^- (.+)\((.*)\) -> (\w+): ", re.MULTILINE)
_QUOTED = re.compile(r"(?<!\w)'(.+?)'(?!\w)", re.DOTALL)
_KINDS = {"text": r"[\w-]+\.txt", "image": r"[\w-]+\.(?:jpe?g|png)", "audio": r"[\w-]+\.wav", "video": r"[\w-]+\.mp4"}


def answer(call: Call) -> str:
    """The plan, JSON. Raises LookupError for what is no prompt of this application, or asks for nothing it knows."""
    asked = next((m["content"] for m in call.messages if m["role"] == "user"), "")
    tools = {name: (takes.split(", "), gives) for name, takes, gives in _LISTED.findall(call.system)}
    if not tools or not (found := re.match(r"Request: (.*?)(?:\nFiles: (.*))?\Z", asked, re.DOTALL)):
        raise LookupError(f"this is no request for a plan of tools: {asked[:80]!r}")
    stages = _Planner(found[1], tools).plan()
    if not stages:
        raise LookupError(f"the request asks for nothing this script knows: {found[1][:80]!r}")
    if not any(m["role"] == "assistant" for m in call.messages):
        for stage in stages:
            if stage["candidate"] == "Text Grammar Checker":
                stage["candidate"] = "Spell Checker"
    return json.dumps({"stages": stages}, ensure_ascii=False)


@dataclass(slots=True)
class _Made:
    """What an earlier stage gives. is_named: whether what follows in the request speaks of it by name."""

    stage: str
    kind: str
    is_named: bool
    is_used: bool = False


@dataclass(slots=True)
class _Planner:
    request: str
    tools: dict[str, tuple[list[str], str]]
    made: list[_Made] = field(default_factory=list)

    def plan(self) -> list[dict[str, Any]]:
        """A stage for each part of the request that says what to do."""
        hidden = _QUOTED.sub(lambda quoted: "'" + "_" * len(quoted[1]) + "'", self.request)  # a text is no instruction
        found = sorted(
            (m.start(), tool, known_as)
            for words, tool, known_as in _RULES
            for m in re.finditer(words, hidden, re.IGNORECASE)
            if tool in self.tools
        )
        ends = [*(start for start, _, _ in found), len(self.request)][1:]
        return [
            self._stage(tool, known_as, self.request[start:end], self.request[end:])
            for (start, tool, known_as), end in zip(found, ends, strict=True)
        ]

    def _stage(self, tool: str, known_as: str, part: str, rest: str) -> dict[str, Any]:
        names, gives = self.tools[tool]
        arguments: dict[str, str] = {}
        for name in names:
            kind = name.removeprefix("second_")
            is_instruction = kind == "text" and tool in _INSTRUCTED
            own = re.split(r"[,.;] | and (?!white)|\.$", part)[0] if is_instruction else None
            arguments[name] = own or self._argument(kind, part, set(arguments.values()))
        after = [m.stage for m in self.made if f"${m.stage}" in arguments.values()]
        for one in self.made:
            one.is_used |= one.stage in after
        stage = f"{known_as.split()[-1]}_{len(self.made) + 1}"
        self.made.append(_Made(stage, gives, known_as in rest))
        return {"name": stage, "candidate": tool, "arguments": arguments, "after": after}

    def _argument(self, kind: str, part: str, taken: set[str]) -> str:
        """What is named in this part of the request, else what was made before, else what the request names elsewhere.

        Texts have to be spoken of by name; media nobody used yet are meant without, and "it" is one of them.
        """
        named = [text for text in self._named(kind, part) if text not in taken]
        made = [m for m in self.made if m.kind == kind and f"${m.stage}" not in taken]
        named_later, unused = [m for m in made if m.is_named], [m for m in made if not m.is_used]
        meant = named_later if kind == "text" else unused or made
        if named and not (meant and re.search(r"\bit\b", part)):
            return named[0]
        if meant:
            # "Stitch both": the older first; of several texts the newest.
            return f"${meant[-1 if kind == 'text' else 0].stage}"
        sources = [text for text in self._named(kind, self.request) if text not in taken]
        if not sources:
            raise LookupError(f"the request names no {kind} for {part[:60]!r}")
        return sources[0]

    def _named(self, kind: str, part: str) -> list[str]:
        if kind == "url":
            return [url.rstrip(".,") for url in re.findall(r"https?://[^\s']+", part)]
        plain = _QUOTED.sub("", part)
        return [*(_QUOTED.findall(part) if kind == "text" else []), *re.findall(_KINDS[kind], plain)]
