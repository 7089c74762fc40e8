"""A run with --objective diffusion: its figures, its resumption, and what does not go with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_text import lines, save_tiny_model

from maskery.core.errors import ConfigError
from maskery.core.system import read_metrics
from maskery.evaluation.text.masked import ExampleSums
from maskery.masking.config import MaskingConfig
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm_config import TextMLMConfig
from maskery.training.config import TrainingConfig


@pytest.fixture
def config(tmp_path: Path) -> TextRunConfig:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(300)), "utf-8")
    return TextRunConfig(
        corpus=(str(tmp_path / "corpus.txt"),),
        model=str(save_tiny_model(tmp_path / "model")),
        output=tmp_path / "run",
        held_out_share=0.3,
        objectives=TextMLMConfig(objective="diffusion", time_sampling="bell"),
        training=TrainingConfig(
            batch_tokens=256, max_steps=6, log_every=1, checkpoint_every=3, learning_rate=1e-2
        ),
    )


def test_a_run_measures_the_nelbo_and_resumes_to_the_bit(config: TextRunConfig) -> None:
    whole = train_text(config, progress=False)
    trained = [r["mlm"] for r in read_metrics(whole.folder / "metrics.jsonl") if "mlm" in r]
    assert len(trained) == 6
    assert whole.difference["loss"].high < 0
    assert str(whole.verdict).startswith("filling words: better")
    # Every held-out token counts once; before anything is learnt, each costs about log V.
    sums, _ = ExampleSums.read(whole.folder / "held_out.safetensors")
    assert whole.after.masked_tokens == round(sums.sums[:, 0].sum())
    np.testing.assert_allclose(sums.sums[:, 0], np.round(sums.sums[:, 0]), rtol=1e-6)
    assert whole.before.loss.value == pytest.approx(np.log(94), rel=0.05)
    card = (whole.folder / "model" / "README.md").read_text("utf-8")
    assert "masked diffusion" in card
    assert "0.15" not in card

    kept = load_file(whole.folder / "model" / "model.safetensors")
    shutil.rmtree(whole.folder / "checkpoints" / "step-00000006")
    shutil.rmtree(whole.folder / "model")
    resumed = train_text(replace(config, resume="auto"), progress=False)
    assert resumed.summary.resumed_from == 3
    again = load_file(resumed.folder / "model" / "model.safetensors")
    assert all(np.array_equal(again[name], kept[name]) for name in kept)
    assert resumed.after == whole.after
    identity = ExampleSums.read(whole.folder / "held_out.safetensors")[1]
    assert json.loads(identity)["objectives"]["time_sampling"] == "bell"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"masking": MaskingConfig(policy="word", mask_rate=0.3)}, "--policy, --mask-rate"),
        ({"training": TrainingConfig(compile=True)}, "--compile"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    config: TextRunConfig, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"--objective diffusion does not go with {named}"):
        replace(config, **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"time_sampling": "bell"}, "needs --objective diffusion"),
        ({"objective": "diffusion", "momentum": 0.9}, "leave out"),
        ({"objective": "diffusion", "keep_embedding": "5"}, "use auto or off"),
        ({"objective": "diffusion", "time_sampling": "sine"}, "uniform, bell"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TextMLMConfig(**settings)
