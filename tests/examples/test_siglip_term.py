"""The SigLIP example: the paper's formula, from Python and from the command line."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import save_tiny_pairs

from maskery.cli.main import main
from maskery.core.errors import CheckpointError
from maskery.evaluation.image_text.opening import open_image_text
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.objectives.itc import Features
from maskery.objectives.terms import LossTerm
from maskery.runs.image_text import config as pairs_config
from maskery.runs.image_text.config import PairsRunConfig, PairsTrainingConfig
from maskery.runs.pairs.run import evaluate_pairs_run, train_pairs
from maskery.tasks.image_text_config import ImageTextMLMConfig

FILE = Path(__file__).parents[2] / "examples" / "plugins" / "siglip_term.py"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ImageTextSizes(
        image_size=(16, 16),
        patch_size=8,
        image_layers=1,
        fusion_layers=1,
        width=32,
        num_heads=2,
        embed_dim=8,
        max_length=24,
    )
    monkeypatch.setitem(pairs_config.SIZES, "tiny", sizes)


def example() -> Any:
    """The example's module, as a user's script would have it."""
    name = "siglip_term_example"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FILE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Step:
    """As much of a step as the term reads."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor, ids: torch.Tensor) -> None:
        self.features, self.ids, self.crowd = Features(image=image, text=text), ids, self

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    gather_with_gradients = gather


def test_the_term_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((5, 7)) for _ in range(2))
    image, text = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text))
    ids = np.array([3, 1, 4, 1, 5])  # two pairs show the same
    term = example().SigLIP()
    with torch.no_grad():
        term.log_scale += 0.3
        term.bias += 4.0
    found, count = term(Step(torch.tensor(image), torch.tensor(text), torch.tensor(ids)))

    expected = 0.0
    for i in range(5):
        for j in range(5):
            z = 1.0 if ids[i] == ids[j] else -1.0
            logit = 10 * np.exp(0.3) * (image[i] @ text[j]) - 6.0
            expected -= np.log(1 / (1 + np.exp(-z * logit)))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert count == 5


def config_of(pairs: Path, output: Path, *terms: str, **training: Any) -> PairsRunConfig:
    settings = {"epochs": 2, "batch_pairs": 8, "log_every": 1, "checkpoint_every": 2} | training
    return PairsRunConfig(
        pairs=str(pairs),
        output=output,
        vocab_size=200,
        objectives=ImageTextMLMConfig(itc_weight=0.0, term=terms),
        training=PairsTrainingConfig(**settings),
    )


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def test_it_trains_the_projections_from_the_command_line_and_from_python(tmp_path: Path) -> None:
    pairs, output = save_tiny_pairs(tmp_path / "data", 24), tmp_path / "run"
    settings = ["--epochs", "2", "--batch-pairs", "8", "--log-every", "1", "--vocab-size", "200"]
    flags = ["--term", f"{FILE}:SigLIP=0.5", "--itc-weight", "0", "--checkpoint-every", "2"]
    assert main(["train", "pairs", str(pairs), *settings, *flags, "--output", str(output)]) == 0
    rows = logged(output)
    assert rows[-1]["SigLIP"] < rows[0]["SigLIP"]
    assert "itc" not in rows[0]
    expected = rows[0]["mlm"] + 0.5 * rows[0]["mrtd"] + 0.5 * rows[0]["SigLIP"]
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-5)

    first, last = (
        load_file(path / "model.safetensors")
        for path in sorted((output / "checkpoints").glob("step-*"))[-2:]
    )
    for name in ("vision_proj.weight", "text_proj.weight", "loss_terms.SigLIP.bias"):
        assert not torch.equal(first[name], last[name]), name
    assert torch.equal(first["temp"], last["temp"])  # the contrast's own is not trained
    # The model that is saved is a plain one, and retrieval may compare its features.
    assert open_image_text(str(output)).trained("itc")
    assert not [n for n in load_file(output / "model" / "model.safetensors") if "loss_terms" in n]
    assert evaluate_pairs_run(output).scores["right"].masked_tokens > 0

    term = LossTerm.of(example().SigLIP(), weight=0.5)
    train_pairs(config_of(pairs, tmp_path / "python"), progress=False, terms=[term])
    for one, other in zip(rows, logged(tmp_path / "python"), strict=True):
        assert one["loss"] == other["loss"]
        assert one["SigLIP"] == other["SigLIP"]


def test_a_resumed_run_goes_on_with_the_terms_parameters_and_refuses_another_term(
    tmp_path: Path,
) -> None:
    mine, run = tmp_path / "mine.py", tmp_path / "run"
    mine.write_text(FILE.read_text())
    config = config_of(
        save_tiny_pairs(tmp_path / "data", 24), run, f"{mine}:SigLIP", checkpoint_every=1,
        keep_checkpoints=100,
    )  # fmt: skip
    train_pairs(config, progress=False)
    straight = logged(run)
    for path in sorted((run / "checkpoints").glob("step-*"))[2:]:
        shutil.rmtree(path)
    train_pairs(replace(config, resume="auto"), progress=False)
    assert [row["loss"] for row in logged(run)] == [row["loss"] for row in straight]

    mine.write_text(FILE.read_text().replace("-10.0", "-9.0"))
    with pytest.raises(CheckpointError, match=r"mine\.py:SigLIP@"):
        train_pairs(replace(config, resume="auto"), progress=False)
