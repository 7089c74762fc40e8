"""Held-out figures against a plain computation with the Hugging Face model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_text import lines, save_tiny_model, spoil

from maskery.cli.main import main
from maskery.core.errors import DataError, ModelError
from maskery.data.batching import Template, assemble
from maskery.data.corpus.config import CorpusConfig
from maskery.data.tokenise import encode_texts
from maskery.evaluation.text.masked import (
    FROZEN_EPOCH,
    ExampleSums,
    compare,
    score_examples,
    summarise,
    token_rows,
)
from maskery.evaluation.text.opening import OpenModel, evaluate, held_out_source, open_model
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.masked_lm import MaskedLanguageModel


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return open_model(str(save_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.txt"
    path.write_text("\n".join(lines(40, seed=3)), "utf-8")
    return path


def score(opened: OpenModel, corpus: Path, batch_tokens: int) -> ExampleSums:
    source = held_out_source(
        opened,
        [str(corpus)],
        CorpusConfig(),
        cache_dir=corpus.parent / "cache",
        batch_tokens=batch_tokens,
        progress=False,
    )
    masker = Masker.of(opened.tokenizer)
    return score_examples(opened.model, source.in_order(), masker)


def test_figures_are_the_same_at_any_batch_size_and_layout(opened: OpenModel, corpus: Path) -> None:
    reference = score(opened, corpus, 32)
    padded = OpenModel(
        name="padded",
        model=MaskedLanguageModel(opened.model.hf, packed=False, pad_token_id=0),
        tokenizer=opened.tokenizer,
    )
    for other in (
        score(opened, corpus, 100),
        score(opened, corpus, 9999),
        score(padded, corpus, 64),
    ):
        assert np.array_equal(other.ids, reference.ids)
        np.testing.assert_allclose(other.sums, reference.sums, atol=1e-5)


def test_sums_equal_a_plain_loop_over_the_hugging_face_model(opened: OpenModel) -> None:
    tokenizer = opened.tokenizer
    texts = lines(12, seed=5)
    ids, starts, lengths = encode_texts(texts, tokenizer)
    names = np.arange(12, dtype=np.uint64)
    firsts = np.cumsum(lengths) - lengths
    zeros = np.zeros(12, np.int64)
    batch = assemble(ids, starts, firsts, lengths, names, zeros, Template.of(tokenizer))
    masker = Masker.of(tokenizer, config=MaskingConfig(), seed=4)
    scored = score_examples(opened.model, [batch], masker)

    masked = masker.mask(batch, epoch=FROZEN_EPOCH)
    labels = masked.labels()
    for row, (start, end) in enumerate(
        zip(batch.boundaries[:-1], batch.boundaries[1:], strict=True)
    ):
        inputs = torch.from_numpy(masked.input_ids[start:end])[None]
        with torch.no_grad():
            logits = opened.model.hf(inputs, attention_mask=torch.ones_like(inputs)).logits[0]
        here = labels[start:end]
        chosen = np.flatnonzero(here != -100)
        logs = logits.double().numpy()
        logs = logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))
        ranks = [(logs[i] > logs[i, here[i]]).sum() for i in chosen]
        expected = [
            len(chosen),
            -sum(logs[i, here[i]] for i in chosen),
            sum(rank == 0 for rank in ranks),
            sum(rank < 5 for rank in ranks),
        ]
        np.testing.assert_allclose(scored.sums[row], expected, atol=1e-5)


def test_every_example_is_scored_once_and_windows_of_a_document_are_one_example(
    opened: OpenModel, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text(" ".join(lines(20)) + "\n" + lines(1, seed=9)[0], "utf-8")
    scored = score(opened, path, 64)
    assert len(scored.ids) == 2
    assert scored.sums[:, 0].max() > 15  # far more masks than one window of 32 tokens has


def test_summary_is_token_weighted() -> None:
    sums = np.array([[1.0, 5.0, 0.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    scores = summarise(ExampleSums(ids=np.array([1, 2], np.uint64), sums=sums))
    assert scores.loss.value == pytest.approx(1.4)
    assert scores.perplexity.value == pytest.approx(np.exp(1.4))
    # Two examples are too few for an interval, of the perplexity as of the loss.
    assert not scores.perplexity.known
    assert scores.top1.value == pytest.approx(0.9)
    assert scores.top5.value == pytest.approx(1.0)
    assert scores.masked_tokens == 10


def test_paired_difference_is_of_the_same_tokens(opened: OpenModel, corpus: Path) -> None:
    reference = score(opened, corpus, 64)
    same = compare(reference, reference)
    assert all(tuple(interval) == (0.0, 0.0, 0.0) for interval in same.values())
    fewer = ExampleSums(ids=reference.ids[:-1], sums=reference.sums[:-1])
    with pytest.raises(DataError, match="different masked tokens"):
        compare(reference, fewer)


def test_nothing_to_mask_is_said(opened: OpenModel) -> None:
    masker = Masker.of(opened.tokenizer, config=MaskingConfig())
    with pytest.raises(DataError, match="can be masked"):
        score_examples(opened.model, [], masker)


def test_a_word_shares_its_places_with_its_equals() -> None:
    """Each row's shares are those of a random order of equals, counted over all orders."""
    logits = torch.tensor(
        [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [9.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    )
    rows = token_rows(logits[[0, 1, 1, 1]], np.array([3, 0, 2, 5]))
    # Of 8 equals; of 2 first ones; alone in the third place; of 5 in places 4 to 8.
    assert rows[:, 2].tolist() == [1 / 8, 1 / 2, 0, 0]
    assert rows[:, 3].tolist() == [5 / 8, 1, 1, 2 / 5]


def test_a_model_that_knows_nothing_is_right_once_in_its_vocabulary(tmp_path: Path) -> None:
    folder = spoil(save_tiny_model(tmp_path / "model"), lambda weight: weight.mul_(0.0))
    opened = open_model(str(folder))
    size = opened.model.hf.config.vocab_size
    scores = evaluate(opened, lines(30)).scores
    assert scores.top1.value == pytest.approx(1 / size)
    assert scores.top5.value == pytest.approx(5 / size)
    assert scores.perplexity.value == pytest.approx(size, rel=1e-5)


# The last are numbers, whose products are not.
@pytest.mark.parametrize(
    ("weight", "said"),
    [(torch.nan, "the weights of "), (3e38, "the model predicts values that are")],
)
@pytest.mark.parametrize("command", ["evaluate", "fill", "score"])
def test_predictions_that_are_no_numbers_are_one_line(
    command: str, weight: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoil(save_tiny_model(tmp_path / "model"), lambda weights: weights.fill_(weight))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(lines(5)), "utf-8")
    arguments = {
        "evaluate": ["--data", str(text)],
        "fill": ["the [MASK] stone"],
        "score": [str(text)],
    }
    capsys.readouterr()
    assert main([command, str(folder), *arguments[command]]) == 2
    lines_said = capsys.readouterr().err.splitlines()
    # Behind a progress bar, which erases itself.
    assert len([line for line in lines_said if line.startswith("maskery ")]) == 1
    assert lines_said[-1].startswith(f"maskery {command}: {said}")


def test_evaluate_needs_a_model_and_texts(opened: OpenModel, corpus: Path) -> None:
    texts = lines(40, seed=3)
    found = evaluate(opened, texts)
    assert found.against is None
    assert found.scores.loss.low < found.scores.loss.value < found.scores.loss.high
    # The same texts from a file, and the same model under its name.
    assert evaluate(opened.name, corpus).scores == found.scores
    assert evaluate(opened, (text for text in texts), batch_tokens=64).scores.examples == 40
    both = evaluate(opened, texts, against=opened.name)
    assert both.difference is not None
    assert both.difference["loss"] == (0.0, 0.0, 0.0)


def test_evaluate_reads_strings_and_rows(opened: OpenModel) -> None:
    texts = lines(12)
    rows = [{"text": text, "label": 1} for text in texts]
    assert evaluate(opened, rows).scores == evaluate(opened, texts).scores
    assert evaluate(opened, Dataset.from_list(rows)).scores == evaluate(opened, texts).scores


@pytest.mark.parametrize(
    ("texts", "message"), [(["river", 3], "2"), ([" "], "only white space"), (3, "be a int")]
)
def test_texts_that_are_none(opened: OpenModel, texts: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(opened, texts)


def test_a_model_that_is_nowhere() -> None:
    with pytest.raises(ModelError, match="no model folder"):
        evaluate("./nowhere", ["river"])
