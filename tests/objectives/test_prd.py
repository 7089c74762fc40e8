from __future__ import annotations

import torch

from maskery.objectives.prd import prd_loss_sum


def test_loss_is_the_formula() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.5, 1.5]])
    expected = torch.log1p(torch.exp(torch.tensor([-2.0, 1.0]))).sum()
    torch.testing.assert_close(prd_loss_sum(logits, torch.tensor([0, 0])), expected)
