"""Document merging without a service: how merges are rated, kept and scored, and the documents' format."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.apps.document_merging import handlers, scripted
from llmsched.apps.document_merging.dataset import load
from llmsched.apps.document_merging.handlers import keep_best, rate
from llmsched.apps.document_merging.scorer import retained, score, unique
from llmsched.catalogue import installed_applications
from llmsched.datasets import Sample
from llmsched.errors import InvalidInput
from llmsched.runtime.scripts.live import check_templates
from llmsched.runtime.tools.handlers import build_registry
from llmsched.testing import Call

EXAMPLES = Path(str(handlers.__file__)).with_name("examples.csv")


def mark(redundancy: float, retained: float) -> dict[str, Any]:
    return {"reasons": "because", "redundancy": redundancy, "retained": retained}


# -------------------------------------------------------------------------------------------------- handlers


@pytest.mark.parametrize(
    ("marks", "score"),
    [
        ([mark(10, 10)], 10.0),
        ([mark(10, 4), mark(8, 2)], 4.5),  # means 9 and 3: 2·9·3 / 12
        ([mark(10, 0)], 0.0),
        ([mark(0, 0)], 0.0),
    ],
)
def test_a_score_is_the_harmonic_mean_of_the_mean_marks(marks: list[dict[str, Any]], score: float) -> None:
    assert rate(marks)["score"] == score


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=5))
def test_a_score_lies_between_the_two_means(marks: list[tuple[float, float]]) -> None:
    rated = rate([mark(*m) for m in marks])
    low, high = sorted((rated["redundancy"], rated["retained"]))
    assert rated["score"] <= high + 1e-9
    assert rated["score"] >= min(low, high) - 1e-9 or low == 0


def test_the_best_texts_are_kept_best_first() -> None:
    kept = keep_best(
        {
            "texts": ["a", " b\n", "c"],
            "marks": [mark(5, 5), mark(5, 5), mark(9, 9), mark(7, 7), mark(7, 7), mark(6, 6)],
            "keep": 2,
        }
    )
    assert kept == [
        {"text": "b", "score": 8.0, "redundancy": 8.0, "retained": 8.0},
        {"text": "c", "score": 6.5, "redundancy": 6.5, "retained": 6.5},
    ]


def test_what_was_kept_earlier_stays_in_the_race_behind_its_equals() -> None:
    earlier = [{"text": "old", "score": 7.0, "redundancy": 7.0, "retained": 7.0}]

    def best(*marks: dict[str, Any]) -> str:
        texts = [f"new {k}" for k in range(len(marks))]
        [kept] = keep_best({"texts": texts, "marks": list(marks), "keep": 1, "earlier": earlier})
        return str(kept["text"])

    assert best(mark(6, 6), mark(5, 5)) == "old"
    assert best(mark(6, 6), mark(7, 7)) == "new 1"


def test_an_empty_text_is_worth_nothing_whatever_its_judges_say() -> None:
    kept = keep_best({"texts": [" \n", "some"], "marks": [mark(10, 10), mark(1, 1)], "keep": 2})
    assert [(k["text"], k["score"]) for k in kept] == [("some", 1.0), ("", 0.0)]


@pytest.mark.parametrize("marks", [[], [mark(1, 1)], [mark(1, 1)] * 3])
def test_marks_must_fit_the_texts(marks: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidInput, match=f"^{len(marks)} marks for 2 texts; every text needs the same number"):
        keep_best({"texts": ["a", "b"], "marks": marks, "keep": 1})


def test_the_template_is_executable_with_the_handlers_of_the_application() -> None:
    application = installed_applications()["document_merging"]
    assert application.is_executable
    check_templates(application, build_registry([handlers.__name__], installed=False))


# --------------------------------------------------------------------------------------------------- dataset


def test_examples_are_four_documents_each_that_overlap() -> None:
    samples = list(load(EXAMPLES))
    assert [s.id for s in samples] == ["0", "1", "2"]
    for sample in samples:
        documents = sample.input["documents"]
        assert len(documents) == 4
        assert len(scripted.clauses(documents)) < sum(len(scripted.lines(d)) for d in documents)
        assert sample.reference == documents


def test_the_published_format_is_read_gzipped_or_not(tmp_path: Path) -> None:
    documents = ['AN "NDA"\n\n1. One, two.', "b" * 200_000, "c", "d"]
    plain, zipped = tmp_path / "documents.csv", tmp_path / "documents.csv.gz"
    with plain.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "problem", "document1", "document2", "document3", "document4"])
        writer.writerow([7, "Merging", *documents])
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    expected = [Sample("7", {"documents": documents}, documents)]
    assert list(load(plain)) == expected
    assert list(load(zipped)) == expected


HEAD = "id,problem,document1,document2,document3,document4\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            "ID,Unsorted,Sorted\n",
            "line 1 has the columns 'ID, Unsorted, Sorted'; this dataset begins with"
            " 'id,problem,document1,document2,document3,document4'",
        ),
        (
            HEAD + '0,p,"a\nb",c,d\n',
            "line 3 has 5 columns instead of id, problem, document1, document2, document3, document4",
        ),
        (HEAD + "0,p,a,b,c,d\n1,p,a,  ,c,d\n", "line 3: document2 is empty"),
        (HEAD + '0,p,a,b,c,"d\n', "line 2 is no CSV: unexpected end of data"),
    ],
)
def test_another_format_is_refused_by_line(tmp_path: Path, content: str, why: str) -> None:
    file = tmp_path / "documents.csv"
    file.write_text(content)
    with pytest.raises(InvalidInput) as caught:
        list(load(file))
    assert str(caught.value) == f"{file}, {why}"


# ---------------------------------------------------------------------------------------------------- scorer

DOCUMENTS = ["1. The term is two years.\n2. The law is that of Utopia.", "1. The law is that of Utopia."]


@pytest.mark.parametrize(
    ("merged", "kept", "once"),
    [
        ("The term is two years.\nThe law is that of Utopia.", 1.0, 1.0),
        # The documents have 9 pairs of words: the first sentence 4 (the term, term is, …), the second 5.
        ("The law is that of Utopia.", 5 / 9, 1.0),
        ("1. The term is two years.\n2. The law is that of Utopia.\n3. The law is that of Utopia!", 1.0, 2 / 3),
        ("Something else entirely.", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_merge_is_measured_by_what_it_keeps_and_repeats(merged: str, kept: float, once: float) -> None:
    assert retained(merged, DOCUMENTS) == pytest.approx(kept)
    assert unique(merged) == pytest.approx(once)
    harmonic = 2 * kept * once / (kept + once) if kept + once else 0.0
    assert score({"merged": merged}, DOCUMENTS) == pytest.approx(harmonic)


def test_sentences_that_differ_in_a_word_or_in_order_are_repeated_and_others_are_not() -> None:
    nine = "neither party may transfer this agreement without consent"
    assert unique(f"{nine}. {nine} first.") == 0.5  # 8 of 9 words
    assert unique(f"{nine}. Neither may this party transfer agreement without consent.") == 0.5
    assert unique(f"{nine}. Neither party may publish this agreement without permission.") == 1.0  # 6 of 10 words


def test_a_merge_beats_its_documents_pasted_together_and_each_of_them() -> None:
    for sample in load(EXAMPLES):
        documents = sample.input["documents"]
        merged = "\n".join(scripted.clauses(documents))
        assert score({"merged": merged}, sample.reference) == 1.0
        for lesser in ("\n".join(documents), *documents):
            assert score({"merged": lesser}, sample.reference) < 0.95


def test_a_job_without_a_result_scores_nothing() -> None:
    assert score(None, DOCUMENTS) == 0.0


# ---------------------------------------------------------------------------------------------------- script


@pytest.mark.parametrize("prompt", ["Merge these: a, b", "<agreement_1>\na\n</agreement_1>\n\nSummary 1 of 2."])
def test_the_script_knows_its_own_prompts_only(prompt: str) -> None:
    with pytest.raises(LookupError, match="is no prompt of document_merging"):
        scripted.answer(Call([{"role": "user", "content": prompt}]))
