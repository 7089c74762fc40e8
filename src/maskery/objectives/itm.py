"""Image-text matching (ITM) with hard negatives, and positive relation detection (PRD).

Li et al., "Align before Fuse" (ALBEF, NeurIPS 2021), section 3.2; RaSa (IJCAI 2023, section 3.2)
calls it probabilistic matching (pITM) because the positive text may be that of another picture of
the same person. PRD (section 3.2, too) tells strong matches, whose caption was written for the
picture, from weak ones, whose caption is that of another picture of the same person.

Shapes: B pairs of this process, G of all processes, R judged pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maskery.objectives.mrtd import sample_tokens


def draw_hard_negatives(
    similarities: Tensor,  # (B, G), over the temperature
    same: Tensor,  # (B, G) bool: row and column show the same person (itself included)
    uniforms: Tensor,  # (B,) in [0, 1)
    own: Tensor | None = None,  # (B,) int64, the column of each row; by default the diagonal
) -> Tensor:
    """Draw for each row a column that is not the same, the more similar the likelier: (B,) int64.

    The probabilities are the softmax of the similarities over the columns that are allowed. A row
    in which none is allowed gives its own index; the caller leaves it out of the loss
    (`has_negative` says which).
    """
    # Masking before the softmax, not after: a similar positive cannot underflow the negatives.
    scores = similarities.float().masked_fill(same, float("-inf"))
    places = torch.arange(len(same), device=same.device) if own is None else own
    itself = F.one_hot(places, same.shape[1]).bool()
    none_allowed = same.all(dim=1, keepdim=True)
    weights = F.softmax(scores.masked_fill(none_allowed & itself, 0.0), dim=1)
    return sample_tokens(weights, uniforms)


def has_negative(ids: Tensor, crowd_ids: Tensor) -> Tensor:
    """Return (B,) bool, True where someone else is in the crowd; from ids (B,) and (G,)."""
    return (ids.unsqueeze(1) != crowd_ids.unsqueeze(0)).any(dim=1)


def itm_loss_sum(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of two-class cross-entropies over the judged pairs, in nats, float32.

    From logits (R, 2), mismatch against match; labels (R,) int64, 1 where image and text belong
    together; and (R,) weights, 0 for pairs that do not count, since no negative could be drawn.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses.sum() if weights is None else (losses * weights).sum()


def prd_loss_sum(logits: Tensor, replaced: Tensor) -> Tensor:
    """Sum of two-class cross-entropies over the pairs, in nats.

    From logits (B, 2), strong against weak, and (B,) int64: 1 for another picture's caption.
    """
    return F.cross_entropy(logits.float(), replaced, reduction="sum")
