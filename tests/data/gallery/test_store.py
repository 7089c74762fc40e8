from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskery.core.errors import DataError
from maskery.data.gallery.files import Stamp
from maskery.data.gallery.store import DamagedIndex, GalleryStore, ResultT, open_store

WIDTH = 4


def feature(number: int) -> np.ndarray:
    return np.full(WIDTH, number, np.float16)


def digest(number: int) -> bytes:
    return bytes([number]) * 16


def fill(store: GalleryStore) -> None:
    files = {f"{name}.png": (Stamp(1, n), digest(n)) for n, name in enumerate("dbca")}
    features = {digest(n): feature(n) for n in (0, 1, 3)}
    store.save(files, features, {digest(2): "c is damaged"})


@pytest.fixture
def store(tmp_path: Path) -> GalleryStore:
    made = open_store(tmp_path / "index", WIDTH)
    fill(made)
    return made


def test_rows_follow_paths_and_leave_out_what_cannot_be_read(store: GalleryStore) -> None:
    assert store.files() == {f"{name}.png": (1, n) for n, name in enumerate("dbca")}
    matrix = store.matrix()
    assert matrix.dtype == np.float16
    assert matrix.tolist() == [[3.0] * 4, [1.0] * 4, [0.0] * 4]
    assert store.paths([2, 0]) == ["d.png", "a.png"]
    assert store.troubles() == ["c is damaged"]
    assert store.known([digest(2), digest(9), digest(0)]) == {digest(2), digest(0)}


def test_the_matrix_follows_changes_and_is_otherwise_kept(store: GalleryStore) -> None:
    store.matrix()
    (path,) = store.folder.glob("features-*.npy")
    store.matrix()
    assert list(store.folder.glob("features-*.npy")) == [path]
    store.forget(["a.png"])
    store.save({"e.png": (Stamp(2, 2), digest(0))}, {}, {})  # a copy of d.png
    assert store.matrix()[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert store.paths([1, 2]) == ["d.png", "e.png"]
    assert len(list(store.folder.glob("features-*.npy"))) == 1
    assert store.known([digest(3)]) == set()


def test_another_process_sees_it(store: GalleryStore) -> None:
    expected = store.matrix().tolist()
    again = open_store(store.folder, WIDTH)
    assert again.matrix().tolist() == expected
    assert again.files() == store.files()


def test_who_has_opened_a_matrix_keeps_its_paths(store: GalleryStore) -> None:
    matrix = store.matrix()
    other = open_store(store.folder, WIDTH)
    other.save({"0.png": (Stamp(1, 9), digest(9))}, {digest(9): feature(9)}, {})
    assert store.paths([0, 2]) == ["a.png", "d.png"]
    assert other.matrix()[:, 0].tolist() == [9.0, 3.0, 1.0, 0.0]
    assert store.paths([0, 2]) == ["a.png", "d.png"]
    assert matrix[:, 0].tolist() == [3.0, 1.0, 0.0]
    assert store.matrix().tolist() == other.matrix().tolist()
    assert store.paths([0]) == ["0.png"]


def test_a_matrix_that_another_program_makes_meanwhile_is_left_alone(store: GalleryStore) -> None:
    """The other one comes in right after the first has written its own."""
    other = open_store(store.folder, WIDTH)

    class Overtaken(GalleryStore):
        def _run(self, action: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
            result = super()._run(action)
            if list(self.folder.glob("features-*")) and "0.png" not in other.files():
                other.save({"0.png": (Stamp(1, 9), digest(9))}, {digest(9): feature(9)}, {})
                others.append(other.matrix())
            return result

    others: list[np.ndarray] = []
    first = Overtaken(store.folder, WIDTH)
    assert first.matrix()[:, 0].tolist() == [9.0, 3.0, 1.0, 0.0]
    assert first.paths([0]) == ["0.png"]
    assert others[0].tolist() == first.matrix().tolist()
    assert len(list(store.folder.glob("features-*"))) == 1


def test_an_index_that_never_rests_is_one_line(store: GalleryStore) -> None:
    class Restless(GalleryStore):
        def _mapped(self, path: Path, count: int) -> np.ndarray:
            raise FileNotFoundError(path)

    with pytest.raises(DataError, match="being changed by other programs"):
        Restless(store.folder, WIDTH).matrix()


def test_a_lost_or_cut_matrix_is_made_again(store: GalleryStore) -> None:
    expected = store.matrix().tolist()
    (path,) = store.folder.glob("features-*.npy")
    path.unlink()
    assert store.matrix().tolist() == expected
    (path,) = store.folder.glob("features-*.npy")
    path.write_bytes(path.read_bytes()[:-3])
    assert store.matrix().tolist() == expected
    (path,) = store.folder.glob("features-*.npy")
    np.save(path, np.zeros((2, WIDTH), np.float16))
    assert store.matrix().tolist() == expected


def test_an_interrupted_batch_leaves_nothing(store: GalleryStore) -> None:
    def broken() -> object:
        yield digest(7), feature(7)
        raise KeyboardInterrupt

    class Features(dict):  # type: ignore[type-arg]
        items = staticmethod(broken)  # type: ignore[assignment]

    with pytest.raises(KeyboardInterrupt):
        store.save({"z.png": (Stamp(1, 1), digest(7))}, Features(), {})
    assert "z.png" not in store.files()
    assert store.known([digest(7)]) == set()


@pytest.mark.parametrize("damage", ["noise", "other layout", "other width", "no tables"])
def test_a_damaged_index_is_made_anew_with_a_line(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "index"
    store = open_store(folder, WIDTH)
    fill(store)
    store.matrix()
    path, width = folder / "index.sqlite", WIDTH
    if damage == "noise":
        path.write_bytes(b"not a database at all " * 100)
    elif damage == "other width":
        width = WIDTH + 1
    else:
        with sqlite3.connect(path) as database:
            command = "PRAGMA user_version = 9" if damage == "other layout" else "DROP TABLE about"
            database.execute(command)
        database.close()
    with caplog.at_level(logging.WARNING, "maskery"):
        again = open_store(folder, width)
    assert "is damaged" in caplog.text
    assert again.files() == {}
    assert not list(folder.glob("features-*"))


def test_damage_that_shows_later_is_told(store: GalleryStore) -> None:
    store.save({"y.png": (Stamp(1, 1), digest(8))}, {digest(8): np.zeros(3, np.float16)}, {})
    with pytest.raises(DamagedIndex, match="6 bytes"):
        store.matrix()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made"):
        open_store(tmp_path / "file" / "index", WIDTH)
