"""Packed equals padded for every family on the list, and nothing leaks between segments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from families import PAD, VOCAB, tiny

from maskery.models import attention
from maskery.models.layout import (
    HALF_TOLERANCE,
    PACKABLE,
    EncoderInputs,
    can_pack,
    first_position,
    half_packing_error,
    max_positions,
    pack,
    pad,
)

LONGEST = 40


def logits_of(model: torch.nn.Module, inputs: EncoderInputs) -> torch.Tensor:
    output = model(input_ids=inputs.input_ids, **inputs.arguments).logits
    return output.reshape(-1, output.shape[-1])[inputs.rows]


def sequences(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    lengths = generator.permutation([1, 2, 5, 5, 5, 13, LONGEST, 1, 22])
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    return generator.integers(5, VOCAB, int(boundaries[-1])), boundaries


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_packed_logits_and_gradients_equal_padded(family: str) -> None:
    ids, boundaries = sequences(3)
    everything = np.arange(len(ids))
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(len(ids), VOCAB))).float()
    results = []
    for packed in (True, False):
        model = tiny(family)
        if packed:
            start = first_position(model.config)
            inputs = pack(ids, boundaries, everything, first_position=start)
        else:
            inputs = pad(ids, boundaries, everything, pad_token_id=PAD)
        logits = logits_of(model, inputs)
        (logits * weights).sum().div(len(ids)).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), grads))
    (packed_logits, packed_grads), (padded_logits, padded_grads) = results
    torch.testing.assert_close(packed_logits, padded_logits, atol=1e-5, rtol=1e-5)
    for name, grad in padded_grads.items():
        torch.testing.assert_close(packed_grads[name], grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_changing_one_segment_leaves_the_others_alone(family: str) -> None:
    ids, boundaries = sequences(5)
    everything = np.arange(len(ids))
    model = tiny(family)
    start = first_position(model.config)
    changed = ids.copy()
    first, last = int(boundaries[4]), int(boundaries[5])
    changed[first:last] = (changed[first:last] - 5 + 7) % (VOCAB - 5) + 5
    with torch.no_grad():
        before = logits_of(model, pack(ids, boundaries, everything, first_position=start))
        after = logits_of(model, pack(changed, boundaries, everything, first_position=start))
    inside = np.zeros(len(ids), np.bool_)
    inside[first:last] = True
    assert not torch.equal(before[inside], after[inside])
    torch.testing.assert_close(before[~inside], after[~inside], atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_the_self_check_passes(family: str) -> None:
    assert can_pack(tiny(family), PAD) == (True, "")


def test_the_self_check_notices_an_attention_that_ignores_segments() -> None:
    model = tiny("bert")
    model.set_attn_implementation("sdpa")  # the stock attention leaks between packed segments
    possible, reason = can_pack(model, PAD)
    assert not possible
    assert "differ" in reason


def test_families_off_the_list_are_not_packed() -> None:
    possible, reason = can_pack(tiny("deberta-v2"), PAD)
    assert not possible
    assert "not on the list" in reason


def test_roberta_counts_positions_after_its_padding() -> None:
    config = tiny("roberta").config
    assert first_position(config) == PAD + 1
    assert max_positions(config) == 64 - PAD - 1


@pytest.mark.parametrize("family", ["ibert", "luke", "mpnet", "longformer", "bert", "roberta"])
def test_the_limit_is_the_longest_text_that_the_model_reads(family: str) -> None:
    model = tiny(family)
    limit = max_positions(model.config)
    assert limit is not None
    with torch.no_grad():
        assert model(torch.full((1, limit), 7)).logits.shape[1] == limit
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 7))


def test_runs_of_equal_lengths_do_not_change_the_result() -> None:
    """Neighbours of equal length run as one batch; apart, they run alone."""
    generator = np.random.default_rng(0)
    rows = [generator.integers(5, VOCAB, n) for n in (6, 6, 6, 9)]
    model = tiny("bert")
    by_order = {}
    with torch.no_grad():
        for order in itertools.permutations(range(4)):
            ids = np.concatenate([rows[i] for i in order])
            boundaries = np.concatenate(([0], np.cumsum([len(rows[i]) for i in order])))
            logits = logits_of(model, pack(ids, boundaries, np.arange(len(ids))))
            place = order.index(3)
            by_order[order] = logits[boundaries[place] : boundaries[place + 1]]
    first = next(iter(by_order.values()))
    for logits in by_order.values():
        torch.testing.assert_close(logits, first, atol=1e-6, rtol=0.0)


def test_a_scale_over_whole_rows_is_not_packed() -> None:
    """ESM-2's embeddings are scaled by how much of a row is masked; packed, a row is a batch."""
    model = tiny("esm")
    model.config.token_dropout = True
    possible, reason = can_pack(model, PAD)
    assert not possible
    assert "token_dropout" in reason


@pytest.mark.parametrize("family", sorted(PACKABLE - {"xmod"}))  # its adapters know no autocast
def test_the_gpus_self_check_tells_rounding_from_leaks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 and by the attention that stands in for a GPU's."""
    monkeypatch.setattr(attention, "stays_on_device", lambda query: True)
    model = tiny(family)
    assert half_packing_error(model, PAD, torch.device("cpu")) < HALF_TOLERANCE
    model.set_attn_implementation("sdpa")
    assert half_packing_error(model, PAD, torch.device("cpu")) > HALF_TOLERANCE
