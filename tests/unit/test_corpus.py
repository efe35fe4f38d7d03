"""Pages: the local index, HotpotQA files as they are read, wikis as they answer, and which of them are chosen."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llmsched.errors import BackendError, InvalidInput, InvalidSetting
from llmsched.runtime.tools.corpus import Corpus, Page, entries, hotpot_pages, pages_of_operator
from llmsched.runtime.tools.mediawiki import MediaWiki

RHINE = Page("Rhine", ("The Rhine is a river of Europe.", "It is 1,233 kilometres long."))
MAIN = Page("Main (river)", ("The Main is a river.", "It joins the Rhine opposite Mainz."))
OPERA = Page("Das Rheingold", ("It is an opera, and the river in it is the Rhine, the Rhine and once more the Rhine.",))


def a_question(*context: Any, id: str = "q1") -> dict[str, Any]:
    return {"_id": id, "question": "What?", "answer": "That", "context": list(context)}


def written(folder: Path, content: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------ the index


def test_a_title_is_found_in_whatever_case_and_as_it_stands_first() -> None:
    with Corpus.of([Page("THE WHO", ("An agency.",)), Page("The Who", ("A band.",))]) as corpus:
        assert corpus.page("The Who") == Page("The Who", ("A band.",))
        assert corpus.page("  the_who ") == Page("THE WHO", ("An agency.",))
        assert corpus.page("Who") is None
        assert corpus.page("") is None


def test_of_pages_with_one_title_the_first_counts() -> None:
    with Corpus.of([RHINE, MAIN, Page("Rhine", ("Something else.",))]) as corpus:
        assert len(corpus) == 2
        assert corpus.page("Rhine") == RHINE
        assert corpus.similar("something else") == []


def test_similar_titles_come_before_pages_that_say_the_word_more_often() -> None:
    others = [Page(f"Place {k}", ("It is a place.",)) for k in range(20)]  # a word that most pages have counts nothing
    with Corpus.of([OPERA, MAIN, RHINE, *others]) as corpus:
        assert corpus.similar("Rhine?") == ["Rhine", "Das Rheingold", "Main (river)"]
        assert corpus.similar("Rhine?", 1) == ["Rhine"]


@pytest.mark.parametrize("text", ["", " ?! ", 'rhine" OR "main', "NEAR(rhine, main)", "rhine*", "title:rhine", "'; --"])
def test_no_text_is_a_syntax_error(text: str) -> None:
    with Corpus.of([RHINE]) as corpus:
        assert corpus.similar(text) == (["Rhine"] if "rhine" in text else [])


def test_an_index_is_built_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "corpus.db"
    assert Corpus.build(path, [RHINE, MAIN, RHINE]) == 2
    with Corpus.open(path) as corpus:
        assert (len(corpus), corpus.page("rhine"), corpus.similar("mainz")) == (2, RHINE, ["Main (river)"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_build_that_fails_leaves_the_old_index(tmp_path: Path) -> None:
    path = tmp_path / "corpus.db"
    Corpus.build(path, [RHINE])

    def broken() -> Iterator[Page]:
        yield MAIN
        raise InvalidInput("the rest is missing")

    with pytest.raises(InvalidInput, match=r"^the rest is missing$"):
        Corpus.build(path, broken())
    with Corpus.open(path) as corpus:
        assert (len(corpus), corpus.page("Rhine")) == (1, RHINE)
    assert list(tmp_path.iterdir()) == [path]


def test_an_index_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^the corpus .*nowhere/corpus\.db cannot be written: unable to open"):
        Corpus.build(tmp_path / "nowhere" / "corpus.db", [RHINE])


def test_what_is_no_index_is_refused_with_the_way_to_one(tmp_path: Path) -> None:
    how = r"; build one with: python -m llmsched\.apps\.web_search\.corpus build$"
    with pytest.raises(InvalidInput, match=rf"^there is no corpus .*none\.db{how}"):
        Corpus.open(tmp_path / "none.db")
    with pytest.raises(InvalidInput, match=rf"data\.json is no corpus \(file is not a database\){how}"):
        Corpus.open(written(tmp_path, "[]" * 1000))
    other = sqlite3.connect(tmp_path / "other.db")
    other.executescript("CREATE TABLE pages (id INTEGER)")
    other.close()
    with pytest.raises(InvalidInput, match=rf"other\.db is no corpus \(no such table: words\){how}"):
        Corpus.open(tmp_path / "other.db")


# -------------------------------------------------------------------------------------------------- HotpotQA files


def test_entries_are_read_one_by_one_across_the_pieces_of_a_large_file(tmp_path: Path) -> None:
    listed = [{"n": n, "filler": "ä]},{\\" * (n % 40)} for n in range(20_000)]  # 2.5 MB: pieces end anywhere
    path = written(tmp_path, json.dumps(listed, ensure_ascii=False, indent=1))
    assert path.stat().st_size > 2_000_000
    assert list(entries(path)) == list(enumerate(listed, 1))


def test_entries_are_read_as_far_as_they_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, '[{"n": 1}, {"n": 2}, oh dear')
    assert list(islice(entries(path), 2)) == [(1, {"n": 1}), (2, {"n": 2})]


def test_entries_of_a_gzipped_file(tmp_path: Path) -> None:
    path = tmp_path / "data.json.gz"
    path.write_bytes(gzip.compress(b' [ {"n": 1} , {"n": 2} ] '))
    assert list(entries(path)) == [(1, {"n": 1}), (2, {"n": 2})]


def test_an_empty_list_has_no_entries(tmp_path: Path) -> None:
    assert list(entries(written(tmp_path, "\n[ ]\n"))) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "data.json is not one JSON list; is this the right file?"),
        ('{"n": 1}\n{"n": 2}', "data.json is not one JSON list; is this the right file?"),
        ('[{"n": 1}, 7]', "data.json, entry 2 is 7, not an object"),
        ('[{"n": 1}, {"n": ]', "data.json, entry 2 is no JSON: Expecting value at its character 7"),
        ('[{"n": 1},]', "data.json, entry 2 is no JSON: Expecting value at its character 1"),
        ('[{"n": 1}', "data.json, entry 1 is followed by nothing, not by a comma or the list's end"),
        ('[{"n": 1} {"n": 2}]', "data.json, entry 1 is followed by '{\"n\": 2}]', not by a comma or the list's end"),
    ],
)
def test_another_file_is_refused_in_one_sentence(tmp_path: Path, content: str, why: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InvalidInput) as error:
        list(entries(path))
    assert str(error.value) == f"{tmp_path}/{why}"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("data.json", b'[{"n": "\xff"}]', "it is no text in UTF-8"),
        ("data.json.gz", b'[{"n": 1}]', "it is not gzipped; take the .gz off its name"),
        ("data.json.gz", gzip.compress(b'[{"n": 1}]', mtime=0)[:-9], "it is not gzipped; take the .gz off its name"),
        ("data.json", None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput) as error:
        list(entries(path))
    assert str(error.value) == f"the dataset {path} cannot be read: {why}"


def test_the_paragraphs_of_questions_are_pages(tmp_path: Path) -> None:
    path = written(
        tmp_path, [a_question(["Rhine", [" It is long.", " ", "It is wide. "]]), a_question(["Main ", ["Short."]])]
    )
    assert list(hotpot_pages(path)) == [Page("Rhine", ("It is long.", "It is wide.")), Page("Main", ("Short.",))]


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (
            {"id": "x", "question": "What?", "answer": "That"},
            "has no 'context' list; take a distractor or fullwiki file of HotpotQA",
        ),
        (a_question(["Rhine", "It"]), "has ['Rhine', 'It'] in 'context', not a title and a list of sentences"),
        (a_question(["", ["It"]]), "has ['', ['It']] in 'context', not a title and a list of sentences"),
        (a_question(["Rhine", [1]]), "has ['Rhine', [1]] in 'context', not a title and a list of sentences"),
    ],
)
def test_questions_of_another_format_are_refused(tmp_path: Path, question: dict[str, Any], why: str) -> None:
    path = written(tmp_path, [a_question(["Rhine", ["It."]]), question])
    with pytest.raises(InvalidInput) as error:
        list(hotpot_pages(path))
    assert str(error.value) == f"{path}, entry 2 {why}"


# ----------------------------------------------------------------------------------------------------------- wikis


@dataclass
class Answer:
    text: str
    status: int = 200


class Fetch:
    """A wiki that answers with what it is given, and remembers what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, url: str, **asked: Any) -> Answer:
        self.asked.append({"url": url, **asked})
        answer = self._answers.pop(0)
        return answer if isinstance(answer, Answer) else Answer(json.dumps(answer))


