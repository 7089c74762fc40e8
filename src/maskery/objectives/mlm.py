"""Masked language modelling with hard labels (BERT, section 3.1).

Shapes: M masked tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def mlm_loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the masked tokens, summed.

    Args:
        logits: (M, V), any float type; computed in float32.
        targets: (M,) int64.

    Returns:
        A scalar; 0, with gradients of 0, where nothing was masked.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")
