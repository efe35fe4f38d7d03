"""web_search at work: questions answered by what the tool observes, a model that goes astray, and wikis."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from llmsched.apps.web_search import dataset, scorer, scripted
from llmsched.apps.web_search.handlers import act
from llmsched.errors import BackendError, InvalidInput
from llmsched.runtime.tools.corpus import Corpus, Page
from llmsched.runtime.tools.mediawiki import MediaWiki
from llmsched.runtime.tools.web import fetch_now
from llmsched.testing import Call
from tests.integration.applications import running_application

EXAMPLES = Path(dataset.__file__).with_name("examples.json")
GUTENBERG = "Which river flows through the city where Johannes Gutenberg was born?"


def asks_for_action(call: Call) -> bool:
    return call.schema is not None


def an_action(action: str, argument: str) -> str:
    return json.dumps({"action": action, "argument": argument})


# ------------------------------------------------------------------------------------------------ answers to questions


async def test_examples_are_answered_right(tmp_path: Path) -> None:
    scores = {}
    async with running_application(tmp_path, "web_search") as app:
        for sample in dataset.load(EXAMPLES):
            job = await app.run(sample.input)
            assert job["status"] == "completed", job["error"]
            scores[sample.id] = scorer.score(job["result"], sample.reference)
    assert scores == dict.fromkeys(scores, 1.0)
    assert len(scores) == 6


async def test_a_question_of_two_hops_is_answered_by_searches_and_a_look_up(tmp_path: Path) -> None:
    async with running_application(tmp_path, "web_search") as app:
        job = await app.run({"question": GUTENBERG})
    stages = {stage["name"]: stage["state"] for stage in job["stages"]}
    trace = job["result"].pop("trace")

    assert job["result"] == {"answer": "Rhine", "steps": 4}
    assert [(step["action"]["action"], step["action"]["argument"]) for step in trace] == [
        ("search", "Johannes Gutenberg"),
        ("search", "Mainz"),
        ("lookup", "river"),
        ("finish", "Rhine"),
    ]
    assert [step["observation"] for step in trace[2:]] == [
        "(Result 1 / 1) The old town lies on the left bank of the river Rhine, opposite the mouth of the Main.",
        None,
    ]
    assert [name for name, state in stages.items() if state == "done"] == [
        *(f"{name}_{k}" for k in (1, 2, 3) for name in ("thought", "action", "tool")),
        *("thought_4", "action_4"),
    ]
    assert len(app.calls) == 8
    # What a step finds is read by all steps after it.
    assert f"Observation 3: {trace[2]['observation']}\n" in app.calls[-1].last
    assert f"Thought 4: {trace[3]['thought']}\n" in app.calls[-1].last


async def test_a_search_without_a_page_goes_on_with_a_similar_title(tmp_path: Path) -> None:
    question = "In which US state was the author of the novel behind Stanley Kubrick's film The Shining born?"
    async with running_application(tmp_path, "web_search") as app:
        job = await app.run({"question": question})
    first, second, *_ = job["result"]["trace"]
    assert first["action"] == {"action": "search", "argument": "The Shining"}
    assert first["observation"].startswith("Could not find The Shining. Similar titles: The Shining (")
    assert second["action"] == {"action": "search", "argument": "The Shining (film)"}
    assert job["result"]["answer"] == "Maine"


async def test_what_is_no_question_is_refused_at_once(tmp_path: Path) -> None:
    async with running_application(tmp_path, "web_search") as app:
        for bad in ({}, {"question": ""}, {"question": "Why?", "corpus": "/etc/passwd"}, "Why?"):
            response = await app.service.post("/v1/jobs", json={"application": "web_search", "input": bad})
            assert response.status_code == 422, response.text
    assert app.calls == []


# ----------------------------------------------------------------------------------------------- a model gone astray


async def test_a_model_that_never_finishes_is_stopped_after_seven_steps_without_an_answer(tmp_path: Path) -> None:
    def astray(call: Call) -> str:
        return an_action("lookup", "nothing") if asks_for_action(call) else "I wonder."

    async with running_application(tmp_path, "web_search", answer=astray) as app:
        job = await app.run({"question": GUTENBERG})
    assert job["status"] == "completed"
    assert (job["result"]["answer"], job["result"]["steps"], len(app.calls)) == (None, 7, 14)
    assert {step["observation"] for step in job["result"]["trace"]} == {
        "No page is open to look anything up in; search for one first."
    }
    assert scorer.score(job["result"], {"answer": "Rhine"}) == 0.0
    assert "last step" not in app.calls[11].last
    assert all("This is the last step" in call.last for call in app.calls[12:])


async def test_an_action_that_is_no_json_is_asked_for_again(tmp_path: Path) -> None:
    def sloppy(call: Call) -> str:
        if asks_for_action(call) and len(call.messages) == 2 and "Choose action 1" in call.last:
            return "search[Johannes Gutenberg]"
        return scripted.answer(call)

    async with running_application(tmp_path, "web_search", answer=sloppy) as app:
        job = await app.run({"question": GUTENBERG})
    assert job["status"] == "completed", job["error"]
    assert (job["result"]["answer"], len(app.calls)) == ("Rhine", 9)
    assert [message["role"] for message in app.calls[2].messages] == ["system", "user", "assistant", "user"]
    assert app.calls[2].messages[2]["content"] == "search[Johannes Gutenberg]"


async def test_an_action_that_does_not_exist_fails_the_job_when_it_is_insisted_on(tmp_path: Path) -> None:
    def insisting(call: Call) -> str:
        return an_action("browse", "Mainz") if asks_for_action(call) else "I browse."

    async with running_application(tmp_path, "web_search", answer=insisting) as app:
        job = await app.run({"question": GUTENBERG})
    assert (job["status"], len(app.calls)) == ("failed", 3)
    assert "'browse' is not one of ['search', 'lookup', 'finish']" in job["error"]


# ------------------------------------------------------------------------------------------ what the operator chooses


async def test_workers_read_the_corpus_that_the_operator_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Corpus.build(tmp_path / "corpus.db", [Page("Ohm", ("The Ohm is a river of Hesse.",))])
    monkeypatch.setenv("WEB_SEARCH_CORPUS", str(tmp_path / "corpus.db"))

    def reader(call: Call) -> str:
        if not asks_for_action(call):
            return "I search."
        found = call.last.partition("Ohm is a river of ")[2][:5]
        return an_action("finish", found) if found else an_action("search", "ohm")

    async with running_application(tmp_path, "web_search", answer=reader) as app:
        job = await app.run({"question": "Where is the Ohm?"})
    assert job["result"]["answer"] == "Hesse"


async def test_a_wiki_at_a_private_address_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_wiki({}) as wiki:
        monkeypatch.setenv("WEB_SEARCH_BACKEND", "mediawiki")
        monkeypatch.setenv("WEB_SEARCH_MEDIAWIKI_URL", wiki.url)
        async with running_application(tmp_path, "web_search") as app:
            job = await app.run({"question": GUTENBERG})
    assert job["status"] == "failed"
    assert "leads to 127.0.0.1, which is no public address" in job["error"]
    assert (wiki.asked, len(app.calls)) == ([], 2), "and it is not tried again"


async def test_a_choice_of_the_operator_that_cannot_be_fails_the_job_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_SEARCH_CORPUS", str(tmp_path / "none.db"))
    async with running_application(tmp_path, "web_search") as app:
        job = await app.run({"question": GUTENBERG})
    assert job["status"] == "failed"
    assert "the file that WEB_SEARCH_CORPUS names is not there or is no corpus; build one with: python" in job["error"]
    assert "none.db" not in job["error"]


# -------------------------------------------------------------------------------------------------- a wiki that answers


class Wiki:
    """A MediaWiki server at a local port. articles: title to text, or to the title it redirects to (`→ title`)."""

    def __init__(self, articles: dict[str, str]) -> None:
        self.articles = articles
        self.asked: list[dict[str, str]] = []
        self.url = ""

    def answer(self, asked: dict[str, str]) -> dict[str, Any]:
        self.asked.append(asked)
        if asked.get("list") == "search":
            hits = [title for title in self.articles if asked["srsearch"].split()[0] in title]
            return {"query": {"search": [{"ns": 0, "title": title} for title in hits]}}
        title = asked["titles"].removeprefix("\x1f")
        text = self.articles.get(title, "")
        if text.startswith("→ "):
            title = text.removeprefix("→ ")
            text = self.articles[title]
        page = {"ns": 0, "title": title} | ({"extract": text} if text else {"missing": True})
        return {"query": {"pages": [page]}}


@contextmanager
def a_wiki(articles: dict[str, str]) -> Iterator[Wiki]:
    wiki = Wiki(articles)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            body = json.dumps(wiki.answer({name: values[0] for name, values in query.items()})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        wiki.url = f"http://127.0.0.1:{server.server_port}/w/api.php"
        try:
            yield wiki
        finally:
            server.shutdown()
            thread.join()


#: For a server of the test's own.
here = partial(fetch_now, allow_private=True)


def test_the_tool_searches_and_looks_up_in_a_wiki() -> None:
    text = "Mainz is a city. One. Two. Three. Four. It lies on the Rhine."
    with a_wiki({"Mainz": text, "Mayence": "→ Mainz", "Mainz-Kastel": "A suburb."}) as wiki:
        pages = MediaWiki(wiki.url, here)
        first = act(pages, {"action": "search", "argument": "Mainz (city)", "previous": None})
        second = act(pages, {"action": "search", "argument": "Mayence", "previous": first["state"]})
        third = act(pages, {"action": "lookup", "argument": "rhine", "previous": second["state"]})
    assert [first, second, third] == [
        {
            "observation": "Could not find Mainz (city). Similar titles: Mainz; Mainz-Kastel.",
            "state": {"page": None, "keyword": None, "position": 0},
        },
        {
            "observation": "Mainz is a city. One. Two. Three. Four.",
            "state": {"page": "Mainz", "keyword": None, "position": 0},
        },
        {
            "observation": "(Result 1 / 1) It lies on the Rhine.",
            "state": {"page": "Mainz", "keyword": "rhine", "position": 1},
        },
    ]


def test_without_permission_no_request_leaves_for_a_private_address() -> None:
    with a_wiki({"Mainz": "A city."}) as wiki, pytest.raises(InvalidInput, match="no public address"):
        MediaWiki(wiki.url).page("Mainz")
    assert wiki.asked == []


def test_a_wiki_that_is_not_there_fails_so_that_the_task_is_tried_again() -> None:
    with a_wiki({}) as wiki:
        pass
    with pytest.raises(BackendError, match="cannot be fetched"):
        MediaWiki(wiki.url, here).page("Mainz")
