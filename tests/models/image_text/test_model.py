from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, ViTConfig

from maskery.core.errors import ConfigError, ModelError
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import (
    VISION_FAMILIES,
    ImageTextConfig,
    ImageTextModel,
    VisionEncoder,
)
from maskery.models.image_text.sizes import ImageTextSizes

TINY = ImageTextSizes(image_size=(16, 8), width=16, num_heads=2, embed_dim=6, max_length=12)

# ViT-B/16 at 384 pixels and BERT-base, six of its layers with cross-attention.
RASA = ImageTextSizes(
    image_size=(384, 384),
    patch_size=16,
    image_layers=12,
    text_layers=6,
    fusion_layers=6,
    width=768,
    num_heads=12,
    embed_dim=256,
    max_length=512,
    dropout=0.1,
)


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    torch.manual_seed(0)
    return build_from_scratch(TINY, vocabulary_size=50).eval()


def test_a_saved_model_is_the_same_model(model: ImageTextModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(again, ImageTextModel)
    assert again.config.fusion_layer == 1
    for (name, mine), theirs in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    image, ids = torch.randn(2, 3, 16, 8), torch.randint(0, 50, (2, 5))
    assert torch.equal(model(image, ids).logits, again(image, ids).logits)


def test_forward_reads_text_with_and_without_an_image(model: ImageTextModel) -> None:
    ids = torch.randint(0, 50, (2, 5))
    seeing, blind = model(torch.randn(2, 3, 16, 8), ids), model(input_ids=ids)
    assert seeing.logits.shape == blind.logits.shape == (2, 5, 50)
    assert seeing.last_hidden_state.shape == (2, 5, 16)
    assert not torch.allclose(seeing.logits, blind.logits)


def test_forward_runs_a_step_handed_in(model: ImageTextModel) -> None:
    assert model(compute=lambda m: m is model) is True
    with pytest.raises(ValueError, match="input_ids"):
        model()


def test_features_are_of_unit_length(model: ImageTextModel) -> None:
    tokens = model.encode_image(torch.randn(3, 3, 16, 8))
    torch.testing.assert_close(model.image_feature(tokens).norm(dim=1), torch.ones(3))
    hidden = model.text_encoder.encode_text(torch.randint(0, 50, (3, 4)), None)
    torch.testing.assert_close(model.text_feature(hidden).norm(dim=1), torch.ones(3))


def test_impossible_sizes_are_one_line() -> None:
    with pytest.raises(ModelError, match="choose 12 x 16"):
        ImageTextConfig(vision_config=ViTConfig(image_size=[14, 16], patch_size=4))
    with pytest.raises(ModelError, match="fusion_layer is 5"):
        ImageTextConfig(text_config=BertConfig(num_hidden_layers=4), fusion_layer=5)
    with pytest.raises(ConfigError, match="image_size is 10 x 8"):
        ImageTextSizes(image_size=(10, 8))
    with pytest.raises(ConfigError, match="heads must divide"):
        ImageTextSizes(width=10)
    with pytest.raises(ConfigError, match="patch_size is 0"):
        ImageTextSizes(patch_size=0)


def test_the_preset_has_the_published_sizes() -> None:
    with torch.device("meta"):
        model = build_from_scratch(RASA, vocabulary_size=30522)
    # ALBEF: ViT-B/16 of 85.8M parameters and BERT-base of 123.7M with six cross-attentions.
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert 205 < count < 215


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
EXTRA = {"deit": 2, "vit": 1, "clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1}
EXTRA["dinov2_with_registers"] = 1 + 4


def config_of(family: str) -> Any:
    return AutoConfig.for_model(family, **SIZES)


@pytest.mark.parametrize("family", sorted(VISION_FAMILIES))
def test_every_family_gives_tokens_and_takes_gradients(family: str) -> None:
    torch.manual_seed(0)
    encoder = VisionEncoder(config_of(family)).eval()
    tokens = encoder(torch.randn(2, 3, 16, 16))
    assert tokens.shape == (2, 16 + EXTRA[family], 16)
    assert encoder.width == 16
    # Every family ends in a normalisation over the width.
    assert tokens.mean(dim=-1).abs().max() < 1e-4
    (tokens**3).sum().backward()
    unread = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert unread == []


@pytest.mark.parametrize("family", sorted(VISION_FAMILIES))
def test_other_image_sizes_are_interpolated(family: str) -> None:
    encoder = VisionEncoder(config_of(family)).eval()
    tokens = encoder(torch.randn(1, 3, 24, 16))
    assert tokens.shape[1] == 24 + EXTRA[family]


def test_tokens_are_those_of_hugging_face() -> None:
    encoder = VisionEncoder(config_of("vit")).eval()
    plain = AutoModel.from_config(config_of("vit"), add_pooling_layer=False).eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder(image), plain(image).last_hidden_state)


def test_the_whole_image_is_the_class_token_or_the_mean() -> None:
    tokens = torch.randn(2, 17, 16)
    assert torch.equal(VisionEncoder(config_of("vit")).summarise(tokens), tokens[:, 0])
    mean = VisionEncoder(config_of("siglip_vision_model")).summarise(tokens)
    torch.testing.assert_close(mean, tokens.mean(dim=1))


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ModelError, match="type 'bert' are not supported; choose one of clip"):
        VisionEncoder(AutoConfig.for_model("bert"))
