"""Tools for sounds, done by numpy."""

from __future__ import annotations

import re
from typing import Any

from llmsched import InvalidInput

from .calls import tool
from .codecs import Sound, png, sound, wav
from .values import AUDIO, TEXT, Media


def _resampled(made: Sound, length: int) -> Any:
    """The samples stretched or squeezed to `length` of them."""
    import numpy as np

    places = np.linspace(0, len(made.samples) - 1, max(1, length))
    return np.interp(places, np.arange(len(made.samples)), made.samples)


@tool("splice_audio", AUDIO, AUDIO)
def splice(first: Media, second: Media) -> Media:
    """One sound after the other, at the rate of the first."""
    import numpy as np

    one, other = sound(first), sound(second)
    fitted = _resampled(other, round(len(other.samples) * one.rate / other.rate))
    return wav(Sound(np.concatenate([one.samples, fitted]), one.rate))


@tool("reduce_noise", AUDIO)
def reduce_noise(audio: Media) -> Media:
    """Takes the noise floor out of the spectrum of each tenth of a second (spectral subtraction).

    The floor of a frequency is the median of its loudness over time, so a steady tone is taken for noise unless it
    stands out from its neighbours: the floor is smoothed over frequencies by their median.
    """
    import numpy as np

    noisy = sound(audio)
    size = max(2, noisy.rate // 20 * 2)  # two halves that overlap
    window = np.sqrt(np.hanning(size + 1)[:-1])
    padded = np.pad(noisy.samples, (size // 2, size + size // 2))
    starts = range(0, len(padded) - size + 1, size // 2)
    spectra = np.array([np.fft.rfft(window * padded[s : s + size]) for s in starts])
    loudness = np.abs(spectra)
    floor = np.median(loudness, axis=0)
    near = min(len(floor), 51)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(floor, near // 2, mode="edge"), near)[: len(floor)]
    quieter = np.maximum(loudness - 2 * np.median(around, axis=1), 0.05 * loudness)
    spectra *= quieter / np.maximum(loudness, 1e-12)
    clean = np.zeros(len(padded))
    for start, spectrum in zip(starts, spectra, strict=True):
        clean[start : start + size] += window * np.fft.irfft(spectrum, size)
    return wav(Sound(clean[size // 2 : size // 2 + len(noisy.samples)], noisy.rate))


@tool("apply_audio_effects", AUDIO, TEXT)
def apply_effects(audio: Media, instruction: str) -> Media:
    """Applies each effect that the instruction asks for once, in its order: see `_EFFECTS`."""
    made = sound(audio)
    found = ((k, re.search(words, instruction, re.IGNORECASE)) for k, (words, _) in enumerate(_EFFECTS))
    asked = sorted((match.start(), k) for k, match in found if match)
    if not asked:
        raise InvalidInput(
            f"no effect is known in {instruction[:80]!r}; known: echo, reverb, chorus, bass, treble, fade in, fade out,"
            " louder, quieter, normalise, reverse, faster, slower"
        )
    for _, k in asked:
        made = Sound(_EFFECTS[k][1](made), made.rate)
    return wav(made)


def _echo(delays: list[float], fades: float) -> Any:
    """Adds the sound again after each delay (seconds), each time `fades` times as loud as before."""

    def apply(made: Sound) -> Any:
        import numpy as np

        behind = [round(delay * made.rate) for delay in delays]
        mixed = np.pad(made.samples, (0, max(behind)))
        for k, start in enumerate(behind, 1):
            mixed[start : start + len(made.samples)] += fades**k * made.samples
        return mixed

    return apply


def _shelf(low: float, high: float) -> Any:
    """Multiplies what is below 300 Hz and above 3 kHz."""

    def apply(made: Sound) -> Any:
        import numpy as np

        spectrum = np.fft.rfft(made.samples)
        hertz = np.fft.rfftfreq(len(made.samples), 1 / made.rate)
        spectrum *= np.where(hertz < 300, low, np.where(hertz > 3000, high, 1.0))
        return np.fft.irfft(spectrum, len(made.samples))

    return apply


def _fade(start: float, end: float) -> Any:
    def apply(made: Sound) -> Any:
        import numpy as np

        return made.samples * np.linspace(start, end, len(made.samples))

    return apply


def _normalised(made: Sound) -> Any:
    import numpy as np

    return made.samples / max(1e-9, float(np.abs(made.samples).max(initial=0.0)))


def _at_speed(factor: float) -> Any:
    return lambda made: _resampled(made, round(len(made.samples) / factor))


#: Words of an instruction, and what they ask for. Speed changes the pitch too, as on a tape.
_EFFECTS: list[tuple[str, Any]] = [
    (r"\becho", _echo([0.3, 0.6], 0.5)),
    (r"\breverb", _echo([0.03, 0.05, 0.08, 0.13, 0.21, 0.34], 0.75)),
    (r"\bchorus", _echo([0.02, 0.027], 0.8)),
    (r"\bbass|equali[sz]", _shelf(1.6, 1.0)),
    (r"\btreble", _shelf(1.0, 1.6)),
    (r"fade[ -]?in", _fade(0.0, 1.0)),
    (r"fade[ -]?out", _fade(1.0, 0.0)),
    (r"\blouder|increase the volume", lambda made: 2.0 * made.samples),
    (r"\bquieter|\bsofter|decrease the volume", lambda made: 0.5 * made.samples),
    (r"\bnormali[sz]", _normalised),
    (r"\brevers|backwards", lambda made: made.samples[::-1]),
    (r"\bfaster|speed (it )?up", _at_speed(1.25)),
    (r"\bslower|slow (it )?down", _at_speed(0.8)),
]


@tool("change_voice", AUDIO, TEXT)
def change_voice(audio: Media, instruction: str) -> Media:
    """Makes a voice higher or deeper by a quarter; by resampling, so it also speaks faster or slower."""
    if re.search(r"\b(high|female|woman|girl|child|squeaky|young)", instruction, re.IGNORECASE):
        factor = 1.25
    elif re.search(r"\b(deep|low|male|man|masculine|robot|old)", instruction, re.IGNORECASE):
        factor = 0.8
    else:
        raise InvalidInput(f"no voice is known in {instruction[:80]!r}; say higher, deeper, female or male")
    made = sound(audio)
    return wav(Sound(_at_speed(factor)(made), made.rate))


@tool("draw_spectrogram", AUDIO)
def draw_spectrogram(audio: Media) -> Media:
    """The spectrum over time: from left to right at most 512 moments, from bottom to top 0 Hz to half the rate."""
    import numpy as np
    from PIL import Image

    made = sound(audio)
    size = 256
    padded = np.pad(made.samples, (0, max(0, size - len(made.samples))))
    starts = np.linspace(0, len(padded) - size, min(512, 1 + (len(padded) - size) // 64)).astype(int)
    loudness = np.abs(np.fft.rfft([padded[s : s + size] * np.hanning(size) for s in starts], axis=1))
    decibel = 20 * np.log10(np.maximum(loudness, 1e-6))
    levels = np.clip((decibel - decibel.max() + 80) / 80, 0, 1)
    return png(Image.fromarray(np.rint(255 * levels.T[::-1]).astype(np.uint8)))
