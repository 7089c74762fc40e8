"""Fine-tunings learn what the classes hang on, repeat, and leave the encoder as it was."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import WORDS, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import DataError
from maskery.evaluation.probe.classify import NUM_FOLDS, folds_of
from maskery.evaluation.probe.encode import Encoder, tuned_hits
from maskery.evaluation.probe.labels import Labelled
from maskery.evaluation.probe.probe import probe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    return Encoder.open(str(folder))


def told(num: int = 240) -> Labelled:
    """Texts whose class is one word among others."""
    generator = np.random.default_rng(0)
    rows, classes = [], generator.integers(0, 2, num)
    for of in classes:
        words = [*generator.choice(WORDS[2:], 6), WORDS[of]]
        rows.append(" ".join(generator.permutation(words)))
    assert len(set(rows)) == num
    return Labelled(kind="labels", texts=tuple(rows), labels=tuple(map(str, classes)), skipped={})


def test_the_class_is_learnt_and_the_encoder_stays(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model of 32 dimensions learns slower than one that has read.
    monkeypatch.setattr("maskery.evaluation.probe.encode.ENCODER_RATE", 3e-3)
    monkeypatch.setattr("maskery.evaluation.probe.encode.HEAD_RATE", 1e-2)
    monkeypatch.setattr("maskery.evaluation.probe.encode.EPOCHS", 8)
    labelled = told()
    classes = np.array([int(label) for label in labelled.labels])
    held_out = folds_of(labelled.texts, NUM_FOLDS) == 0
    before = {name: tensor.clone() for name, tensor in encoder.hf.state_dict().items()}
    state = torch.random.get_rng_state()
    hits = tuned_hits(encoder, labelled.texts, classes, held_out, [0, 1])
    assert hits.shape == (2, held_out.sum())
    assert hits.mean() > 0.95
    again = tuned_hits(encoder, labelled.texts, classes, held_out, [1])
    np.testing.assert_array_equal(again[0], hits[1])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in encoder.hf.state_dict().items())
    assert not encoder.hf.training


def test_it_is_a_row_with_a_spread_and_a_paired_difference(
    encoder: Encoder, tmp_path: Path
) -> None:
    labelled = told(120)
    *_, same = probe(encoder, labelled, encoder, seeds=(0, 1)).figures
    assert (same.name, same.difference) == ("fine-tuned", (0.0, 0.0, 0.0))
    other = Encoder.open(str(save_tiny_model(tmp_path / "other", seed=3)))
    result = probe(encoder, labelled, other, seeds=(0, 1, 2))
    found = result.figures[-1]
    one, two = found.models.values()
    assert found.difference is not None
    assert found.difference.value == pytest.approx(one.value - two.value)
    held_out = folds_of(labelled.texts, NUM_FOLDS) == 0
    classes = np.array([int(label) for label in labelled.labels])
    hits = tuned_hits(encoder, labelled.texts, classes, held_out, [0, 1, 2])
    assert one.value == pytest.approx(hits.mean())
    assert found.spread is not None
    assert found.spread[encoder.name] == pytest.approx(np.std(hits.mean(axis=1), ddof=1))
    assert any(
        f"fine-tuned: {held_out.sum()} texts, a quarter by hash" in note for note in result.notes
    )


def test_through_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled, path = told(60), tmp_path / "labels.csv"
    rows = zip(labelled.texts, labelled.labels, strict=True)
    path.write_text("\n".join(["text,label", *(f"{t},{c}" for t, c in rows)]), "utf-8")
    asked = ["probe", str(folder), "--labels", str(path)]
    assert main([*asked, "--tune", "3"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^fine-tuned +\d", printed, re.MULTILINE)
    assert "the mean of 1 seed" in printed
    for wrong, told_ in (
        (["--tune", "1", "1"], "seeds are different numbers from 0 on"),
        (["--tune", "--kind", "pairs"], "--tune and --kind pairs do not go together"),
    ):
        assert main([*asked, *wrong]) == 2
        assert told_ in capsys.readouterr().err


def test_what_cannot_be_tuned_is_one_line(encoder: Encoder) -> None:
    few = ("a b", "c d", "e f", "g h")
    labelled = Labelled(kind="labels", texts=few, labels=("0", "0", "1", "1"), skipped={})
    if not (folds_of(few, NUM_FOLDS) == 0).any():
        with pytest.raises(DataError, match="4 texts are too few for --tune"):
            probe(encoder, labelled, seeds=(0,))
    pairs = Labelled(kind="pairs", texts=("a", "b"), labels=("c", "d"), skipped={})
    with pytest.raises(DataError, match="--tune needs a class for each text"):
        probe(encoder, pairs, seeds=(0,))
