"""Task automation: its tools one by one, its template, TaskBench's files, the score of a plan, the scripted planner."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from llmsched import InvalidInput
from llmsched.apps.task_automation import downloads, handlers, scripted
from llmsched.apps.task_automation.calls import argument_names, needs, read_arguments
from llmsched.apps.task_automation.codecs import Sound, frames, picture, png, sound, wav
from llmsched.apps.task_automation.dataset import load
from llmsched.apps.task_automation.samples import RATE, STORY, sample
from llmsched.apps.task_automation.scorer import score
from llmsched.apps.task_automation.values import AUDIO, IMAGE, MAX_MEDIA_BYTES, VIDEO, Media
from llmsched.catalogue import load_application
from llmsched.errors import BackendError
from llmsched.runtime.tools.corpus import Page as Article
from llmsched.runtime.tools.handlers import build_registry
from llmsched.runtime.tools.web import Page
from llmsched.testing import Call

FOLDER = Path(__file__).parents[2] / "apps" / "task_automation"
APPLICATION = load_application(FOLDER / "application.yaml")
PLAN, TOOLS = APPLICATION["plan"], APPLICATION["tools"]
#: As they are written: `Candidate.input` names a type once, however often the tool takes it.
CANDIDATES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "application.yaml").read_text())["stages"][1]["candidates"]
REGISTRY = build_registry(["llmsched.apps.task_automation.handlers"], installed=False)
SYSTEM = PLAN.system or ""


def run(function: Any, resources: dict[str, Any] | None = None, /, **arguments: Any) -> Any:
    """The output of a tool, called as the service does."""
    return function({"tool": "Tool", "arguments": arguments, "input": {"resources": resources or {}}})


def image(width: int, height: int, colour: tuple[int, int, int]) -> dict[str, Any]:
    return png(Image.new("RGB", (width, height), colour)).to_json()


def tone(hertz: float, seconds: float, rate: int = RATE) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def loudest(samples: Any, rate: int = RATE) -> float:
    """The loudest frequency, in hertz."""
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()])


# ---------------------------------------------------------------------------------------------------- texts


def test_summary_is_a_third_of_the_sentences_in_their_order() -> None:
    summary = run(handlers.summarize, text=STORY)
    assert summary == (
        "The market beside the harbour sells their fish the same day. In summer visitors love the market, and the boats"
        " take them to the island."
    )


def test_summary_of_a_short_text_is_its_first_sentence() -> None:
    assert run(handlers.summarize, text="It rains. It pours.") == "It rains."


def test_keywords_are_phrases_between_stop_words() -> None:
    # Degree over frequency: deep 2/1, sea 2/1 make 4; boats 1/1 makes 1.
    assert run(handlers.extract_keywords, text="The boats are on the deep sea.") == "deep sea, boats"


@pytest.mark.parametrize(
    ("text", "label"), [("I love it, wonderful!", "positive"), ("A horrible day.", "negative"), ("A day.", "neutral")]
)
def test_sentiment_has_a_label_and_a_score(text: str, label: str) -> None:
    found = re.fullmatch(r"(\w+) \(([+-]\d\.\d\d)\)", run(handlers.analyse_sentiment, text=text))
    assert found is not None
    assert found[1] == label
    assert np.sign(float(found[2])) == {"positive": 1, "negative": -1, "neutral": 0}[label]


def test_spelling_is_corrected_but_not_names_and_urls() -> None:
    text = "Teh weather is beatiful in Lindoww, see https://exmple.org/teh."
    assert run(handlers.check_spelling, text=text) == (
        "The weather is beautiful in Lindoww, see https://exmple.org/teh."
    )


def test_question_is_answered_with_the_sentence_that_shares_most_with_it() -> None:
    ask = "When do the boats leave?"
    assert run(handlers.answer_from_text, text=STORY, second_text=ask) == (
        "Boats leave before sunrise and come back at noon."
    )
    assert run(handlers.answer_from_text, text=STORY, second_text="Who is he?") == "The text does not say."


def test_similarity_looks_at_letters_and_not_at_their_order() -> None:
    assert run(handlers.compare_texts, text="the cat sat", second_text="Sat the cat!") == 1.0
    assert run(handlers.compare_texts, text="the cat sat", second_text="we drove up") < 0.5


def test_url_is_taken_without_the_full_stop_behind_it() -> None:
    assert run(handlers.extract_url, text="See (https://example.org/a?b=1).") == "https://example.org/a?b=1"
    with pytest.raises(InvalidInput, match="Tool: there is no URL in 'See there'"):
        run(handlers.extract_url, text="See there")


# --------------------------------------------------------------------------------------------------- images


def test_stitched_image_has_both_widths_and_the_first_height() -> None:
    red, blue = image(40, 30, (255, 0, 0)), image(20, 60, (0, 0, 255))
    stitched = picture(Media.from_json(run(handlers.stitch, image=red, second_image=blue)))
    assert stitched.size == (40 + 10, 30)  # the second at half its size
    assert (stitched.getpixel((39, 29)), stitched.getpixel((40, 0))) == ((255, 0, 0), (0, 0, 255))


def test_edits_are_applied_in_the_order_of_the_instruction() -> None:
    orange = image(40, 30, (200, 100, 0))
    edited = picture(Media.from_json(run(handlers.edit, text="Invert it, then rotate by 90 degrees", image=orange)))
    assert (edited.size, edited.getpixel((20, 20))) == ((30, 40), (55, 155, 255))
    with pytest.raises(InvalidInput, match="Tool: no edit is known in 'make it nice'; known: black and white, blur"):
        run(handlers.edit, text="make it nice", image=orange)


def test_black_and_white_has_equal_channels_and_colour_has_not() -> None:
    grey = picture(Media.from_json(run(handlers.edit, text="black and white", image="example.jpg")))
    tinted = picture(Media.from_json(run(handlers.colour, image=png(grey).to_json())))
    assert np.ptp(np.asarray(grey).astype(int), axis=2).max() == 0
    assert np.ptp(np.asarray(tinted).astype(int), axis=2).max() > 50


def test_segments_are_at_most_four_colours() -> None:
    segmented = picture(Media.from_json(run(handlers.segment, image="example.jpg")))
    assert 2 <= len(segmented.getcolors()) <= 4


def test_style_transfer_takes_over_the_mean_colour() -> None:
    styled = picture(
        Media.from_json(run(handlers.transfer_style, image="example1.jpg", second_image=image(9, 9, (10, 200, 30))))
    )
    assert styled.size == (160, 120)
    assert styled.getcolors() == [(160 * 120, (10, 200, 30))]  # one colour has no spread


def test_enhanced_image_uses_all_levels() -> None:
    dull = Image.linear_gradient("L").point(lambda level: 100 + level // 8).convert("RGB")
    enhanced = np.asarray(picture(Media.from_json(run(handlers.enhance, image=png(dull).to_json()))))
    assert (enhanced.min(), enhanced.max()) == (0, 255)


def test_large_image_is_shrunk() -> None:
    shrunk = run(handlers.edit, text="invert", image=image(3000, 1500, (1, 2, 3)))
    assert picture(Media.from_json(shrunk)).size == (1024, 512)


def test_image_that_is_too_large_as_png_becomes_a_jpeg() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    with pytest.raises(InvalidInput, match=f"an image of [0-9]+ bytes is too large, {MAX_MEDIA_BYTES} are allowed"):
        png(Image.fromarray(noise)).to_json()  # not even then
    smooth = Image.fromarray(noise // 16 + 100)
    assert png(smooth).type == "image/jpeg"


def test_what_is_no_picture_is_refused() -> None:
    text = {"type": "image/png", "base64": base64.b64encode(b"I am no picture").decode()}
    with pytest.raises(InvalidInput, match="Tool: a content of type 'image/png' is no picture that Pillow reads"):
        run(handlers.enhance, image=text)
    half = {"type": "image/png", "base64": base64.b64encode(png(picture_of_noise()).content[:900]).decode()}
    with pytest.raises(InvalidInput, match="Tool: the content of type 'image/png' is broken"):
        run(handlers.enhance, image=half)


def test_picture_with_too_many_pixels_is_refused_before_it_is_unpacked() -> None:
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    with pytest.raises(InvalidInput, match="a picture of 9000 x 9000 pixels is too large"):
        picture(Media(IMAGE, "image/png", bomb.getvalue()))


def picture_of_noise() -> Any:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))


# --------------------------------------------------------------------------------------------------- videos


def test_slideshow_shows_both_pictures_for_a_second_and_twice_as_fast_for_half_of_one() -> None:
    red, blue = image(16, 12, (255, 0, 0)), image(32, 12, (0, 0, 255))
    show = run(handlers.slideshow, image=red, second_image=blue)
    assert (show["kind"], show["type"]) == ("video", "image/gif")
    assert [(f.size, f.getpixel((0, 0)), ms) for f, ms in frames(Media.from_json(show))] == [
        ((16, 12), (255, 0, 0), 1000),
        ((16, 12), (0, 0, 255), 1000),
    ]
    for instruction, milliseconds in {
        "double speed": 500, "play it at 1.25x": 800, "slow it down to 50% of its speed": 2000, "2 times slower": 2000
    }.items():  # fmt: skip
        changed = run(handlers.change_speed, video=show, text=instruction)
        assert [ms for _, ms in frames(Media.from_json(changed))] == [milliseconds] * 2, instruction
    still = picture(Media.from_json(run(handlers.take_still, video=show)))
    assert still.getpixel((0, 0)) == (0, 0, 255)  # the second of two


@pytest.mark.parametrize("instruction", ["nicely", "1000x", "0%"])
def test_speed_that_cannot_be_is_refused(instruction: str) -> None:
    with pytest.raises(InvalidInput, match=r"Tool: (no speed is named|the speed)"):
        run(handlers.change_speed, video="example.mp4", text=instruction)


def test_video_that_needs_a_codec_is_refused() -> None:
    film = {"type": "video/mp4", "base64": base64.b64encode(b"\0\0\0\x18ftypmp42").decode()}
    with pytest.raises(InvalidInput, match=r"only animated pictures \(GIF, WebP, APNG\) are videos here"):
        run(handlers.take_still, video=film)


# --------------------------------------------------------------------------------------------------- sounds


def test_spliced_sound_is_one_after_the_other_at_the_rate_of_the_first() -> None:
    one = wav(Sound(tone(440, 0.5), RATE)).to_json()
    other = wav(Sound(tone(1000, 1.0, 8000), 8000)).to_json()
    spliced = sound(Media.from_json(run(handlers.splice, audio=one, second_audio=other)))
    assert (len(spliced.samples), spliced.rate) == (24_000, RATE)  # 0.5 s and 1 s
    assert (loudest(spliced.samples[:8000]), loudest(spliced.samples[8000:])) == (440, 1000)


def test_noise_is_reduced_and_the_tone_stays() -> None:
    pure = tone(440, 1.0)
    noisy = pure + np.random.default_rng(3).normal(0, 0.02, RATE)
    made = run(handlers.reduce_noise, audio=wav(Sound(noisy, RATE)).to_json())
    clean = sound(Media.from_json(made)).samples
    # Measured: 0.006 instead of 0.02. Without the tone, which is much louder, the deviation would be 0.35.
    assert np.std(clean - pure) < 0.4 * np.std(noisy - pure)
    assert len(clean) == RATE


def test_effects_are_applied_in_order() -> None:
    audio = wav(Sound(tone(440, 1.0), RATE)).to_json()
    echo = sound(Media.from_json(run(handlers.apply_effects, audio=audio, text="Add an echo, then reverse it")))
    assert len(echo.samples) == 1.6 * RATE  # the second echo begins at 0.6 s
    assert np.abs(echo.samples[: RATE // 4]).max() < np.abs(echo.samples[-RATE // 4 :]).max()  # it dies away in front
    with pytest.raises(InvalidInput, match="Tool: no effect is known in 'sparkle'; known: echo, reverb"):
        run(handlers.apply_effects, audio=audio, text="sparkle")


@pytest.mark.parametrize(("voice", "hertz"), [("a female voice", 500), ("deeper, please", 320)])
def test_voice_is_changed_by_a_quarter(voice: str, hertz: float) -> None:
    audio = wav(Sound(tone(400, 1.0), RATE)).to_json()
    changed = sound(Media.from_json(run(handlers.change_voice, audio=audio, text=voice)))
    assert loudest(changed.samples) == pytest.approx(hertz, abs=2)


def test_spectrogram_is_brightest_where_the_tone_is() -> None:
    audio = wav(Sound(tone(2000, 1.0), RATE)).to_json()
    drawn = np.asarray(picture(Media.from_json(run(handlers.draw_spectrogram, audio=audio))))[:, :, 0]
    assert drawn.shape == (129, 247)  # 256 / 2 + 1 frequencies; 1 + (16000 - 256) // 64 moments
    assert set(drawn.argmax(axis=0)) == {128 - 32}  # 2000 Hz is a quarter of 8000 Hz, from below


def test_wav_of_two_channels_and_of_8_bits_is_read() -> None:
    stereo = wav_file(2, 2, np.array([[16384, 0], [0, -16384]], "<i2").tobytes())
    assert sound(stereo).samples.tolist() == [0.25, -0.25]
    assert sound(wav_file(1, 1, bytes([128, 192, 0]))).samples.tolist() == [0.0, 0.5, -1.0]


def test_sound_that_is_no_wav_is_refused() -> None:
    with pytest.raises(InvalidInput, match="Tool: a sound of type 'audio/mpeg' is no WAV file of PCM"):
        run(handlers.reduce_noise, audio={"type": "audio/mpeg", "base64": base64.b64encode(b"ID3 not a wav").decode()})
    with pytest.raises(InvalidInput, match="at 1 Hz cannot be used"):
        sound(wav_file(1, 2, b"\0\0", rate=1))


def wav_file(channels: int, width: int, raw: bytes, rate: int = RATE) -> Media:
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return Media(AUDIO, "audio/wav", buffer.getvalue())


def test_sound_that_grows_too_long_is_refused() -> None:
    long = wav(Sound(tone(440, 10.0), RATE)).to_json()  # 320,044 bytes
    with pytest.raises(InvalidInput, match="Tool: a sound of 640044 bytes is too large, 500000 are allowed"):
        run(handlers.splice, audio=long, second_audio=long)


# ------------------------------------------------------------------------------------------------- downloads


def page(content_type: str, body: bytes, status: int = 200) -> Page:
    return Page("https://example.org/x", status, content_type, body)


def test_text_of_a_page_is_what_a_reader_sees() -> None:
    html = b"<head><title>T</title></head><body><script>x()</script><h1>One &amp; two</h1><p>A <b>bold</b>\n word.</p>"
    assert downloads.text_of(page("text/html; charset=utf-8", html)) == "One & two\nA bold word."
    assert downloads.text_of(page("text/plain", "häfen".encode())) == "häfen"
    with pytest.raises(InvalidInput, match="is of type 'application/pdf', which is no text"):
        downloads.text_of(page("application/pdf", b"%PDF"))


def test_media_of_another_type_are_refused() -> None:
    assert downloads.media_of(page("image/gif", b"GIF"), VIDEO) == Media(VIDEO, "image/gif", b"GIF")
    with pytest.raises(InvalidInput, match="is of type 'text/html', it must be one of image/"):
        downloads.media_of(page("text/html", b"<p>"), IMAGE)


def test_page_that_does_not_exist_is_the_requests_fault_and_a_broken_server_is_not() -> None:
    with pytest.raises(InvalidInput, match="answers with status 404; name a page that exists"):
        downloads.text_of(page("text/html", b"", 404))
    with pytest.raises(BackendError, match="answers with status 503"):
        downloads.text_of(page("text/html", b"", 503))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "http://169.254.169.254/latest/meta-data", "http://[::1]/"]
)
@pytest.mark.parametrize("download", [downloads.download_image, downloads.download_text, downloads.download_audio])
def test_private_addresses_are_not_reached(download: Any, url: str) -> None:
    with pytest.raises(InvalidInput, match=r"Tool: URL .* leads to .*, which is no public address"):
        run(download, url=url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a", "example.org", "http://a b"])
def test_what_is_no_url_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=f"Tool: the argument 'url' is the text {url!r}, it must be a URL"):
        run(downloads.download_image, url=url)


def test_search_gives_a_line_for_each_article() -> None:
    class Wiki:
        def similar(self, text: str, limit: int = 5) -> list[str]:
            return ["Harbour", "Gone"] if text == "ports" else []

        def page(self, title: str) -> Article | None:
            return Article("Harbour", ("One.", "Two.", "Three.", "Four.")) if title == "Harbour" else None

    assert downloads.articles(Wiki(), "ports") == "Harbour: One. Two. Three."
    assert downloads.articles(Wiki(), "zzz") == "Nothing was found about 'zzz'."


def test_image_search_reads_the_url_of_the_first_hit() -> None:
    hit = {"query": {"pages": {"7": {"imageinfo": [{"thumburl": "https://upload.example.org/a.jpg"}]}}}}
    found = downloads.image_url_of(page("application/json", json.dumps(hit).encode()), "a cat")
    assert found == "https://upload.example.org/a.jpg"
    with pytest.raises(InvalidInput, match="has no image for 'a cat'"):
        downloads.image_url_of(page("application/json", b'{"batchcomplete": ""}'), "a cat")


# ------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "example.jpg"}, "Tool: the argument 'second_image' is missing; the tool takes image, second_image"),
        ({"picture": "example.jpg"}, "Tool: there is no argument 'picture'; the tool takes image, second_image"),
        (
            {"image": "a red cat", "second_image": "example.jpg"},
            "Tool: the argument 'image' is the text 'a red cat', it must be an image",
        ),
        (
            {"image": "example.jpg", "second_image": "example.wav"},
            "Tool: the argument 'second_image' is a sound, it must be an image",
        ),
        (
            {"image": "example.jpg", "second_image": {"type": "application/zip", "base64": ""}},
            "Tool: the argument 'second_image' is of type 'application/zip', which is neither an image nor a sound nor"
            " a video",
        ),
        ({"image": 7, "second_image": "example.jpg"}, "Tool: the argument 'image' is 7, it must be an image"),
        (
            {"image": "example.jpg", "second_image": "holiday.jpg"},
            "Tool: the argument 'second_image' names the file 'holiday.jpg', which is no resource of the job; known:"
            " map.png",
        ),
        (
            {"image": {"type": "image/png", "base64": "no!"}, "second_image": "example.jpg"},
            "Tool: the argument 'image' has a content that is not base64: Only base64 data is allowed",
        ),
        (
            {"image": {"type": "image/png", "base64": "AAAA" * 170_000}, "second_image": "example.jpg"},
            "Tool: the argument 'image' has 510000 bytes, 500000 are allowed; use smaller or shorter media",
        ),
    ],
)
def test_wrong_argument_is_refused_with_its_name_and_type(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        run(handlers.stitch, {"map.png": image(2, 2, (0, 0, 0))}, **arguments)
    assert str(refusal.value) == message


def test_image_is_no_text_and_a_long_text_is_too_long() -> None:
    with pytest.raises(InvalidInput, match="Tool: the argument 'text' is an image, it must be a text"):
        run(handlers.summarize, text="example.jpg")
    with pytest.raises(InvalidInput, match="Tool: the argument 'text' has 100001 characters, 100000 are allowed"):
        run(handlers.summarize, text="x" * 100_001)


def test_files_are_the_jobs_resources_before_they_are_samples() -> None:
    own = image(3, 2, (9, 9, 9))
    call = {"arguments": {"image": "example.jpg", "text": "note.txt"}, "input": {"resources": {"example.jpg": own}}}
    with pytest.raises(InvalidInput, match=r"names the file 'note\.txt'"):
        read_arguments(call, ("image", "text"))
    call["input"]["resources"]["note.txt"] = "Hello."
    assert read_arguments(call, ("image", "text")) == [Media.from_json(own), "Hello."]
    del call["input"]["resources"]["example.jpg"]
    assert read_arguments(call, ("image", "text"))[0] == Media.from_json(sample("example.jpg"))


def test_samples_are_the_same_every_time_and_differ_by_name() -> None:
    for ending in ("jpg", "wav", "mp4"):
        assert sample(f"example.{ending}") == sample(f"example.{ending}")
        assert sample(f"example1.{ending}") != sample(f"example2.{ending}")
    assert sample("holiday.jpg") is None


def test_missing_library_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(InvalidInput, match=r"\(No module named 'no_such_library'\); pip install 'llmsched\[tools\]'"):
        needs("no_such_library.part")


# ------------------------------------------------------------------------------------------------- template

_INSTRUCTIONS = {
    "Audio Effects": "echo",
    "Voice Changer": "deeper",
    "Image Editing": "blur",
    "Video Speed Changer": "2x",
}
_GIVEN = {
    "text": "See https://example.org/a now.",
    "image": "example.jpg",
    "audio": "example.wav",
    "video": "example.mp4",
}


@pytest.mark.parametrize(
    "candidate",
    [c for c in CANDIDATES if c["input"] != ["url"] and c["name"] not in ("Text Search", "Image Search")],
    ids=lambda c: str(c["name"]),
)
def test_tool_takes_and_gives_what_its_candidate_declares(candidate: dict[str, Any]) -> None:
    given = {name: _GIVEN[name.removeprefix("second_")] for name in argument_names(candidate["input"])}
    if candidate["name"] in _INSTRUCTIONS:
        given["text"] = _INSTRUCTIONS[candidate["name"]]
    call = {**candidate["arguments"], "arguments": given, "input": {"request": "…"}}
    if "seconds" in call:
        call["seconds"] = 0
    made = REGISTRY.get(candidate["handler"]).function(call)
    if asyncio.iscoroutine(made):
        made = asyncio.run(made)
        assert (made["simulated"], made["tool"]) == (True, candidate["name"])
    match candidate["output"]:
        case []:
            assert isinstance(made, float)
        case ["url"]:
            assert made == "https://example.org/a"
        case [kind]:
            assert read_arguments({"arguments": {kind: made}}, (kind,))  # what another tool would take
        case other:
            pytest.fail(f"it declares {other}")
    assert len(json.dumps(made)) < 1 << 20


def test_schemas_of_handlers_have_the_arguments_of_their_candidates() -> None:
    for candidate in CANDIDATES:
        schema = REGISTRY.get(candidate["handler"]).schema
        assert schema is not None
        if candidate["handler"] != "task_automation.simulated":
            assert list(schema["properties"]["arguments"]["properties"]) == argument_names(candidate["input"])


def test_each_tool_is_listed_in_the_prompt_and_in_the_schema_of_plans() -> None:
    names = [c["name"] for c in CANDIDATES]
    listed = re.findall(r"^- (.+)\((.*)\) -> (\w+): ", SYSTEM, re.MULTILINE)
    assert listed == [
        (c["name"], ", ".join(argument_names(c["input"])), *(c["output"] or ["number"])) for c in CANDIDATES
    ]
    assert PLAN.response_format is not None
    schema: Any = PLAN.response_format["json_schema"]
    stages = schema["schema"]["properties"]["stages"]
    assert stages["items"]["properties"]["candidate"]["enum"] == names
    assert stages["maxItems"] == TOOLS.max_stages == 16
    assert len(names) == 60


def test_each_candidate_names_itself_to_its_handler() -> None:
    assert [c["name"] for c in CANDIDATES if c["arguments"]["tool"] != c["name"]] == []


def test_readme_tells_which_tools_are_real() -> None:
    readme = (FOLDER / "README.md").read_text()
    played = {c["name"] for c in CANDIDATES if c["handler"] == "task_automation.simulated"}
    rows = dict(re.findall(r"^\| ([^|]+?) \| (real|approximate|web|simulated) \|", readme, re.MULTILINE))
    assert {name for names, how in rows.items() if how == "simulated" for name in names.split(", ")} == played
    assert sorted(name for names in rows for name in names.split(", ")) == sorted(c["name"] for c in CANDIDATES)


# -------------------------------------------------------------------------------------------------- dataset

_OLD = {
    "id": "1", "type": "chain", "n_tools": 2, "user_request": "Do it.",
    "task_nodes": [
        {"task": "Audio-to-Text", "arguments": ["example.wav"]},
        {"task": "Translation", "arguments": ["<node-0>"]},
    ],
    "task_links": [{"source": "Audio-to-Text", "target": "Translation"}],
}  # fmt: skip
_GRAPH = {"nodes": ["Audio-to-Text", "Translation"], "links": [["Audio-to-Text", "Translation"]]}


def written(folder: Path, *entries: Any, name: str = "data.json") -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_both_spellings_of_taskbench_are_read(tmp_path: Path) -> None:
    new = {
        "id": 2, "instruction": "Do it.",
        "tool_nodes": json.dumps(_OLD["task_nodes"]), "tool_links": json.dumps(_OLD["task_links"]),
    }  # fmt: skip
    for name in ("data.json", "data.json.gz"):
        read = list(load(written(tmp_path, _OLD, new, name=name)))
        assert [(s.id, s.input, s.reference) for s in read] == [
            ("1", {"request": "Do it."}, _GRAPH),
            ("2", {"request": "Do it."}, _GRAPH),
        ]


def test_links_are_those_the_arguments_state_else_those_listed(tmp_path: Path) -> None:
    nodes = [{"task": "A", "arguments": ["x"]}, {"task": "B", "arguments": [{"name": "n", "value": "<node-0>"}]}]
    stated = {"user_request": "r", "task_nodes": nodes, "task_links": [{"source": "B", "target": "A"}]}
    listed = {**stated, "task_nodes": [{"task": "A", "arguments": []}, {"task": "B"}]}
    wild = {**stated, "task_nodes": [{"task": "A", "arguments": ["<node-0>", "<node-9>"]}], "task_links": []}
    links = [s.reference["links"] for s in load(written(tmp_path, stated, listed, wild))]
    assert links == [[["A", "B"]], [["B", "A"]], []]


def test_requests_alone_have_no_reference(tmp_path: Path) -> None:
    (read,) = load(written(tmp_path, {"id": "7", "user_request": "Do it."}))
    assert (read.id, read.input, read.reference) == ("7", {"request": "Do it."}, None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "1"}, "line 2 has no user_request"),
        ({"user_request": "r", "task_nodes": [{"id": "A"}]}, "line 2 has nodes without a 'task'"),
        ({"user_request": "r", "tool_nodes": "[{"}, "line 2: its nodes are '\\[{', they must be a list"),
        ({"user_request": "r", "task_nodes": [], "task_links": ["A"]}, "line 2 has links without 'source'"),
        ([], "line 2 is no JSON object"),
    ],
)
def test_other_files_are_refused_by_line(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(load(written(tmp_path, _OLD, entry)))


# --------------------------------------------------------------------------------------------------- scorer


def stage(name: str, candidate: str, *after: str, **arguments: str) -> dict[str, Any]:
    return {"name": name, "candidate": candidate, "after": list(after), "arguments": arguments}


def test_right_plan_scores_one_whatever_its_stages_are_called() -> None:
    plan = [stage("b", "Translation", "a", text="$a"), stage("a", "Audio-to-Text", audio="example.wav")]
    assert score({"plan": plan}, _GRAPH) == 1.0


def test_score_is_the_mean_of_node_and_edge_f1() -> None:
    # Nodes: two of three are right, two of two found: F1 = 2 * 2 / (3 + 2) = 0.8. Edges: one of two, one of one: 2 / 3.
    plan = [
        stage("a", "Audio-to-Text"), stage("b", "Translation", "a"), stage("c", "Text Summarizer", text="of ${b}")
    ]  # fmt: skip
    assert score({"plan": plan}, _GRAPH) == pytest.approx((0.8 + 2 / 3) / 2)


def test_single_tool_is_scored_by_its_name_alone() -> None:
    reference = {"nodes": ["Text_Search"], "links": []}
    assert score({"plan": [stage("a", "Text Search")]}, reference) == 1.0
    assert score({"plan": [stage("a", "Image Search")]}, reference) == 0.0


def test_nothing_to_compare_scores_zero() -> None:
    assert [score(None, _GRAPH), score({"plan": []}, _GRAPH), score({"plan": [stage("a", "A")]}, None)] == [0, 0, 0]


# ------------------------------------------------------------------------------------------------- scripted


def asked(request: str, *more: dict[str, str]) -> Call:
    return Call(
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Request: {request}"}, *more],
        PLAN.response_format,
    )


def test_scripted_planner_plans_the_examples_as_their_references_do() -> None:
    told = {"role": "assistant", "content": "…"}, {"role": "user", "content": "That answer cannot be used."}
    samples = list(load(FOLDER / "examples.jsonl"))
    plans = [json.loads(scripted.answer(asked(s.input["request"], *told)))["stages"] for s in samples]
    assert [score({"plan": p}, s.reference) for p, s in zip(plans, samples, strict=True)] == [1.0] * 8


def test_scripted_planner_chooses_a_tool_that_does_not_exist_until_it_is_told() -> None:
    request = "Correct the spelling of 'Teh end'."
    told = {"role": "assistant", "content": "…"}, {"role": "user", "content": "That answer cannot be used."}
    first, second = scripted.answer(asked(request)), scripted.answer(asked(request, *told))
    assert [json.loads(a)["stages"][0]["candidate"] for a in (first, second)] == [
        "Spell Checker",
        "Text Grammar Checker",
    ]


@pytest.mark.parametrize("request_", ["Sing a song.", "Stitch the images.", "Say 'summarise' twice."])
def test_scripted_planner_says_what_it_does_not_understand(request_: str) -> None:
    with pytest.raises(LookupError, match=r"the request (asks for nothing this script knows|names no image)"):
        scripted.answer(asked(request_))
    with pytest.raises(LookupError, match="this is no request for a plan of tools: 'Sort this'"):
        scripted.answer(Call([{"role": "user", "content": "Sort this"}]))
