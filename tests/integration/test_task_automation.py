"""Task automation on a live service: plans unfold, tools run in their order and hand on what they made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llmsched.apps.task_automation.codecs import frames, picture, png, sound
from llmsched.apps.task_automation.dataset import load
from llmsched.apps.task_automation.scorer import score
from llmsched.apps.task_automation.values import Media
from llmsched.testing import Call
from tests.integration.applications import running_application

EXAMPLES = Path(__file__).parents[2] / "apps" / "task_automation" / "examples.jsonl"
SAMPLES = {s.id: s for s in load(EXAMPLES)}


def planned(*stages: tuple[str, str, Mapping[str, str]], after: Mapping[str, list[str]] | None = None) -> str:
    """A plan as a model writes it: name, candidate and arguments of each stage."""
    listed = [
        {"name": name, "candidate": candidate, "arguments": arguments, "after": (after or {}).get(name, [])}
        for name, candidate, arguments in stages
    ]
    return json.dumps({"stages": listed})


def as_requested(call: Call) -> str:
    """A planner whose requests are plans already."""
    request = next(m["content"] for m in call.messages if m["role"] == "user")
    return request.removeprefix("Request: ").partition("\nFiles: ")[0]


def parents(job: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each tool waited for, and really did: nothing began before its parents had ended."""
    stages = {s["name"]: s for s in job["stages"]}
    del stages["tools"]  # a placeholder, which does not run
    for stage in stages.values():
        for parent in stage["after"]:
            assert stages[parent]["finished_at"] <= stage["started_at"], (parent, stage["name"])
    return {name: stage["after"] for name, stage in stages.items() if name != "plan"}


