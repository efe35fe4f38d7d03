"""Sequence sorting without a service: what an error is, which half and candidate are taken, the lists' format."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.apps.sequence_sorting import handlers, scripted
from llmsched.apps.sequence_sorting.dataset import load
from llmsched.apps.sequence_sorting.handlers import count_errors, keep_best, score, select
from llmsched.apps.sequence_sorting.scorer import score as score_result
from llmsched.catalogue import installed_applications
from llmsched.datasets import Sample
from llmsched.errors import InvalidInput
from llmsched.runtime.scripts.live import check_templates
from llmsched.runtime.tools.handlers import build_registry
from llmsched.testing import Call

EXAMPLES = Path(str(handlers.__file__)).with_name("examples.csv")

numbers = st.lists(st.integers(-20, 20), max_size=20)


# ---------------------------------------------------------------------------------------------------- errors


@given(numbers, numbers)
def test_no_errors_if_and_only_if_it_is_the_original_sorted(candidate: list[int], original: list[int]) -> None:
    assert (count_errors(candidate, original) == 0) == (candidate == sorted(original))


@given(numbers.filter(bool), st.data())
def test_a_lost_number_and_one_too_many_are_an_error_each(original: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(original) - 1))
    ordered = sorted(original)
    assert count_errors(ordered[:at] + ordered[at + 1 :], original) == 1
    assert count_errors(ordered[: at + 1] + ordered[at:], original) == 1


@given(st.permutations(range(8)))
def test_misplaced_numbers_count_by_pairs_of_neighbours(order: list[int]) -> None:
    assert count_errors(order, range(8)) == sum(order[i] > order[i + 1] for i in range(7))


@pytest.mark.parametrize(
    ("candidate", "original", "errors"),
    [
        ([], [], 0),
        ([], [5, 5], 2),
        ([1, 2, 3], [3, 1, 2], 0),
        ([3, 2, 1], [1, 2, 3], 2),  # 3 before 2, 2 before 1
        ([1, 3, 2, 2], [3, 2, 1, 4], 3),  # 3 before 2, a 2 too many, the 4 missing
        ([10, 11], [11, 12], 2),  # beyond the digits, where the published scope does not look
    ],
)
def test_errors_by_hand(candidate: list[int], original: list[int], errors: int) -> None:
    assert count_errors(candidate, original) == errors


# -------------------------------------------------------------------------------------------------- handlers


@pytest.mark.parametrize(
    ("split", "first", "second", "repaired"),
    [
        ({"first": [4, 1], "second": [3, 1, 2]}, [4, 1], [3, 1, 2], False),
        ({"first": [4, 1, 3], "second": [1, 2]}, [4, 1, 3], [1, 2], False),  # not quite the middle, and nothing lost
        ({"first": [4, 1], "second": [3, 1]}, [4, 1], [3, 1, 2], True),  # lost the 2
        ({"first": [4, 1], "second": [3, 1, 7]}, [4, 1], [3, 1, 2], True),  # made up a 7
        ({"first": [4, 1, 3, 1, 2], "second": []}, [4, 1], [3, 1, 2], True),
    ],
)
def test_a_split_that_is_none_is_cut_in_the_middle(
    split: dict[str, list[int]], first: list[int], second: list[int], repaired: bool
) -> None:
    halves = [select({"split": split, "numbers": [4, 1, 3, 1, 2], "half": half}) for half in ("first", "second")]
    assert halves == [{"numbers": first, "repaired": repaired}, {"numbers": second, "repaired": repaired}]


def test_the_first_candidate_with_the_fewest_errors_is_kept() -> None:
    scored = score({"candidates": [[1, 3, 2], [1, 2, 3, 3], [1, 2], [1, 1, 2]], "original": [3, 2, 1]})
    assert [s["errors"] for s in scored] == [1, 1, 1, 2]
    assert keep_best({"scored": scored[::-1]}) == {"numbers": [1, 2], "errors": 1}


def test_the_template_is_executable_with_the_handlers_of_the_application() -> None:
    application = installed_applications()["sequence_sorting"]
    assert application.is_executable
    check_templates(application, build_registry([handlers.__name__], installed=False))


# --------------------------------------------------------------------------------------------------- dataset


def test_examples_are_lists_and_their_sorted_form() -> None:
    samples = list(load(EXAMPLES))
    assert [len(s.input["numbers"]) for s in samples] == [16, 16, 24, 32, 32, 48]
    assert all(s.reference == sorted(s.input["numbers"]) for s in samples)


def test_the_published_format_is_read_gzipped_or_not(tmp_path: Path) -> None:
    content = 'ID,Unsorted,Sorted\n0,"[2, 9, 0]","[0, 2, 9]"\n1,"[1, 1]","[1, 1]"\n'
    (tmp_path / "sorting_032.csv").write_text(content)
    (tmp_path / "sorting_032.csv.gz").write_bytes(gzip.compress(content.encode()))
    expected = [Sample("0", {"numbers": [2, 9, 0]}, [0, 2, 9]), Sample("1", {"numbers": [1, 1]}, [1, 1])]
    assert list(load(tmp_path / "sorting_032.csv")) == expected
    assert list(load(tmp_path / "sorting_032.csv.gz")) == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "line 1 has the columns ''; this dataset begins with 'ID,Unsorted,Sorted'"),
        ("id,set1,set2\n", "line 1 has the columns 'id, set1, set2'; this dataset begins with 'ID,Unsorted,Sorted'"),
        ('ID,Unsorted,Sorted\n0,"[2, 1]"\n', "line 2 has 2 columns instead of ID, Unsorted, Sorted"),
        (
            'ID,Unsorted,Sorted\n0,"[1]","[1]"\n1,two one,"[1, 2]"\n',
            "line 3: Unsorted is 'two one'; it must be a list like [3, 1, 2]",
        ),
        (
            'ID,Unsorted,Sorted\n0,"[2, ""1""]","[1, 2]"\n',
            "line 2: Unsorted is '[2, \"1\"]'; it must be a list like [3, 1, 2]",
        ),
        ('ID,Unsorted,Sorted\n0,"[2, 1]","[2, 1]"\n', "line 2: Sorted is not the list of Unsorted in ascending order"),
        ('ID,Unsorted,Sorted\n0,"[2, 1]"x,"[1, 2]"\n', "line 2 is no CSV: ',' expected after '\"'"),
    ],
)
def test_another_format_is_refused_by_line(tmp_path: Path, content: str, why: str) -> None:
    file = tmp_path / "lists.csv"
    file.write_text(content)
    with pytest.raises(InvalidInput) as caught:
        list(load(file))
    assert str(caught.value) == f"{file}, {why}"


# ---------------------------------------------------------------------------------------------------- scorer


def test_a_result_scores_by_its_share_of_right_numbers() -> None:
    reference = [0, 1, 2, 3, 4]
    assert score_result({"sorted": [0, 1, 2, 3, 4]}, reference) == 1.0
    assert score_result({"sorted": [0, 1, 2, 3]}, reference) == pytest.approx(0.8)
    assert score_result({"sorted": []}, reference) == 0.0
    assert score_result({"sorted": [9] * 12}, reference) == 0.0  # 17 errors in 5 numbers, and not below zero
    assert score_result(None, reference) == 0.0


# ---------------------------------------------------------------------------------------------------- script


def test_the_script_knows_its_own_prompts_only() -> None:
    with pytest.raises(LookupError, match="is no prompt of sequence_sorting"):
        scripted.answer(Call([{"role": "user", "content": "What is the capital of France?"}]))