def a_page(**fields: Any) -> dict[str, Any]:
    return {"batchcomplete": True, "query": {"pages": [{"pageid": 1, "ns": 0, "title": "Rhine", **fields}]}}


def test_a_page_of_a_wiki_is_its_extract_cut_into_sentences() -> None:
    text = 'The Rhine is a river. It rises at 2,345 m, i.e. high up. "Long", say some.\nCourse\nIt is 1,233 km long!'
    fetch = Fetch(a_page(extract=text))
    wiki = MediaWiki("https://wiki.example/api.php", fetch)
    rhine = Page(
        "Rhine",
        (
            "The Rhine is a river.",
            "It rises at 2,345 m, i.e. high up.",
            '"Long", say some.',
            "Course",
            "It is 1,233 km long!",
        ),
    )
    assert wiki.page(" the  rhine ") == rhine
    assert wiki.page("the rhine") == rhine  # not asked for again
    assert fetch.asked == [
        {
            "url": "https://wiki.example/api.php",
            "params": {
                "action": "query",
                "format": "json",
                "formatversion": "2",
                "titles": "\x1fthe rhine",
                "redirects": "1",
                "prop": "extracts|pageprops",
                "explaintext": "1",
                "exsectionformat": "plain",
                "exlimit": "1",
                "ppprop": "disambiguation",
            },
            "timeout": 10.0,
            "max_bytes": 4 << 20,
        }
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"batchcomplete": True, "query": {"pages": [{"ns": 0, "title": "Rhin", "missing": True}]}},
        {"batchcomplete": True, "query": {"pages": [{"title": "<>", "invalidreason": "bad", "invalid": True}]}},
        {"batchcomplete": True, "query": {"interwiki": [{"title": "de:Rhein", "iw": "de"}]}},
        {"batchcomplete": True},
        a_page(extract="Rhine may refer to:", pageprops={"disambiguation": ""}),
        a_page(ns=14, title="Category:Rivers"),
    ],
)
def test_no_article_is_not_found(answer: Any) -> None:
    assert MediaWiki(fetch=Fetch(answer)).page("Rhin") is None