async def test_examples_are_solved_as_their_references_do(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation") as app:
        for sample in SAMPLES.values():
            job = await app.run(sample.input)
            assert (job["status"], job["error"], job["off_profile"]) == ("completed", None, [])
            assert score(job["result"], sample.reference) == 1.0, sample.id
        # One call for each, and a second one for the example whose first plan names a tool that does not exist.
        assert len(app.calls) == len(SAMPLES) + 1


async def test_text_is_summarised_before_its_keywords_are_taken(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation") as app:
        job = await app.run(SAMPLES["example-2"].input)
    assert parents(job) == {
        "tools.summary_1": [],
        "tools.keywords_2": ["tools.summary_1"],
    }
    assert job["result"] == {
        "answer": {"keywords_2": "summer visitors love, harbour sells, boats take, market beside, market"},
        "intermediate": {
            "summary_1": "The market beside the harbour sells their fish the same day. In summer visitors love the"
            " market, and the boats take them to the island."
        },
        "plan": [
            {"name": "summary_1", "candidate": "Text Summarizer", "arguments": {"text": "example.txt"}, "after": []},
            {
                "name": "keywords_2",
                "candidate": "Keyword Extractor",
                "arguments": {"text": "$summary_1"},
                "after": ["summary_1"],
            },
        ],
    }


async def test_two_images_made_in_parallel_are_stitched(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation") as app:
        job = await app.run(SAMPLES["example-3"].input)
    assert parents(job) == {
        "tools.image_1": [],
        "tools.image_2": [],
        "tools.image_3": ["tools.image_1", "tools.image_2"],
    }
    made = job["result"]["intermediate"] | job["result"]["answer"]
    left, right, both = (picture(Media.from_json(made[f"image_{k}"])) for k in (1, 2, 3))
    assert (left.size, right.size, both.size) == ((160, 120), (160, 120), (320, 120))
    assert np.array_equal(np.asarray(both), np.hstack([np.asarray(left), np.asarray(right)]))


async def test_sounds_are_spliced_and_the_echo_makes_them_longer(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation") as app:
        job = await app.run(SAMPLES["example-4"].input)
    made = job["result"]["intermediate"]
    samples = [len(sound(Media.from_json(made[f"sound_{k}"])).samples) for k in (1, 2, 3)]
    assert samples == [16_000, 32_000, 41_600]  # one second, two, and the second echo begins 0.6 s later
    assert list(job["result"]["answer"]) == ["spectrogram_4"]
    assert picture(Media.from_json(job["result"]["answer"]["spectrogram_4"])).size == (512, 129)


async def test_slideshow_is_played_at_double_speed(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation") as app:
        job = await app.run(SAMPLES["example-6"].input)
    made = job["result"]["intermediate"]
    assert [[ms for _, ms in frames(Media.from_json(made[f"video_{k}"]))] for k in (1, 2)] == [[1000] * 2, [500] * 2]
    assert picture(Media.from_json(job["result"]["answer"]["still_3"])).size == (160, 120)


async def test_planner_that_names_an_unknown_tool_is_told_and_corrects_it(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation") as app:
        job = await app.run(SAMPLES["example-5"].input)
    assert job["result"]["intermediate"] == {"text_1": "The staff was horrible and the food was terrible."}
    assert job["result"]["answer"] == {
        "keywords_2": "staff, horrible, food, terrible",
        "sentiment_3": "negative (-0.77)",
    }
    first, second = app.calls
    assert [m["role"] for m in first.messages] == ["system", "user"]
    assert [m["role"] for m in second.messages] == ["system", "user", "assistant", "user"]
    assert "'Spell Checker' is not one of" in second.last


async def test_plan_that_stays_wrong_fails_the_job_and_runs_no_tool(tmp_path: Path) -> None:
    plans = {
        planned(("a", "Spell Checker", {"text": "x"})): "'Spell Checker' is not one of",
        planned(("a", "Text Summarizer", {"text": "$b"}), ("b", "Text Summarizer", {"text": "$a"})): (
            "the plan for 'tools' has a cycle"
        ),
        planned(("a", "Text Summarizer", {"text": "x"}), after={"a": ["b"]}): "unknown parent 'tools.b' in 'after'",
        planned(("a", "Text Summarizer", {"text": "x"}), ("a", "Text Expander", {"text": "x"})): (
            "the plan for 'tools' has two stages named 'a'"
        ),
        planned(*((f"s{k}", "Text Summarizer", {"text": "x"}) for k in range(17))): "stages is not",
    }
    async with running_application(tmp_path, "task_automation", answer=as_requested) as app:
        for plan, why in plans.items():
            app.calls.clear()
            job = await app.run({"request": plan})
            assert (job["status"], len(app.calls)) == ("failed", 2)
            assert why in job["error"]
            assert why in app.calls[1].last
            assert [s["name"] for s in job["stages"]] == ["plan", "tools"]


async def test_sixteen_stages_are_the_most(tmp_path: Path) -> None:
    plan = planned(
        ("s0", "Text Summarizer", {"text": "It rains. It pours."}),
        *((f"s{k}", "Text Summarizer", {"text": f"Again: $s{k - 1}"}) for k in range(1, 16)),
    )
    async with running_application(tmp_path, "task_automation", answer=as_requested) as app:
        job = await app.run({"request": plan})
    assert (job["status"], len(job["stages"])) == ("completed", 18)
    # No `after` names the references, and so no stage is known to be waited for.
    assert job["result"]["answer"]["s15"] == "Again: " * 15 + "It rains."


async def test_wrong_argument_fails_the_job_with_tool_argument_and_type(tmp_path: Path) -> None:
    wrong = [
        (
            ("Image Stitcher", {"image": "example.jpg"}),
            "Image Stitcher: the argument 'second_image' is missing; the tool takes image, second_image",
        ),
        (
            ("Image Stitcher", {"image": "example.jpg", "second_image": "$text"}),
            "Image Stitcher: the argument 'second_image' is the text 'It rains.', it must be an image",
        ),
        (
            ("Audio Effects", {"audio": "example.jpg", "text": "echo"}),
            "Audio Effects: the argument 'audio' is an image, it must be a sound",
        ),
        (
            ("Object Detection", {"image": "example.wav"}),
            "Object Detection: the argument 'image' is a sound, it must be an image",
        ),
        (
            ("Text Summarizer", {"text": "notes.txt"}),
            "Text Summarizer: the argument 'text' names the file 'notes.txt', which is no resource of the job; known:"
            " map.png",
        ),
    ]
    resources = {"map.png": png(Image.new("RGB", (2, 2))).to_json()}
    async with running_application(tmp_path, "task_automation", answer=as_requested) as app:
        for (candidate, arguments), why in wrong:
            text = ("text", "Text Summarizer", {"text": "It rains. It pours."})
            plan = planned(text, ("wrong", candidate, arguments))
            job = await app.run({"request": plan, "resources": resources})
            assert job["status"] == "failed"
            assert job["error"].startswith("task tools.wrong[0]: ")
            assert why in job["error"]


async def test_downloads_reach_public_addresses_only(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation", answer=as_requested) as app:
        for address in ("127.0.0.1", "169.254.169.254", "10.0.0.1"):
            plan = planned(("image", "Image Downloader", {"url": f"http://{address}/latest/meta-data"}))
            job = await app.run({"request": plan})
            assert job["status"] == "failed"
            assert f"Image Downloader: URL http://{address}/latest/meta-data leads to {address}" in job["error"]


async def test_resources_of_the_job_reach_the_tools(tmp_path: Path) -> None:
    plan = planned(
        ("both", "Image Stitcher", {"image": "map.png", "second_image": "example.jpg"}),
        ("mood", "Text Sentiment Analysis", {"text": "letter.txt"}),
    )
    resources = {"map.png": png(Image.new("RGB", (40, 60), (1, 2, 3))).to_json(), "letter.txt": "I hate it."}
    async with running_application(tmp_path, "task_automation", answer=as_requested) as app:
        job = await app.run({"request": plan, "resources": resources})
    assert app.calls[0].last == f"Request: {plan}\nFiles: map.png, letter.txt"
    answer = job["result"]["answer"]
    assert answer["mood"] == "negative (-0.57)"
    both = picture(Media.from_json(answer["both"]))
    assert (both.size, both.getpixel((0, 0))) == ((40 + 80, 60), (1, 2, 3))


async def test_oversized_resource_is_refused_before_anything_runs(tmp_path: Path) -> None:
    async with running_application(tmp_path, "task_automation") as app:
        large = {"type": "image/png", "base64": "A" * 666_672}
        job = {"application": app.name, "input": {"request": "Do it.", "resources": {"a.png": large}}}
        refusal = await app.service.post("/v1/jobs", json=job)
        assert (refusal.status_code, app.calls) == (422, [])
        assert "resources" in refusal.json()["detail"]


async def test_what_is_simulated_says_so_and_can_be_worked_on(tmp_path: Path) -> None:
    plan = planned(
        ("found", "Object Detection", {"image": "example.jpg"}),
        ("link", "Keyword Extractor", {"text": "$found"}),
        after={"link": ["found"]},
    )
    async with running_application(tmp_path, "task_automation", answer=as_requested) as app:
        job = await app.run({"request": plan})
    found = job["result"]["intermediate"]["found"]
    assert (found["simulated"], found["tool"]) == (True, "Object Detection")
    assert found["text"].startswith("[simulated Object Detection of image of ")
    assert job["result"]["answer"]["link"].startswith("simulated object detection")
    held = next(s for s in job["stages"] if s["name"] == "tools.found")
    assert held["finished_at"] - held["started_at"] >= 0.8  # the seconds declared for this tool
