"""Document merging at work: every clause of the agreements is in the result, once, although no draft is like that."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import pytest
import pytest_asyncio

from llmsched.apps.document_merging import handlers, scripted
from llmsched.apps.document_merging.dataset import load
from llmsched.apps.document_merging.scorer import score
from llmsched.testing import Call
from tests.integration.applications import RunningApplication, running_application

SAMPLE = next(load(Path(str(handlers.__file__)).with_name("examples.csv")))
CLAUSES = scripted.clauses(SAMPLE.input["documents"])


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[RunningApplication]:
    async with running_application(tmp_path, "document_merging") as running:
        yield running


def asked(calls: list[Call]) -> Counter[str]:
    """Calls of the model by what it was to do, as its prompt's last line says it."""
    return Counter(call.prompt.strip().rpartition("\n")[2].partition(" ")[0] for call in calls)


async def test_every_clause_is_kept_and_said_once(app: RunningApplication) -> None:
    job = await app.run(SAMPLE.input)
    assert job["error"] is None
    result = job["result"]
    assert scripted.lines(result["merged"]) == CLAUSES
    # Three judges, two of whom are strict or generous by half a mark: 9.5, 10 and, capped, 10.
    assert result["redundancy"] == result["retained"] == pytest.approx((9.5 + 10 + 10) / 3)
    assert result["score"] == pytest.approx(result["retained"])
    assert score(result, SAMPLE.reference) == 1.0
    assert asked(app.calls) == {"Draft": 5, "Judge": 60, "Aggregation": 5, "Improvement": 10}


async def test_no_draft_or_aggregation_would_have_done(app: RunningApplication) -> None:
    await app.run(SAMPLE.input)
    replies = [
        scripted.answer(c) for c in app.calls if re.search(r"\n(Draft|Aggregation) \d of 5\.$", c.prompt.strip())
    ]
    assert len(replies) == 10
    assert all(scripted.lines(reply) != CLAUSES for reply in replies)


async def test_each_draft_is_judged_three_times_and_the_best_three_are_aggregated(app: RunningApplication) -> None:
    await app.run(SAMPLE.input)
    drafts = [scripted.answer(call) for call in app.calls if "\nDraft " in call.prompt]
    marks: dict[str, list[dict[str, float]]] = {draft: [] for draft in drafts}
    for call in filter(judges, app.calls):
        judged = call.prompt.partition("\n<merged>\n")[2].partition("\n</merged>")[0]
        if judged in marks:
            marks[judged].append(json.loads(scripted.answer(call)))
    assert [len(marks[draft]) for draft in drafts] == [3] * 5
    scores = {
        draft: harmonic_mean([fmean(m[of] for m in given) for of in ("redundancy", "retained")])
        for draft, given in marks.items()
    }
    for call in app.calls:
        shown = re.findall(r"<draft_\d>\n(.*?)\n</draft_\d>", call.prompt, re.DOTALL)
        if "\nAggregation " in call.prompt:
            assert [scores[draft] for draft in shown] == sorted(scores.values(), reverse=True)[:3]


def judges(call: Call) -> bool:
    return "\nJudge " in call.prompt


async def test_improvements_that_make_it_worse_are_not_kept(tmp_path: Path) -> None:
    def gives_up(call: Call) -> str:
        return "No." if "\nImprovement " in call.prompt else scripted.answer(call)

    async with running_application(tmp_path, "document_merging", answer=gives_up) as app:
        job = await app.run(SAMPLE.input)
    assert len(set(scripted.lines(job["result"]["merged"])) & set(CLAUSES)) >= len(CLAUSES) - 1


async def test_two_agreements_will_do(app: RunningApplication) -> None:
    documents = SAMPLE.input["documents"][:2]
    job = await app.run({"documents": documents})
    assert scripted.lines(job["result"]["merged"]) == scripted.clauses(documents)


@pytest.mark.parametrize(
    ("input", "why"),
    [
        (["a", "b"], "input is not what 'document_merging' takes: ['a', 'b'] is not of type 'object'"),
        ({}, "input is not what 'document_merging' takes: 'documents' is a required property"),
        ({"documents": "a"}, "input.documents is not what 'document_merging' takes: 'a' is not of type 'array'"),
        ({"documents": ["a"]}, "input.documents is not what 'document_merging' takes: ['a'] is too short"),
        (
            {"documents": list("abcde")},
            "input.documents is not what 'document_merging' takes: ['a', 'b', 'c', ...] is too long",
        ),
        ({"documents": ["a", " "]}, "input.documents[1] is not what 'document_merging' takes: ' ' does not match"),
        ({"documents": ["a", 7]}, "input.documents[1] is not what 'document_merging' takes: 7 is not of type 'string'"),
        ({"documents": ["a", "b" * 20_001]}, "input.documents[1] is not what 'document_merging' takes: 'bbb"),
    ],
)
async def test_what_are_no_documents_is_refused(app: RunningApplication, input: Any, why: str) -> None:
    response = await app.service.post("/v1/jobs", json={"application": "document_merging", "input": input})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(why)
    assert app.calls == []


async def test_marks_out_of_range_fail_the_job(tmp_path: Path) -> None:
    def overdoes(call: Call) -> str:
        return json.dumps({"reasons": "!", "redundancy": 11, "retained": 5}) if judges(call) else scripted.answer(call)

    async with running_application(tmp_path, "document_merging", answer=overdoes) as app:
        job = await app.run(SAMPLE.input)
    assert job["status"] == "failed"
    assert "stage 'score_1' must answer with JSON of its schema" in job["error"]
    assert "11 is greater than the maximum of 10" in job["error"]
