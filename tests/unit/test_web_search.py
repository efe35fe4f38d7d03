"""web_search without a service: what the tool answers, what the loader takes, how answers are scored."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmsched.apps.web_search import corpus, dataset, scripted
from llmsched.apps.web_search.dataset import load
from llmsched.apps.web_search.handlers import LONGEST, act, tool
from llmsched.apps.web_search.scorer import exact_match, f1, score
from llmsched.catalogue import installed_applications
from llmsched.datasets import Sample
from llmsched.errors import InvalidInput
from llmsched.runtime.tools.corpus import Corpus, Page, hotpot_pages
from llmsched.testing import Call

EXAMPLES = Path(dataset.__file__).with_name("examples.json")
EIFFEL = Page(
    "Eiffel Tower",
    (
        "It stands in Paris.",
        "Two.",
        "Three.",
        "Four.",
        "Five.",
        "The first platform is at 57 metres.",
        "It is 330 METRES high.",
    ),
)
NOWHERE = {"page": None, "keyword": None, "position": 0}
ON_EIFFEL = {"page": "Eiffel Tower", "keyword": None, "position": 0}


def do(action: str, argument: str, previous: dict[str, Any] | None = None, *more: Page) -> dict[str, Any]:
    with Corpus.of([EIFFEL, Page("Tokyo Tower", ("It is orange.",)), *more]) as pages:
        return act(pages, {"action": action, "argument": argument, "previous": previous})


# ------------------------------------------------------------------------------------------------------- the tool


def test_a_search_opens_a_page_and_shows_its_first_five_sentences() -> None:
    assert do("search", "eiffel tower") == {
        "observation": "It stands in Paris. Two. Three. Four. Five.",
        "state": ON_EIFFEL,
    }


@pytest.mark.parametrize("title", ['"Eiffel Tower"', "[Eiffel Tower]", " 'eiffel  tower' "])
def test_a_title_may_come_in_quotes_or_brackets(title: str) -> None:
    assert do("search", title)["state"] == ON_EIFFEL


def test_a_search_without_a_page_shows_similar_titles_and_leaves_the_page_open() -> None:
    assert do("search", "the towers of Tokyo", ON_EIFFEL) == {
        "observation": "Could not find the towers of Tokyo. Similar titles: Tokyo Tower; Eiffel Tower.",
        "state": ON_EIFFEL,
    }
    assert do("search", "Zugspitze") == {
        "observation": "Could not find Zugspitze. Similar titles: none.",
        "state": NOWHERE,
    }


def test_look_ups_go_from_one_sentence_with_the_text_to_the_next() -> None:
    first = do("lookup", "metres", ON_EIFFEL)
    second = do("lookup", "metres", first["state"])
    third = do("lookup", "metres", second["state"])
    assert [first, second, third] == [
        {
            "observation": "(Result 1 / 2) The first platform is at 57 metres.",
            "state": {"page": "Eiffel Tower", "keyword": "metres", "position": 1},
        },
        {
            "observation": "(Result 2 / 2) It is 330 METRES high.",
            "state": {"page": "Eiffel Tower", "keyword": "metres", "position": 2},
        },
        {
            "observation": "No more results for metres on the page Eiffel Tower.",
            "state": {"page": "Eiffel Tower", "keyword": "metres", "position": 2},
        },
    ]


def test_another_text_is_looked_up_from_the_start() -> None:
    after = do("lookup", "metres", ON_EIFFEL)["state"]
    assert do("lookup", "paris", after) == {
        "observation": "(Result 1 / 1) It stands in Paris.",
        "state": {"page": "Eiffel Tower", "keyword": "paris", "position": 1},
    }


def test_a_search_begins_look_ups_anew() -> None:
    after = do("lookup", "metres", ON_EIFFEL)["state"]
    assert do("search", "Eiffel Tower", after)["state"] == ON_EIFFEL


@pytest.mark.parametrize(
    ("action", "argument", "previous", "observation"),
    [
        ("lookup", "metres", None, "No page is open to look anything up in; search for one first."),
        ("lookup", " ", ON_EIFFEL, "Nothing to lookup: name a text."),
        ("search", '""', None, "Nothing to search: name a text."),
    ],
)
def test_what_leads_to_nothing_is_said_to_the_model(
    action: str, argument: str, previous: dict[str, Any] | None, observation: str
) -> None:
    assert do(action, argument, previous) == {"observation": observation, "state": previous or NOWHERE}


def test_a_text_that_the_page_does_not_have() -> None:
    assert do("lookup", "miles", ON_EIFFEL) == {
        "observation": "No results for miles on the page Eiffel Tower.",
        "state": {"page": "Eiffel Tower", "keyword": "miles", "position": 0},
    }


def test_a_page_that_is_gone_is_not_open() -> None:
    gone = {"page": "Gone", "keyword": "metres", "position": 1}
    assert do("lookup", "metres", gone)["observation"].startswith("No page is open")


def test_an_observation_has_a_bound() -> None:
    observation = do("search", "Long", None, Page("Long", ("ä" * 3000,)))["observation"]
    assert observation == "ä" * (LONGEST - 1) + "…"


def test_the_tool_knows_the_pages_of_the_examples() -> None:
    assert tool({"action": "search", "argument": "Warsaw", "previous": None}) == {
        "observation": "Warsaw is the capital of Poland. It lies on the Vistula and has about 1.8 million inhabitants.",
        "state": {"page": "Warsaw", "keyword": None, "position": 0},
    }


# ----------------------------------------------------------------------------------------- the corpus and its command


def test_the_command_builds_a_corpus_and_searches_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus.db"
    assert corpus.main(["build", "--data", str(EXAMPLES), str(EXAMPLES), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 21 pages, ")
    assert corpus.main(["search", "--corpus", str(out), "warsaw"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Warsaw",
        "",
        "Warsaw is the capital of Poland.",
        "It lies on the Vistula and has about 1.8 million inhabitants.",
    ]
    assert corpus.main(["search", "--corpus", str(out), "The Shining"]) == 0
    assert set(capsys.readouterr().out.splitlines()[:2]) == {"The Shining (film)", "The Shining (novel)"}


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main(["build", "--data", str(tmp_path / "no.json"), "--out", str(tmp_path / "corpus.db")]) == 2
    assert capsys.readouterr().err == (
        f"error: the dataset {tmp_path}/no.json cannot be read: No such file or directory\n"
    )
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- the dataset


def test_the_loader_reads_questions_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "hotpot_dev_distractor_v1.json.gz"
    entry = {
        "_id": "5a8b",
        "question": "Was it?",
        "answer": "yes",
        "type": "comparison",
        "level": "hard",
        "context": [],
    }
    path.write_bytes(gzip.compress(json.dumps([entry]).encode()))
    assert list(load(path)) == [Sample("5a8b", {"question": "Was it?"}, {"answer": "yes"})]


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"_id": "a", "question": "Was it?"}, "'answer' is None"),
        ({"_id": "a", "question": " ", "answer": "yes"}, "'question' is ' '"),
        ({"id": "a", "question": "Was it?", "answer": "yes"}, "'_id' is None"),
        ({"_id": "a", "question": "Was it?", "answer": 3}, "'answer' is 3"),
    ],
)
def test_the_loader_refuses_another_format(tmp_path: Path, entry: dict[str, Any], why: str) -> None:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"_id": "0", "question": "Is it?", "answer": "no"}, entry]))
    with pytest.raises(InvalidInput) as error:
        list(load(path))
    assert str(error.value) == f"{path}, entry 2: {why}, not a text; take HotpotQA's train or dev file"


def test_the_examples_are_a_hotpotqa_file_whose_facts_are_where_it_says() -> None:
    listed = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    assert 3 <= len(listed) <= 8
    for entry in listed:
        assert sorted(entry) == ["_id", "answer", "context", "level", "question", "supporting_facts", "type"]
        pages = dict(entry["context"])
        assert all(at < len(pages[title]) for title, at in entry["supporting_facts"])
    first: dict[str, Page] = {}
    for page in hotpot_pages(EXAMPLES):
        assert first.setdefault(page.title, page) == page, "a page that two questions share is the same in both"


# ---------------------------------------------------------------------------------------------------------- the score


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("The Rhine.", "rhine", 1.0),
        ("Rhine river", "Rhine", 2 / 3),  # precision 1/2, recall 1
        ("Mainz, Germany", "in Mainz", 1 / 2),  # precision 1/2, recall 1/2
        ("Elbe", "Rhine", 0.0),
        ("yes", "yes", 1.0),
        ("Yes!", "yes", 1.0),
        ("yes it is", "yes", 0.0),  # yes and no are right or wrong as a whole
        ("no", "no one", 0.0),
        ("noanswer", "no answer", 0.0),
        ("a rose is a rose", "rose is red", 2 / 3),  # is and one rose of {rose is rose}, of {rose is red}: 2/3, 2/3
        ("", "", 0.0),  # as upstream: no word in common
        ("the", "a", 0.0),
    ],
)
def test_f1_is_that_of_hotpotqa(answer: str, truth: str, expected: float) -> None:
    assert f1(answer, truth) == pytest.approx(expected, abs=1e-12)
    assert score({"answer": answer, "steps": 2}, {"answer": truth}) == f1(answer, truth)


def test_an_answer_matches_exactly_but_for_articles_case_and_punctuation() -> None:
    assert exact_match({"answer": "the  U.S. State"}, {"answer": "US state"})
    assert not exact_match({"answer": "Rhine river"}, {"answer": "Rhine"})


@pytest.mark.parametrize("result", [None, {}, {"answer": None, "steps": 7}])
def test_a_job_without_an_answer_scores_nothing(result: Any) -> None:
    assert score(result, {"answer": "yes"}) == 0.0
    assert not exact_match(result, {"answer": "yes"})


# ----------------------------------------------------------------------------------------- the template and the script


def test_the_graph_is_that_of_the_recordings() -> None:
    application = installed_applications()["web_search"]
    assert [s.name for s in application.stages] == [
        f"{name}_{k}" for k in range(1, 8) for name in ("thought", "action", "tool")
    ]
    assert [s.after for s in application.stages[:4]] == [(), ("thought_1",), ("action_1",), ("tool_1",)]
    assert application.is_executable


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("Sort these: 3, 1", "'Sort these: 3, 1' is no prompt of web_search: it asks for no thought and no action"),
        (
            "Question: Why?\n\nWrite thought 1.",
            "the script of web_search knows the questions of its examples, and not 'Why?'",
        ),
    ],
)
def test_the_script_refuses_what_it_does_not_know(prompt: str, why: str) -> None:
    with pytest.raises(LookupError) as error:
        scripted.answer(Call([{"role": "user", "content": prompt}]))
    assert error.value.args == (why,)


def test_the_script_takes_answers_from_observations() -> None:
    prompt = (
        "Question: Were Marie Curie and Frédéric Chopin born in the same city?\n"
        "Observation 1: She was born in {0} in 1867.\nObservation 2: He was born in {1}, a village.\n"
        "Thought 3: Well.\n\nChoose action 3 as this thought says."
    )
    said = [
        scripted.answer(Call([{"role": "user", "content": prompt.format(*cities)}]))
        for cities in (("Warsaw", "Paris"), ("Warsaw", "Warsaw"), ("Warsaw", ""))
    ]
    assert [json.loads(s)["argument"] for s in said] == ["no", "yes", "unknown"]
