"""The Trainer for scripts trains the script's own model, packed or padded."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_text import lines, save_tiny_model
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainingArguments

from maskery.data.rows import tokenise_rows
from maskery.hf.masked_lm_trainer import masked_lm_trainer
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
        monkeypatch.setattr("maskery.hf.masked_lm_trainer.PACKABLE", others)
        monkeypatch.setattr("maskery.models.layout.PACKABLE", others)
    folder = save_tiny_model(tmp_path / "tiny")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = TrainingArguments(
        str(tmp_path / "out"),
        learning_rate=5e-3,
        num_train_epochs=6,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = tokenise_rows(lines(120), tokenizer, max_length=32)
    with caplog.at_level(logging.WARNING):
        trainer = masked_lm_trainer(model, tokenizer, rows, args, batch_tokens=256)
    assert ("grouped by length and padded" in caplog.text) is not packable
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    for name, value in model.named_parameters():
        assert torch.equal(saved.get_parameter(name), value), name
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").mask_token == "[MASK]"
