"""`--compile` in a whole run: said and left alone on a CPU, the same course where it is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.core.system import read_metrics
from maskery.runs.image_text.config import PairsTrainingConfig
from maskery.runs.text import prepare as text_task
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines(60)), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def config_of(
    corpus: Path, model: Path, output: Path, *, compiled: bool, **changes: object
) -> TextRunConfig:
    settings = {
        "corpus": (str(corpus),),
        "model": str(model),
        "output": output,
        "hidden_dropout": 0.0,
        "training": TrainingConfig(
            epochs=1, batch_tokens=128, max_steps=4, log_every=2, compile=compiled
        ),
        **changes,
    }
    return TextRunConfig(**settings)  # type: ignore[arg-type]


def trained(folder: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with a backend that costs no time."""
    monkeypatch.setattr("maskery.tasks.compiling.compile_obstacle", lambda **settings: None)
    monkeypatch.setattr(text_task, "COMPILE_BACKEND", "eager")


def test_on_a_cpu_it_is_said_and_nothing_changes(
    corpus: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_text(config_of(corpus, model, tmp_path / "plain", compiled=False), progress=False)
    with caplog.at_level(logging.WARNING, logger="maskery"):
        train_text(config_of(corpus, model, tmp_path / "asked", compiled=True), progress=False)
    warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert warnings == [
        "the step is not compiled: on 'cpu' a compiled step is slower than an uncompiled one"
    ]
    plain, asked = trained(tmp_path / "plain"), trained(tmp_path / "asked")
    assert [row["loss"] for row in plain] == [row["loss"] for row in asked]
    assert "mlm_left_out" not in asked[0]


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("shards", [False, True])
def test_compiled_steps_take_the_same_course(
    corpus: Path, model: Path, tmp_path: Path, shards: bool
) -> None:
    if shards:
        command = ["tokenize", str(corpus), str(tmp_path / "shards"), "--model", str(model)]
        assert main([*command, "--held-out-share", "0.1"]) == 0
        corpus = tmp_path / "shards"
    for name, compiled in (("plain", False), ("compiled", True)):
        config = config_of(corpus, model, tmp_path / name, compiled=compiled)
        train_text(config, progress=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    plain, compiled_rows = trained(tmp_path / "plain"), trained(tmp_path / "compiled")
    np.testing.assert_allclose(
        [row["loss"] for row in plain], [row["loss"] for row in compiled_rows], atol=1e-5
    )


@pytest.mark.usefixtures("compiles")
def test_masked_tokens_without_a_row_are_reported(
    corpus: Path,
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("maskery.tasks.compiling.TOKEN_MULTIPLE", 1)
    config = config_of(corpus, model, tmp_path / "run", compiled=True, masked_capacity=0.05)
    with caplog.at_level(logging.WARNING, logger="maskery"):
        train_text(config, progress=False)
    first, last = (r.message for r in caplog.records)
    assert "more masked tokens than its step has rows for" in first
    left_out = sum(row["mlm_left_out"] for row in trained(tmp_path / "run"))
    assert left_out > 0
    assert last.startswith(f"{left_out:.0f} of ")
    assert "raise --masked-capacity" in last


@pytest.mark.parametrize(
    ("capacity", "compiled", "message"),
    [
        (0.0, True, "masked_capacity is 0.0: it must be above 0"),
        (1.5, True, "masked_capacity is 1.5"),
        (0.2, False, "--masked-capacity needs --compile"),
    ],
)
def test_capacities_that_mean_nothing_are_refused(
    capacity: float, compiled: bool, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, tmp_path, tmp_path, compiled=compiled, masked_capacity=capacity)


def test_image_text_runs_have_no_such_setting() -> None:
    assert "compile" not in {field.name for field in fields(PairsTrainingConfig)}
