from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskery.core.batch import IGNORE_INDEX
from maskery.objectives import mlm
from maskery.objectives.mlm import (
    mlm_loss_sum,
    soft_mlm_loss_sum,
    soft_mlm_loss_sum_over_sequence,
)


def log_softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    shifted = scores - scores.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator)
    positions = torch.tensor([1, 3, 7])
    targets = torch.tensor([4, 0, 10])
    soft = torch.softmax(torch.randn(3, 11, generator=generator), dim=-1)
    return logits, positions, targets, soft


def test_hard_loss_is_the_formula(case: tuple[torch.Tensor, ...]) -> None:
    logits, positions, targets, _ = case
    rows = logits.flatten(0, 1)[positions]
    expected = -log_softmax(rows.double().numpy(), 1)[np.arange(3), targets.numpy()].sum()
    assert mlm_loss_sum(rows, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_soft_loss_over_the_vocabulary_is_the_formula(
    case: tuple[torch.Tensor, ...], alpha: float
) -> None:
    logits, positions, targets, soft = case
    rows = logits.flatten(0, 1)[positions]
    logs = log_softmax(rows.double().numpy(), 1)
    hard = -logs[np.arange(3), targets.numpy()].sum()
    expected = (1 - alpha) * hard - alpha * (logs * soft.double().numpy()).sum()
    actual = soft_mlm_loss_sum(rows, targets, soft, alpha)
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_soft_loss_over_the_sequence_is_the_released_formula(
    case: tuple[torch.Tensor, ...],
) -> None:
    logits, positions, targets, soft = case
    scores = logits.double().numpy()
    hard = -log_softmax(scores, 2).reshape(10, 11)[positions, targets].sum()
    over_sequence = log_softmax(scores, 1).reshape(10, 11)[positions]
    expected = 0.6 * hard - 0.4 * (over_sequence * soft.double().numpy()).sum()
    actual = soft_mlm_loss_sum_over_sequence(logits, positions, targets, soft, 0.4)
    assert actual.item() == pytest.approx(expected, rel=1e-6)
    over_vocabulary = soft_mlm_loss_sum(logits.flatten(0, 1)[positions], targets, soft, 0.4)
    assert abs(actual.item() - over_vocabulary.item()) > 0.1


def test_half_precision_scores_are_summed_in_float32() -> None:
    rows = torch.randn(400, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets = torch.arange(400) % 50
    loss = mlm_loss_sum(rows, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == mlm_loss_sum(rows.float(), targets).item()


def test_nothing_masked_is_zero_with_a_gradient() -> None:
    for loss_sum in (
        lambda x: mlm_loss_sum(x, torch.zeros(0, dtype=torch.int64)),
        lambda x: soft_mlm_loss_sum(x, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 7), 0.4),
    ):
        logits = torch.zeros(0, 7, requires_grad=True)
        loss = loss_sum(logits)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None


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
    monkeypatch.setattr(mlm, "BLOCK_LOGITS", block)
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
