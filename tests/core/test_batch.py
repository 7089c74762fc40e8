from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from maskery.core.batch import MaskedTokens, TokenBatch, Vocabulary, vocabulary_size
from maskery.core.errors import ModelError


def test_lengths_and_labels() -> None:
    batch = TokenBatch(
        input_ids=np.array([5, 6, 7, 8]),
        boundaries=np.array([0, 3, 3, 4]),
        example_ids=np.array([1, 2, 3], np.uint64),
        starts=np.zeros(3, np.int64),
        word_starts=np.ones(4, np.bool_),
    )
    assert batch.lengths.tolist() == [3, 0, 1]
    assert batch.num_tokens == 4
    masked = MaskedTokens(
        batch=batch,
        input_ids=np.array([5, 0, 7, 0]),
        positions=np.array([1, 3]),
        targets=np.array([6, 8]),
    )
    assert masked.labels().tolist() == [-100, 6, -100, 8]
    assert masked.labels(-1).tolist() == [-1, 6, -1, 8]


def tokenizer(vocabulary: dict[str, int], **special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)


WORDS = {"[PAD]": 0, "a": 1, "[UNK]": 2, "b": 3, "[MASK]": 4, "c": 5}


def test_the_tokenizer_says_what_is_special() -> None:
    vocabulary = Vocabulary.of(tokenizer(WORDS, mask_token="[MASK]", pad_token="[PAD]"))
    assert vocabulary.size == 6
    assert vocabulary.mask_token_id == 4
    assert vocabulary.special_ids == (0, 2, 4)
    assert vocabulary.protected.tolist() == [True, False, True, False, True, False]
    assert vocabulary.replacements.tolist() == [1, 3, 5]


def test_added_tokens_marked_special_are_special_though_they_have_no_role() -> None:
    fast = tokenizer(WORDS, mask_token="[MASK]", pad_token="[PAD]")
    fast.add_tokens([AddedToken("<|end|>", special=True), AddedToken("COVID", special=False)])
    assert fast.convert_tokens_to_ids("<|end|>") not in fast.all_special_ids
    vocabulary = Vocabulary.of(fast)
    assert vocabulary.special_ids == (0, 2, 4, 6)
    assert vocabulary.replacements.tolist() == [1, 3, 5, 7]


def test_extra_special_tokens_are_special() -> None:
    fast = tokenizer(WORDS, mask_token="[MASK]", pad_token="[PAD]")
    fast.add_special_tokens({"additional_special_tokens": ["<e1>", "<e2>"]})
    assert Vocabulary.of(fast).special_ids == (0, 2, 4, 6, 7)


def test_ids_with_holes() -> None:
    fast = tokenizer({**WORDS, "d": 9}, mask_token="[MASK]", pad_token="[PAD]")
    assert len(fast) == 7
    assert vocabulary_size(fast) == 10
    vocabulary = Vocabulary.of(fast)
    assert vocabulary.size == 10
    assert vocabulary.replacements.tolist() == [1, 3, 5, 9]


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has no mask token.*use a BERT-like model"):
        Vocabulary.of(tokenizer(WORDS, pad_token="[PAD]"))


def test_a_vocabulary_of_special_tokens_alone_is_refused() -> None:
    with pytest.raises(ModelError, match=r"all 3 ids of the vocabulary are special"):
        Vocabulary(size=3, mask_token_id=2, special_ids=(0, 1, 2))


def test_special_ids_past_the_size_do_no_harm() -> None:
    vocabulary = Vocabulary(size=3, mask_token_id=2, special_ids=(2, 7))
    assert vocabulary.replacements.tolist() == [0, 1]
