"""Stands in for the files that TaskBench's requests name and do not bring: example.jpg, example2.wav and the like.

All are made here, small, and the same every time; files of other names look and sound different.
"""

from __future__ import annotations

import re
from typing import Any
from zlib import crc32

from .codecs import Sound, animation, png, wav
from .values import AUDIO, IMAGE, TEXT, VIDEO

WIDTH, HEIGHT = 160, 120
RATE = 16_000
STORY = (
    "The harbour of Lindow is small, but it is busy all the year round. Boats leave before sunrise and come back"
    " at noon. The market beside the harbour sells their fish the same day. In summer visitors love the market, and the"
    " boats take them to the island. The island has a lighthouse and a wonderful beach. In winter storms close the"
    " harbour for days, and the market stays empty. More about the harbour is at https://example.org/lindow."
)
_KINDS = {
    **dict.fromkeys(("txt",), TEXT),
    **dict.fromkeys(("jpg", "jpeg", "png", "gif", "bmp"), IMAGE),
    **dict.fromkeys(("wav", "mp3", "flac", "ogg"), AUDIO),
    **dict.fromkeys(("mp4", "avi", "mov", "webm"), VIDEO),
}
_FILE = re.compile(rf"[\w./-]+\.({'|'.join(_KINDS)})", re.IGNORECASE)


def kind_of_file(name: str) -> str | None:
    """What a file of this name holds; None: it is no name of a file.

    >>> [kind_of_file(name) for name in ("example.jpg", "a.WAV", "The end.")]
    ['image', 'audio', None]
    """
    found = _FILE.fullmatch(name)
    return _KINDS[found[1].lower()] if found else None


def sample(name: str) -> Any:
    """The text or the media (as JSON) that stands in for a file; None: only for files called `example…`."""
    if not re.match("example", name, re.IGNORECASE):
        return None
    number = crc32(name.lower().encode())
    match kind_of_file(name):
        case "image":
            return png(_picture(number)).to_json()
        case "audio":
            return wav(_tone(number)).to_json()
        case "video":
            return animation([_picture(number, shift=20 * k) for k in range(5)], 200).to_json()
        case _:
            return STORY


def _picture(number: int, shift: int = 0) -> Any:
    """A disc on a slope of one colour."""
    from PIL import Image, ImageDraw

    colour = (80 + number % 176, 80 + number // 176 % 176, 80 + number // 30_976 % 176)
    slope = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    picture = Image.merge("RGB", [slope.point([level * c // 255 for level in range(256)]) for c in colour])
    ImageDraw.Draw(picture).ellipse((20 + shift, 40, 60 + shift, 80), fill=(255, 255, 255))
    return picture


def _tone(number: int) -> Sound:
    """One second of a tone with some noise."""
    import numpy as np

    seconds = np.arange(RATE) / RATE
    noise = np.random.default_rng(number).normal(0.0, 0.02, RATE)
    return Sound(0.4 * np.sin(2 * np.pi * (220 + number % 440) * seconds) + noise, RATE)
