from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from maskery.core.batch import TokenBatch, Vocabulary

CLS, SEP, MASK, PAD, UNK = 101, 102, 103, 0, 100
MakeBatch = Callable[..., TokenBatch]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """BERT's five special ids in a vocabulary of 1,000."""
    return Vocabulary(size=1000, mask_token_id=MASK, special_ids=(PAD, UNK, CLS, SEP, MASK))


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """[CLS] tokens [SEP] for each length; a length of -1 is a sequence of no tokens at all.

    The arrays are read-only, so that writing to them fails.
    """

    def make(
        lengths: Sequence[int],
        *,
        seed: int = 0,
        ids: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
        continues: float = 0.0,
    ) -> TokenBatch:
        generator = np.random.default_rng(seed)
        ordinary = np.setdiff1d(np.arange(1000), [PAD, UNK, CLS, SEP, MASK])
        rows: list[np.ndarray] = []
        words: list[np.ndarray] = []
        for length in lengths:
            inner = max(length, 0)
            row = [generator.choice(ordinary, inner), generator.random(inner) >= continues]
            row[1][:1] = True
            if length >= 0:
                row[0] = np.concatenate(([CLS], row[0], [SEP]))
                row[1] = np.concatenate(([True], row[1], [True]))
            rows.append(row[0])
            words.append(row[1])
        batch = TokenBatch(
            input_ids=np.concatenate([*rows, np.zeros(0)]).astype(np.int64),
            boundaries=np.cumsum([0, *map(len, rows)]),
            example_ids=np.array(range(len(rows)) if ids is None else ids, np.uint64),
            starts=np.array([0] * len(rows) if starts is None else starts, np.int64),
            word_starts=np.concatenate([*words, np.zeros(0)]).astype(np.bool_),
        )
        for array in vars(batch).values():
            array.flags.writeable = False
        return batch

    return make
