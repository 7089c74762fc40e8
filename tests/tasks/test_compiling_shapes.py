"""The constant shapes of a run hold every batch of it."""

from __future__ import annotations

import numpy as np
import pytest

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.data.rows import RowSource
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.layout import filled_boundaries
from maskery.tasks.compiling import static_shapes

EPOCHS = 3


def source(**settings: int) -> RowSource:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 60, 300)
    rows = [{"input_ids": [2, *generator.integers(5, 50, n - 2).tolist(), 3]} for n in lengths]
    return RowSource(rows, **{"batch_tokens": 1000, **settings})


def masker(**settings: object) -> Masker:
    vocabulary = Vocabulary(size=50, mask_token_id=4, special_ids=tuple(range(5)))
    return Masker.of(vocabulary, config=MaskingConfig(**settings))  # type: ignore[arg-type]


def batches(data: RowSource, num_processes: int) -> list[TokenBatch]:
    return [
        batch
        for epoch in range(EPOCHS)
        for step in range(data.num_steps(epoch))
        for rank in range(num_processes)
        for batch in data.micro_batches(epoch, step, rank=rank, world_size=num_processes)
    ]


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"micro_tokens": 300}, {"micro_tokens": 20}])
@pytest.mark.parametrize(
    "masking",
    [
        {"policy": "token"},
        {"policy": "word"},
        {"policy": "span", "mask_rate": 0.3},
        {"mask_rate": 0.2, "mask_rate_end": 0.5, "mask_schedule": "linear"},
    ],
)
def test_every_batch_fits(
    num_processes: int, settings: dict[str, int], masking: dict[str, object]
) -> None:
    data, draw = source(**settings), masker(**masking)
    shapes = static_shapes(data, draw, epochs=EPOCHS, num_processes=num_processes)
    for batch in batches(data, num_processes):
        assert batch.num_tokens <= shapes.num_tokens
        filled_boundaries(batch.boundaries, shapes)  # asserts that there is room
        masked = draw.mask(batch, epoch=2, progress=0.999)
        assert len(masked.positions) <= shapes.num_masked


def test_little_is_spent_on_what_is_not_there() -> None:
    data, draw = source(), masker()
    shapes = static_shapes(data, draw, epochs=EPOCHS)
    assert shapes.num_tokens == 1024
    assert shapes.longest == 59
    most = max(len(b.lengths) for b in batches(data, 1))
    assert shapes.num_segments == most + 18
    masked = [len(draw.mask(b, epoch=0).positions) for b in batches(data, 1)]
    # Six deviations and a tile at most.
    assert shapes.num_masked < np.mean(masked) + 7 * np.std(masked) + 64


def test_a_share_of_the_step_is_not_a_whole_step() -> None:
    shapes = static_shapes(source(), masker(), epochs=EPOCHS, num_processes=4)
    assert shapes.num_tokens == 320  # a quarter of 1,000 and one sequence, in whole tiles


def test_the_capacity_can_be_chosen() -> None:
    shapes = static_shapes(source(), masker(), epochs=1, masked_capacity=0.01)
    assert shapes.num_masked == 64
    assert static_shapes(source(), masker(), epochs=1, masked_capacity=1.0).num_masked == 1024
