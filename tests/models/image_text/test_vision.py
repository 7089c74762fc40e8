from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from maskery.core.errors import ModelError
from maskery.models.image_text.vision import VISION_FAMILIES, VisionEncoder

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
