"""A plain nn.Module and a Hugging Face object are trained as a model loaded by name is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import lines, save_tiny_model
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from maskery.core.errors import ModelError
from maskery.data.rows import RowSource, tokenise_rows
from maskery.masking.masker import Masker
from maskery.models.own_model import as_masked_lm, load_own_weights
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import TextMLM
from maskery.training.config import TrainingConfig
from maskery.training.stepper import Stepper


class Mine(nn.Module):
    """Words see the mean of their sentence."""

    def __init__(self, vocab_size: int = 120, width: int = 24) -> None:
        super().__init__()
        self.vocab_size, self.max_positions = vocab_size, 20
        self.words = nn.Embedding(vocab_size, width)
        self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.Tanh())
        self.out = nn.Linear(width, vocab_size)
        self.out.weight = self.words.weight

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        words, real = self.words(input_ids), attention_mask[..., None]
        mean = (words * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        mixed: torch.Tensor = self.mix(torch.cat((words, mean.expand_as(words)), -1))
        return mixed

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(rows)
        return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def train(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[TextMLM, list[float]]:
    wrapped = as_masked_lm(model, tokenizer)
    rows = tokenise_rows(lines(40), tokenizer, max_length=20)
    layout = "packed" if wrapped.packed else "padded"
    source = RowSource(rows, batch_tokens=200, layout=layout)
    task = TextMLM(wrapped, Masker.of(tokenizer))
    settings = TrainingConfig(learning_rate=1e-2, precision="fp32")
    stepper = Stepper(task, settings, total_steps=40)
    losses = []
    for number in range(40):
        epoch, step = divmod(number, source.num_steps(0))
        if epoch:
            step %= source.num_steps(epoch)
        batches = source.micro_batches(epoch, step, rank=0, world_size=1)
        losses.append(float(stepper.step(number, stepper.prepare(number, batches))["loss"]))
    return task, losses


def test_a_plain_module_trains_is_saved_and_read_back(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    mine = Mine()
    task, losses = train(mine, tokenizer)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])

    hf: Any = task.model.hf
    hf.save_pretrained(tmp_path / "saved")
    described = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert described["model_type"] == "own-module"
    assert (described["vocab_size"], described["hidden_size"]) == (120, 24)
    other = Mine()
    load_own_weights(other, tmp_path / "saved")
    for name, tensor in mine.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    with pytest.raises(ModelError, match="do not fit Mine"):
        load_own_weights(Mine(width=8), tmp_path / "saved")
    with pytest.raises(ModelError, match="do not fit Mine"):
        load_own_weights(Mine(), tmp_path / "nowhere")


def test_its_loss_is_that_of_each_sentence_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    mine = Mine().eval()
    wrapped = as_masked_lm(mine, tokenizer)
    rows = tokenise_rows(lines(6), tokenizer, max_length=20)
    batch: Any = RowSource(rows, batch_tokens=400, layout="padded").micro_batches(0, 0)[0]
    masked = Masker.of(tokenizer).mask(batch, epoch=0)
    loss = mlm_loss_sum(wrapped(wrapped.lay_out(masked)), torch.from_numpy(masked.targets))
    expected = 0.0
    for start, end in zip(batch.boundaries[:-1], batch.boundaries[1:], strict=True):
        ids = torch.from_numpy(masked.input_ids[start:end])[None]
        scores = mine.logits(mine.hidden(ids, torch.ones_like(ids))[0])
        labels = torch.from_numpy(masked.labels()[start:end])
        expected += float(nn.functional.cross_entropy(scores, labels, reduction="sum").detach())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_hugging_face_object_trains_packed(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    task, losses = train(AutoModelForMaskedLM.from_pretrained(folder), tokenizer)
    assert task.model.packed
    assert losses[-1] < losses[0]
    assert as_masked_lm(task.model, tokenizer) is task.model


def broken(**changes: Any) -> nn.Module:
    model = Mine()
    for name, value in changes.items():
        object.__setattr__(model, name, value)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), r"Linear has no vocab_size, hidden, logits; a plain module needs"),
        (Mine, "Mine is a class; pass an object of it"),
        (broken(hidden=None), "Mine has no hidden; a plain module needs"),
        (broken(hidden=lambda ids, mask: ids), r"hidden returned \(2, 3\) for ids of \(2, 3\)"),
        (broken(logits=lambda rows: rows), r"logits returned \(3, 24\) where \(3, 120\) was due"),
        (broken(logits=lambda rows: rows @ rows), "Mine: mat1 and mat2"),
        (Mine(vocab_size=50), "ids up to 93 and Mine has 50 rows"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    model: nn.Module, message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        as_masked_lm(model, tokenizer)
    assert "\n" not in str(caught.value)


def test_an_encoder_without_a_head_is_refused(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ModelError, match="BertModel has no masked-language-modelling head"):
        as_masked_lm(AutoModel.from_pretrained(folder), tokenizer)


def test_padding_that_is_read_is_warned_about(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Mine()
    careless = broken(hidden=lambda ids, mask: mine.hidden(ids, torch.ones_like(mask)))
    with caplog.at_level(logging.WARNING, logger="maskery"):
        as_masked_lm(careless, tokenizer)
    assert "let it read attention_mask" in caplog.text
