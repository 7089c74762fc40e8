from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data import store as partials
from maskery.data import store as store_module
from maskery.data.store import (
    MANIFEST,
    Part,
    TokenStore,
    create_owned,
    own_folder,
    ownerless,
    partial_of,
    write_store,
)

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12]]


def write(
    folder: Path, documents: list[list[int]] = DOCUMENTS, *, vocab_size: int = 1000, cut: int = 2
) -> TokenStore:
    parts = []
    for part in (documents[:cut], documents[cut:]):
        tokens = np.array([token for document in part for token in document], np.int64)
        lengths = np.array([len(document) for document in part], np.int64)
        ids = np.array([2**63 + sum(document) for document in part], np.uint64)
        parts.append((tokens, tokens % 2 == 0, lengths, ids))
    write_store(folder, parts, vocab_size=vocab_size, about={"tokenizer": "t"})
    return TokenStore.open(folder)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    edges = store.boundaries.tolist()
    documents = [store.tokens[a:b].tolist() for a, b in pairwise(edges)]
    assert documents == DOCUMENTS
    assert store.word_starts.tolist() == [t % 2 == 0 for d in DOCUMENTS for t in d]
    assert store.ids.tolist() == [2**63 + sum(document) for document in DOCUMENTS]
    assert store.ids.dtype == np.uint64
    assert store.lengths().tolist() == [3, 1, 4]
    assert (store.num_documents, store.num_tokens) == (3, 8)
    assert store.about == {"tokenizer": "t"}
    assert isinstance(store.tokens, np.memmap)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("vocab_size", "largest", "dtype"),
    [
        (1 << 16, 65_535, np.uint16),
        ((1 << 16) + 1, 65_536, np.uint32),
        (250_002, 250_001, np.uint32),
    ],
)
def test_the_largest_id_fits(tmp_path: Path, vocab_size: int, largest: int, dtype: Any) -> None:
    store = write(tmp_path / "store", [[0, largest]], vocab_size=vocab_size)
    assert store.tokens.dtype == dtype
    assert store.tokens.tolist() == [0, largest]


def test_a_store_of_nothing(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [])
    assert (store.num_documents, store.num_tokens) == (0, 0)
    assert store.boundaries.tolist() == [0]
    assert store.token_counts(5).tolist() == [0] * 5


def test_token_counts_over_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 7)
    tokens = np.random.default_rng(0).integers(0, 9, 100).tolist()
    store = write(tmp_path / "store", [tokens])
    assert store.token_counts(12).tolist() == [tokens.count(token) for token in range(12)]


def test_an_earlier_store_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "store")
    assert write(tmp_path / "store", [[1]]).tokens.tolist() == [1]


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def interrupted() -> Iterator[Part]:
        yield np.array([1]), np.array([True]), np.array([1]), np.array([1], np.uint64)
        raise StoppedError

    with pytest.raises(StoppedError):
        write_store(tmp_path / "store", interrupted(), vocab_size=9, about={})
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from maskery.data.store import write_store
def nothing():
    print("begun", flush=True)
    sys.stdin.read()
    yield from ()
write_store(Path(sys.argv[1]), nothing(), vocab_size=9, about={})
"""


@contextmanager
def other_writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has begun a store and finishes it when its input ends."""
    started = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n"
        yield started


@pytest.mark.parametrize("next_store", ["store", "another"])
def test_what_a_killed_writer_left_goes_with_the_next_store(
    tmp_path: Path, next_store: str
) -> None:
    with other_writer(tmp_path / "store") as killed:
        killed.kill()
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["store.partial"]
    write(tmp_path / next_store)
    assert [path.name for path in tmp_path.iterdir()] == [next_store]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    with other_writer(tmp_path / "store") as other:
        write(tmp_path / "another")
        write(tmp_path / "store")
        assert len(list(tmp_path.glob("store.partial-*"))) == 1
        other.communicate()
        assert other.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "store"]
    assert TokenStore.open(tmp_path / "store").num_tokens == 0


def test_a_folder_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    write(tmp_path / "store")
    (tmp_path / "store" / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"holds no complete token store"):
        TokenStore.open(tmp_path / "store")
    with pytest.raises(DataError, match=r"holds no complete token store"):
        TokenStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokens", "word_starts", "boundaries", "ids"])
def test_one_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "store").folder / f"{name}.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=f"{name}.bin' does not match its checksum"):
        TokenStore.open(tmp_path / "store")
    TokenStore.open(tmp_path / "store", verify=False)


