"""Masked language modelling: cross-entropy at masked tokens, with hard or softened targets.

Devlin et al., "BERT" (NAACL 2019), section 3.1; softened by a momentum teacher: Li et al.,
"Align before Fuse" (ALBEF, NeurIPS 2021), section 3.3, equation 7.

On a CPU `CrossEntropySum` reads the logits twice, some rows at a time, and writes their gradient
alone: PyTorch's own writes the log-probabilities, too, and reads them again, both in float32.

Shapes: B sequences, L tokens each, M masked tokens, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskery.core.batch import IGNORE_INDEX

BLOCK_LOGITS = 1 << 20  # worked on at once: 4 MB in float32, which stay in the cache


def mlm_loss_sum(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum the cross-entropies at the masked tokens, in nats: a float32 scalar.

    From logits (M, V) of any floating dtype, and targets (M,) int64, of which `IGNORE_INDEX` counts
    for nothing. Each is multiplied by its weight in (M,) float32, or by 1. It is 0 with a gradient
    when nothing is masked (M = 0).
    """
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        total: Tensor = CrossEntropySum.apply(logits, targets, weights)  # type: ignore[no-untyped-call]
        return total
    how = "sum" if weights is None else "none"
    losses = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction=how)
    return losses if weights is None else losses @ weights


def soft_mlm_loss_sum(
    logits: Tensor, targets: Tensor, soft_labels: Tensor | None, alpha: float
) -> Tensor:
    """Return `(1 - alpha) * hard + alpha * soft`, each a sum over the masked tokens.

    The soft part is the cross-entropy of the model against the teacher's distribution over the
    vocabulary, `soft_labels` (M, V) (ALBEF, equation 7); the rest is as for `mlm_loss_sum`, which
    is all of it where there are no soft labels.
    """
    if soft_labels is None:
        return mlm_loss_sum(logits, targets)
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    hard = F.nll_loss(log_probabilities, targets, reduction="sum")
    soft = -torch.sum(log_probabilities * soft_labels.float())
    return (1 - alpha) * hard + alpha * soft


def soft_mlm_loss_sum_over_sequence(
    logits: Tensor, positions: Tensor, targets: Tensor, soft_labels: Tensor, alpha: float
) -> Tensor:
    """Return the loss as ALBEF and RaSa released it, for comparison with their results.

    Their soft part takes the log-softmax over dimension 1, the sequence, so a token's score is
    normalised against the same vocabulary entry at the other positions, padding included. That
    needs the logits of every position, (B, L, V), and the masked tokens' `positions` (M,) int64 in
    B * L; the rest is as for `soft_mlm_loss_sum`, which is what their papers describe.
    """
    scores = logits.float()
    hard = mlm_loss_sum(scores.flatten(0, 1)[positions], targets)
    over_sequence = F.log_softmax(scores, dim=1).flatten(0, 1)[positions]
    soft = -torch.sum(over_sequence * soft_labels.float())
    return (1 - alpha) * hard + alpha * soft


class CrossEntropySum(torch.autograd.Function):
    """Sum of cross-entropies in float32; arguments as those of `mlm_loss_sum`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Read the logits once."""
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        counted = (targets != IGNORE_INDEX).float()
        if weights is not None:
            counted *= weights
        # Apart, since their sum would lose digits of a small loss among large logits.
        highest, log_sums = torch.empty(2, len(logits), 1, device=logits.device)
        for rows in _blocks(logits):
            scores, target = logits[rows].float(), targets[rows, None]
            torch.amax(scores, dim=1, keepdim=True, out=highest[rows])
            scores = scores - highest[rows]
            right = scores.gather(1, target.clamp_min(0))
            torch.log(scores.exp_().sum(dim=1, keepdim=True), out=log_sums[rows])
            losses = (log_sums[rows] - right).masked_fill_(target == IGNORE_INDEX, 0.0)
            total += losses.mul_(counted[rows, None]).sum()
        ctx.save_for_backward(logits, targets, highest, log_sums, counted)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        """Return the softmax less the target's 1, for rows that count."""
        logits, targets, highest, log_sums, counted = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in _blocks(logits):
            target = targets[rows, None]
            part = (logits[rows] - highest[rows]).sub_(log_sums[rows]).exp_()
            part.scatter_add_(1, target.clamp_min(0), torch.full_like(part[:, :1], -1.0))
            grad[rows] = part.mul_(grad_total * counted[rows, None])
        return grad, None, None


def _blocks(logits: Tensor) -> Iterator[slice]:
    size = max(1, BLOCK_LOGITS // max(logits.shape[1], 1))
    return (slice(first, first + size) for first in range(0, len(logits), size))
