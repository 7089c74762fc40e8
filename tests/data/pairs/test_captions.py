from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_pairs import save_tiny_pairs
from tiny_text import uncased
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import DataError
from maskery.data.corpus.reader import Corpus
from maskery.data.images.loading import Skipped
from maskery.data.pairs.batches import tokenise_captions
from maskery.data.pairs.pairs import Pairs
from maskery.data.vocabulary import train_tokenizer


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return Pairs.open(save_tiny_pairs(tmp_path, 8))


@pytest.fixture
def tokenizer(pairs: Pairs) -> PreTrainedTokenizerBase:
    captions = [caption for pair in pairs for caption in pair.captions]
    return train_tokenizer(
        Corpus.of(captions),
        uncased(200),
        progress=False,
    )


def test_every_caption_is_what_the_tokenizer_makes_of_it(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase
) -> None:
    captions = tokenise_captions(pairs, tokenizer, Skipped("caption", "fail"), max_length=64)
    texts = [(index, text) for index, pair in enumerate(pairs) for text in pair.captions]
    assert captions.owners.tolist() == [index for index, _ in texts]
    every = np.arange(len(texts))
    batch = captions.batch(every, pairs.ids[captions.owners])
    for row, (_, text) in enumerate(texts):
        ids = batch.input_ids[batch.boundaries[row] : batch.boundaries[row + 1]]
        assert ids.tolist() == tokenizer(text)["input_ids"]


def test_captions_of_a_pair_never_share_a_position(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase
) -> None:
    captions = tokenise_captions(pairs, tokenizer, Skipped("caption", "fail"), max_length=64)
    batch = captions.batch(np.arange(len(captions.owners)), pairs.ids[captions.owners])
    names = [
        (int(example), int(start) + offset)
        for example, start, length in zip(
            batch.example_ids, batch.starts, batch.lengths, strict=True
        )
        for offset in range(length)
    ]
    assert len(set(names)) == len(names) == batch.num_tokens


def test_long_captions_are_cut_and_counted(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase
) -> None:
    captions = tokenise_captions(pairs, tokenizer, Skipped("caption", "fail"), max_length=5)
    assert captions.num_cut == len(captions.owners) == 16
    batch = captions.batch(np.arange(3), pairs.ids[captions.owners[:3]])
    assert batch.lengths.tolist() == [5, 5, 5]


def test_a_caption_without_a_maskable_token_is_refused_or_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [
        {"image": "a.png", "caption": ["漢字", "a red square"]},
        {"image": "b.png", "caption": "漢"},
    ]
    path = tmp_path / "other.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    pairs = Pairs.open(path)
    with pytest.raises(DataError, match=r"'漢字' of image a\.png holds no token that could"):
        tokenise_captions(pairs, tokenizer, Skipped("caption", "fail"), max_length=64)
    skipped = Skipped("caption", "skip")
    captions = tokenise_captions(pairs, tokenizer, skipped, max_length=64)
    assert skipped.count == 2
    assert captions.owners.tolist() == [0]
    assert captions.places.tolist() == [1]


def test_nothing_left_is_one_line(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"image": "b.png", "caption": "漢"}), "utf-8")
    with pytest.raises(DataError, match="no caption is left"):
        tokenise_captions(Pairs.open(path), tokenizer, Skipped("caption", "skip"), max_length=64)
