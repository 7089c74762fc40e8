from __future__ import annotations

import pytest
import torch

from maskery.objectives.itm import (
    draw_hard_negatives,
    has_negative,
    itm_loss_sum,
    prd_loss_sum,
)


def same_person(ids: torch.Tensor) -> torch.Tensor:
    return ids[:, None] == ids[None, :]


def test_negatives_are_drawn_by_similarity_among_others() -> None:
    ids = torch.tensor([0, 0, 1, 2])
    similarity = torch.zeros(4, 4)
    similarity[0] = torch.tensor([9.0, 9.0, 1.0, 0.0])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor(
        [
            draw_hard_negatives(similarity, same_person(ids), torch.full((4,), float(u)))[0]
            for u in uniforms[:4000]
        ]
    )
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    expected = torch.softmax(torch.tensor([1.0, 0.0]), dim=0)
    assert share[:2].tolist() == [0, 0]
    assert share[2].item() == pytest.approx(expected[0].item(), abs=0.03)


def test_a_row_without_negatives_gives_itself_and_is_known() -> None:
    ids = torch.tensor([5, 5, 5])
    drawn = draw_hard_negatives(torch.randn(3, 3), same_person(ids), torch.tensor([0.0, 0.5, 0.99]))
    assert drawn.tolist() == [0, 1, 2]
    assert has_negative(ids, ids).tolist() == [False, False, False]
    five = torch.tensor([5])
    assert has_negative(torch.tensor([5, 6]), five).tolist() == [False, True]
    assert has_negative(five, torch.tensor([5, 6, 5])).tolist() == [True]
    assert has_negative(five, five).tolist() == [False]


def test_an_overwhelming_positive_does_not_drown_the_negatives() -> None:
    # exp(-1000) is 0 in float32: weights masked after the softmax would all be 0.
    similarity = torch.tensor([[1000.0, 0.0, 1.0], [0.0, 1000.0, 0.0], [0.0, 0.0, 1000.0]])
    drawn = draw_hard_negatives(similarity, same_person(torch.arange(3)), torch.full((3,), 0.999))
    assert (drawn != torch.arange(3)).all()


def test_loss_counts_only_what_counts() -> None:
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    each = -torch.log_softmax(logits, dim=1)[torch.arange(6), labels]
    torch.testing.assert_close(itm_loss_sum(logits, labels), each.sum())
    counted = torch.tensor([True, True, False, True, False, True])
    torch.testing.assert_close(itm_loss_sum(logits, labels, counted), each[counted].sum())


def test_relation_loss_is_the_formula() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.5, 1.5]])
    expected = torch.log1p(torch.exp(torch.tensor([-2.0, 1.0]))).sum()
    torch.testing.assert_close(prd_loss_sum(logits, torch.tensor([0, 0])), expected)
