"""Which heads of an image-text model have been trained; see `ModelRetrieval.trained`."""

from __future__ import annotations

from maskery.core.errors import ModelError
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.models.image_text.class_token import fusion_layers


def can_match(opened: OpenImageText) -> bool:
    """Whether the matching head (ITM) has been trained."""
    return "itm" in opened.retrieval.trained and bool(fusion_layers(opened.model.text_encoder))


def can_contrast(opened: OpenImageText) -> bool:
    """Whether the contrastive projections (ITC) have been trained."""
    return "itc" in opened.retrieval.trained


def can_fill(opened: OpenImageText) -> bool:
    """Whether the head over the vocabulary (MLM) has been trained."""
    return "mlm" in opened.retrieval.trained


def require_contrast(opened: OpenImageText) -> None:
    """Refuse a model whose features say nothing.

    Raises:
        ModelError: Its contrastive projections were never trained.
    """
    if not can_contrast(opened):
        raise ModelError(
            f"the contrastive projections of '{opened.name}' were never trained, so its features "
            f"cannot be compared; train with --itc-weight above 0"
        )
