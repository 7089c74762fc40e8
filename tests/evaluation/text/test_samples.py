"""Samples against Hugging Face's own logits, and a planted change that must top the list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import lines, save_tiny_model
from transformers import AutoModelForMaskedLM

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.data.batching import Template, assemble
from maskery.data.tokenise import encode_texts
from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.opening import OpenModel, open_model
from maskery.evaluation.text.samples import rank_changes, sample_text, whole_words


def batch_of(texts: list[str], opened: OpenModel) -> TokenBatch:
    ids, starts, lengths = encode_texts(texts, opened.tokenizer)
    none = np.zeros(len(texts), np.int64)
    firsts = np.concatenate(([0], np.cumsum(lengths)))[:-1]
    return assemble(
        ids,
        starts,
        firsts,
        lengths,
        np.arange(len(texts), dtype=np.uint64),
        none,
        Template.of(opened.tokenizer),
    )


def filler(opened: OpenModel) -> Filler:
    return Filler(opened.model, opened.tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_a_planted_change_of_two_words_tops_both_lists(folder: Path) -> None:
    before, after = open_model(str(folder)), open_model(str(folder))
    tokenizer = before.tokenizer
    batch = batch_of(lines(30), before)
    with torch.no_grad():
        bias = after.model.hf.cls.predictions.decoder.bias
        bias[tokenizer.convert_tokens_to_ids("ember")] += 3.0
        bias[tokenizer.convert_tokens_to_ids("violet")] -= 3.0
    found = sample_text(filler(before), filler(after), [batch], fills=5)
    assert found.improved[0].word == "ember"
    assert found.worsened[0].word == "violet"
    assert found.improved[0].after > found.improved[0].before + 1.0
    assert found.masked_words > 30
    assert len(found.fills) == 5


def test_the_fills_are_those_of_the_models(folder: Path) -> None:
    opened = open_model(str(folder))
    texts = ["the and the thunder and", "the and harbour and the", "the and"]
    found = sample_text(filler(opened), filler(opened), [batch_of(texts, opened)], top_k=3)
    # The last has too few words to hide one.
    assert [fill.word for fill in found.fills] == ["thunder", "harbour"]
    assert (found.fills[0].left, found.fills[0].right) == ("the and the", "and")
    assert found.improved == found.worsened == ()
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    row = opened.tokenizer("the and the [MASK] and")["input_ids"]
    with torch.no_grad():
        probabilities = model(torch.tensor([row])).logits[0, 4].softmax(-1)
    target = opened.tokenizer.convert_tokens_to_ids("thunder")
    assert found.fills[0].probability_after == pytest.approx(float(probabilities[target]), rel=1e-4)
    best = probabilities.topk(3)
    assert [guess.probability for guess in found.fills[0].before] == pytest.approx(
        best.values.tolist(), rel=1e-4
    )
    assert found.fills[0].before == found.fills[0].after


def test_long_sentences_are_shown_around_the_word(folder: Path) -> None:
    opened = open_model(str(folder))
    text = " ".join(["the"] * 20 + ["lantern"] + ["and"] * 8)
    (fill,) = sample_text(filler(opened), filler(opened), [batch_of([text], opened)]).fills
    assert fill.word == "lantern"
    assert fill.left == "… " + " ".join(["the"] * 16)
    assert fill.right == " ".join(["and"] * 8)


def test_whole_words_are_tokens_between_two_starts(folder: Path) -> None:
    opened = open_model(str(folder))
    batch = batch_of(["river foxes river"], opened)
    tokens = opened.tokenizer.convert_ids_to_tokens(batch.input_ids.tolist())
    whole = whole_words(batch, Vocabulary.of(opened.tokenizer))
    assert [t for t, alone in zip(tokens, whole, strict=True) if alone] == ["river", "river"]


def test_rare_words_and_punctuation_are_not_ranked(folder: Path) -> None:
    tokenizer = open_model(str(folder)).tokenizer
    river, stone, stop = tokenizer.convert_tokens_to_ids(["river", "stone", "."])
    words = np.array([river] * 3 + [stone] + [stop] * 4)
    before = np.array([-4.0, -4.0, -4.0, -9.0, -5.0, -5.0, -5.0, -5.0])
    after = np.array([-1.0, -2.0, -3.0, -0.1, -0.1, -0.1, -0.1, -0.1])
    examples = np.arange(8, dtype=np.uint64)
    improved, worsened = rank_changes((words, examples, before, after), tokenizer, 5)
    assert [(w.word, w.count, w.before, w.after) for w in improved] == [("river", 3, -4.0, -2.0)]
    assert worsened == ()


def test_words_masked_five_times_lead_and_carry_an_interval_over_examples(folder: Path) -> None:
    tokenizer = open_model(str(folder)).tokenizer
    river, stone = tokenizer.convert_tokens_to_ids(["river", "stone"])
    # The river 12 times in 10 examples; the stone changes most, and is masked 4 times.
    words = np.array([river] * 12 + [stone] * 4)
    examples = np.array([*range(10), 0, 1, *range(4)], np.uint64)
    before = np.full(16, -4.0)
    after = before + np.array(
        [1.0, 2.0, 3.0, 1.5, 2.5, 0.5, 1.0, 2.0, 3.0, 1.5, 0.0, 4.0, *[9.0] * 4]
    )
    ((found,), worsened) = rank_changes((words, examples, before, after), tokenizer, 5)
    assert (found.word, found.count) == ("river", 12)
    assert worsened == ()
    changes = (after - before)[:12]
    assert found.change.value == pytest.approx(changes.mean())
    # Near Student's interval of ten sums of examples, which have one or two words each.
    sums = np.bincount(examples[:12].astype(int), changes - changes.mean())
    half = 2.26 * sums.std(ddof=1) * np.sqrt(10) / 12
    assert found.change.high - found.change.value == pytest.approx(half, rel=0.15)
    late = (words[10:], examples[10:], before[10:], after[10:])
    few = rank_changes(late, tokenizer, 5)[0][0]
    assert (few.word, few.count, few.change.known) == ("stone", 4, False)
