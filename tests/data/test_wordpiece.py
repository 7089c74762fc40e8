from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maskery.data.text_source import Template
from maskery.data.wordpiece import SPECIAL, train_wordpiece


class Text(NamedTuple):
    text: str
    id: int = 0


class Corpus:
    num_bytes = None
    bytes_read = 0

    def __iter__(self) -> Iterator[Text]:
        for line in (
            "The philosopher writes.",
            "Philosophers were writing, and wrote.",
            "我们读书",
        ):
            yield from [Text(line)] * 5

    def fingerprint(self) -> str:
        return "fixed"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_wordpiece(Corpus(), 120, progress=False)


def test_the_vocabulary_is_learnt_within_its_size(tokenizer: PreTrainedTokenizerBase) -> None:
    assert 60 <= len(tokenizer) <= 120
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert {"philosopher", "philosophers"} & set(tokenizer.get_vocab())


def test_special_tokens_have_the_first_ids_and_their_roles(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4]
    roles = tokenizer.special_tokens_map
    assert roles["mask_token"] == "[MASK]"
    assert roles["pad_token"] == "[PAD]"
    assert Template.of(tokenizer) == Template(prefix=(2,), suffix=(3,))


def test_text_comes_back_in_lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("The Philosophers wrote 读")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the philosophers wrote 读"


def test_a_repeated_run_gets_the_same_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    for _ in range(3):
        again = train_wordpiece(Corpus(), 120, progress=False)
        assert again.get_vocab() == tokenizer.get_vocab()


def test_a_large_alphabet_leaves_the_vocabulary_within_its_size() -> None:
    class Ideographs(Corpus):
        def __iter__(self) -> Iterator[Text]:
            for first in range(0x4E00, 0x4E00 + 400, 20):
                yield Text("".join(map(chr, range(first, first + 20))) + "的" * 3 + " and er")

    first, again = (train_wordpiece(Ideographs(), 200, progress=False) for _ in range(2))
    assert len(first) <= 200
    assert first.get_vocab() == again.get_vocab()
    assert "的" in first.get_vocab()
    # An ideograph is a word of its own, so a piece that continues one would be wasted.
    assert "##的" not in first.get_vocab()


def test_it_is_saved_and_read_as_any_other(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wordpiece")
    tokenizer.save_pretrained(folder)
    read = AutoTokenizer.from_pretrained(folder)
    text = "Philosophers, writing 我们"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
