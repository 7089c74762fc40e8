from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_image_text import save_tiny_image_text

from maskery.core.errors import DataError
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text
from maskery.evaluation.retrieval.config import ModelRetrieval


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenImageText:
    return open_image_text(str(save_tiny_image_text(tmp_path_factory.mktemp("model"))))


def asked_as(opened: OpenImageText, **settings: object) -> OpenImageText:
    return replace(opened, retrieval=ModelRetrieval(**settings))  # type: ignore[arg-type]


def pieces(opened: OpenImageText, text: str) -> list[str]:
    ids = opened.encode_query(text).input_ids.tolist()
    return list(opened.tokenizer.convert_ids_to_tokens(ids))


def test_a_query_is_read_as_captions_were_in_training(opened: OpenImageText) -> None:
    text = "This is RED, paper!"
    punctuated = ["[CLS]", "this", "is", "red", "[UNK]", "paper", "[UNK]", "[SEP]"]
    assert pieces(asked_as(opened), text) == punctuated
    cleaned = ["[CLS]", "this", "is", "red", "paper", "[SEP]"]
    assert pieces(asked_as(opened, clean_captions=True), text) == cleaned


def test_what_would_be_cut_is_refused(opened: OpenImageText) -> None:
    five = "a red square, of: paper"
    fits = asked_as(opened, clean_captions=True, max_words=5, max_length=7)
    assert pieces(fits, five)[1:-1] == ["a", "red", "square", "of", "paper"]
    with pytest.raises(DataError, match="5 words, and the model reads 4"):
        asked_as(opened, clean_captions=True, max_words=4).encode_query(five)
    with pytest.raises(DataError, match="7 tokens, and the model reads 6"):
        asked_as(opened, clean_captions=True, max_length=6).encode_query(five)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the query is empty"),
        (" \t", "the query is empty"),
        ("zebra", "no word that the model knows"),
        ("?!", "no word that the model knows"),
        ("a red \udcff coat", "has bytes that are not UTF-8"),
    ],
)
@pytest.mark.parametrize("clean", [False, True])
def test_what_says_nothing_is_one_line(
    opened: OpenImageText, text: str, line: str, clean: bool
) -> None:
    with pytest.raises(DataError, match=line) as caught:
        asked_as(opened, clean_captions=clean).encode_query(text)
    str(caught.value).encode("utf-8")
