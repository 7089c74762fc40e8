"""Caption cleaning, against the released code's own answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskery.data.person_search.config import clean_caption

GOLDEN = Path(__file__).parents[2] / "golden" / "rasa_tiny" / "captions.json"


def test_the_released_code_cleans_alike() -> None:
    record = json.loads(GOLDEN.read_text("utf-8"))
    assert len(record) >= 10
    for entry in record:
        assert clean_caption(entry["caption"], entry["max_words"]) == entry["expected"]


@pytest.mark.parametrize(
    ("caption", "words", "cleaned"),
    [
        ("A man, wearing a T-shirt/jacket; black.", 50, "a man wearing a t shirt jacket black"),
        ("The <person>  walks!", 50, "the person walks"),
        ("one two three", 2, "one two"),
        ("...", 50, ""),
    ],
)
def test_punctuation_case_and_length(caption: str, words: int, cleaned: str) -> None:
    assert clean_caption(caption, words) == cleaned
