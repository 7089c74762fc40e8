"""The SimCSE plug-in: its loss against the formula, and runs from the command line and Python."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.registry import load_plugin
from maskery.core.system import read_metrics
from maskery.data.rows import RowSource, tokenise_rows
from maskery.masking.masker import Masker
from maskery.models.loading import load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm import TextParts
from maskery.training.config import TrainingConfig

PLUGIN = f"{Path(__file__).parents[2] / 'examples/plugins/simcse_objective.py'}:simcse"


def objective() -> Any:
    return load_plugin(PLUGIN, flag="--objective", contract="an objective")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines(120)), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def trained(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_loss_is_the_papers_formula(model: Path, packed: bool) -> None:
    loaded = load_masked_lm(str(model))
    wrapped = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=0)
    masker = Masker.of(loaded.tokenizer)
    task = objective()(TextParts(model=wrapped, tokenizer=loaded.tokenizer, masker=masker))
    texts = lines(5, seed=3)
    source = RowSource(tokenise_rows(texts, loaded.tokenizer, max_length=32), batch_tokens=1000)
    batch = source.micro_batches(0, 0)[0]
    prepared = task.prepare(batch, epoch=0, progress=0.0)
    assert prepared.counts == {"mlm": len(prepared.targets), "simcse": 5}

    seen: list[np.ndarray] = []
    task.model.train()
    hidden = MaskedLanguageModel.hidden

    def remember(self: MaskedLanguageModel, inputs: Any) -> torch.Tensor:
        rows = hidden(self, inputs)
        seen.append(rows.detach().double().numpy())
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedLanguageModel, "hidden", remember)
        simcse = task.loss_sums(prepared)["simcse"]
    loss = float(simcse.detach())
    simcse.backward()
    # It teaches the encoder, and leaves the vocabulary head alone.
    assert loaded.model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 1e-4
    assert loaded.model.cls.predictions.transform.dense.weight.grad is None
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in seen[:2])
    assert np.abs(one - other).max() > 1e-3  # two draws of dropout
    powers = np.exp(one @ other.T / 0.05)
    assert loss == pytest.approx(-np.log(np.diag(powers) / powers.sum(axis=1)).sum(), rel=1e-5)

    # Without dropout the vectors are those of each sentence alone, through Hugging Face.
    task.model.eval()
    rows = hidden(wrapped, prepared.sentences).detach()
    for sentence, (start, end) in enumerate(
        zip(batch.boundaries[:-1], batch.boundaries[1:], strict=True)
    ):
        alone = loaded.model.bert(torch.from_numpy(batch.input_ids[start:end])[None])
        torch.testing.assert_close(
            rows[sentence], alone.last_hidden_state[0, 0].detach(), rtol=1e-4, atol=1e-5
        )


def test_it_trains_and_resumes_from_the_command_line(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    def run(folder: str, steps: int, *more: str) -> int:
        command = ["train", "text", str(corpus), "--model", str(model), "--objective", PLUGIN]
        settings = ["--batch-tokens", "256", "--log-every", "1", "--max-steps", str(steps)]
        return main([*command, *settings, "--output", str(tmp_path / folder), *more])

    assert run("whole", 6) == 0
    rows = trained(tmp_path / "whole")
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["mlm"] + 0.1 * row["simcse"] for row in rows], rel=1e-6
    )

    # Stopped half way, a run goes on as if it had not been.
    assert run("cut", 6, "--checkpoint-every", "3") == 0
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    assert run("cut", 6, "--checkpoint-every", "3", "--resume", "auto") == 0
    assert [row["loss"] for row in trained(tmp_path / "cut")] == [row["loss"] for row in rows]


def test_a_run_from_python_resumes_where_it_stopped(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def config_of(folder: str) -> TextRunConfig:
        training = TrainingConfig(
            batch_tokens=256, max_steps=6, log_every=1, checkpoint_every=3, learning_rate=1e-3
        )
        return TextRunConfig(
            corpus=(str(corpus),), model=str(model), output=tmp_path / folder, training=training
        )

    whole = train_text(config_of("whole"), progress=False, objective=objective())
    train = partial(train_text, objective=objective())
    die_before(4, train, config_of("cut"), monkeypatch)
    cut = replace(config_of("cut"), resume="auto")
    resumed = train_text(cut, progress=False, objective=objective())
    assert resumed.summary.resumed_from == 3
    one, other = (load_file(run.folder / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
