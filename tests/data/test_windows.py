from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import ConfigError
from maskery.data.windows import cut_windows


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 80), st.data())
def test_windows_tile_their_documents(
    lengths: list[int], max_tokens: int, data: st.DataObject
) -> None:
    chosen = [n for n in range(len(lengths)) if data.draw(st.booleans())]
    windows = cut_windows(np.array(lengths, np.int64), np.array(chosen, np.int64), max_tokens)
    expected_documents = [n for n in chosen for _ in range(-(-lengths[n] // max_tokens))]
    assert windows.documents.tolist() == expected_documents
    assert len(windows) == len(expected_documents)
    for document in chosen:
        own = windows.documents == document
        pieces = [
            range(start, start + length)
            for start, length in zip(windows.starts[own], windows.lengths[own], strict=True)
        ]
        assert [token for piece in pieces for token in piece] == list(range(lengths[document]))
        sizes = [len(piece) for piece in pieces]
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
        assert max(sizes, default=0) <= max_tokens


def test_the_order_of_the_chosen_documents_is_kept() -> None:
    windows = cut_windows(np.array([5, 0, 3]), np.array([2, 1, 0]), 4)
    assert windows.documents.tolist() == [2, 0, 0]
    assert windows.starts.tolist() == [0, 0, 3]
    assert windows.lengths.tolist() == [3, 3, 2]


@pytest.mark.parametrize("max_tokens", [0, -2])
def test_windows_need_room(max_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"would hold {max_tokens} tokens.*--max-length"):
        cut_windows(np.array([5]), np.array([0]), max_tokens)
