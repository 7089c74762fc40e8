from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from maskery.core.errors import DataError
from maskery.data.shards.manifest import read_shards, write_shard
from maskery.data.shards.places import find_damage

ARRAYS: dict[str, Any] = {
    "tokens": np.array([5, 6, 7, 8], np.uint16),
    "word_starts": np.array([True, False, True, True]),
    "lengths": np.array([3, 1], np.uint32),
    "ids": np.array([2**63, 1], np.uint64),
}


def write(path: Path, vocab_size: int = 100, **changes: Any) -> tuple[int, str]:
    entry = write_shard(path, tuple((ARRAYS | changes).values()), vocab_size=vocab_size)
    return entry.bytes, entry.sha256


def test_a_shard_is_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    num_bytes, sha256 = write(path)
    opened = read_shards([path], vocab_size=100)
    independent = load_file(path)
    assert opened.tokens.tolist() == independent["tokens"].tolist() == [5, 6, 7, 8]
    assert opened.word_starts.tolist() == independent["word_starts"].tolist()
    assert opened.ids.tolist() == independent["ids"].tolist() == [2**63, 1]
    assert opened.boundaries.tolist() == [0, 3, 4]
    assert find_damage(path, num_bytes, sha256) is None
    assert write(tmp_path / "again") == (num_bytes, sha256)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    write(tmp_path / "s", vocab_size=70_000, tokens=np.array([1, 2, 3, 69_999]))
    opened = read_shards([tmp_path / "s"], vocab_size=70_000)
    assert (opened.tokens.dtype, opened.tokens[3]) == (np.uint32, 69_999)


def test_damage_is_described(tmp_path: Path) -> None:
    path = tmp_path / "s"
    num_bytes, sha256 = write(path)
    assert (
        find_damage(path, num_bytes + 1, sha256) == f"it has {num_bytes} of {num_bytes + 1} bytes"
    )
    assert find_damage(path, num_bytes, "0" * 64) == "it does not match its checksum"
    path.unlink()
    assert find_damage(path, num_bytes, sha256) == "no such file or directory"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": np.array([3, 2], np.uint32)}, "not as many tokens"),
        ({"ids": np.array([1], np.uint64)}, "not as many ids"),
        ({"tokens": np.array([5, 6, 7, 100], np.uint16)}, "beyond the vocabulary of 100"),
        ({"tokens": np.array([5, 6, 7, 8], np.int64)}, "tokens is of type int64"),
        ({"word_starts": np.array([True])}, "not as many tokens"),
        ({"ids": np.array([[1, 2]], np.uint64)}, "ids is of type uint64, 2-dimensional"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "s").write_bytes(save(ARRAYS | changes))
    with pytest.raises(DataError, match=message):
        read_shards([tmp_path / "s"], vocab_size=100)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shard") / "s"
    write(path)
    return path


@given(data=st.data())
def test_a_damaged_file_gives_one_kind_of_error(sound: Path, data: st.DataObject) -> None:
    whole = sound.read_bytes()
    place = data.draw(st.integers(0, len(whole)))
    damaged = whole[:place] + data.draw(st.binary(max_size=9)) + whole[place + 1 :]
    path = sound.with_name("damaged")
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with contextlib.suppress(DataError):
        assert read_shards([path], vocab_size=100).tokens.sum() >= 0


def test_joined_shards_are_one_store(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", lengths=np.array([4], np.uint32), ids=np.array([9], np.uint64))
    joined = read_shards([tmp_path / "a", tmp_path / "b"], vocab_size=100)
    assert joined.boundaries.tolist() == [0, 3, 4, 8]
    assert joined.ids.tolist() == [2**63, 1, 9]
    assert joined.lengths().tolist() == [3, 1, 4]
    assert joined.tokens[np.array([7, 0])].tolist() == [8, 5]
    assert joined.token_counts(10).tolist() == [0, 0, 0, 0, 0, 2, 2, 2, 2, 0]