def test_a_wiki_is_not_asked_for_nothing() -> None:
    wiki = MediaWiki(fetch=Fetch())
    assert (wiki.page("  "), wiki.similar(" ")) == (None, [])


def test_similar_titles_are_those_the_wiki_finds() -> None:
    fetch = Fetch({"batchcomplete": True, "query": {"search": [{"ns": 0, "title": "Rhine"}, {"title": "Rhine Falls"}]}})
    assert MediaWiki(fetch=fetch).similar("the rhine", 2) == ["Rhine", "Rhine Falls"]
    assert fetch.asked[0]["url"] == "https://en.wikipedia.org/w/api.php"
    assert fetch.asked[0]["params"] == {
        "action": "query",
        "format": "json",
        "formatversion": "2",
        "list": "search",
        "srsearch": "the rhine",
        "srlimit": "2",
        "srprop": "",
        "srinfo": "",
    }


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer("busy", 503), "answers with status 503"),
        (Answer("<html>"), "answers with no JSON; name the URL of its api.php"),
        ({"error": {"code": "readonly", "info": "no reading"}}, "refuses: 'no reading'"),
        ([1], "answers with [1], which is no query's result"),
        (a_page(), "gives no extracts; it needs the extension TextExtracts"),
        ({"query": {"pages": []}}, "answers with {'pages': []} where one page was asked for"),
    ],
)
def test_a_wiki_that_does_not_answer_as_one_fails_so_that_the_task_is_tried_again(answer: Any, why: str) -> None:
    with pytest.raises(BackendError) as error:
        MediaWiki("https://wiki.example/api.php", Fetch(answer)).page("Rhine")
    assert str(error.value) == f"the wiki at https://wiki.example/api.php {why}"


# ------------------------------------------------------------------------------------------- the operator's choice


def test_without_a_choice_the_pages_are_those_of_the_examples(tmp_path: Path) -> None:
    examples = written(tmp_path, [a_question(["Rhine", ["It is long."]])])
    pages = pages_of_operator(examples, {})
    assert pages.page("rhine") == Page("Rhine", ("It is long.",))
    assert pages_of_operator(examples, {}) is pages


def test_an_operator_chooses_an_index_or_a_wiki(tmp_path: Path) -> None:
    Corpus.build(tmp_path / "corpus.db", [MAIN])
    examples = written(tmp_path, [a_question(["Rhine", ["It is long."]])])
    chosen = pages_of_operator(examples, {"WEB_SEARCH_CORPUS": str(tmp_path / "corpus.db")})
    assert (chosen.page("Rhine"), chosen.page("Main (river)")) == (None, MAIN)
    assert isinstance(pages_of_operator(examples, {"WEB_SEARCH_BACKEND": "mediawiki"}), MediaWiki)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (
            {"WEB_SEARCH_BACKEND": "altavista"},
            "WEB_SEARCH_BACKEND is 'altavista'; it must be one of corpus, mediawiki",
        ),
        (
            {"WEB_SEARCH_CORPUS": "/secret/none.db"},
            "the file that WEB_SEARCH_CORPUS names is not there or is no corpus; build one with:"
            " python -m llmsched.apps.web_search.corpus build",
        ),
    ],
)
def test_a_choice_that_cannot_be_is_one_sentence_without_a_path(environment: dict[str, str], why: str) -> None:
    with pytest.raises(InvalidSetting) as error:
        pages_of_operator(Path("unused.json"), environment)
    assert str(error.value) == why
