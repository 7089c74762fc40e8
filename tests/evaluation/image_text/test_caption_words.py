from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_image_text import save_tiny_image_text

from maskery.core.errors import DataError
from maskery.data.person_search.config import clean_caption
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text, origins
from maskery.evaluation.retrieval.config import ModelRetrieval


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenImageText:
    plain = open_image_text(str(save_tiny_image_text(tmp_path_factory.mktemp("model"))))
    cleaned = ModelRetrieval(clean_captions=True, trained=("itc", "itm", "mlm"))
    return replace(plain, retrieval=cleaned)


def test_words_are_those_typed_and_tokens_those_of_the_cleaned_caption(
    opened: OpenImageText,
) -> None:
    caption = " This is: a RED-white/blue  s'quare, (paper)!"
    ids, words = opened.words_of(caption)
    assert opened.tokenizer.convert_ids_to_tokens(ids.tolist()) == [
        *("[CLS]", "this", "is", "a", "red", "white", "blue", "square", "paper", "[SEP]"),
    ]
    typed = ["This", "is", "a", "RED", "white", "blue", "s'quare", "paper"]
    assert [word.text for word in words] == typed
    assert [(word.first, word.last) for word in words] == [(n, n + 1) for n in range(1, 9)]


def test_a_model_of_captions_as_they_were_reads_them_so(opened: OpenImageText) -> None:
    as_typed = replace(opened, retrieval=ModelRetrieval(trained=("itm",)))
    ids, words = as_typed.words_of("This is RED, paper!")
    assert len(ids) == 8
    assert [word.text for word in words] == ["This", "is", "RED", "paper"]


@given(st.text(st.one_of(st.characters(), st.sampled_from("<person>,.'-/ ΣσςİIß")), max_size=40))
@example("<person><person>>")
@example("ΑΣ ΣΑ Σ")
@example("İI")
def test_every_letter_is_found_again(caption: str) -> None:
    ready = clean_caption(caption, max_words=50)
    places = origins(ready, caption)
    assert len(places) == len(ready)
    assert list(places) == sorted(places)
    for letter, place in zip(ready, places, strict=True):
        if letter != " ":
            assert letter.replace("ς", "σ") in caption[place].lower()


@pytest.mark.parametrize(
    ("caption", "line"),
    [
        ("?!", "no word in it"),
        ("zebra", "the caption 'zebra' has no word that the model knows"),
        ("red \udcff", "the caption .* not UTF-8"),
        ("red " * 51, "51 words, and the model reads 50"),
        ("red " * 20, "22 tokens, and the model reads 16"),
    ],
)
def test_captions_that_say_nothing_are_one_line(
    opened: OpenImageText, caption: str, line: str
) -> None:
    with pytest.raises(DataError, match=line):
        opened.words_of(caption)
