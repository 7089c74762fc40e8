from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskery.core.errors import CheckpointError, ConfigError
from maskery.models.momentum import NOBODY, FeatureQueue


def batch_of(first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(first, first + size)
    return ids.float().unsqueeze(1).expand(-1, 2), ids


@settings(deadline=None, max_examples=80)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 21), max_size=8))
def test_the_queue_is_the_last_features_in_writing_order(size: int, batches: list[int]) -> None:
    queue = FeatureQueue(2, size)
    expected = [NOBODY] * size
    written = 0
    for number in batches:
        queue.enqueue(*batch_of(written, number))
        for i in range(number):
            expected[(written + i) % size] = written + i
        written += number
    assert queue.ids.tolist() == expected
    assert queue.pointer == written % size
    filled = queue.ids != NOBODY
    assert torch.equal(queue.features[filled][:, 0], queue.ids[filled].float())


def test_what_is_no_number_leaves_the_old_feature() -> None:
    queue = FeatureQueue(2, 4)
    queue.enqueue(*batch_of(0, 4))
    features, ids = batch_of(4, 3)
    features = features.clone()
    features[0, 1], features[2, 0] = float("nan"), float("inf")
    queue.enqueue(features, ids)
    assert queue.ids.tolist() == [0, 5, 2, 3]
    assert queue.features[:, 0].tolist() == [0.0, 5.0, 2.0, 3.0]
    assert queue.pointer == 3


def test_unwritten_places_are_unit_vectors_of_nobody() -> None:
    queue = FeatureQueue(8, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(5))
    again = FeatureQueue(8, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(queue.features, again.features)


def test_features_are_kept_without_gradient() -> None:
    queue = FeatureQueue(2, 3)
    queue.enqueue(torch.ones(2, 2, requires_grad=True) * 2, torch.tensor([1, 2]))
    assert not queue.features.requires_grad


def test_state_goes_through_a_checkpoint_exactly() -> None:
    queue = FeatureQueue(2, 5)
    queue.enqueue(*batch_of(0, 7))
    state = {name: tensor.clone() for name, tensor in queue.state_dict().items()}
    other = FeatureQueue(2, 5)
    other.load_state_dict(state)
    queue.enqueue(*batch_of(7, 2))
    other.enqueue(*batch_of(7, 2))
    assert torch.equal(queue.features, other.features)
    assert torch.equal(queue.ids, other.ids)
    assert queue.pointer == other.pointer


def test_another_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="queue is 5 x 2"):
        FeatureQueue(2, 4).load_state_dict(FeatureQueue(2, 5).state_dict())
    with pytest.raises(ConfigError, match="at least 1"):
        FeatureQueue(2, 0)
