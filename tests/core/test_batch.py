from __future__ import annotations

import numpy as np

from maskery.core.batch import MaskedTokens, TokenBatch


def test_lengths_and_labels() -> None:
    batch = TokenBatch(
        input_ids=np.array([5, 6, 7, 8]),
        boundaries=np.array([0, 3, 3, 4]),
        example_ids=np.array([1, 2, 3], np.uint64),
        starts=np.zeros(3, np.int64),
        word_starts=np.ones(4, np.bool_),
    )
    assert batch.lengths.tolist() == [3, 0, 1]
    assert batch.num_tokens == 4
    masked = MaskedTokens(
        batch=batch,
        input_ids=np.array([5, 0, 7, 0]),
        positions=np.array([1, 3]),
        targets=np.array([6, 8]),
    )
    assert masked.labels().tolist() == [-100, 6, -100, 8]
    assert masked.labels(-1).tolist() == [-1, 6, -1, 8]
