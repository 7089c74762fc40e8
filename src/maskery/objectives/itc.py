"""Image-text contrastive learning (ITC) with momentum features, queues and soft targets.

Li et al., "Align before Fuse" (ALBEF, NeurIPS 2021), sections 3.2 and 3.3, equations 1, 2 and 6.
RaSa (IJCAI 2023, section 3.1) adds contrast within images and within texts and counts every pair
of the same person as positive.

Shapes: B pairs, G pairs of all processes, K queued features, C = G + K candidates, E features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Direction: TypeAlias = tuple[str, str]  # Fields of `Features`: which side asks, and whom
ALBEF_DIRECTIONS: tuple[Direction, ...] = (("image", "text"), ("text", "image"))
RASA_DIRECTIONS = (*ALBEF_DIRECTIONS, ("image", "image"), ("text", "text"))


@dataclass(frozen=True, kw_only=True)
class Features:
    """Unit-length features of B image-text pairs, or of C candidates."""

    image: Tensor  # (B, E)
    text: Tensor  # (B, E)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The contrastive loss and the similarities that it is computed from."""

    loss_sum: Tensor  # Scalar, over the B pairs; the directions are averaged
    # (B, G) similarities of each image with the teacher's texts of the batch, of all processes,
    # over the temperature, without gradient: hard negatives are drawn from them.
    image_to_text: Tensor
    text_to_image: Tensor  # (B, G), likewise


def itc_loss(
    student: Features,  # (B, E) each, with gradients
    teacher: Features,  # (B, E) each, of the momentum twin on the other view
    candidates: Features,  # (C, E) each, the teacher's: of all processes, then of the queues
    *,
    ids: Tensor,  # (B,) int64, who is shown
    candidate_ids: Tensor,  # (C,) int64
    temperature: Tensor,  # scalar, positive; may be learnt
    alpha: float,  # the weight of the teacher's similarities in the targets, in [0, 1]
    directions: Sequence[Direction] = RASA_DIRECTIONS,  # averaged
    crowd_size: int | None = None,  # G; by default B
    belief: "Belief | None" = None,  # In the captions of positives; None: all are right
) -> Contrast:
    """Contrast each student feature with the teacher's features of the batch and the queues."""
    # Each row's target is spread evenly over the candidates of the same identity.
    same = (ids.unsqueeze(1) == candidate_ids.unsqueeze(0)).float()
    hard = same / same.sum(dim=1, keepdim=True)
    loss_sum = torch.zeros((), device=ids.device)
    for asked, asked_of in directions:
        keys: Tensor = getattr(candidates, asked_of)
        with torch.no_grad():
            taught = similarities(getattr(teacher, asked), keys, temperature)
            trusted = hard if belief is None else hard * belief.of(shares_below(taught, same > 0))
            targets = alpha * F.softmax(taught, dim=1) + (1 - alpha) * trusted  # ALBEF, equation 6
        scores = similarities(getattr(student, asked), keys, temperature)
        loss_sum = loss_sum - torch.sum(F.log_softmax(scores, dim=1) * targets)
    with torch.no_grad():
        crowd = slice(len(ids) if crowd_size is None else crowd_size)
        image_to_text = similarities(student.image, candidates.text[crowd], temperature)
        text_to_image = similarities(student.text, candidates.image[crowd], temperature)
    mean = loss_sum / len(directions)
    return Contrast(loss_sum=mean, image_to_text=image_to_text, text_to_image=text_to_image)


def shares_below(scores: Tensor, same: Tensor) -> Tensor:
    """Return the share of other identities' columns that each column exceeds: (B, C) in [0, 1].

    From (B, C) scores and (B, C) bool, True for the row's identity; 1 where nobody else is there.
    """
    others = scores.masked_fill(same, float("inf")).sort(dim=1).values
    below = torch.searchsorted(others, scores.contiguous())
    num_others = (~same).sum(dim=1, keepdim=True)
    return torch.where(num_others > 0, below / num_others.clamp(min=1), 1.0).clamp(max=1)


class Belief(NamedTuple):
    """Tells a caption's chance to be its picture's from the share of strangers that fit worse.

    A mixture in place of the one of losses in RDE (Qin et al., CVPR 2024, consensus division): of a
    wrong caption the share is spread evenly over [0, 1], of a right one it has the density
    `power` * share ** (`power` - 1). With a power near 1, all captions are believed alike.
    """

    power: Tensor  # Scalar, at least 1
    prior: Tensor  # Scalar, the share of right captions

    @classmethod
    def fitted(cls, shares: Tensor) -> Self:
        """Fit (N,) shares by expectation and maximisation, in float64."""
        logarithms = shares.double().clamp(min=1 / (2 * len(shares))).log()
        belief = cls(logarithms.new_full((), 2.0), logarithms.new_full((), 0.9))
        for _ in range(20):
            right = belief.of(logarithms.exp())
            power = right.sum() / -(right * logarithms).sum().clamp(max=-1e-9)
            belief = cls(power.clamp(1, 1e4), right.mean().clamp(min=0.1))
        return belief

    def of(self, shares: Tensor) -> Tensor:
        """Return the probability of being right, of the shape of `shares`."""
        right = self.prior * self.power * shares ** (self.power - 1)
        return right / (right + 1 - self.prior).clamp(min=1e-9)


def similarities(asked: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
    """Return (B, C) float32, similarities of (B, E) with (C, E) over the temperature."""
    # At 0.07 bfloat16 would be off by up to 0.04 in the exponent.
    with torch.autocast(asked.device.type, enabled=False):
        return asked.float() @ keys.float().T / temperature
