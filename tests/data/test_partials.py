"""What is being written is known by a lock; that it goes with a kill, `test_store.py` shows."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from maskery.data import partials
from maskery.data.partials import create_owned, ownerless, partial_of


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
