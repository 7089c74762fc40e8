"""A control token that somebody typed is text, in every kind of vocabulary and on every way in."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase
from vocabularies import KINDS, make

from maskery.data.tokenise import encode_texts, plain_backend, tokenizer_fingerprint
from maskery.evaluation.text.words_of_text import TextReader

PLAIN = "The capital [ is ] of France."


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return make(request.param)


def test_no_control_token_comes_of_a_text(tokenizer: PreTrainedTokenizerBase) -> None:
    control = [tokenizer.sep_token, tokenizer.cls_token, tokenizer.pad_token, tokenizer.mask_token]
    ids, starts, _ = encode_texts([f"The {' is '.join(control)} capital"], tokenizer)
    assert not set(tokenizer.convert_tokens_to_ids(control)) & set(ids.tolist())
    assert len(starts) == len(ids)


def test_score_and_fill_read_it_as_training_does(tokenizer: PreTrainedTokenizerBase) -> None:
    text = f"The {tokenizer.sep_token} is {tokenizer.pad_token}{tokenizer.cls_token} of"
    trained, _, _ = encode_texts([text], tokenizer)
    assert np.array_equal(TextReader(tokenizer).read(text).ids[1:-1], trained)


def test_other_text_and_its_unknown_words_are_cut_as_before(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for text in (PLAIN, "Größe 🦊 %"):
        ids, _, _ = encode_texts([text], tokenizer)
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokens_added_to_be_typed_stay_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": ["[URL]"]})
    backend = plain_backend(tokenizer)
    assert backend is not None
    ids = backend.encode("The [URL] is", add_special_tokens=False).ids
    assert tokenizer.convert_tokens_to_ids("[URL]") in ids


def test_the_tokenizer_is_known_by_what_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer_fingerprint(tokenizer)
    plain_backend(tokenizer)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(make("wordpiece")) == tokenizer_fingerprint(make("wordpiece"))
