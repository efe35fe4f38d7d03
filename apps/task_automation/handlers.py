"""The handlers of the tools, and the one that plays those that need a model: `task_automation.simulated`."""

from __future__ import annotations

from typing import Any

from llmsched import handler

from .calls import naming, read_arguments
from .codecs import picture, png
from .downloads import download_audio, download_image, download_text, download_video, search_image, search_text
from .pictures import (
    change_speed,
    colour,
    edit,
    enhance,
    segment,
    slideshow,
    stitch,
    take_still,
    transfer_style,
)
from .samples import sample
from .sounds import apply_effects, change_voice, draw_spectrogram, reduce_noise, splice
from .texts import (
    analyse_sentiment,
    answer_from_text,
    check_spelling,
    compare_texts,
    extract_keywords,
    extract_url,
    summarize,
)
from .values import AUDIO, IMAGE, TEXT, VIDEO, Media

__all__ = [
    "analyse_sentiment",
    "answer_from_text",
    "apply_effects",
    "change_speed",
    "change_voice",
    "check_spelling",
    "colour",
    "compare_texts",
    "download_audio",
    "download_image",
    "download_text",
    "download_video",
    "draw_spectrogram",
    "edit",
    "enhance",
    "extract_keywords",
    "extract_url",
    "reduce_noise",
    "search_image",
    "search_text",
    "segment",
    "simulated",
    "slideshow",
    "splice",
    "stitch",
    "summarize",
    "take_still",
    "transfer_style",
]

_KINDS = {"type": "array", "items": {"enum": ["text", "url", "image", "audio", "video"]}}


@handler(
    name="task_automation.simulated",
    schema={
        "type": "object",
        "properties": {
            "tool": {"type": "string"},
            "arguments": {"type": "object"},
            "input": {"type": "object"},
            "takes": _KINDS,
            "gives": {"enum": [TEXT, IMAGE, AUDIO, VIDEO]},
            "seconds": {"type": "number", "minimum": 0, "maximum": 3600},
        },
        "required": ["tool", "arguments", "takes", "gives", "seconds"],
    },
)
async def simulated(call: dict[str, Any]) -> dict[str, Any]:
    """Checks its arguments as a real tool does, holds the worker for `seconds`, and returns a marked placeholder."""
    from asyncio import sleep  # 40 ms

    with naming(call):
        values = read_arguments(call, call["takes"])
    await sleep(call["seconds"])
    of = ", ".join(f"{v[:80]!r}" if isinstance(v, str) else f"{v.kind} of {len(v.content)} bytes" for v in values)
    words = f"[simulated {call['tool']} of {of}]"
    mark = {"simulated": True, "tool": call["tool"]}
    match call["gives"]:
        case "text":
            return {**mark, "text": words}
        case "image":
            return {**mark, **_written(words).to_json()}
        case kind:
            return {**mark, **sample({"audio": "example.wav", "video": "example.mp4"}[kind])}


def _written(words: str) -> Media:
    """A picture of some words."""
    from textwrap import fill

    from PIL import ImageDraw

    paper = picture(Media.from_json(sample("example.png"))).resize((320, 240))
    plain = words.encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font can write
    ImageDraw.Draw(paper).multiline_text((10, 10), fill(plain, 45), fill=(255, 255, 255))
    return png(paper)
