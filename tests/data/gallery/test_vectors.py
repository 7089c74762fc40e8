from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("usearch", reason="needs the extra 'search'")

from maskery.data.gallery.vectors import nearest


def vectors(count: int, width: int = 32, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_scan_is_exact(count: int) -> None:
    matrix = vectors(500).astype(np.float16)
    queries = vectors(3, seed=1)
    rows, products = nearest(matrix, queries, count)
    exact = queries @ matrix.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1)[:, :count])
    np.testing.assert_allclose(products, -np.sort(-exact, axis=1)[:, :count], rtol=1e-5)


def test_all_of_a_small_gallery_and_ties_by_index() -> None:
    matrix = vectors(4).astype(np.float16)[[0, 1, 0, 2, 0]]
    rows, products = nearest(matrix, matrix[:1].astype(np.float32), 5)
    assert rows[0, :3].tolist() == [0, 2, 4]
    assert products[0, 0] == products[0, 2]
    assert sorted(rows[0].tolist()) == [0, 1, 2, 3, 4]


def test_float32_decides_between_neighbours_that_float16_confuses() -> None:
    generator = np.random.default_rng(3)
    near = vectors(1)[0] + 2e-4 * generator.standard_normal((12, 32)).astype(np.float32)
    matrix = near.astype(np.float16)
    query = vectors(1, seed=5)
    rows, _ = nearest(matrix, query, 1)
    assert rows[0, 0] == (query @ matrix.astype(np.float32).T)[0].argmax()
