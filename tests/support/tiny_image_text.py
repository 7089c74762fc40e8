"""A tiny image-text model with its tokenizer, saved as a folder; its weights are noise."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_pairs import new_tokenizer

from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes


def new_image_text(
    seed: int = 0, *, contrast: bool = True, match: bool = True, fusion_layers: int = 2
) -> ImageTextModel:
    """A model of 16 x 16 pixels whose heads count as trained, or not."""
    sizes = ImageTextSizes(
        image_size=(16, 16),
        width=16,
        num_heads=2,
        embed_dim=6,
        max_length=16,
        fusion_layers=fusion_layers,
    )
    torch.manual_seed(seed)
    model = build_from_scratch(sizes, vocabulary_size=len(new_tokenizer())).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        for head in (model.vision_proj, model.text_proj):
            head.bias.fill_(0.01 * contrast)
        model.itm_head.bias.fill_(0.01 * match)
    return model


def save_tiny_image_text(folder: Path, model: ImageTextModel | None = None) -> Path:
    """Save a model, by default `new_image_text()`, with its tokenizer."""
    (model or new_image_text()).save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return folder
