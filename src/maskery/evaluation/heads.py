"""Which heads of an image-text model have been trained.

A model folder does not say which losses made it. Biases start at exactly zero, and no optimiser
leaves a trained one there.
"""

from __future__ import annotations

from maskery.core.errors import ModelError
from maskery.models.image_text.class_token import fusion_layers
from maskery.models.image_text.model import ImageTextModel


def can_match(model: ImageTextModel) -> bool:
    """Whether the matching head (ITM) has been trained."""
    return bool(fusion_layers(model.text_encoder)) and bool(model.itm_head.bias.any())


def can_contrast(model: ImageTextModel) -> bool:
    """Whether the contrastive projections (ITC) have been trained."""
    return bool(model.text_proj.bias.any()) and bool(model.vision_proj.bias.any())


def require_contrast(model: ImageTextModel, name: str) -> None:
    """Refuse a model whose features say nothing.

    Raises:
        ModelError: Its contrastive projections were never trained.
    """
    if not can_contrast(model):
        raise ModelError(
            f"'{name}' was trained without the contrastive loss, so its features cannot be "
            f"compared; train with --itc-weight above 0"
        )
