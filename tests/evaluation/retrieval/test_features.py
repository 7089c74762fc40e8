"""Room in memory or in a temporary file, and what is said where there is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from maskery.core.errors import DataError
from maskery.evaluation.retrieval.rerank import large_array

SHAPE = (3, 700, 1000)  # 8.4 MB


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files lie in a folder of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def without_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def not_offered(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_small_arrays_are_in_memory_and_large_ones_in_a_nameless_file(folder: Path) -> None:
    assert not isinstance(large_array(SHAPE, 8_400_000), np.memmap)
    large = large_array(SHAPE, 8_399_999)
    assert isinstance(large, np.memmap)
    assert (large.shape, large.dtype) == (SHAPE, np.float32)
    assert not list(folder.iterdir())
    large[2, 699] = 7.0
    assert large[2, 699, 999] == 7.0


@pytest.mark.parametrize("how", ["reserved", "not offered", "missing"])
def test_the_whole_file_is_there_before_it_is_mapped(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    allocated: list[int] = []
    memmap = np.memmap

    def mapped(file: IO[bytes], *arguments: Any, **settings: Any) -> Any:
        # Holes take no blocks.
        allocated.append(os.fstat(file.fileno()).st_blocks * 512)
        return memmap(file, *arguments, **settings)

    monkeypatch.setattr(np, "memmap", mapped)
    if how == "not offered":
        monkeypatch.setattr(os, "posix_fallocate", not_offered)
    if how == "missing":
        monkeypatch.delattr(os, "posix_fallocate")
    assert large_array(SHAPE, 1).shape == SHAPE
    assert allocated[0] >= 8_400_000


@pytest.mark.parametrize("call", ["posix_fallocate", "write"])
def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, folder: Path, call: str) -> None:
    if call == "write":
        monkeypatch.setattr(os, "posix_fallocate", not_offered)
    monkeypatch.setattr(os, call, without_space)
    with pytest.raises(DataError) as caught:
        large_array(SHAPE, 1)
    monkeypatch.undo()
    message = str(caught.value)
    assert f"take 9 MB in a temporary file, for which '{folder}' has no room (No space" in message
    assert "set TMPDIR" in message
    assert "--memory-mb to 9" in message
    assert "\n" not in message
