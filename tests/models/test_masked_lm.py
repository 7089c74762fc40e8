"""Loss and gradients on masked rows alone are those of the Hugging Face model on everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import PAD, VOCAB, tiny

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.models.layout import PACKABLE
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mlm import mlm_loss_sum

FAMILIES = [
    "bert",
    "roberta",
    "distilbert",
    "modernbert",
    "electra",
    "deberta-v2",
    "albert",
    "xlm-roberta",
]


def masked_batch(lengths: list[int], seed: int = 0) -> MaskedTokens:
    generator = np.random.default_rng(seed)
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    num = int(boundaries[-1])
    ids = generator.integers(5, VOCAB, num)
    positions = np.sort(generator.choice(num, max(1, num // 4), replace=False))
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


def reference(family: str, masked: MaskedTokens) -> tuple[float, dict[str, torch.Tensor]]:
    """The Hugging Face model's own loss, each sequence in a forward pass of its own."""
    model = tiny(family)
    total = torch.zeros(())
    labels = masked.labels()
    for start, end in zip(masked.batch.boundaries[:-1], masked.batch.boundaries[1:], strict=True):
        here = torch.from_numpy(labels[start:end])[None]
        count = int((here != -100).sum())
        if count:
            ids = torch.from_numpy(masked.input_ids[start:end])[None]
            mask = torch.ones_like(ids)
            total = total + count * model(input_ids=ids, attention_mask=mask, labels=here).loss
    loss = total / len(masked.positions)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("prune", [False, True], ids=["whole", "pruned"])
def test_loss_and_gradients_equal_the_models_own(family: str, packed: bool, prune: bool) -> None:
    if packed and family not in PACKABLE:
        pytest.skip(f"{family} is never packed: its attention has relative biases")
    masked = masked_batch([9, 3, 17, 1, 9, 30])
    model = MaskedLanguageModel(tiny(family), packed=packed, pad_token_id=PAD, prune=prune)
    logits = model(model.lay_out(masked))
    loss = mlm_loss_sum(logits, torch.from_numpy(masked.targets)) / len(masked.targets)
    loss.backward()

    expected_loss, expected = reference(family, masked)
    assert logits.shape == (len(masked.positions), VOCAB)
    assert float(loss.detach()) == pytest.approx(expected_loss, abs=1e-5)
    own = {n: p.grad for n, p in model.hf.named_parameters() if p.grad is not None}
    assert own.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(own[name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_nothing_masked_gives_zero_and_not_nan() -> None:
    masked = masked_batch([5, 4])
    empty = MaskedTokens(
        batch=masked.batch,
        input_ids=masked.batch.input_ids,
        positions=np.empty(0, np.int64),
        targets=np.empty(0, np.int64),
    )
    model = MaskedLanguageModel(tiny("bert"), packed=True, pad_token_id=PAD)
    loss = mlm_loss_sum(model(model.lay_out(empty)), torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0.0
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) and float(g.abs().sum()) == 0.0 for g in grads)


def test_the_hook_leaves_other_uses_of_the_model_alone() -> None:
    hf = tiny("bert")
    ids = torch.arange(5, 15)[None]
    before = hf(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model = MaskedLanguageModel(hf, packed=True, pad_token_id=PAD)
    model(model.lay_out(masked_batch([4, 6])))
    after = hf(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(before, after)
