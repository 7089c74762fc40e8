"""`--engine trainer` leaves the run folder that `--engine loop` leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_text import lines, save_tiny_model

from maskery.core.errors import ConfigError
from maskery.core.files import read_metrics
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig


def config_of(corpus: Path, model: Path, output: Path, engine: Any) -> TextRunConfig:
    return TextRunConfig(
        corpus=(str(corpus),),
        model=str(model),
        output=output,
        engine=engine,
        training=TrainingConfig(
            epochs=3,
            max_steps=11,
            batch_tokens=256,
            micro_batch_tokens=160,
            learning_rate=3e-3,
            log_every=4,
            eval_every=5,
            seed=2,
        ),
    )


def test_both_engines_write_the_same_metrics_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(lines(90)), "utf-8")
    model = save_tiny_model(tmp_path / "encoder", head=False)
    results = [
        train_text(config_of(corpus, model, tmp_path / engine, engine), progress=False)
        for engine in ("loop", "trainer")
    ]
    assert capsys.readouterr().out == ""  # standard output belongs to the command
    ours, theirs = (read_metrics(result.folder / "metrics.jsonl") for result in results)
    assert [(row["kind"], row["step"]) for row in theirs] == [
        (row["kind"], row["step"]) for row in ours
    ]
    for mine, other in zip(ours, theirs, strict=True):
        assert set(mine) == set(other)
        # The Trainer logs the last step's gradient norm, the loop the mean since the last line.
        for name in set(mine) - {"kind", "tokens_per_second", "grad_norm"}:
            assert other[name] == pytest.approx(mine[name], abs=1e-4), name
    assert results[0].summary.tokens == results[1].summary.tokens
    assert results[0].summary.steps == results[1].summary.steps == 11
    assert results[1].after.loss.value == pytest.approx(results[0].after.loss.value, abs=1e-4)
    assert (results[1].folder / "model" / "model.safetensors").is_file()
    assert (results[1].folder / "evaluation.json").is_file()


def test_resuming_under_the_trainer_is_refused() -> None:
    with pytest.raises(ConfigError, match="--resume auto needs --engine loop"):
        TextRunConfig(corpus=("a.txt",), engine="trainer", resume="auto")
