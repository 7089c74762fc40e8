"""Cross-entropy over a large vocabulary without copies of the logits, for the CPU.

`torch.nn.functional.cross_entropy` writes the log-probabilities, reads them again for the gradient,
and both are float32 whatever the logits are. Here the logits are read twice, some rows at a time,
and only the gradient is written.

Shapes: M rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from maskery.core.batch import IGNORE_INDEX

# Rows of so many logits are worked on at once: 4 MB in float32, which stay in the cache.
BLOCK_LOGITS = 1 << 20


class CrossEntropySum(torch.autograd.Function):
    """Sum of cross-entropies in float32; arguments as those of `mlm_loss_sum`."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Read the logits once."""
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        # Apart, since their sum would lose digits of a small loss among large logits.
        highest, log_sums = torch.empty(2, len(logits), 1, device=logits.device)
        for rows in _blocks(logits):
            scores, target = logits[rows].float(), targets[rows, None]
            torch.amax(scores, dim=1, keepdim=True, out=highest[rows])
            scores = scores - highest[rows]
            right = scores.gather(1, target.clamp_min(0))
            torch.log(scores.exp_().sum(dim=1, keepdim=True), out=log_sums[rows])
            total += (log_sums[rows] - right).masked_fill_(target == IGNORE_INDEX, 0.0).sum()
        ctx.save_for_backward(logits, targets, highest, log_sums)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The softmax less the target's 1, for rows that count."""
        logits, targets, highest, log_sums = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in _blocks(logits):
            target = targets[rows, None]
            part = (logits[rows] - highest[rows]).sub_(log_sums[rows]).exp_()
            part.scatter_add_(1, target.clamp_min(0), torch.full_like(part[:, :1], -1.0))
            grad[rows] = part.mul_(grad_total.masked_fill(target == IGNORE_INDEX, 0.0))
        return grad, None


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Slices of rows that cover the logits."""
    size = max(1, BLOCK_LOGITS // max(logits.shape[1], 1))
    return (slice(first, first + size) for first in range(0, len(logits), size))
