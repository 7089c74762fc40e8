"""The blockwise cross-entropy against PyTorch's, in double precision, and against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskery.core.batch import IGNORE_INDEX
from maskery.objectives import cross_entropy
from maskery.objectives.mlm import mlm_loss_sum


def take(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Loss and gradient, with a factor on the loss as accumulation has."""
    leaf = logits.clone().requires_grad_()
    loss = mlm_loss_sum(leaf, targets)
    (0.25 * loss).backward()
    assert leaf.grad is not None
    return float(loss.detach()), leaf.grad


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_values_and_gradients_are_pytorchs(
    rows: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK_LOGITS", block)
    generator = torch.Generator().manual_seed(rows)
    logits = 4 * torch.randn(rows, 19, generator=generator)
    targets = torch.randint(19, (rows,), generator=generator)
    targets[rows // 2] = IGNORE_INDEX
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    (0.25 * expected).backward()
    loss, grad = take(logits, targets)
    assert loss == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    assert exact.grad is not None
    torch.testing.assert_close(grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_the_formula_holds_for_huge_and_impossible_scores() -> None:
    logits = torch.tensor([[1000.0, 999.0, -1000.0], [0.0, float("-inf"), 1.0]])
    loss, grad = take(logits, torch.tensor([1, 2]))
    odds = np.array([[1.0, np.exp(-1.0), 0.0], [np.exp(-1.0), 0.0, 1.0]])
    share = odds / odds.sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(share[0, 1]) - np.log(share[1, 2]), rel=1e-6)
    right = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(grad.numpy(), 0.25 * (share - right), atol=1e-7)


def test_half_precision_keeps_its_type_and_is_computed_in_float32() -> None:
    logits = (3 * torch.randn(50, 300, generator=torch.Generator().manual_seed(1))).bfloat16()
    targets = torch.arange(50)
    loss, grad = take(logits, targets)
    wide_loss, wide_grad = take(logits.float(), targets)
    assert loss == pytest.approx(wide_loss, rel=1e-6)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad, wide_grad.bfloat16())
