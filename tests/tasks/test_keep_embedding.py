"""The distance to the start, against the formula in NumPy, and what it holds in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text import lines, save_tiny_model

from maskery.data.rows import RowSource, tokenise_rows
from maskery.masking.masker import Masker
from maskery.models.loading import Loaded, load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.models.pooling import Pooling
from maskery.tasks.keep_embedding import KeepEmbedding
from maskery.tasks.text_mlm import TextMLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


def strong(loaded: Loaded) -> Loaded:
    """Random weights large enough that a masked word changes what stands around it."""
    with torch.no_grad():
        for parameter in loaded.model.base_model.encoder.parameters():
            parameter.mul_(6.0)
    return loaded


def made(
    folder: Path, *, packed: bool, weight: float = 3.0, **settings: Any
) -> tuple[KeepEmbedding, RowSource]:
    loaded = strong(load_masked_lm(str(folder), hidden_dropout=0.0))
    model = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=0)
    rows = tokenise_rows(lines(20), loaded.tokenizer, max_length=24)
    masker = Masker.of(loaded.tokenizer, rate=0.3)
    layout = "packed" if packed else "padded"
    task = KeepEmbedding(model, masker, weight, **settings)
    return task, RowSource(rows, batch_tokens=128, layout=layout)


@pytest.mark.parametrize(("packed", "few"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_the_distance_is_one_minus_the_cosine_of_pooled_vectors(
    folder: Path, packed: bool, few: bool, mode: str
) -> None:
    pooling = Pooling(modes=(mode,))
    task, source = made(folder, packed=packed, few_shapes=few, pooling=pooling)
    (batch,) = source.micro_batches(0, 0, rank=0, world_size=1)
    prepared = task.prepare(batch, epoch=0, progress=0.0)
    if few:
        assert prepared.inputs.input_ids.numel() % 64 == len(prepared.targets) % 32 == 0
    masked = task.masker.mask(batch, epoch=0)

    def pooled(hf: Any, first: int, last: int) -> Any:
        kept = sorted(set(range(first, last)) - set(masked.positions.tolist()))
        ids = torch.from_numpy(masked.input_ids[first:last])[None]
        states = hf.base_model(input_ids=ids)[0][0].numpy()[[place - first for place in kept]]
        return states.mean(axis=0) if mode == "mean" else states[0]

    start = strong(load_masked_lm(str(folder))).model.eval()
    with torch.no_grad():
        at_first = float(task.loss_sums(prepared)["keep"])
        moved = task.model.base.encoder  # type: ignore[union-attr]
        for parameter in moved.parameters():  # type: ignore[operator]
            parameter.mul_(0.9)
        sums = task.loss_sums(prepared)
        now = load_masked_lm(str(folder)).model.eval()
        now.load_state_dict(task.model.hf.state_dict())  # type: ignore[union-attr, operator]
        expected = 0.0
        for first, last in zip(batch.boundaries[:-1], batch.boundaries[1:], strict=True):
            a, b = pooled(start, first, last), pooled(now, first, last)
            expected += 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert at_first == pytest.approx(0.0, abs=1e-5)
    assert expected > 0.01
    assert float(sums["keep"]) == pytest.approx(expected, rel=1e-3)
    assert prepared.counts["keep"] == len(batch.lengths)
    plain = TextMLM(task.model, task.masker)
    with torch.no_grad():
        alone = plain.loss_sums(plain.prepare(batch, epoch=0, progress=0.0))
    assert float(sums["mlm"]) == pytest.approx(float(alone["mlm"]), rel=1e-5)


def test_a_greater_weight_leaves_vectors_nearer(folder: Path) -> None:
    distances = []
    for weight in (0.0, 30.0):
        task, source = made(folder, packed=True, weight=weight)
        optimiser = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
        for step in range(12):
            (batch,) = source.micro_batches(0, step % source.num_steps(0), rank=0, world_size=1)
            prepared = task.prepare(batch, epoch=step, progress=0.0)
            sums = task.loss_sums(prepared)
            loss = sum(task.loss_weights[n] * s / prepared.counts[n] for n, s in sums.items())
            optimiser.zero_grad()
            torch.as_tensor(loss).backward()
            optimiser.step()
        with torch.no_grad():
            distances.append(float(task.loss_sums(prepared)["keep"]) / prepared.counts["keep"])
    assert distances[1] < 0.5 * distances[0]


def test_the_start_is_no_part_of_what_is_trained(folder: Path) -> None:
    task, _ = made(folder, packed=True)
    assert not any(p.requires_grad for p in task._start.parameters())
    names = [name for name, _ in task.model.named_parameters()]
    assert len(names) == len({id(p) for p in task.model.parameters()})
    assert not task.extra_state()
