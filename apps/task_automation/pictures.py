"""Tools for images and for videos, done by Pillow."""

from __future__ import annotations

import re
from typing import Any

from llmsched import InvalidInput

from .calls import tool
from .codecs import animation, frames, picture, png, shrunk
from .values import IMAGE, TEXT, VIDEO, Media

#: Milliseconds that a picture of a slideshow stays.
_SLIDE = 1000

# --------------------------------------------------------------------------------------------------- images


@tool("enhance_image", IMAGE)
def enhance(image: Media) -> Media:
    """Stretches contrast and sharpens."""
    from PIL import ImageFilter, ImageOps

    return png(ImageOps.autocontrast(picture(image), cutoff=1).filter(ImageFilter.UnsharpMask()))


@tool("edit_image", TEXT, IMAGE)
def edit(instruction: str, image: Media) -> Media:
    """Applies each edit that the instruction asks for once, in its order: see `_EDITS`."""
    edited = picture(image)
    found = ((k, re.search(words, instruction, re.IGNORECASE)) for k, (words, _) in enumerate(_EDITS))
    asked = sorted((match.start(), k) for k, match in found if match)
    if not asked:
        raise InvalidInput(
            f"no edit is known in {instruction[:80]!r}; known: black and white, blur, sharpen, invert, mirror, flip,"
            " rotate (by N degrees), brighter, darker, more or less contrast, more or less saturated"
        )
    for start, k in asked:
        edited = _EDITS[k][1](edited, instruction[start:])
    return png(shrunk(edited))


def _rotated(image: Any, asked: str) -> Any:
    degrees = re.search(r"(\d+)\s*(?:°|degree)", asked)
    return image.rotate(-float(degrees[1]) if degrees else -90.0, expand=True)


def _enhanced(kind: str, factor: float) -> Any:
    def apply(image: Any, asked: str) -> Any:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, kind)(image).enhance(factor)

    return apply


def _filtered(name: str, *options: float) -> Any:
    def apply(image: Any, asked: str) -> Any:
        from PIL import ImageFilter

        found = getattr(ImageFilter, name)
        return image.filter(found(*options) if options else found)

    return apply


def _operated(name: str) -> Any:
    def apply(image: Any, asked: str) -> Any:
        from PIL import ImageOps

        return getattr(ImageOps, name)(image).convert("RGB")

    return apply


#: Words of an instruction, and what they ask for.
_EDITS: list[tuple[str, Any]] = [
    (r"black[ -]and[ -]white|gr[ae]y ?scale|monochrome", _operated("grayscale")),
    (r"\bblur", _filtered("GaussianBlur", 4)),
    (r"\bsharp", _filtered("UnsharpMask", 2)),
    (r"\binvert|\bnegative", _operated("invert")),
    (r"\bmirror", _operated("mirror")),
    (r"\bflip|upside down", _operated("flip")),
    (r"\brotat", _rotated),
    (r"\bbright", _enhanced("Brightness", 1.4)),
    (r"\bdark", _enhanced("Brightness", 0.6)),
    (r"(?<!less )\bcontrast", _enhanced("Contrast", 1.5)),
    (r"less contrast", _enhanced("Contrast", 0.6)),
    (r"(?<!less )(?<!de)saturat|vivid", _enhanced("Color", 1.6)),
    (r"less saturat|desaturat", _enhanced("Color", 0.4)),
]


@tool("segment_image", IMAGE)
def segment(image: Media) -> Media:
    """Paints the picture in the four colours that stand for it best: areas of like colour, not objects."""
    from PIL import Image

    return png(picture(image).quantize(4, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB"))


@tool("stitch_images", IMAGE, IMAGE)
def stitch(left: Media, right: Media) -> Media:
    """Puts two pictures side by side, the second at the height of the first: a collage, no matching of features."""
    from PIL import Image

    one, other = picture(left), picture(right)
    other = other.resize((max(1, round(other.width * one.height / other.height)), one.height))
    both = Image.new("RGB", (one.width + other.width, one.height))
    both.paste(one, (0, 0))
    both.paste(other, (one.width, 0))
    return png(shrunk(both))


@tool("colour_image", IMAGE)
def colour(image: Media) -> Media:
    """Tints greys from dark blue over the brown of skin and wood to a warm white: no guess at what things are."""
    from PIL import ImageOps

    return png(ImageOps.colorize(ImageOps.grayscale(picture(image)), "#101830", "#fff4dc", mid="#a07850"))


@tool("transfer_style", IMAGE, IMAGE)
def transfer_style(content: Media, style: Media) -> Media:
    """Gives the first picture the colours of the second: mean and spread of each channel, no brush strokes."""
    import numpy as np
    from PIL import Image

    one, other = (np.asarray(picture(media), dtype=np.float64) for media in (content, style))
    spread = other.std((0, 1)) / np.maximum(one.std((0, 1)), 1.0)
    mixed = (one - one.mean((0, 1))) * spread + other.mean((0, 1))
    return png(Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8)))


# --------------------------------------------------------------------------------------------------- videos


@tool("make_slideshow", IMAGE, IMAGE)
def slideshow(first: Media, second: Media) -> Media:
    """A video that shows two pictures in turn, a second each, both in the size of the first."""
    one, other = picture(first), picture(second)
    return animation([one, other.resize(one.size)], _SLIDE)


@tool("change_speed", VIDEO, TEXT)
def change_speed(video: Media, instruction: str) -> Media:
    """Plays a video faster or slower, by the factor or the percentage in the instruction, else by two."""
    factor = _speed(instruction)
    shown = frames(video)
    # Viewers slow a GIF down whose frames are shorter than 20 ms.
    return animation([image for image, _ in shown], [max(20, round(ms / factor)) for _, ms in shown])


def _speed(instruction: str) -> float:
    """How many times as fast; raises InvalidInput for what cannot be."""
    if found := re.search(r"(\d+(?:\.\d+)?)\s*(%|percent|x\b|times|fold)", instruction, re.IGNORECASE):
        factor = float(found[1]) / (100 if found[2] in ("%", "percent") else 1)
        if re.search(r"\b(slower|slow \w+ by)\b", instruction, re.IGNORECASE) and factor > 1:
            factor = 1 / factor
    elif re.search(r"\b(half|slow\w*)\b", instruction, re.IGNORECASE):
        factor = 0.5
    elif re.search(r"\b(double|twice|fast\w*|speed\w* up)\b", instruction, re.IGNORECASE):
        factor = 2.0
    else:
        raise InvalidInput(f"no speed is named in {instruction[:80]!r}; say 1.5x, 75 %, double, half, faster or slower")
    if not 0.1 <= factor <= 10:
        raise InvalidInput(f"the speed {factor:g} is none that a video can have; name one from 0.1 to 10")
    return factor


@tool("take_still", VIDEO)
def take_still(video: Media) -> Media:
    """The picture in the middle of a video."""
    shown = frames(video)
    return png(shown[len(shown) // 2][0])
