"""A ready Trainer trains the script's own model, packed or padded."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_text import lines, save_tiny_model
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainingArguments

from maskery.data.rows import tokenise_rows
from maskery.hf.collator import MaskCollator
from maskery.hf.trainer import masked_lm_trainer
from maskery.models.layout import PACKABLE


@pytest.mark.parametrize("packable", [True, False])
def test_a_script_trains_and_saves_its_model(
    packable: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not packable:
        others = PACKABLE - {"bert"}
        monkeypatch.setattr("maskery.hf.trainer.PACKABLE", others)
        monkeypatch.setattr("maskery.models.layout.PACKABLE", others)
    folder = save_tiny_model(tmp_path / "tiny")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = TrainingArguments(
        str(tmp_path / "out"),
        learning_rate=5e-3,
        num_train_epochs=6,
        per_device_train_batch_size=16,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = tokenise_rows(lines(120), tokenizer, max_length=32)
    with caplog.at_level(logging.WARNING):
        trainer = masked_lm_trainer(model, tokenizer, rows, args)
    assert ("batches are padded" in caplog.text) is not packable
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    for name, value in model.named_parameters():
        assert torch.equal(saved.get_parameter(name), value), name
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").mask_token == "[MASK]"


def test_packed_and_padded_batches_have_the_same_loss(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenise_rows(lines(12), tokenizer, max_length=32)
    args = TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, seed=5)
    with torch.no_grad():
        padded = model(**MaskCollator(tokenizer, seed=5)(rows)).loss
        trainer = masked_lm_trainer(model, tokenizer, rows, args)
        batch = trainer.data_collator(rows)
        packed = model.eval()(**batch).loss
    assert batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    assert packed.item() == pytest.approx(padded.item(), abs=1e-5)


def test_new_parameters_learn_at_a_rate_of_their_own(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = TrainingArguments(
        str(tmp_path / "out"), learning_rate=1e-4, weight_decay=0.1, use_cpu=True, report_to="none"
    )
    head = "cls.predictions.transform.dense.weight"
    trainer = masked_lm_trainer(model, tokenizer, [], args, new_parameters=[head])
    assert trainer.optimizer is not None
    rates = {
        parameter: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        decay = 0.1 if parameter.dim() >= 2 else 0.0
        assert rates[parameter] == pytest.approx((1e-3 if name == head else 1e-4, decay)), name
