"""Image-text contrastive learning (ITC) with momentum features, queues and soft targets.

Li et al., "Align before Fuse" (ALBEF, NeurIPS 2021), sections 3.2 and 3.3, equations 1, 2 and 6.
RaSa (IJCAI 2023, section 3.1) adds contrast within images and within texts and counts every pair
of the same person as positive.

Shapes: B pairs, G pairs of all processes, K queued features, C = G + K candidates, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F

Direction: TypeAlias = Literal["i2t", "t2i", "i2i", "t2t"]
ALBEF_DIRECTIONS: tuple[Direction, ...] = ("i2t", "t2i")
RASA_DIRECTIONS: tuple[Direction, ...] = ("i2t", "t2i", "i2i", "t2t")
NAMES = {"i": "image", "t": "text"}


@dataclass(frozen=True, kw_only=True)
class Features:
    """Unit-length features of B image-text pairs, or of C candidates."""

    image: torch.Tensor  # (B, E)
    text: torch.Tensor  # (B, E)

    def normalised(self) -> Features:
        """Return features of any length as features of unit length."""
        return Features(image=F.normalize(self.image, dim=-1), text=F.normalize(self.text, dim=-1))


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The contrastive loss and the similarities that it is computed from."""

    loss_sum: torch.Tensor  # Scalar, over the B pairs; the directions are averaged
    # (B, G) similarities of each image with the teacher's texts of the batch, of all processes,
    # over the temperature, without gradient: hard negatives are drawn from them.
    image_to_text: torch.Tensor
    text_to_image: torch.Tensor  # (B, G), likewise


def itc_loss(
    student: Features,  # (B, E) each, with gradients
    teacher: Features,  # (B, E) each, of the momentum twin on the other view
    candidates: Features,  # (C, E) each, the teacher's: of all processes, then of the queues
    *,
    ids: torch.Tensor,  # (B,) int64, who is shown
    candidate_ids: torch.Tensor,  # (C,) int64
    temperature: torch.Tensor,  # scalar, positive; may be learnt
    alpha: float,  # the weight of the teacher's similarities in the targets, in [0, 1]
    directions: Sequence[Direction] = RASA_DIRECTIONS,  # averaged; `i2t` asks images for texts
    crowd_size: int | None = None,  # G; by default B
    doubt: float = 0.0,  # see `trust`
) -> Contrast:
    """Contrast each student feature with the teacher's features of the batch and the queues."""
    # Each row's target is spread evenly over the candidates of the same identity.
    same = (ids.unsqueeze(1) == candidate_ids.unsqueeze(0)).float()
    hard = same / same.sum(dim=1, keepdim=True)
    loss_sum = torch.zeros((), device=ids.device)
    for direction in directions:
        asked, asked_of = (NAMES[letter] for letter in (direction[0], direction[2]))
        keys: torch.Tensor = getattr(candidates, asked_of)
        with torch.no_grad():
            taught = similarities(getattr(teacher, asked), keys, temperature)
            trusted = hard * trust(taught, same, doubt) if doubt else hard
            # ALBEF, equation 6
            targets = alpha * F.softmax(taught, dim=1) + (1 - alpha) * trusted
        scores = similarities(getattr(student, asked), keys, temperature)
        loss_sum = loss_sum - torch.sum(F.log_softmax(scores, dim=1) * targets)
    with torch.no_grad():
        crowd = slice(len(ids) if crowd_size is None else crowd_size)
        image_to_text = similarities(student.image, candidates.text[crowd], temperature)
        text_to_image = similarities(student.text, candidates.image[crowd], temperature)
    return Contrast(
        loss_sum=loss_sum / len(directions),
        image_to_text=image_to_text,
        text_to_image=text_to_image,
    )


def trust(scores: torch.Tensor, same: torch.Tensor, doubt: float) -> torch.Tensor:
    """Return (B, C) float32, in [0, 1]: how far each positive is believed.

    It is the share of the other identities' columns that the twin's similarity (`scores`, (B, C))
    to this one exceeds, to the power of `doubt`: of a caption that describes someone else it is
    spread evenly over [0, 1], of one's own it is near 1. Where nobody else is there it is 1.
    """
    others = scores.masked_fill(same.bool(), float("inf")).sort(dim=1).values
    below = torch.searchsorted(others, scores.contiguous())
    num_others = (others < float("inf")).sum(dim=1, keepdim=True)
    share = below.float() / num_others.clamp(min=1)
    return torch.where(num_others > 0, share.clamp(max=1), 1.0) ** doubt


def similarities(
    asked: torch.Tensor, keys: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """Return (B, C) float32, similarities of (B, E) with (C, E) over the temperature."""
    # At 0.07 bfloat16 would be off by up to 0.04 in the exponent.
    with torch.autocast(asked.device.type, enabled=False):
        return asked.float() @ keys.float().T / temperature