@pytest.mark.parametrize("name", ["tokens", "word_starts", "boundaries", "ids"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_short_file_is_noticed_even_without_checksums(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = write(tmp_path / "store").folder / f"{name}.bin"
    size = path.stat().st_size
    if damage == "cut":
        os.truncate(path, size - 1)
    else:
        path.unlink()
    with pytest.raises(DataError, match=f"has -?\\d+ of {size} bytes"):
        TokenStore.open(tmp_path / "store", verify=False)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "store").folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(DataError, match=r"has format 99"):
        TokenStore.open(tmp_path / "store")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stores") / "store").folder


@given(data=st.data())
def test_a_damaged_manifest_gives_one_kind_of_error(finished: Path, data: st.DataObject) -> None:
    path = finished / MANIFEST
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.binary(max_size=2))
    path.write_bytes(whole[:place] + byte + whole[place + 1 :])
    try:
        TokenStore.open(finished)
    except DataError:
        pass
    finally:
        path.write_bytes(whole)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"could not be written to .*--cache-dir"):
        write_store(tmp_path / "file" / "store", [], vocab_size=9, about={})


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"\(No space left on device\); free some space"):
        write(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_begun_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(self: Path, *arguments: Any) -> Any:
        if self.name.startswith("ids"):
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=r"\(No space left on device\); free some space"):
        write(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_partial_file_has_an_owner_until_it_is_closed(tmp_path: Path) -> None:
    path = partial_of(tmp_path / "a.bin")
    assert path.name.startswith("a.bin.partial-")
    assert path != partial_of(tmp_path / "a.bin")
    with create_owned(path) as stream:
        stream.write(b"x")
        assert list(ownerless(tmp_path)) == []
    assert list(ownerless(tmp_path)) == [path]
    assert path.read_bytes() == b"x"
    assert list(ownerless(tmp_path / "nowhere")) == []


def test_what_another_machine_writes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_owned(partial_of(tmp_path / "a")).close()
    monkeypatch.setattr(partials.platform, "node", lambda: "another")
    assert list(ownerless(tmp_path)) == []


def test_without_locks_nothing_is_taken_for_ownerless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    create_owned(partial_of(tmp_path / "a")).close()
    assert list(ownerless(tmp_path)) == []


def test_a_folder_is_owned_by_a_file_inside(tmp_path: Path) -> None:
    folder = partial_of(tmp_path / "store")
    folder.mkdir()
    assert list(ownerless(tmp_path, "tokens")) == []  # its owner has only begun
    with create_owned(folder / "tokens"):
        assert list(ownerless(tmp_path, "tokens")) == []
    assert list(ownerless(tmp_path, "tokens")) == [folder]


def forged(folder: Path, name: str, values: Any) -> Path:
    """Replace a file of a store, and its entry in the manifest: sizes and checksums agree."""
    array = np.asarray(values)
    (folder / f"{name}.bin").write_bytes(array.tobytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"dtype": array.dtype.name, "items": len(array), "crc32": zlib.crc32(array.tobytes())}
    manifest["files"][name] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokens", np.array([1, 2, 9], np.uint16)),  # 9 is no id of the vocabulary
        ("tokens", np.array([1, 2], np.uint16)),
        ("tokens", np.array([1, -2, 3], np.int16)),
        ("tokens", np.array([1.0, 2.0, 3.0])),
        ("word_starts", np.array([True, True])),
        ("boundaries", np.array([0, 3, 2, 3])),
        ("boundaries", np.array([1, 2, 3])),
        ("boundaries", np.array([0, 2, 4])),
        ("boundaries", np.array([0, 3])),
        ("boundaries", np.zeros(0, np.int64)),
        ("ids", np.array([7], np.uint64)),
    ],
)
def test_parts_that_do_not_fit_are_refused_though_their_checksums_hold(
    tmp_path: Path, name: str, values: Any
) -> None:
    folder = tmp_path / "store"
    ids = np.array([1, 2, 3]), np.array([True, False, True])
    part = (*ids, np.array([2, 1]), np.array([7, 8], np.uint64))
    write_store(folder, [part], vocab_size=9, about={})
    assert TokenStore.open(folder, vocab_size=9).num_documents == 2
    with pytest.raises(DataError):
        TokenStore.open(forged(folder, name, values), vocab_size=9)


def test_a_cache_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder(tmp_path / "deep" / "cache", "tokens")
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, folder.parent)] == ["0o700"] * 2
    folder.chmod(0o777)
    assert own_folder(tmp_path / "deep" / "cache", "tokens").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(store_module.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(DataError, match="belongs to another user") as caught:
        own_folder(tmp_path / "deep" / "cache", "tokens")
    assert len(str(caught.value).splitlines()) == 1
