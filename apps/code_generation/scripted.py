"""Plays a competent model that knows the functions of the examples, and makes its usual mistakes first.

Which attempt it answers with depends on the code that the prompt shows as the last one, so it learns as a model would:
from the conversation.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from textwrap import dedent

from llmsched.testing import Call


@dataclass(frozen=True, slots=True)
class Skill:
    """tests: that it writes. attempts: code, the last of it right. insights: what it says about each wrong one."""

    tests: tuple[str, ...]
    attempts: tuple[str, ...]
    insights: tuple[str, ...] = ()


SKILLS = {
    "count_vowels": Skill(
        tests=(
            "assert count_vowels('banana') == 3",
            "assert count_vowels('') == 0",
            "assert count_vowels('AEIOU') == 5",
            "assert count_vowels('xyz') == 0",
        ),
        attempts=(
            """
            def count_vowels(text):
                return sum(letter in "aeiou" for letter in text.lower())
            """,
        ),
    ),
    "merge_intervals": Skill(
        tests=(
            "assert merge_intervals([(1, 3), (2, 6), (8, 10)]) == [(1, 6), (8, 10)]",
            "assert merge_intervals([(5, 6), (1, 2)]) == [(1, 2), (5, 6)]",
            "assert merge_intervals([(1, 9), (2, 3)]) == [(1, 9)]",
            "assert merge_intervals([]) == []",
        ),
        attempts=(
            """
            def merge_intervals(intervals):
                merged = []
                for start, end in intervals:
                    if merged and start <= merged[-1][1]:
                        merged[-1] = (merged[-1][0], end)
                    else:
                        merged.append((start, end))
                return merged
            """,
            """
            def merge_intervals(intervals):
                merged = []
                for start, end in sorted(intervals):
                    if merged and start <= merged[-1][1]:
                        merged[-1] = (merged[-1][0], end)
                    else:
                        merged.append((start, end))
                return merged
            """,
            """
            def merge_intervals(intervals):
                merged = []
                for start, end in sorted(intervals):
                    if merged and start <= merged[-1][1]:
                        merged[-1] = (merged[-1][0], max(merged[-1][1], end))
                    else:
                        merged.append((start, end))
                return merged
            """,
        ),
        insights=(
            "The loop compares each interval only with the one before it, so it needs them in order of their start, and"
            " the input need not be. Sort the intervals first.",
            "An interval that lies within the one before it cuts that one short, for its end replaces the larger end."
            " Keep the larger of the two ends.",
        ),
    ),
    "roman_to_int": Skill(
        tests=(
            "assert roman_to_int('III') == 3",
            "assert roman_to_int('IX') == 9",
            "assert roman_to_int('MCMXCIV') == 1994",
        ),
        attempts=(
            """
            def roman_to_int(numeral):
                values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
                return sum(values[letter] for letter in numeral)
            """,
            """
            def roman_to_int(numeral):
                values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
                total = 0
                for letter, following in zip(numeral, numeral[1:] + " "):
                    value = values[letter]
                    total += -value if value < values.get(following, 0) else value
                return total
            """,
        ),
        insights=(
            "Every letter is added, also one that stands before a larger one, as the I of IX does; such a letter must"
            " be subtracted. Compare each letter with the one that follows it.",
        ),
    ),
    "is_balanced": Skill(
        tests=(
            "assert is_balanced('([]{})') == True",
            "assert is_balanced(')(') == False",
            "assert is_balanced('([)]') == False",
            "assert is_balanced('') == True",
        ),
        attempts=(
            """
            def is_balanced(text):
                return all(text.count(left) == text.count(right) for left, right in ("()", "[]", "{}"))
            """,
            """
            def is_balanced(text):
                closes, open_ones = {")": "(", "]": "[", "}": "{"}, []
                for letter in text:
                    if letter in closes.values():
                        open_ones.append(letter)
                    elif letter in closes:
                        if not open_ones or open_ones.pop() != closes[letter]:
                            return False
                return not open_ones
            """,
        ),
        insights=(
            "Counting does not see the order: a bracket may close before it opens, or close another than the last one"
            " opened. Keep a stack of the open brackets.",
        ),
    ),
    "days_between": Skill(
        tests=(
            "assert days_between('2024-02-28', '2024-03-01') == 2",
            "assert days_between('2023-01-01', '2023-01-01') == 0",
            "assert days_between('2023-01-02', '2023-01-01') == 1",
        ),
        attempts=(
            """
            from datetime import date

            def days_between(first, second):
                return abs((date.fromisoformat(second) - date.fromisoformat(first)).days
            """,
            """
            from datetime import date

            def days_between(first, second):
                return abs((date.fromisoformat(second) - date.fromisoformat(first)).days)
            """,
        ),
        insights=("The code cannot be read at all: the parenthesis of abs( is never closed. Close it.",),
    ),
    "tree_height": Skill(
        tests=(
            "assert tree_height(None) == 0",
            "assert tree_height(Node(1)) == 1",
            "assert tree_height(Node(1, None, Node(2))) == 2",
        ),
        attempts=(
            """
            def tree_height(root):
                return 0 if root is None else 1 + max(tree_height(root.left), tree_height(root.right))
            """,
        ),
    ),
}


def answer(call: Call) -> str:
    """Tests, code or a reflection, whichever is asked for. Raises LookupError for a function it does not know."""
    name = re.search(r"`(\w+)` has to do", call.prompt)
    skill = SKILLS.get(name[1]) if name else None
    if skill is None:
        raise LookupError(f"the script knows {', '.join(SKILLS)} and not what this asks for: {call.prompt[:200]!r}")
    attempts = [dedent(attempt).strip() for attempt in skill.attempts]
    tried = [number for number, attempt in enumerate(attempts) if f"```python\n{attempt}\n```" in call.prompt]
    asked_for = (call.schema or {}).get("properties", {})
    if "tests" in asked_for:
        return json.dumps({"tests": skill.tests})
    if "code" in asked_for:
        return json.dumps({"code": attempts[min(tried[-1] + 1, len(attempts) - 1) if tried else 0]})
    if tried and tried[-1] < len(skill.insights):
        return skill.insights[tried[-1]]
    return "The code does what the description says, so the failing test must be wrong."
