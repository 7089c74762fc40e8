"""Constant shapes change nothing about what is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import PAD, VOCAB, tiny
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.batch import IGNORE_INDEX, MaskedTokens, StaticShapes, TokenBatch
from maskery.models import attention
from maskery.models.layout import PACKABLE, masked_rows, pack_static, rounded_shapes
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mlm import mlm_loss_sum

SHAPES = StaticShapes(num_tokens=128, num_segments=16, longest=30, num_masked=40)


def masked_batch(lengths: list[int], share: float = 0.25) -> MaskedTokens:
    generator = np.random.default_rng(0)
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    num = int(boundaries[-1])
    ids = generator.integers(5, VOCAB, num)
    positions = np.sort(generator.choice(num, int(num * share), replace=False))
    corrupted = ids.copy()
    corrupted[positions] = 4
    batch = TokenBatch(
        input_ids=ids,
        boundaries=boundaries,
        example_ids=np.arange(len(lengths), dtype=np.uint64),
        starts=np.zeros(len(lengths), np.int64),
        word_starts=np.ones(num, np.bool_),
    )
    return MaskedTokens(
        batch=batch, input_ids=corrupted, positions=positions, targets=ids[positions]
    )


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", ["segments", "device"])
@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_loss_and_gradients_equal_those_of_the_batch_as_it_comes(
    family: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the CPU's attention and by the one that stands in for a GPU's."""
    if way == "device":
        monkeypatch.setattr(attention, "stays_on_device", lambda query: True)
    masked = masked_batch([9, 3, 17, 1, 9, 30])
    model = MaskedLanguageModel(tiny(family), packed=True, pad_token_id=PAD).double()
    loss = mlm_loss_sum(model(model.lay_out(masked)), torch.from_numpy(masked.targets))
    expected = gradients(loss, model)
    inputs, targets = model.lay_out_static(masked, SHAPES)
    assert inputs.input_ids.shape == (1, 128)
    other = mlm_loss_sum(model(inputs), targets)
    torch.testing.assert_close(other, loss, atol=1e-6, rtol=1e-6)
    actual = gradients(other, model)
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, atol=1e-6, rtol=1e-6, msg=name)


@given(st.lists(st.integers(0, 30), max_size=10).filter(lambda x: sum(x) <= 128), st.data())
def test_shapes_are_constant_and_hold_everything(lengths: list[int], data: st.DataObject) -> None:
    masked = masked_batch(lengths, data.draw(st.sampled_from([0.0, 0.2, 1.0])))
    shapes = data.draw(st.sampled_from([SHAPES, rounded_shapes(masked)])) if lengths else SHAPES
    size, rows = shapes.num_tokens, shapes.num_masked
    inputs, targets = pack_static(masked, shapes, pad_token_id=PAD, first_position=2)
    arguments, real = inputs.arguments, masked.batch.num_tokens
    assert inputs.input_ids.shape == arguments["position_ids"].shape == (1, size)
    assert inputs.rows.shape == targets.shape == (rows,)
    assert arguments["cu_seq_lens_q"].shape == (shapes.num_segments + 1,)
    assert arguments["max_length_q"] == arguments["max_length_k"] == shapes.longest
    # Real sequences are as they were; padding is in sequences of its own, none of them too long.
    boundaries = arguments["cu_seq_lens_q"].numpy()
    assert boundaries[: len(lengths) + 1].tolist() == masked.batch.boundaries.tolist()
    assert boundaries[-1] == size
    assert np.diff(boundaries).min() >= 0
    assert np.diff(boundaries).max() <= shapes.longest
    assert inputs.input_ids[0, :real].tolist() == masked.input_ids.tolist()
    assert bool((inputs.input_ids[0, real:] == PAD).all())
    # Each row that has a target is a masked token, once, and padding is never labelled.
    used = targets != IGNORE_INDEX
    places = inputs.rows[used].numpy()
    labels = masked.labels()
    assert len(set(places.tolist())) == len(places) == min(rows, len(masked.positions))
    assert labels[places].tolist() == targets[used].tolist()


@given(st.lists(st.integers(1, 70), min_size=1, max_size=20))
def test_rounded_sizes_are_the_next_multiples(lengths: list[int]) -> None:
    masked = masked_batch(lengths)
    shapes, real = rounded_shapes(masked), sum(lengths)
    assert shapes.num_tokens % 64 == shapes.num_masked % 32 == 0
    assert 0 <= shapes.num_tokens - real < 64
    assert 0 <= shapes.num_masked - len(masked.positions) < 32


def test_what_is_left_out_is_spread_over_the_batch() -> None:
    masked = masked_batch([30, 30, 30, 30], share=1.0)
    positions, targets = masked_rows(masked, SHAPES)
    assert positions.tolist() == list(range(0, 120, 3))
    assert targets.tolist() == masked.batch.input_ids[::3].tolist()
