from __future__ import annotations

import inspect

import pytest

from maskery.core import errors
from maskery.core.errors import counted, meant

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_hangs_on_the_one_tree(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.MaskeryError)
    assert str(kind("what, rule, fix")) == "what, rule, fix"


def test_a_missing_extra_is_caught_by_its_usual_name() -> None:
    assert issubclass(errors.MissingExtraError, ImportError)


@pytest.mark.parametrize("kind", TREE)
def test_a_message_is_one_line_whatever_stands_in_it(kind: type[Exception]) -> None:
    found = str(kind("a\nb\x1e\u2028\x85\0\udcff ü \N{SNOWMAN}"))
    assert found == r"a\nb\x1e\u2028\x85\x00\udcff ü " + "\N{SNOWMAN}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n  lines\tand a tab "), "two lines and a tab"),
        (EOFError(), "EOFError"),
        (ValueError("a" * 31), "a" * 27 + "..."),
        (ValueError("a" * 30), "a" * 30),
    ],
)
def test_a_reason_is_one_short_line(error: Exception, reason: str) -> None:
    assert errors.reason_of(error, most=30) == reason


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [
        (1, ("step",), "1 step"),
        (0, ("step",), "0 steps"),
        (1000, ("held-out example",), "1,000 held-out examples"),
        (1, ("class", "classes"), "1 class"),
        (2, ("class", "classes"), "2 classes"),
    ],
)
def test_a_count_has_its_word_in_the_right_number(
    count: int, words: tuple[str, ...], told: str
) -> None:
    assert counted(count, *words) == told


def test_what_may_be_meant_is_close_or_begins_so() -> None:
    known = ("cuhk-pedes", "rstpreid", "jsonl")
    assert meant("jsnl", known) == "; did you mean jsonl?"
    assert meant("cuhk", known) == "; did you mean cuhk-pedes?"
    assert meant("zzz", known) == ""
    assert meant("", known) == ""
