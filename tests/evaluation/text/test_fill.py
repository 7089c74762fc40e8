"""Filling masks: the pipeline's predictions, joint fillings by brute force, words of pieces."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tiny_text import save_tiny_model
from transformers import pipeline

from maskery.core.errors import DataError
from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.opening import open_model

SENTENCE = "the river [MASK] cloud ember."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def filler(folder: Path) -> Filler:
    opened = open_model(str(folder))
    return Filler(opened.model, opened.tokenizer)


def test_predictions_are_the_pipelines(folder: Path, filler: Filler) -> None:
    expected = pipeline("fill-mask", model=str(folder), top_k=7)(SENTENCE)
    (own,) = filler.fill(SENTENCE, top_k=7, pieces=True).masks
    assert [c.token_id for c in own] == [row["token"] for row in expected]
    assert [c.probability for c in own] == pytest.approx([row["score"] for row in expected])


def test_each_of_several_masks_is_the_pipelines(folder: Path, filler: Filler) -> None:
    text = "the [MASK] stone [MASK] ember."
    expected = pipeline("fill-mask", model=str(folder), top_k=3)(text)
    for own, rows in zip(filler.fill(text, top_k=3, pieces=True).masks, expected, strict=True):
        assert [c.token_id for c in own] == [row["token"] for row in rows]


def test_a_wide_enough_beam_finds_the_best_joint_filling(filler: Filler) -> None:
    text = "[MASK] stone [MASK]"
    vocabulary = len(filler.tokenizer)
    best = filler.fill(text, top_k=1, beams=vocabulary, pieces=True).completions[0]

    ids = filler.encode(text)
    first, second = (i for i, token in enumerate(ids) if token == filler.mask_id)
    hf = filler.model.hf
    with torch.no_grad():
        start = hf(torch.tensor([ids])).logits[0, first].log_softmax(-1)
        rows = []
        for token in range(vocabulary):
            filled = list(ids)
            filled[first] = token
            rows.append(filled)
        after = hf(torch.tensor(rows)).logits[:, second].log_softmax(-1)
        start[filler.mask_id] = after[:, filler.mask_id] = -torch.inf
    totals = start[:, None] + after
    assert best.log_probability == pytest.approx(float(totals.max()), abs=1e-5)


def test_the_probability_of_a_word_of_several_pieces_is_a_chain(filler: Filler) -> None:
    word = "rivers"
    pieces = filler.tokenizer(word, add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    assert filler.tokenizer.unk_token_id not in pieces
    (found,) = filler.fill(SENTENCE, words=[word]).words
    ids = filler.encode(SENTENCE)
    place = ids.index(filler.mask_id)
    expected = 0.0
    for known in range(len(pieces)):
        row = [*ids[:place], *pieces[:known], *[filler.mask_id] * (len(pieces) - known)]
        row += ids[place + 1 :]
        with torch.no_grad():
            logits = filler.model.hf(torch.tensor([row])).logits[0, place + known]
        expected += float(logits.log_softmax(-1)[pieces[known]])
    assert found.probability == pytest.approx(float(torch.tensor(expected).exp()), rel=1e-4)
    assert filler.fill(SENTENCE, words=word).words == (found,)  # and not of its letters


def test_probabilities_of_all_words_of_one_piece_sum_to_one(filler: Filler) -> None:
    everything = filler.fill(SENTENCE, top_k=10_000, pieces=True).masks[0]
    assert sum(c.probability for c in everything) == pytest.approx(1.0, abs=1e-5)
    assert len(everything) == len(filler.tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing hidden here", "nothing to fill"),
        ("[MASK] " + "river " * 100, "32 positions"),
    ],
)
def test_sentences_that_cannot_be_filled(filler: Filler, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        filler.fill(text)


def test_a_word_that_does_not_fit_into_the_model(filler: Filler) -> None:
    with pytest.raises(DataError, match=r"'riverriver.* 32 positions"):
        filler.fill("[MASK] " + "river " * 20, words=["river" * 10])


def test_several_masks_are_filled_jointly_only_where_wanted(filler: Filler) -> None:
    assert filler.fill("[MASK] stone [MASK]", together=False).completions == ()


def test_completions_are_distinct_and_sorted(filler: Filler) -> None:
    completions = filler.fill("[MASK] and [MASK]", top_k=8).completions
    scores = [c.log_probability for c in completions]
    assert scores == sorted(scores, reverse=True)
    assert all(a.tokens != b.tokens for a, b in itertools.combinations(completions, 2))


def test_a_filler_opens_a_model_by_name(folder: Path, filler: Filler) -> None:
    assert Filler.of(folder).fill(SENTENCE) == filler.fill(SENTENCE)
