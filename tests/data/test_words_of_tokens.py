from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from maskery.data.tokenise import byte_level_alphabet, encode_texts, segmenter

TEXTS = [
    "the unaffable philosopher was writing meditations",
    "nothing happens to any man, which he is not formed by nature to bear",
    "philosophers write; a man was affable.",
    "我们喜欢读书 and 写字",
    "größer als die Größe",
]
Words = Callable[[str], list[str]]


@pytest.fixture(autouse=True)
def _without_a_segmenter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    segmenter.cache_clear()
    yield
    segmenter.cache_clear()


def words_by(backend: Tokenizer) -> Words:
    """A function from a text to its words: the tokens of each, glued together."""
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)

    def words(text: str) -> list[str]:
        ids, starts, lengths = encode_texts([text], fast)
        assert len(ids) == len(starts) == lengths[0]
        assert starts[0]
        glued: list[str] = []
        for token, first in zip(fast.convert_ids_to_tokens(ids.tolist()), starts, strict=True):
            if first:
                glued.append("")
            glued[-1] += token.removeprefix("##")
        return glued

    return words


def wordpiece(vocab_size: int) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=["[UNK]"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


@pytest.mark.parametrize("vocab_size", [90, 400])
def test_wordpiece(vocab_size: int) -> None:
    words = words_by(wordpiece(vocab_size))
    assert words("The philosopher, writing meditations") == [
        "the",
        "philosopher",
        ",",
        "writing",
        "meditations",
    ]


def test_chinese_bert_has_one_word_for_each_ideograph() -> None:
    words = words_by(wordpiece(400))
    assert words("我们读书 and 写字") == ["我", "们", "读", "书", "and", "写", "字"]


def byte_level(vocab_size: int, *, add_prefix_space: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def printed(text: str) -> str:
    """A text in byte-level BPE's alphabet."""
    letters = {byte: letter for letter, byte in byte_level_alphabet().items()}
    return "".join(letters[byte] for byte in text.encode())


def test_the_byte_alphabet_is_the_libraries_own() -> None:
    assert set(byte_level_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_level_alphabet().values()) == list(range(256))
    backend = Tokenizer(models.BPE())
    for byte in (0x00, 0x20, 0x7F, 0xAD):
        shown = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(byte))
        assert "".join(piece for piece, _ in shown) == printed(chr(byte)), backend


@pytest.mark.parametrize("vocab_size", [256, 280, 600])
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_level_bpe(vocab_size: int, add_prefix_space: bool) -> None:
    words = words_by(byte_level(vocab_size, add_prefix_space=add_prefix_space))
    first = " größer" if add_prefix_space else "größer"
    assert words("größer als man, philosopher") == [
        printed(word) for word in (first, " als", " man", ",", " philosopher")
    ]


@pytest.mark.parametrize("vocab_size", [256, 600])
def test_byte_level_bpe_on_chinese(vocab_size: int) -> None:
    words = words_by(byte_level(vocab_size))
    seen = words("我们读书 and 写字")
    if vocab_size == 256:
        # Single bytes: the space before an ideograph is a token, and its word, of its own.
        expected = ["我", "们", "读", "书", " and", " ", "写", "字"]
        assert seen == [printed(word) for word in expected]
    else:
        # Merged pieces may span ideographs, but never continue one as a word's middle.
        assert "".join(seen) == printed("我们读书 and 写字")
        assert printed(" and") in seen
        leads = {printed(word)[0] for word in "我们读书写字"}
        assert all(word.lstrip("Ġ")[:1] in leads | {"a", ""} for word in seen)


def unigram(pieces: list[str], *, split: bool) -> Tokenizer:
    backend = Tokenizer(
        models.Unigram(
            [("<unk>", 0.0), *((piece, -float(len(pieces))) for piece in pieces)], 0, False
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    backend.decoder = decoders.Metaspace(split=split)
    return backend


PIECES = [
    "▁",
    "▁the",
    "▁phil",
    "osoph",
    "er",
    "s",
    "▁write",
    "▁a",
    "n",
    "d",
    ",",
    "我",
    "们",
    "读书",
]


@pytest.mark.parametrize("split", [True, False])
def test_metaspace_with_and_without_splitting(split: bool) -> None:
    words = words_by(unigram(PIECES, split=split))
    assert words("the philosophers write") == ["▁the", "▁philosophers", "▁write"]


@pytest.mark.parametrize("split", [True, False])
def test_a_lone_metaspace_starts_the_word_that_follows(split: bool) -> None:
    words = words_by(unigram(PIECES, split=split))
    assert words("the osopher") == ["▁the", "▁osopher"]


@pytest.mark.parametrize("split", [True, False])
def test_metaspace_on_chinese(split: bool) -> None:
    words = words_by(unigram(PIECES, split=split))
    assert words("and 我们读书") == ["▁and", "▁", "我", "们", "读书"]


def test_bpe_with_markers_from_a_normalizer_as_in_llama() -> None:
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", "▁", *"theman", "▁t", "he", "▁the"])}
    backend = Tokenizer(
        models.BPE(vocabulary, [("▁", "t"), ("h", "e"), ("▁t", "he")], unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    assert words_by(backend)("the man ten") == ["▁the", "▁man", "▁ten"]


def test_a_maltese_letter_is_no_marker_outside_byte_level_bpe() -> None:
    words = words_by(unigram(["▁", "▁i", "Ġ", "Ġa"], split=True))
    assert words("iĠa") == ["▁iĠa"]


def test_several_texts_and_an_empty_one() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=wordpiece(400))
    ids, starts, lengths = encode_texts(["a man", "", "affable"], fast)
    alone = [encode_texts([text], fast) for text in ("a man", "affable")]
    assert ids.tolist() == [*alone[0][0], *alone[1][0]]
    assert starts.tolist() == [*alone[0][1], *alone[1][1]]
    assert lengths.tolist() == [len(alone[0][0]), 0, len(alone[1][0])]
