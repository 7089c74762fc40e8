from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    RobertaConfig,
)

from maskery.core.errors import ModelError
from maskery.models.image_text.build import (
    build_from_encoders,
    fit_vision_positions,
)

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BertForMaskedLM]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    model = BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=12, **SIZES)).eval()
    model.save_pretrained(folder)
    return folder, model


def vision(folder: Path, family: str) -> Any:
    config = AutoConfig.for_model(family, image_size=16, patch_size=4, **SIZES)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["vit", "siglip_vision_model", "dinov2"])
def test_both_sides_keep_their_weights(
    bert: tuple[Path, BertForMaskedLM], tmp_path: Path, family: str
) -> None:
    eyes = vision(tmp_path, family)
    model = build_from_encoders(bert[0], tmp_path)[0].eval()
    ids = torch.randint(0, 50, (2, 5))
    torch.testing.assert_close(model(input_ids=ids).logits, bert[1](ids).logits)
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.encode_image(image), eyes(image).last_hidden_state)
    assert model.config.fusion_layer == 1


def test_a_clip_gives_its_vision_tower(bert: tuple[Path, BertForMaskedLM], tmp_path: Path) -> None:
    towers = {**SIZES, "image_size": 16, "patch_size": 4}
    clip = CLIPModel(CLIPConfig(vision_config=towers, text_config={**SIZES, "vocab_size": 50}))
    clip.eval().save_pretrained(tmp_path)
    model = build_from_encoders(bert[0], tmp_path)[0].eval()
    image = torch.randn(1, 3, 16, 16)
    expected = clip.vision_model(image).pooler_output
    torch.testing.assert_close(model.encode_image(image)[:, 0], expected)


@pytest.mark.parametrize("size", [(24, 8), (24, 24)])
@pytest.mark.parametrize("family", ["vit", "clip_vision_model", "siglip_vision_model", "dinov2"])
def test_another_image_size_resizes_positions(
    bert: tuple[Path, BertForMaskedLM], tmp_path: Path, family: str, size: tuple[int, int]
) -> None:
    vision(tmp_path, family)
    model = build_from_encoders(bert[0], tmp_path, image_size=size)[0].eval()
    tokens = model.encode_image(torch.randn(1, 3, *size))
    patches = size[0] * size[1] // 16
    assert tokens.shape[1] - patches == (family != "siglip_vision_model")
    assert model.config.image_size == list(size)
    resized_once = family == "vit" or size == (24, 24)
    assert (model.visual_encoder.image_size == size) == resized_once


@pytest.mark.parametrize("family", ["vit", "siglip_vision_model"])
def test_a_size_that_is_no_multiple_of_the_patches_is_told_of_and_cut(
    bert: tuple[Path, BertForMaskedLM],
    tmp_path: Path,
    family: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = AutoConfig.for_model(family, image_size=18, patch_size=4, **SIZES)
    eyes = AutoModel.from_config(config).eval()
    eyes.save_pretrained(tmp_path)
    model = build_from_encoders(bert[0], tmp_path)[0].eval()
    assert model.config.image_size == [16, 16]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "18 x 18 pixels, no multiple of its patches of 4 x 4; they are read at 16 x 16" in said
    # The encoder itself never saw the rows and columns beyond its last patches.
    image = torch.randn(2, 3, 18, 18)
    expected = eyes(image).last_hidden_state
    torch.testing.assert_close(model.encode_image(image[..., :16, :16]), expected)


def test_same_size_positions_stay() -> None:
    config = AutoConfig.for_model("vit", image_size=16, patch_size=4, **SIZES)
    encoder = AutoModel.from_config(config)
    state = fit_vision_positions(encoder, config)
    name = "embeddings.position_embeddings"
    assert torch.equal(state[name], encoder.state_dict()[name])


def test_other_text_models_and_missing_folders_are_one_line(
    bert: tuple[Path, BertForMaskedLM], tmp_path: Path
) -> None:
    RobertaConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a roberta model: the text side must be a BERT"):
        build_from_encoders(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match=r"configuration in .* cannot be loaded") as caught:
        build_from_encoders(tmp_path, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="vision encoders of type 'bert'"):
        build_from_encoders(bert[0], bert[0])


def test_a_bert_without_a_head_gets_one_that_is_named_as_new(
    bert: tuple[Path, BertForMaskedLM], tmp_path: Path
) -> None:
    headless, eyes = tmp_path / "bert", tmp_path / "eyes"
    bert[1].bert.save_pretrained(headless)
    vision(eyes, "vit")
    _, new_beside_whole = build_from_encoders(bert[0], eyes)
    model, new = build_from_encoders(headless, eyes)
    heads = {name for name in new if name.startswith("text_encoder.cls.")}
    assert new - heads == new_beside_whole
    transform = model.text_encoder.cls.predictions.transform.dense
    assert torch.equal(transform.weight, torch.eye(16))
    assert {f"text_encoder.cls.predictions.{n}" for n in ("bias", "transform.dense.weight")} < heads


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-was-done"),))


@pytest.mark.parametrize("side", ["text", "vision"])
@pytest.mark.parametrize("damage", ["truncated", "shapes", "pickle", "none"])
def test_bad_weights_are_one_line_and_run_no_code(
    bert: tuple[Path, BertForMaskedLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    side: str,
    damage: str,
) -> None:
    folders = {"text": tmp_path / "text", "vision": tmp_path / "vision"}
    bert[1].save_pretrained(folders["text"])
    vision(folders["vision"], "vit")
    weights = folders[side] / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "shapes":
        name = {"text": "bert.pooler.dense.bias", "vision": "layernorm.bias"}[side]
        name = next(n for n in load_file(weights) if n.endswith("LayerNorm.bias") or n == name)
        save_file({**load_file(weights), name: torch.zeros(5)}, weights, {"format": "pt"})
    else:
        weights.unlink()
    if damage == "pickle":
        torch.save({"x": Harm()}, folders[side] / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"in '{folders[side]}' cannot be loaded") as caught:
        build_from_encoders(folders["text"], folders["vision"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm-was-done").exists()
