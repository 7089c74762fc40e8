"""Tokenizers in Python tell neither words nor places: their marks and the text do."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizer

from maskery.data.tokenise import encode_texts
from maskery.evaluation.text.words_of_text import TextReader

SPECIAL = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
STEMS = (
    "play",
    "ing",
    "cat",
    "s",
    ",",
    "(",
    ")",
    "[",
    "]",
    "sep",
    "the",
    "ภา",
    "ษา",
    "ไท",
    "ย",
    "รัก",
)


class Marked(PreTrainedTokenizer):
    """Cuts words at spaces and signs, and each word into the longest pieces that it knows."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        pieces = [self.marked(stem, *ends) for stem in STEMS for ends in np.ndindex(2, 2)]
        known = [*SPECIAL.values(), *dict.fromkeys(pieces), *(f"w{n}" for n in range(9))]
        self.known = {piece: number for number, piece in enumerate(known)}
        super().__init__(**{f"{role}_token": token for role, token in SPECIAL.items()})

    def marked(self, stem: str, first: int, last: int) -> str:
        if self.mark == "##":
            return stem if first else f"##{stem}"
        if self.mark == "@@":
            return stem if last else f"{stem}@@"
        if self.mark == "</w>":
            return f"{stem}</w>" if last else stem
        return f"▁{stem}" if first else stem

    @property
    def vocab_size(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return self.known

    def _tokenize(self, text: str) -> list[str]:
        for sign in ",()[]":
            text = text.replace(sign, f" {sign} " if self.mark != "▁" else sign)
        return [piece for word in text.lower().split() for piece in self.cut(word)]

    def cut(self, word: str) -> list[str]:
        stems, at = [], 0
        while at < len(word):
            fitting = [stem for stem in STEMS if word.startswith(stem, at)]
            if not fitting:
                return ["[UNK]"]
            stems.append(max(fitting, key=len))
            at += len(stems[-1])
        last = len(stems) - 1
        return [self.marked(stem, n == 0, n == last) for n, stem in enumerate(stems)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.known[token]

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.known)[index]


@pytest.fixture(params=["##", "@@", "</w>", "▁"])
def tokenizer(request: pytest.FixtureRequest) -> Marked:
    return Marked(request.param)


def test_words_and_their_places_are_those_of_the_text(tokenizer: Marked) -> None:
    text = "The  playing cats the [MASK] (xyzzy) the cats"
    read = TextReader(tokenizer).read(text)
    words = [word.text for word in read.words]
    # What is not in the vocabulary is a word without a place.
    unknown = ["[UNK]"] if tokenizer.mark == "▁" else ["(", "[UNK]", ")"]
    assert words == ["The", "playing", "cats", "the", *unknown, "the", "cats"]
    for word in read.words:
        assert text[word.start : word.end] in (word.text, "")
    assert (read.ids == tokenizer.mask_token_id).sum() == 1


def test_training_masks_the_words_that_scoring_reads(tokenizer: Marked) -> None:
    text = "the playing cats รักภาษาไทย playing"
    ids, starts, lengths = encode_texts([text], tokenizer)
    read = TextReader(tokenizer).read(text)
    assert [word.text for word in read.words] == [
        *("the", "playing", "cats", "รัก", "ภาษา", "ไทย", "playing")
    ]
    assert np.flatnonzero(starts).tolist() == [word.first for word in read.words]
    assert lengths.tolist() == [len(ids)] == [len(read.ids)]


def test_control_tokens_are_text_and_masks_are_masks(tokenizer: Marked) -> None:
    reader = TextReader(tokenizer)
    ids = reader.tokens("the [SEP] cats[MASK] [PAD]")[0].tolist()
    special = {tokenizer.sep_token_id, tokenizer.pad_token_id}
    assert not special & set(ids)
    assert ids.count(tokenizer.mask_token_id) == 1
    assert not special & set(encode_texts(["the [SEP] cats [PAD]"], tokenizer)[0].tolist())


def test_a_word_asked_for_is_cut_as_in_its_place(tokenizer: Marked) -> None:
    places, text = TextReader(tokenizer), "the [MASK] the cats"
    (span,) = places.spans(text)
    for word in ("playing", "cats", "the"):
        pieces = places.pieces_at(word, text, span)
        assert pieces == tokenizer.convert_tokens_to_ids(tokenizer.cut(word))
        assert len(pieces) > 1 or bool(places.offered(text, span)[pieces[0]])
        assert places.fill(text, pieces[:1]).startswith("the ")
    assert not places.offered(text, span)[tokenizer.known[tokenizer.marked("ing", 0, 1)]] or (
        tokenizer.mark in ("@@", "</w>")  # a piece that ends words may be one
    )
