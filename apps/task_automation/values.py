"""What tools hand to each other: texts, and small images, sounds and videos that travel inside JSON.

A text or a URL is a string. Media are an object, so that a value needs no file and no machine:

    {"kind": "image", "type": "image/png", "base64": "iVBORw0…"}

`kind` is image, audio or video; without it, it is what `type` begins with. Media have at most `MAX_MEDIA_BYTES` before
base64, so that a result fits what a worker may answer. What a simulated tool made says so: `"simulated": true`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmsched import InvalidInput

#: A worker answers with at most 1 MiB, and base64 makes four bytes of three.
MAX_MEDIA_BYTES = 500_000
MAX_TEXT_CHARS = 100_000

TEXT, URL, IMAGE, AUDIO, VIDEO = "text", "url", "image", "audio", "video"
SPOKEN = {TEXT: "a text", URL: "a URL", IMAGE: "an image", AUDIO: "a sound", VIDEO: "a video"}


@dataclass(frozen=True, slots=True)
class Media:
    """An image, a sound or a video. type: of the content, such as image/png."""

    kind: str
    type: str
    content: bytes

    def to_json(self) -> dict[str, Any]:
        """Raises InvalidInput for more than `MAX_MEDIA_BYTES`."""
        if len(self.content) > MAX_MEDIA_BYTES:
            raise InvalidInput(
                f"{SPOKEN[self.kind]} of {len(self.content)} bytes is too large, {MAX_MEDIA_BYTES} are allowed;"
                " use smaller or shorter media"
            )
        return {"kind": self.kind, "type": self.type, "base64": base64.b64encode(self.content).decode()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Media:
        """Raises InvalidInput, as an end of a sentence, for what is not media, and for more than `MAX_MEDIA_BYTES`."""
        kind = str(raw.get("kind") or raw["type"].partition("/")[0])
        if kind not in (IMAGE, AUDIO, VIDEO):
            raise InvalidInput(f"is of type {raw['type']!r:.60}, which is neither an image nor a sound nor a video")
        try:
            content = base64.b64decode(raw["base64"], validate=True)
        except binascii.Error as error:
            raise InvalidInput(f"has a content that is not base64: {error}") from None
        if len(content) > MAX_MEDIA_BYTES:
            raise InvalidInput(f"has {len(content)} bytes, {MAX_MEDIA_BYTES} are allowed; use smaller or shorter media")
        return cls(kind, raw["type"], content)


def is_media(value: object) -> bool:
    """Whether a JSON value has the shape of media."""
    return isinstance(value, Mapping) and isinstance(value.get("type"), str) and isinstance(value.get("base64"), str)
