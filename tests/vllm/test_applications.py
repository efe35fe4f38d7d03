"""The six applications on a real vLLM with random weights: the text is nonsense, the flow is real.

Grammars keep structured answers valid. Random weights never end a text on their own, so texts inside JSON are bounded
here, plain answers are short, and a planner's stages are pinned where chance would not find a plan that can run.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llmsched import apps
from llmsched.catalogue import installed_applications
from llmsched.datasets import Sample
from tests.integration.service import RunningService, running_service
from tests.vllm.checks import PATIENCE, assert_idle
from tests.vllm.engine import RealEngine, eventually

#: Characters of a text inside JSON, tokens of a plain answer and of JSON, in which chance puts much white space.
LONGEST_TEXT, LONGEST_ANSWER, LONGEST_JSON = 12, 24, 3000

FOLDERS = {folder.name: folder for folder in apps.folders()}


@pytest.fixture
async def service(engine: RealEngine, tmp_path: Path) -> AsyncIterator[RunningService]:
    async with running_service(tmp_path, engines=engine.url, workers=4) as service:
        yield service


def step(name: str, candidate: str, *after: str, **arguments: Any) -> dict[str, Any]:
    """The schema of a planned stage of which only the arguments' texts are left to chance."""
    fixed = {"name": name, "candidate": candidate, "after": list(after)}
    return record(**{key: {"const": value} for key, value in fixed.items()}, arguments=record(**arguments))


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TEXT = {"type": "string"}

#: Instead of the first example, whose four agreements are 80 prompts of thousands of tokens to this tokenizer.
SHORTER = {
    "document_merging": Sample("short", {"documents": ["Keep it secret.", "Give it back."]}, ["Keep it secret."])
}

#: What a planner may say, instead of any plan.
PLANS = {
    "llm_compiler": [
        step("1", "search", query=TEXT),
        step("2", "math", "1", problem=TEXT, context={"const": ["$1"]}),
    ],
    "task_automation": [
        step("words", "Text Sentiment Analysis", text=TEXT),
        step("keys", "Keyword Extractor", "words", text={"const": "The feeling is $words."}),
    ],
}


def tamed(name: str) -> dict[str, Any]:
    """The installed template with bounds that random weights need."""
    definition: dict[str, Any] = json.loads(json.dumps(installed_applications()[name].definition))
    for stage in definition["stages"]:
        for called in (stage, *stage.get("stages", ()), *stage.get("candidates", ())):
            if not isinstance(called, dict) or "prompt" not in called:
                continue
            schema = called.get("response_format", {}).get("json_schema", {}).get("schema")
            called["max_tokens"] = LONGEST_ANSWER if schema is None else LONGEST_JSON
            if called["name"] == "plan":
                steps = PLANS[name]
                stages = {"type": "array", "prefixItems": steps, "items": False, "minItems": len(steps)}
                called["response_format"]["json_schema"]["schema"] = bounded(record(stages=stages))
            elif schema is not None:
                called["response_format"]["json_schema"]["schema"] = bounded(schema)
            # Chance ends texts, greedy weights might not. No seed: several seeded calls at once end this vLLM on a CPU.
            called["sampling"] = {"temperature": 1.0}
    return definition


def bounded(schema: Any) -> Any:
    match schema:
        case {"type": "string"} if "enum" not in schema and "const" not in schema:
            return {"type": "string", "pattern": f"^[a-z ]{{1,{LONGEST_TEXT}}}$"}
        case {"type": "array", "prefixItems": _}:
            return schema | {"prefixItems": [bounded(s) for s in schema["prefixItems"]]}
        case {"type": "array", "items": items}:
            return {"type": "array", "items": bounded(items), "maxItems": 3}
        case dict():
            return {key: value if key in ("const", "enum") else bounded(value) for key, value in schema.items()}
        case list():
            return [bounded(inner) for inner in schema]
        case _:
            return schema


@pytest.mark.parametrize("name", FOLDERS)
async def test_an_application_runs_from_its_input_to_a_score(
    engine: RealEngine, service: RunningService, name: str
) -> None:
    dataset, scorer = (import_module(f"llmsched.apps.{name}.{part}") for part in ("dataset", "scorer"))
    sample = SHORTER.get(name) or next(iter(dataset.load(next(FOLDERS[name].glob("examples.*")))))
    put = await service.put(f"/v1/applications/{name}", json=tamed(name))
    assert put.status_code == 200, put.text
    before = engine.counters()

    id = (await service.submit(application=name, input=sample.input))["id"]
    view = await service.finished(id, timeout=PATIENCE)

    assert view["status"] == "completed", view["error"]
    assert 0.0 <= scorer.score(view["result"], sample.reference) <= 1.0
    ran = [stage for stage in view["stages"] if stage["state"] == "done"]
    assert {stage["name"] for stage in ran if stage["parent"] is None} <= {
        stage.name for stage in installed_applications()[name].stages
    }
    await eventually(lambda: engine.running() == 0)
    moved = engine.counters() - before
    told = sum(stage["output_tokens"] or 0 for stage in ran)
    assert 0 < told <= moved.generation_tokens  # answers that were asked for again count for the engine alone
    assert sum(moved.finished.values()) >= sum(stage["tasks"] for stage in ran if stage["kind"] == "llm")
    await assert_idle(service)
