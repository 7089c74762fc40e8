"""A run with an objective of the user's own: its head is trained, kept, resumed and saved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model
from transformers import AutoModelForMaskedLM

from maskery.core.errors import CheckpointError, PluginError
from maskery.core.system import read_metrics
from maskery.core.task import EXTRA_STATE
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import TextResult, train_text
from maskery.tasks.text_mlm_config import TextMLMConfig
from maskery.training.config import TrainingConfig

# The head judges the length of each masked word's vector; its loss goes to 0.
PLUGIN = """
from dataclasses import replace
from torch import nn
from maskery.tasks.text_mlm import TextMLM

class Sized(TextMLM):
    def __init__(self, model, masker, **settings):
        model.add_head("size", nn.Linear(model.hf.config.hidden_size, 1))
        super().__init__(model, masker, **settings)
        self.loss_weights = {"mlm": 1.0, "size": 0.5}

    def prepare(self, batch, *, epoch, progress):
        prepared = super().prepare(batch, epoch=epoch, progress=progress)
        return replace(prepared, counts={**prepared.counts, "size": len(prepared.targets)})

    def loss_sums(self, prepared):
        def read(model, rows):
            return ((model.heads["size"](rows) - 2.0) ** 2).sum()
        return {**super().loss_sums(prepared), "size": self.model(prepared.inputs, read=read)}

sized = Sized.of
"""


@pytest.fixture
def config(tmp_path: Path) -> TextRunConfig:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(120)), "utf-8")
    (tmp_path / "sized.py").write_text(PLUGIN, "utf-8")
    return TextRunConfig(
        corpus=(str(tmp_path / "corpus.txt"),),
        model=str(save_tiny_model(tmp_path / "model")),
        output=tmp_path / "run",
        held_out_share=0.2,
        objectives=TextMLMConfig(objective=f"{tmp_path / 'sized.py'}:sized"),
        training=TrainingConfig(
            batch_tokens=256, max_steps=6, log_every=1, checkpoint_every=3, learning_rate=1e-2
        ),
    )


def run(config: TextRunConfig) -> TextResult:
    # The head's first weights are the user's own affair; here they are drawn from this seed.
    torch.manual_seed(0)
    return train_text(config, progress=False)


def losses(folder: Path, name: str) -> list[float]:
    return [r[name] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"]


def test_a_head_is_trained_kept_resumed_and_saved(config: TextRunConfig, tmp_path: Path) -> None:
    whole = run(config)
    sizes = losses(whole.folder, "size")
    assert sizes[-1] < 0.8 * sizes[0]
    assert losses(whole.folder, "loss") == pytest.approx(
        [m + 0.5 * s for m, s in zip(losses(whole.folder, "mlm"), sizes, strict=True)], rel=1e-6
    )
    # Held-out figures are those of masked language modelling, whatever is trained beside it.
    held_out = [r for r in read_metrics(whole.folder / "metrics.jsonl") if r["kind"] == "held_out"]
    assert {"loss", "top1"} <= set(held_out[-1])
    assert "size" not in held_out[-1]

    checkpoints = whole.folder / "checkpoints"
    assert "size.weight" in load_file(checkpoints / "step-00000003" / "model.safetensors")
    folder = whole.folder / "model"
    head = load_file(folder / EXTRA_STATE)
    assert set(head) == {"size.weight", "size.bias"}
    AutoModelForMaskedLM.from_pretrained(folder)

    shutil.rmtree(checkpoints / "step-00000006")
    shutil.rmtree(folder)
    resumed = run(replace(config, resume="auto"))
    assert resumed.summary.resumed_from == 3
    assert losses(whole.folder, "size") == sizes
    again = load_file(resumed.folder / "model" / EXTRA_STATE)
    assert all(torch.equal(again[name], head[name]) for name in head)

    still = replace(config.training, learning_rate=1e-9, max_steps=1)
    further = replace(config, model=str(whole.folder), output=tmp_path / "further", training=still)
    goes_on = load_file(run(further).folder / "model" / EXTRA_STATE)
    for name, tensor in head.items():
        torch.testing.assert_close(goes_on[name], tensor, rtol=0, atol=1e-6)


def test_an_objective_that_cannot_be_loaded_is_told_before_anything_is_read(
    config: TextRunConfig, tmp_path: Path
) -> None:
    (tmp_path / "corpus.txt").unlink()
    missing = TextMLMConfig(objective=f"{tmp_path / 'sized.py'}:other")
    with pytest.raises(PluginError, match="other"):
        run(replace(config, objectives=missing))
    assert not (tmp_path / "run").exists()


def test_a_changed_objective_is_another_run(config: TextRunConfig, tmp_path: Path) -> None:
    run(config)
    (tmp_path / "sized.py").write_text(PLUGIN.replace("2.0", "3.0"), "utf-8")
    with pytest.raises(CheckpointError, match="another model, corpus or setting"):
        run(replace(config, resume="auto"))
