"""Text runs with a momentum twin: what they save, resume, evaluate, and that they learn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model
from transformers import AutoModelForMaskedLM, pipeline

from maskery.core.errors import CheckpointError
from maskery.core.system import read_metrics
from maskery.core.task import EXTRA_STATE
from maskery.data.corpus.config import CorpusConfig
from maskery.masking.config import MaskingConfig
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.evaluate import evaluate_model, evaluate_run
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm_config import TextMLMConfig
from maskery.training.config import TrainingConfig

BOTH = TextMLMConfig(objective="mlm+mrtd", momentum=0.9)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines(150)), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def config_of(corpus: Path, model: Path | str, output: Path, **training: Any) -> TextRunConfig:
    settings = {"epochs": 2, "batch_tokens": 256, "learning_rate": 3e-3, "log_every": 1}
    return TextRunConfig(
        corpus=(str(corpus),),
        model=str(model),
        output=output,
        held_out_share=0.2,
        objectives=BOTH,
        training=TrainingConfig(**{**settings, **training}),
    )


def trained(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]


def test_a_run_leaves_a_plain_model_with_the_twin_and_the_head_beside_it(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    result = train_text(config_of(corpus, model, tmp_path / "run"), progress=False)
    folder = result.folder / "model"
    assert len(pipeline("fill-mask", model=str(folder))("river stone [MASK] ember.")) == 5
    plain = AutoModelForMaskedLM.from_pretrained(folder)
    extra = load_file(folder / EXTRA_STATE)
    twin = {name.removeprefix("twin.hf.") for name in extra if name.startswith("twin.hf.")}
    assert twin == {name for name, _ in plain.named_parameters()}
    assert extra["mrtd_head.weight"].shape == (2, 32)
    assert len(extra) == len(twin) + 2

    first = trained(result.folder)[0]
    assert first["loss"] == pytest.approx(first["mlm"] + 0.5 * first["mrtd"], rel=1e-6)

    assert result.mrtd_auc is not None
    again = evaluate_run(result.folder)
    assert again.mrtd_auc == {"after": pytest.approx(result.mrtd_auc, abs=1e-6)}
    settings: Any = {"reading": CorpusConfig(), "masking": MaskingConfig(), "progress": False}
    elsewhere = evaluate_model(
        str(result.folder), (str(corpus),), against=str(model), cache_dir=tmp_path, **settings
    )
    assert set(elsewhere.mrtd_auc) == {str(result.folder)}

    (folder / EXTRA_STATE).write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        evaluate_run(result.folder)


def test_a_run_stopped_and_resumed_equals_one_never_stopped(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    whole = train_text(
        config_of(corpus, model, tmp_path / "whole", checkpoint_every=3), progress=False
    )
    cut = config_of(corpus, model, tmp_path / "cut", checkpoint_every=3)
    die_before(7, train_text, cut, monkeypatch)
    resumed = train_text(replace(cut, resume="auto"), progress=False)
    assert resumed.summary.resumed_from == 6
    for name in ("loss", "mlm", "mrtd"):
        assert [row[name] for row in trained(tmp_path / "cut")] == [
            row[name] for row in trained(tmp_path / "whole")
        ]
    for file in ("model.safetensors", EXTRA_STATE):
        one, other = (load_file(tmp_path / name / "model" / file) for name in ("whole", "cut"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert resumed.mrtd_auc == whole.mrtd_auc

    plain = replace(cut, resume="auto", objectives=TextMLMConfig())
    with pytest.raises(CheckpointError, match="another model, corpus or setting"):
        train_text(plain, progress=False)


def test_a_further_run_goes_on_with_the_twin_and_the_head(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    first = train_text(config_of(corpus, model, tmp_path / "first"), progress=False)
    further = config_of(corpus, first.folder, tmp_path / "further", learning_rate=1e-9, max_steps=1)
    standing = replace(further, objectives=replace(BOTH, momentum=1.0))
    second = train_text(standing, progress=False)
    one, other = (load_file(r.folder / "model" / EXTRA_STATE) for r in (first, second))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)


def test_micro_batches_do_not_change_the_course(corpus: Path, model: Path, tmp_path: Path) -> None:
    courses = []
    for name, micro in (("plain", None), ("cut", 64)):
        config = config_of(corpus, model, tmp_path / name, max_steps=4, micro_batch_tokens=micro)
        train_text(replace(config, hidden_dropout=0.0), progress=False)
        courses.append([row["loss"] for row in trained(tmp_path / name)])
    assert courses[0] == pytest.approx(courses[1], abs=1e-4)


SIBLING = Path(__file__).parents[4] / "shared" / "data"
MEDITATIONS = Path(os.environ.get("MASKERY_DATA", SIBLING)) / "meditations.txt"


@pytest.mark.skipif(
    not MEDITATIONS.is_file(), reason="no meditations.txt; MASKERY_DATA names its folder"
)
def test_both_losses_fall_on_a_real_text(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"max_steps": 40, "batch_tokens": 1024, "learning_rate": 5e-3}
    config = config_of(MEDITATIONS, "scratch:tiny", tmp_path / "run", **sizes)
    changes: dict[str, Any] = {
        "vocab_size": 1000,
        "held_out_share": 0.02,
        "max_length": 128,
        "masking": MaskingConfig(policy="word", mask_rate=0.2),
    }
    result = train_text(replace(config, **changes), progress=False)
    rows = trained(result.folder)
    for name in ("mlm", "mrtd"):
        early, late = (sum(row[name] for row in part) / 10 for part in (rows[:10], rows[-10:]))
        assert late < early - 0.02, (name, early, late)
    assert result.after.loss.value < result.before.loss.value
    assert result.mrtd_auc is not None
