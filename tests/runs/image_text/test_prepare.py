"""Runs that start from a BERT and a vision encoder: every family, there and back."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import save_tiny_pairs
from tiny_text import save_tiny_model
from transformers import (
    AutoConfig,
    AutoModel,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from maskery.cli.main import main
from maskery.data.images.config import CLIP_MEAN, HALF_MEAN, IMAGENET_MEAN
from maskery.data.pairs.pairs import Pairs
from maskery.runs.image_text.config import PairsRunConfig, PairsTrainingConfig
from maskery.runs.image_text.prepare import StartModel, start_model, warn_of_sides
from maskery.runs.pairs.run import train_pairs

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MEANS = {
    "vit": HALF_MEAN,
    "deit": IMAGENET_MEAN,
    "clip_vision_model": CLIP_MEAN,
    "clip": CLIP_MEAN,
    "siglip_vision_model": HALF_MEAN,
    "siglip": HALF_MEAN,
    "dinov2": IMAGENET_MEAN,
    "dinov2_with_registers": IMAGENET_MEAN,
}


def save_vision(folder: Path, family: str) -> Path:
    """A tiny random vision encoder, or a model of two towers that has one."""
    torch.manual_seed(1)
    eyes: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 8}
    words = {**SIZES, "vocab_size": 30}
    model: Any
    if family == "clip":
        model = CLIPModel(CLIPConfig(vision_config=eyes, text_config=words))
    elif family == "siglip":
        model = SiglipModel(SiglipConfig(vision_config=eyes, text_config=words))
    else:
        model = AutoModel.from_config(AutoConfig.for_model(family, **eyes))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pairs(tmp_path_factory.mktemp("pairs"), 12)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError(f"a local folder needs no network, and {arguments} was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def config_of(
    pairs: Path, bert: Path, vision: Path, output: Path, **changes: Any
) -> PairsRunConfig:
    return PairsRunConfig(
        pairs=str(pairs),
        text_model=str(bert),
        vision_model=str(vision),
        output=output,
        training=PairsTrainingConfig(max_steps=2, batch_pairs=4),
        **changes,
    )


@pytest.mark.parametrize("family", sorted(MEANS))
def test_every_family_trains_saves_fills_and_evaluates(
    family: str, pairs: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, run = save_vision(tmp_path / "vision", family), tmp_path / "run"
    encoders = ["--text-model", str(bert), "--vision-model", str(vision)]
    few = ["--max-steps", "2", "--batch-pairs", "4", "--output", str(run), "--json"]
    assert main(["train", "pairs", str(pairs), *encoders, *few]) == 0
    trained = json.loads(capsys.readouterr().out)

    model = AutoModel.from_pretrained(run / "model").eval()
    logits = model(pixel_values=torch.zeros(2, 3, 16, 16), input_ids=torch.tensor([[2, 9, 3]] * 2))
    assert logits.logits.shape == (2, 3, model.config.text_config.vocab_size)
    described = json.loads((run / "model" / "preprocessor_config.json").read_text())
    assert described["image_mean"] == list(MEANS[family])

    fill = ["fill", str(run), "a [MASK] square", "--image", str(pairs.parent / "000.png")]
    assert main([*fill, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["masks"][0]) == 5
    assert main(["evaluate", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for sight, scores in trained["scores"].items():
        assert again["scores"][sight]["loss"][0] == pytest.approx(scores["loss"][0], abs=1e-5)


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_pictures_of_another_shape_than_the_encoders(
    family: str, pairs: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, run = save_vision(tmp_path / "vision", family), tmp_path / "run"
    encoders = ["--text-model", str(bert), "--vision-model", str(vision)]
    few = ["--max-steps", "2", "--batch-pairs", "4", "--output", str(run)]
    size = ["--height", "32", "--width", "16"]
    assert main(["train", "pairs", str(pairs), *encoders, *few, *size]) == 0
    fill = ["fill", str(run), "a [MASK] square", "--image", str(pairs.parent / "000.png")]
    assert main(fill) == 0
    assert AutoModel.from_pretrained(run / "model").config.image_size == [32, 16]


def start(config: PairsRunConfig) -> StartModel:
    return start_model(config, Pairs.open(config.pairs), progress=False)


def test_encoders_keep_their_weights_and_only_the_rest_is_new(
    pairs: Path, bert: Path, tmp_path: Path
) -> None:
    vision = save_vision(tmp_path / "vision", "vit")
    started = start(config_of(pairs, bert, vision, tmp_path / "run"))
    theirs = BertForMaskedLM.from_pretrained(bert).state_dict()
    eyes = AutoModel.from_pretrained(vision).state_dict()
    for name, parameter in started.model.named_parameters():
        words = theirs.get(name.removeprefix("text_encoder."))
        sight = eyes.get(name.removeprefix("visual_encoder.backbone."))
        kept = words if words is not None else sight
        assert (name in started.new_parameters) == (kept is None), name
        if kept is not None:
            assert torch.equal(parameter, kept), name


def test_the_encoders_own_normalisation_is_taken_and_saved(
    pairs: Path, bert: Path, tmp_path: Path
) -> None:
    vision = save_vision(tmp_path / "vision", "vit")
    described = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (vision / "preprocessor_config.json").write_text(json.dumps(described), "utf-8")
    result = train_pairs(config_of(pairs, bert, vision, tmp_path / "run"), progress=False)
    saved = json.loads((result.folder / "model" / "preprocessor_config.json").read_text())
    assert {name: saved[name] for name in described} == described
    assert saved["size"] == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a man on the left", True),
        ("Links steht ein Baum", True),
        ("слева дом", True),
        ("左边有一棵树", True),
        ("a bright leftover", False),
    ],
)
def test_words_for_sides_are_told_of_while_pictures_are_mirrored(
    caption: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = Pairs.open([{"image": f"{n}.png", "caption": caption} for n in range(3)])
    warn_of_sides(pairs, 0.5)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == told
    assert all("3 captions say left or right" in line for line in said)
    assert all("--flip-probability 0" in line for line in said)
    caplog.clear()
    warn_of_sides(pairs, 0.0)
    assert not caplog.records
