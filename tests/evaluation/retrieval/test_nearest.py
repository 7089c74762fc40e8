from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskery.evaluation.retrieval import search as module
from maskery.evaluation.retrieval.search import nearest


def vectors(count: int, width: int = 32, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 5, 40, 500])
@pytest.mark.parametrize("block", [32, 100, 1 << 19])
def test_the_scan_is_exact(
    count: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_NUMBERS", block)
    np.save(tmp_path / "matrix.npy", vectors(500).astype(np.float16))
    matrix = np.load(tmp_path / "matrix.npy", mmap_mode="c")
    query = vectors(1, seed=1)[0]
    rows, products = nearest(matrix, query, count)
    exact = matrix.astype(np.float32) @ query
    np.testing.assert_array_equal(rows, np.argsort(-exact, kind="stable")[:count])
    np.testing.assert_allclose(products, exact[rows], rtol=1e-4, atol=1e-6)


def test_ties_by_index() -> None:
    matrix = vectors(4).astype(np.float16)[[0, 1, 0, 2, 0]]
    rows, products = nearest(matrix, matrix[0].astype(np.float32), 5)
    assert rows[:3].tolist() == [0, 2, 4]
    assert products[0] == products[2]
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]
