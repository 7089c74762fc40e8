"""A tiny model and batches of noise for the image-text tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes

PAD, CLS, SEP, MASK = 0, 1, 2, 3
VOCABULARY = Vocabulary(size=40, mask_token_id=MASK, special_ids=(PAD, CLS, SEP, MASK))
PARTS: dict[str, Any] = {
    "pad_token_id": PAD,
    "masker": Masker.of(VOCABULARY, config=MaskingConfig(mask_rate=0.3), seed=0),
    "mrtd_masker": Masker.of(VOCABULARY, config=MaskingConfig(mask_rate=0.3), seed=1),
}


@dataclass(frozen=True)
class Pairs:
    image1: torch.Tensor
    image2: torch.Tensor
    text1: TokenBatch
    text2: TokenBatch
    person_ids: torch.Tensor
    replaced: torch.Tensor
    crowd_ids: torch.Tensor


def model() -> ImageTextModel:
    torch.manual_seed(0)
    sizes = ImageTextSizes(image_size=(16, 8), width=16, num_heads=2, embed_dim=6, max_length=16)
    made = build_from_scratch(sizes, vocabulary_size=40)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def captions(ids: list[int], salt: int = 0) -> TokenBatch:
    """The captions of examples `ids`; each is the same in every batch."""
    rows = []
    for i in ids:
        generator = np.random.default_rng((i, salt))
        words = generator.integers(4, 40, int(generator.integers(1, 11)))
        rows.append(np.concatenate(([CLS], words, [SEP])))
    boundaries = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    return TokenBatch(
        input_ids=np.concatenate(rows).astype(np.int64),
        boundaries=boundaries.astype(np.int64),
        example_ids=np.array(ids, np.uint64),
        starts=np.zeros(len(ids), np.int64),
        word_starts=np.ones(int(boundaries[-1]), np.bool_),
    )


def pairs(ids: list[int], persons: list[int] | None = None) -> Pairs:
    images = [torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(i)) for i in ids]
    stacked = torch.stack(images, dim=1)
    return Pairs(
        image1=stacked[0],
        image2=stacked[1],
        text1=captions(ids),
        text2=captions(ids, salt=1),
        person_ids=torch.tensor(ids if persons is None else persons),
        replaced=torch.tensor([i % 2 for i in ids]),
        crowd_ids=torch.tensor(ids if persons is None else persons),
    )
