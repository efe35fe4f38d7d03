"""llm_compiler without a service: the search, the loader, the score, the graph, and what a plan's references become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsched.apps.llm_compiler import dataset, scripted
from llmsched.apps.llm_compiler.dataset import load
from llmsched.apps.llm_compiler.handlers import LONGEST, find, search
from llmsched.apps.llm_compiler.scorer import exact_match, score
from llmsched.catalogue import installed_applications, load_application
from llmsched.datasets import Sample
from llmsched.errors import InvalidInput
from llmsched.runtime.scripts.live import LiveScript, check_templates
from llmsched.runtime.tools.corpus import Corpus, Page
from llmsched.runtime.tools.handlers import build_registry
from llmsched.testing import Call

FOLDER = Path(dataset.__file__).parent
EXAMPLES = FOLDER / "examples.json"
RHINE = Page("Rhine", tuple(f"Sentence {k}." for k in range(1, 11)))


# ------------------------------------------------------------------------------------------------------- the search


def found(query: str, *more: Page) -> str:
    with Corpus.of([RHINE, Page("Rhine Falls", ("They are in Switzerland.",)), *more]) as pages:
        return find(pages, query)


def test_a_search_shows_the_first_eight_sentences_of_its_page() -> None:
    assert found('"rhine"') == f"Rhine: {' '.join(RHINE.sentences[:8])}"


def test_a_near_miss_shows_the_nearest_page() -> None:
    assert found("the Falls") == (
        "Could not find the Falls. Similar titles: Rhine Falls. Rhine Falls: They are in Switzerland."
    )


@pytest.mark.parametrize(("query", "shown"), [("Danube", "Danube"), (" ", "anything"), ("d" * 500, "d" * 200)])
def test_a_search_that_finds_nothing_says_so(query: str, shown: str) -> None:
    assert found(query) == f"Could not find {shown}."


def test_a_result_has_a_bound() -> None:
    assert found("Long", Page("Long", ("ä" * 3000,))) == "Long: " + "ä" * (LONGEST - 7) + "…"


def test_the_search_knows_the_pages_of_the_examples() -> None:
    assert search({"query": "Elbe"}).startswith("Elbe: The Elbe is a river of central Europe.")


# -------------------------------------------------------------------------------------------------------- the dataset


def test_the_loader_reads_both_question_sets(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(
        json.dumps(
            [
                {"id": "5a8b", "level": "hard", "question": "Were they? ", "answer": "yes"},
                {"_id": "5a8c", "type": "comparison", "question": "Was it?", "answer": "1964", "context": []},
                {"id": "1", "question": "How much?", "answer": "5931.80", "branch": 2},
            ]
        )
    )
    assert list(load(path)) == [
        Sample("5a8b", {"question": "Were they?"}, {"answer": "yes"}),
        Sample("5a8c", {"question": "Was it?"}, {"answer": "1964"}),
        Sample("1", {"question": "How much?"}, {"answer": "5931.80", "tolerance": 0.1}),
    ]


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"question": "Was it?", "answer": "yes"}, "'id' is None, not a text; take hotpotqa_comparison.json or"),
        ({"id": "1", "question": "", "answer": "yes"}, "'question' is '', not a text; take"),
        ({"id": "1", "question": "How?", "answer": 3, "branch": 2}, "'answer' is 3, not a text; take"),
        ({"id": "1", "question": "How?", "answer": "3", "branch": "2"}, "'branch' is '2', not a whole number"),
    ],
)
def test_the_loader_refuses_another_format(tmp_path: Path, entry: dict[str, Any], why: str) -> None:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"id": "0", "question": "Is it?", "answer": "no"}, entry]))
    with pytest.raises(InvalidInput) as error:
        list(load(path))
    assert str(error.value).startswith(f"{path}, entry 2: {why}")


# ---------------------------------------------------------------------------------------------------------- the score


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1153.2", 1.0),
        ("about 1,200 metres", 1.0),
        ("1268", 1.0),  # 1153.2 * 1.1 = 1268.52
        ("1269", 0.0),
        ("1037", 0.0),  # 1153.2 * 0.9 = 1037.88
        ("-1153.2", 0.0),
        ("5718.9 - 4565.7", 0.0),
        ("a lot", 0.0),
        (None, 0.0),
    ],
)
def test_numbers_of_parallelqa_may_be_off_by_a_tenth(answer: str | None, expected: float) -> None:
    reference = {"answer": "1153.2", "tolerance": 0.1}
    assert score({"answer": answer}, reference) == expected
    assert exact_match({"answer": answer}, reference) == bool(expected)


def test_years_of_hotpotqa_may_not_be_off() -> None:
    assert score({"answer": "1963"}, {"answer": "1964"}) == 0.0


def test_words_are_scored_as_hotpotqa_does() -> None:
    assert score({"answer": "Emma Bull"}, {"answer": "Emma Lucy Bull"}) == pytest.approx(0.8)  # 2/2 and 2/3
    assert score({"answer": "the Elbe"}, {"answer": "Elbe", "tolerance": 0.1}) == 1.0
    assert exact_match({"answer": "the Elbe"}, {"answer": "elbe."})
    assert not exact_match({"answer": "Emma Bull"}, {"answer": "Emma Lucy Bull"})
    assert score(None, {"answer": "yes"}) == 0.0


# --------------------------------------------------------------------------------------------------------- the template


def a_job(plan: list[dict[str, Any]]) -> LiveScript:
    live = LiveScript("job_1", installed_applications()["llm_compiler"], {"question": "Which is longer?"})
    live.begin()
    live.complete("plan", [{"stages": plan}])
    return live


def search_for(name: str, query: str) -> dict[str, Any]:
    return {"name": name, "candidate": "search", "arguments": {"query": query}}


def calculate(name: str, problem: str, *context: str) -> dict[str, Any]:
    return {"name": name, "candidate": "math", "arguments": {"problem": problem, "context": list(context)}}


def asked(live: LiveScript, stage: str) -> str:
    messages = live.llm(stage, 0).messages
    assert messages is not None
    return str(messages[-1]["content"])


def test_the_graph_is_that_of_the_recordings() -> None:
    application = installed_applications()["llm_compiler"]
    assert [(s.name, s.after, s.max_stages) for s in application.stages] == [
        ("plan", (), 16),
        ("tasks", ("plan",), 16),
        ("join", ("tasks",), 16),
    ]
    assert [(c.name, c.kind.value, c.pool) for c in application["tasks"].candidates] == [
        ("search", "regular", "cpu"),
        ("math", "llm", "llm"),
    ]
    assert application.is_executable


def test_replanning_is_an_application_of_its_own() -> None:
    application = load_application(FOLDER / "replanning.yaml")
    check_templates(application, build_registry(["llmsched.apps.llm_compiler.handlers"], installed=False))
    assert application.name == "llm_compiler_replan"
    assert [s.name for s in application.stages] == [
        f"{name}_{k}" for k in (1, 2, 3) for name in ("plan", "tasks", "join")
    ]
    plain = installed_applications()["llm_compiler"]
    for name in ("plan", "tasks", "join"):  # the same questions in the same form, so that one script answers both
        ours, theirs = application[f"{name}_1"], plain[name]
        assert ours.response_format == theirs.response_format
        assert ours.candidates == theirs.candidates


def test_references_become_texts_numbers_and_reasons_to_wait() -> None:
    live = a_job(
        [
            search_for("1", "Rhine"),
            calculate("2", "Decrease the length of the Rhine by 10%.", "$1"),
            calculate("3", "Add 5 to $2, and not to $9.", "$2", "The Main is 527 km long.", "$1"),
        ]
    )
    assert live.work("tasks.1", 0).arguments == {"query": "Rhine"}
    live.complete("tasks.1", ["Rhine: It is 1,233 km long."])
    assert asked(live, "tasks.2") == (
        "Given: Rhine: It is 1,233 km long.\nProblem: Decrease the length of the Rhine by 10%."
    )
    live.complete("tasks.2", [{"working": "1233 * 0.9 = 1109.7", "answer": 1109.7}])
    assert asked(live, "tasks.3") == (
        "Given: 1109.7\nGiven: The Main is 527 km long.\nGiven: Rhine: It is 1,233 km long.\n"
        'Problem: Add 5 to {"working":"1233 * 0.9 = 1109.7","answer":1109.7}, and not to $9.'
    )
    live.complete("tasks.3", [{"working": "1109.7 + 5 = 1114.7", "answer": 1114.7}])
    assert asked(live, "join") == (
        "Question: Which is longer?\n\n"
        "search[Rhine]: Rhine: It is 1,233 km long.\n"
        "math[Decrease the length of the Rhine by 10%.]: 1109.7 (1233 * 0.9 = 1109.7)\n"
        "math[Add 5 to $2, and not to $9.]: 1114.7 (1109.7 + 5 = 1114.7)\n\n"
        "Write thought, action and answer as JSON."
    )


def test_a_problem_without_context_is_asked_alone() -> None:
    live = a_job([{"name": "1", "candidate": "math", "arguments": {"problem": "What is 2 + 2?"}}])
    assert asked(live, "tasks.1") == "Problem: What is 2 + 2?"


# ---------------------------------------------------------------------------------------------------------- the script


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("Sort: 3, 1", "'Sort: 3, 1' is no prompt of llm_compiler: it asks for no plan, sum or answer"),
        (
            "Question: Why?\n\nWrite the plan as JSON.",
            "the script of llm_compiler knows the questions of its examples, and not 'Why?'",
        ),
        ("Given: 3\nProblem: Take the root.", "the script of llm_compiler cannot solve 'Take the root.'"),
    ],
)
def test_the_script_refuses_what_it_does_not_know(prompt: str, why: str) -> None:
    with pytest.raises(LookupError) as error:
        scripted.answer(Call([{"role": "user", "content": prompt}]))
    assert error.value.args == (why,)


def test_the_script_takes_numbers_from_what_is_given() -> None:
    def solved(given: str) -> Any:
        prompt = f"Given: {given}\nProblem: Increase the length of the Elbe in kilometres by 20%."
        return json.loads(scripted.answer(Call([{"role": "user", "content": prompt}])))

    assert solved("Elbe: It is 2,000 kilometres long.") == {"working": "2000 * 1.2 = 2400", "answer": 2400.0}
    assert solved("Could not find Elbe.")["answer"] == 0


def test_the_script_takes_answers_from_results() -> None:
    prompt = (
        "Question: Who was born earlier, Johann Sebastian Bach or Antonio Vivaldi?\n\n"
        "search[Johann Sebastian Bach]: He was born in Eisenach in {0}.\n"
        "search[Antonio Vivaldi]: He was born in Venice in {1}.\n\nWrite thought, action and answer as JSON."
    )
    said = [
        json.loads(scripted.answer(Call([{"role": "user", "content": prompt.format(*years)}])))
        for years in (("1685", "1678"), ("1600", "1678"), ("1685", "some year"))
    ]
    assert [(s["action"], s["answer"]) for s in said] == [
        ("finish", "Antonio Vivaldi"),
        ("finish", "Johann Sebastian Bach"),
        ("replan", ""),
    ]
