"""`--micro-batch-tokens auto`: micro-batches as large as memory allows, and the run is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.core.errors import ConfigError
from maskery.runs.frame.config_file import load_config
from maskery.runs.text import memory
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig


@pytest.fixture
def config(tmp_path: Path) -> TextRunConfig:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(80)), "utf-8")
    training = TrainingConfig(
        batch_tokens=256, micro_batch_tokens="auto", max_steps=3, learning_rate=3e-3
    )
    model = str(save_tiny_model(tmp_path / "model"))
    return TextRunConfig(
        corpus=(str(tmp_path / "corpus.txt"),), model=model, max_length=24, training=training
    )


def chosen(config: TextRunConfig, monkeypatch: pytest.MonkeyPatch, bytes_: float) -> int:
    monkeypatch.setattr(memory, "_memory", lambda _: bytes_)
    return int(getattr(TextRun(config, progress=False).train, "micro_size", 0))


def test_the_choice_is_the_largest_that_fits(
    config: TextRunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, float]] = []
    measure = memory._kept
    monkeypatch.setattr(memory, "_kept", lambda *given: kept.append(measure(*given)) or kept[-1])
    assert chosen(config, monkeypatch, 1e12) == 256
    (few, less), (many, more) = kept
    assert many > few
    # By hand: of two layers of width D, a token keeps at least what each of six products and the
    # feed-forward's activation reads, and the head its states.
    run = TextRun(replace(config, training=TrainingConfig()), progress=False)
    hidden, inner = run.loaded.model.config.hidden_size, run.loaded.model.config.intermediate_size
    least = 4 * run.loaded.model.config.num_hidden_layers * (3 * hidden + 2 * inner)
    each = (more - less) / (many - few)
    assert least < each < 12 * least
    weights = 16 * sum(p.numel() for p in run.model.parameters())
    fixed = weights + less - few * each
    room = {64: 65, 128: 129, 256: 257}
    found = {
        tokens: chosen(config, monkeypatch, fixed + 1.3 * each * (some - 0.5))
        for tokens, some in room.items()
    }
    assert found == {tokens: tokens for tokens in room}
    with pytest.raises(ConfigError, match=r"a sequence of 24 tokens needs about .* GiB"):
        chosen(config, monkeypatch, fixed)


def test_it_is_the_run_with_that_number(
    config: TextRunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    measure, kept = memory._kept, list[tuple[int, float]]()
    monkeypatch.setattr(memory, "_kept", lambda *given: kept.append(measure(*given)) or kept[-1])
    assert chosen(config, monkeypatch, 1e12) == 256
    (few, less), (many, more) = kept
    each = (more - less) / (many - few)
    monkeypatch.setattr(memory, "WEIGHT_BYTES", 0)
    assert chosen(config, monkeypatch, less - few * each + 1.3 * each * 64.5) == 64
    assert torch.equal(torch.random.get_rng_state(), state)

    def weights(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        training = replace(config.training, **changes)
        one = replace(config, output=tmp_path / name, training=training)
        train_text(one, progress=False)
        # What is written down is read back.
        saved = load_config(tmp_path / name / "config.yaml", TextRunConfig)
        assert saved.training.micro_batch_tokens == training.micro_batch_tokens
        return load_file(tmp_path / name / "model" / "model.safetensors")

    auto, number = weights("auto"), weights("number", micro_batch_tokens=64)
    assert all(torch.equal(auto[name], tensor) for name, tensor in number.items())


def test_shapes_that_are_compiled_are_not_chosen() -> None:
    with pytest.raises(ConfigError, match="give a number for --micro-batch-tokens"):
        TrainingConfig(micro_batch_tokens="auto", compile=True)
    with pytest.raises(ConfigError, match=r"it must be at least 1 or auto"):
        TrainingConfig(micro_batch_tokens=0)
