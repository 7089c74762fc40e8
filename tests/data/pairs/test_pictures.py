from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_pairs import save_tiny_pairs

from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import BYTES_PER_PIXEL, Pictures


def test_what_fits_stays_in_memory_and_the_rest_is_read_again(tmp_path: Path) -> None:
    pairs = Pairs.open(save_tiny_pairs(tmp_path, 4))
    pictures = Pictures(pairs, "skip", near=None, cache_bytes=2 * 16 * 16 * BYTES_PER_PIXEL)
    first = pictures.load([0, 1, 2, 3])
    assert all(image is not None for image in first)
    for number in range(4):
        (tmp_path / f"{number:03d}.png").unlink()
    again = pictures.load([3, 2, 1, 0, 0])
    assert [image is not None for image in again] == [False, False, True, True, True]
    np.testing.assert_array_equal(np.asarray(again[3]), np.asarray(first[0]))
    assert pictures.skipped.count == 2
    pictures.load([3, 2])
    assert pictures.skipped.count == 2  # told of once
