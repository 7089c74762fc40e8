"""Words in place of a mask: cut as the sentence would cut them, and the sentence given back."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase
from vocabularies import KINDS, make

from maskery.evaluation.text.fill import Filler
from maskery.models.masked_lm import MaskedLanguageModel

PLACES = ["[MASK] is the capital.", "The capital ([MASK]) of France", "The [MASK] is the capital"]


def filler_of(tokenizer: PreTrainedTokenizerBase) -> Filler:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MaskedLanguageModel(
        BertForMaskedLM(config), packed=False, pad_token_id=int(tokenizer.pad_token_id)
    )
    return Filler(model, tokenizer)


@pytest.mark.parametrize("lstrip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", PLACES)
def test_a_word_asked_for_has_the_figure_of_the_list(kind: str, text: str, lstrip: bool) -> None:
    tokenizer = make(kind, lstrip=lstrip)
    filling = filler_of(tokenizer).fill(text, top_k=500, words=["Paris", "Rome"])
    full = tokenizer(text.replace("[MASK]", "Paris"))["input_ids"]
    for word in filling.words:
        (token,) = tokenizer.convert_tokens_to_ids(list(word.pieces))
        listed = {c.token_id: c.probability for c in filling.masks[0]}
        assert word.probability == pytest.approx(listed[token], rel=1e-5)
    # The very token that the whole sentence has.
    (paris,) = tokenizer.convert_tokens_to_ids(list(filling.words[0].pieces))
    assert paris in full


@pytest.mark.parametrize("lstrip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", PLACES)
def test_the_text_around_a_mask_is_cut_as_around_a_word(kind: str, text: str, lstrip: bool) -> None:
    tokenizer = make(kind, lstrip=lstrip)
    filler = filler_of(tokenizer)
    (paris,) = tokenizer.convert_tokens_to_ids(
        list(filler.fill(text, words=["Paris"]).words[0].pieces)
    )
    whole = tokenizer(text.replace("[MASK]", "Paris"))["input_ids"]
    assert [paris if i == filler.mask_id else i for i in filler.encode(text)] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_together_changes_nothing_but_the_masks(kind: str) -> None:
    text = 'The  "Zürich" capital, 3.14 ([MASK]) 🦊 of [MASK] 12,5 IS.'
    left, middle, right = text.split("[MASK]")
    completions = filler_of(make(kind)).fill(text, top_k=20).completions
    assert len(completions) == 20
    for found in completions:
        assert found.text.startswith(left)
        assert found.text.endswith(right)
        assert middle in found.text


def test_a_filled_mask_reads_as_the_whole_sentence_does() -> None:
    filler = filler_of(make("byte-level"))
    ids = filler.tokenizer.convert_tokens_to_ids(["Paris", "Ġcapital", "ĠFrance"])
    text = "(<mask>) is the <mask> of<mask>."
    assert filler.reader.fill(text, ids) == "(Paris) is the capital of France."


@pytest.mark.parametrize(
    ("kind", "text", "within", "whole"),
    [
        ("wordpiece", "The [MASK] is", {"##a", "##."}, {"a", "Paris", "."}),
        ("byte-level", "The [MASK] is", {"a", "Paris", "Ã"}, {"ĠParis", "."}),
        ("byte-level", "[MASK] is", {"Ã", "ĠParis"}, {"Paris", "."}),
        ("byte-level", "The (<mask>) is", {"Ã", "ĠParis"}, {"Paris", "."}),
        ("byte-level with prefix", "[MASK] is", {"Paris"}, {"ĠParis", "."}),
        ("unigram", "The [MASK] is", {"a", "Paris"}, {"▁Paris", "."}),
        ("unigram", "The ([MASK]) is", {"▁", "▁Paris"}, {"Paris", "."}),
        ("end of word", "The [MASK] is", {"P", "a"}, {"Paris</w>", "a</w>"}),
    ],
)
def test_pieces_are_offered_only_if_asked_for(
    kind: str, text: str, within: set[str], whole: set[str]
) -> None:
    filler = filler_of(make(kind))

    def offered(pieces: bool) -> set[str]:
        (found,) = filler.fill(text, top_k=1_000, pieces=pieces).masks
        return set(filler.reader.pieces([c.token_id for c in found]))

    assert whole <= offered(False)
    assert not (within | {"<s>", "[CLS]", "<unk>", "[UNK]"}) & offered(False)
    assert within | whole <= offered(True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", PLACES)
def test_a_word_is_listed_once(kind: str, text: str) -> None:
    """Under the name that people read, so that each has one figure."""
    filling = filler_of(make(kind)).fill(text, top_k=1_000, words=["Paris", "Rome", "the"])
    listed = [(c.token, c.probability) for c in filling.masks[0]]
    for word in filling.words:
        (figure,) = [probability for token, probability in listed if token == word.word]
        assert word.probability == pytest.approx(figure, rel=1e-5)


def test_after_letters_a_mask_is_a_part_of_the_word() -> None:
    filler = filler_of(make("wordpiece"))
    (found,) = filler.fill("The capital[MASK] is", top_k=1_000).masks
    assert "##s" in filler.reader.pieces([c.token_id for c in found])
    ids = filler.tokenizer.convert_tokens_to_ids(["capital", "##s"])
    assert filler.reader.fill("The [MASK][MASK] is", ids) == "The capitals is"


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_token_in_a_sentence_is_text(kind: str) -> None:
    filler = filler_of(make(kind))
    tokenizer = filler.tokenizer
    ids = filler.encode(f"The {tokenizer.sep_token} [MASK] {tokenizer.pad_token}")
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert not {tokenizer.sep_token_id, tokenizer.pad_token_id} & set(ids[1:-1])
