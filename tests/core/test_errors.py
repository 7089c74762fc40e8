from __future__ import annotations

import inspect

import pytest

from maskery.core import errors

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
