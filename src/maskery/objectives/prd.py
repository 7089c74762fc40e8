"""Positive relation detection (PRD).

Bai et al., "RaSa" (IJCAI 2023), section 3.2: of the matching pairs, tell the strong ones (the
caption was written for this picture) from the weak ones (for another picture of the same person).

Shapes: B pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def prd_loss_sum(logits: torch.Tensor, replaced: torch.Tensor) -> torch.Tensor:
    """Sum of two-class cross-entropies over the pairs, in nats.

    Args:
        logits: (B, 2), strong against weak; any floating dtype.
        replaced: (B,) int64, 1 where the caption is another picture's.

    Returns:
        Scalar float32.
    """
    return F.cross_entropy(logits.float(), replaced, reduction="sum")
