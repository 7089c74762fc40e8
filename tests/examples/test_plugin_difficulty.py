"""Masks by difficulty: the table of a model, the shares masked, and runs that keep a table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text import WORDS, lines, save_tiny_model
from transformers import PreTrainedTokenizerBase

from maskery.cli.main import main
from maskery.core.errors import CheckpointError, ConfigError
from maskery.core.registry import load_plugin
from maskery.data.rows import RowSource, flatten, tokenise_rows
from maskery.evaluation.text.opening import OpenModel, open_model
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig

SCRIPT = Path(__file__).parents[2] / "examples" / "plugins" / "difficulty_policy.py"
POLICY = f"{SCRIPT}:policy"
KNOWN = WORDS[:3]


def of(name: str) -> Any:
    return load_plugin(f"{SCRIPT}:{name}", flag="--policy", contract="a policy")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is sure of three words, wherever it is asked."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    opened = open_model(folder)
    ids = opened.tokenizer.convert_tokens_to_ids(list(KNOWN))
    opened.model.hf.get_output_embeddings().bias.data[ids] = 6.0
    opened.model.hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opened(model: Path) -> OpenModel:
    return open_model(model)


@pytest.fixture(scope="module")
def tokenizer(opened: OpenModel) -> PreTrainedTokenizerBase:
    return opened.tokenizer


@pytest.fixture(scope="module")
def table(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the script of the file makes it."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "text.txt").write_text("\n".join(lines(80)), "utf-8")
    arguments = [str(SCRIPT), str(model), str(folder / "text.txt"), str(folder / "table.npz")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        of("main")()
    return folder / "table.npz"


@pytest.fixture(autouse=True)
def _named(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFICULTY", str(table))


def test_it_is_a_short_file() -> None:
    assert len(SCRIPT.read_text("utf-8").splitlines()) <= 120


def test_the_table_knows_what_the_model_knows_and_keeps_the_rate(
    table: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    factors = np.load(table)["factors"]
    known = tokenizer.convert_tokens_to_ids(list(KNOWN))
    others = tokenizer.convert_tokens_to_ids([word for word in WORDS if word not in KNOWN])
    assert factors[known].max() < 0.9 * factors[others].min()
    # The mean over the text is 1, so the run's rate is kept; nothing is left out for good.
    rows = flatten(tokenise_rows(lines(80), tokenizer, max_length=32))
    open_tokens = ~Masker.of(tokenizer).vocabulary.protected[rows.input_ids]
    assert factors[rows.input_ids[open_tokens]].mean() == pytest.approx(1.0, rel=1e-9)
    assert factors.min() > 0.1


def test_a_chance_is_the_models_own(opened: OpenModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """One token a text: the model is asked for it every time, and nothing else is masked."""
    found = of("measure")(opened, ["river", "river", "stone", "violet"], epochs=4)
    asked = tokenizer(["[MASK]"], return_tensors="pt")
    with torch.no_grad():
        logits = opened.model.hf(**asked).logits[0, 1].double().numpy()
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    ids = tokenizer.convert_tokens_to_ids(["river", "stone", "violet"])
    doubt = found["factors"][ids]
    # 80% of the asked tokens are [MASK], so the chances are near those under the mask.
    assert np.argsort(doubt).tolist() == np.argsort(1 - chances[ids]).tolist()


def test_the_share_masked_is_the_rate_times_the_factor(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = flatten(tokenise_rows(lines(400), tokenizer, max_length=32))
    masker = Masker.of(tokenizer, policy=POLICY, rate=0.15, seed=2)
    factors = np.load(os.environ["DIFFICULTY"])["factors"]
    open_tokens = ~masker.vocabulary.protected[rows.input_ids]
    epochs = 40
    times = np.zeros(len(rows.input_ids))
    for epoch in range(epochs):
        draws = masker._draws(epoch)
        times += masker.policy.select(rows, open_tokens, 0.15, draws).selected
    for token in np.unique(rows.input_ids[open_tokens]):
        here = rows.input_ids == token
        rate, asked = min(0.15 * factors[token], 0.9), here.sum() * epochs
        # Five standard deviations of a binomial share, for each of fifty tokens.
        assert abs(times[here].sum() / asked - rate) < 5 * np.sqrt(rate * (1 - rate) / asked)
    assert times[~open_tokens].sum() == 0


def test_the_same_masks_in_any_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    rows, found = tokenise_rows(lines(60), tokenizer, max_length=32), []
    for size in (40, 300, 5000):
        masker, masks = Masker.of(tokenizer, policy=POLICY, seed=4), set()
        source = RowSource(rows, batch_tokens=size, seed=size)
        for step in range(source.num_steps(0)):
            for batch in source.micro_batches(0, step):
                masked = masker.mask(batch, epoch=1)
                inside = batch.sequences_of(masked.positions)
                places = masked.positions - batch.boundaries[inside]
                shown = masked.input_ids[masked.positions]
                names = batch.example_ids[inside]
                masks |= set(zip(names.tolist(), places.tolist(), shown.tolist(), strict=True))
        found.append(masks)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 60


def test_runs_of_the_command_line_and_of_python_go_on_with_one_table(
    model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, run = tmp_path / "corpus.txt", tmp_path / "run"
    corpus.write_text("\n".join(lines(60)), "utf-8")
    arguments = ["--model", str(model), "--max-steps", "2", "--output", str(run)]
    command = ["train", "text", str(corpus), "--policy", POLICY, *arguments]
    assert main(command) == 0
    assert main([*command, "--resume", "auto"]) == 0

    config = TextRunConfig(
        corpus=(str(corpus),), model=str(model), output=run, resume="auto",
        masking=MaskingConfig(policy=POLICY), training=TrainingConfig(max_steps=2),
    )  # fmt: skip
    train_text(config, progress=False)
    other = tmp_path / "other.npz"
    np.savez(other, **{**np.load(table), "factors": np.ones(len(np.load(table)["factors"]))})
    monkeypatch.setenv("DIFFICULTY", str(other))
    with pytest.raises(CheckpointError, match=r"policy is 'difficulty_policy\.py:policy@"):
        train_text(config, progress=False)


def test_what_is_missing_or_of_another_tokenizer_is_told_in_one_line(
    tokenizer: PreTrainedTokenizerBase,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, **{**np.load(table), "tokenizer": "another"})
    monkeypatch.setenv("DIFFICULTY", str(other))
    with pytest.raises(ConfigError, match=r"other\.npz' is of another tokenizer"):
        Masker.of(tokenizer, policy=POLICY)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(lines(60)), "utf-8")
    monkeypatch.delenv("DIFFICULTY")
    command = ["train", "text", str(corpus), "--policy", POLICY, "--output", str(tmp_path / "run")]
    assert main([*command, "--model", tokenizer.name_or_path]) == 2
    assert not (tmp_path / "run").exists()
