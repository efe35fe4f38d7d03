"""Media to what tools work on and back: pictures by Pillow, sounds by the standard library and numpy.

An image is anything Pillow reads and becomes a PNG. A video is an animated picture (GIF, WebP, APNG) and becomes a GIF:
no codec is needed. A sound is a WAV file of PCM and becomes one of a single channel of 16 bits.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmsched import InvalidInput

from .values import AUDIO, IMAGE, MAX_MEDIA_BYTES, VIDEO, Media

#: Pixels of a side that pictures are shrunk to.
LONGEST_SIDE = 1024
_MAX_PIXELS = 20_000_000
_MAX_FRAMES = 100


def picture(media: Media) -> Any:
    """The (first) picture of an image or a video, a Pillow image in RGB. Raises InvalidInput for what is none."""
    return frames(media, most=1)[0][0]


def frames(media: Media, most: int = _MAX_FRAMES) -> list[tuple[Any, int]]:
    """Pictures of an image or a video, and the milliseconds each is shown. Raises InvalidInput for what is none."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(media.content)) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise InvalidInput(f"a picture of {opened.width} x {opened.height} pixels is too large; shrink it")
            found: list[tuple[Any, int]] = []
            for frame in ImageSequence.Iterator(opened):
                if len(found) == most:
                    break
                found.append((shrunk(frame.convert("RGB")), round(frame.info.get("duration") or 100)))
    except UnidentifiedImageError:
        way_out = "; only animated pictures (GIF, WebP, APNG) are videos here" if media.kind == VIDEO else ""
        raise InvalidInput(f"a content of type {media.type!r:.60} is no picture that Pillow reads{way_out}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"the content of type {media.type!r:.60} is broken: {error}") from None
    return found


def png(image: Any) -> Media:
    """As a PNG, or as a JPEG where that would be too large."""
    made = _saved(image, "PNG")
    if len(made) <= MAX_MEDIA_BYTES:
        return Media(IMAGE, "image/png", made)
    return Media(IMAGE, "image/jpeg", _saved(image, "JPEG", quality=85))


def animation(pictures: Sequence[Any], milliseconds: int | list[int]) -> Media:
    """A video, as a GIF that plays for ever."""
    first, *others = pictures
    made = _saved(first, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return Media(VIDEO, "image/gif", made)


def _saved(image: Any, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def shrunk(image: Any) -> Any:
    """The image, changed in place: no side is longer than `LONGEST_SIDE`."""
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


@dataclass(frozen=True, slots=True)
class Sound:
    """samples: (n,) of one channel, from -1 to 1; rate: samples per second."""

    samples: Any
    rate: int


def sound(media: Media) -> Sound:
    """The sound of a WAV file. Raises InvalidInput for what is none."""
    import numpy as np

    try:
        with wave.open(io.BytesIO(media.content)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise InvalidInput(f"a sound of type {media.type!r:.60} is no WAV file of PCM ({error}); convert it") from None
    if width not in (1, 2, 4) or not raw or not 4_000 <= rate <= 192_000:
        raise InvalidInput(
            f"a sound of {len(raw)} bytes, {8 * width} bits at {rate} Hz cannot be used; it must have samples of 8, 16"
            " or 32 bits at 4 to 192 kHz"
        )
    levels = np.frombuffer(
        raw[: len(raw) // (width * channels) * width * channels], f"<{'u' if width == 1 else 'i'}{width}"
    )
    middle, full = (128, 128) if width == 1 else (0, 1 << (8 * width - 1))
    return Sound(((levels.astype(np.float64) - middle) / full).reshape(-1, channels).mean(axis=1), rate)


def wav(made: Sound) -> Media:
    """As a WAV file; what is louder than it can be is made quieter as a whole."""
    import numpy as np

    loudest = max(1.0, float(np.abs(made.samples).max(initial=0.0)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(made.rate)
        file.writeframes(np.rint(made.samples / loudest * 32_767).astype("<i2").tobytes())
    return Media(AUDIO, "audio/wav", buffer.getvalue())
