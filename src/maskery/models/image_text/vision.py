"""Vision encoders of Hugging Face behind one face: images in, normalised tokens out.

Shapes: B images, N tokens, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from maskery.core.errors import ModelError
from maskery.models.image_text.config import image_size_of


@dataclass(frozen=True, kw_only=True)
class VisionFamily:
    """How one architecture differs from a plain ViT.

    Attributes:
        class_token: Whether token 0 stands for the whole image; otherwise the mean of all does.
        token_norm: The attribute of a normalisation that the architecture keeps for its pooled
            token and that is put on all tokens here.
        oblong: Whether its position table may be of an image that is not square; others are
            interpolated in every pass.
        unused_settings: Settings that leave out parts which nothing reads.
        arguments: Likewise, for the constructor.
    """

    class_token: bool = True
    token_norm: str | None = None
    oblong: bool = False
    unused_settings: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


VISION_FAMILIES: dict[str, VisionFamily] = {
    "vit": VisionFamily(oblong=True, arguments={"add_pooling_layer": False}),
    "deit": VisionFamily(oblong=True, arguments={"add_pooling_layer": False}),
    "dinov2": VisionFamily(unused_settings={"use_mask_token": False}),
    "dinov2_with_registers": VisionFamily(),
    "clip_vision_model": VisionFamily(token_norm="post_layernorm"),
    "siglip_vision_model": VisionFamily(
        class_token=False, unused_settings={"vision_use_head": False}
    ),
}


def vision_family(model_type: str) -> VisionFamily:
    """What is known of an architecture.

    Raises:
        ModelError: Nothing.
    """
    if model_type not in VISION_FAMILIES:
        raise ModelError(
            f"vision encoders of type '{model_type}' are not supported; choose one of "
            f"{', '.join(sorted(VISION_FAMILIES))}"
        )
    return VISION_FAMILIES[model_type]


class VisionEncoder(nn.Module):
    """A Hugging Face vision encoder that returns its tokens after the last normalisation.

    Attributes:
        backbone: The encoder itself.
        width: W.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.family = vision_family(config.model_type)
        self.image_size = image_size_of(config)
        self.width = int(config.hidden_size)
        for name, value in self.family.unused_settings.items():
            setattr(config, name, value)
        self.backbone = AutoModel.from_config(config, **self.family.arguments)
        for name, parameter in self.backbone.named_parameters():
            # No step reads it, and a trained parameter without gradient stops data parallelism.
            if name.rpartition(".")[2] == "mask_token":
                parameter.requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width), normalised, to (B, N, W).

        Positions are interpolated where the images are not of the encoder's own size.
        """
        other_size = tuple(pixel_values.shape[-2:]) != self.image_size
        options = {"interpolate_pos_encoding": True} if other_size else {}
        if self.backbone.config.model_type.startswith("dinov2"):
            options = {}  # interpolates by itself
        tokens: torch.Tensor = self.backbone(pixel_values, **options).last_hidden_state
        if self.family.token_norm is not None:
            tokens = getattr(self.backbone, self.family.token_norm)(tokens)
        return tokens

    def summarise(self, tokens: torch.Tensor) -> torch.Tensor:
        """One vector for the whole image: (B, N, W) to (B, W)."""
        return tokens[:, 0] if self.family.class_token else tokens.mean(dim=1)
