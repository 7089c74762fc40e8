"""The index of a gallery: an SQLite file, and a matrix of features made from it.

SQLite holds what was found out about each file: path, stamp, digest; and for each content, its
feature or why there is none. Every batch is a transaction, so an interrupted run loses at most one.
The matrix (float16, one row a readable picture, in the order of the paths) is derived: it is
written beside under a new name whenever the rows have changed, and made again if it is lost.

Several programs may index and search one gallery at once. A matrix is made and older ones are
removed under the database's lock, and who has opened one keeps it, with its paths, whatever others
do.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError
from maskery.data.gallery.files import Stamp

log = logging.getLogger(__name__)

DATABASE = "index.sqlite"
# Version of the tables; files of another are made again.
LAYOUT = 1
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL, row INTEGER
);
CREATE INDEX files_by_row ON files (row);
CREATE INDEX files_by_digest ON files (digest);
CREATE TABLE contents (digest BLOB PRIMARY KEY, feature BLOB, trouble TEXT);
"""
MATRIX = "matrix"
# Tries to open a matrix before another program has made the next one.
ATTEMPTS = 5
# Errors after which the index is made anew; others, as of a full disk, leave it alone.
DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
ResultT = TypeVar("ResultT")


class DamagedIndex(Exception):  # noqa: N818
    """The index cannot be trusted; it has to be made anew."""


class GalleryStore:
    """One gallery's index, under one model whose features are `width` (E) wide."""

    def __init__(self, folder: Path, width: int) -> None:
        """Open an index, or begin one; use `open_store`, which repairs."""
        self.folder, self.width = folder, width
        self._paths: Sequence[str] = ()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"the index folder '{folder}' cannot be made ({error.strerror}); name another "
                f"with --cache-dir"
            ) from error
        self._run(self._prepare)

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Make the tables where there are none; refuse others than ours."""
        (layout,) = database.execute("PRAGMA user_version").fetchone()
        if layout == 0:
            database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {LAYOUT}")
            database.execute("INSERT INTO about VALUES ('width', ?)", (self.width,))
        elif layout != LAYOUT:
            raise DamagedIndex(f"layout {layout}, and {LAYOUT} is expected")
        else:
            width = database.execute("SELECT value FROM about WHERE name = 'width'").fetchall()
            if width != [(str(self.width),)]:
                raise DamagedIndex(f"features of {width}, not of {self.width}")

    def files(self) -> dict[str, Stamp]:
        """Return the known files: by path, the stamp at which the content was read."""
        rows = self._all("SELECT path, size, mtime_ns FROM files")
        return {path: Stamp(size, mtime) for path, size, mtime in rows}

    def known(self, digests: Iterable[bytes], *, readable: bool = False) -> set[bytes]:
        """Return the contents that are done already, or those of them that could be read."""
        query = "SELECT digest FROM contents WHERE digest = ?"
        if readable:
            query += " AND feature IS NOT NULL"

        def read(database: sqlite3.Connection) -> set[bytes]:
            return {digest for digest in digests if database.execute(query, (digest,)).fetchone()}

        return self._run(read)

    def save(
        self,
        files: Mapping[str, tuple[Stamp, bytes]],
        features: Mapping[bytes, npt.NDArray[np.float16]],
        troubles: Mapping[bytes, str],
    ) -> None:
        """Take in one batch, whole or not at all.

        `features` (E,) and `troubles` (why there is no feature) are by digest.
        """
        contents: list[tuple[bytes, bytes | None, str | None]] = [
            (digest, feature.astype("<f2").tobytes(), None) for digest, feature in features.items()
        ]
        contents += [(digest, None, reason) for digest, reason in troubles.items()]
        rows = [(path, *stamp, digest) for path, (stamp, digest) in files.items()]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("REPLACE INTO contents VALUES (?, ?, ?)", contents)
            database.executemany("REPLACE INTO files VALUES (?, ?, ?, ?, NULL)", rows)
            database.execute("DELETE FROM about WHERE name = ?", (MATRIX,))

        self._run(write)

    def forget(self, paths: Iterable[str]) -> None:
        """Drop files, and contents that no file has any more."""

        def write(database: sqlite3.Connection) -> None:
            gone = [(path,) for path in paths]
            database.executemany("DELETE FROM files WHERE path = ?", gone)
            database.execute("DELETE FROM contents WHERE digest NOT IN (SELECT digest FROM files)")
            database.execute("DELETE FROM about WHERE name = ?", (MATRIX,))

        self._run(write)

    def troubles(self) -> list[str]:
        """Return the reason of each file that has no feature, in the order of the paths."""
        rows = self._all(
            "SELECT trouble FROM files JOIN contents USING (digest) "
            "WHERE feature IS NULL ORDER BY path"
        )
        return [str(trouble) for (trouble,) in rows]

    def paths(self, rows: Sequence[int]) -> list[str]:
        """Return the paths of rows of the matrix that was opened last."""
        return [self._paths[row] for row in rows]

    def matrix(self) -> npt.NDArray[np.float16]:
        """Return (I, E) features, memory-mapped copy-on-write; row i belongs to `paths([i])`."""
        for _ in range(ATTEMPTS):
            # Another program may replace the matrix between looking and opening it.
            named, paths = self._run(_numbered)
            if named is not None:
                try:
                    matrix = self._mapped(self.folder / named, len(paths))
                except (OSError, ValueError):
                    log.info("the matrix of the gallery's features was lost; it is made again")
                else:
                    self._paths = paths
                    return matrix
            self._make_matrix(lost=named)
        raise DataError(
            f"the index '{self.folder}' is being changed by other programs; wait for them to end"
        )

    def _mapped(self, path: Path, count: int) -> npt.NDArray[np.float16]:
        matrix: npt.NDArray[np.float16] = np.load(path, mmap_mode="c", allow_pickle=False)
        if matrix.shape != (count, self.width) or matrix.dtype != np.float16:
            raise ValueError(f"{path} has shape {matrix.shape}")
        return matrix

    def _make_matrix(self, lost: str | None) -> None:
        """Number the readable pictures and write their features in that order.

        Does nothing where another program has made a matrix since `lost` was found missing.
        """
        readable = "FROM files JOIN contents USING (digest) WHERE feature IS NOT NULL"
        path = self.folder / f"features-{uuid.uuid4().hex}.npy"

        def write(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            if _about(database, MATRIX) not in (None, lost):
                return
            (count,) = database.execute(f"SELECT count(*) {readable}").fetchone()
            rows = database.execute(f"SELECT files.rowid, feature {readable} ORDER BY path")
            ids = self._write_features(rows, path, count)
            database.execute("UPDATE files SET row = NULL")
            numbered = enumerate(ids)
            database.executemany("UPDATE files SET row = ? WHERE rowid = ?", numbered)
            database.execute("REPLACE INTO about VALUES (?, ?)", (MATRIX, path.name))
            # Under the lock no other program is writing one.
            for old in self.folder.glob("features-*.npy"):
                if old != path:
                    old.unlink(missing_ok=True)

        self._run(write)

    def _write_features(
        self, rows: Iterable[tuple[int, bytes]], path: Path, count: int
    ) -> list[int]:
        """Write (count, E) to an .npy file; returns the ids of the rows."""
        ids: list[int] = []
        with path.open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (count, self.width)}
            np.lib.format.write_array_header_1_0(file, header)
            for number, feature in rows:
                if len(feature) != 2 * self.width:
                    raise DamagedIndex(f"a feature of {len(feature)} bytes")
                ids.append(number)
                file.write(feature)
        return ids

    def _all(self, query: str) -> list[Any]:
        return self._run(lambda database: database.execute(query).fetchall())

    def _run(self, action: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        """Do something as one transaction; the database's errors become ours."""
        try:
            with closing(sqlite3.connect(self.folder / DATABASE, timeout=60)) as database:
                # A loss of power may damage the file; it is then made anew.
                database.execute("PRAGMA synchronous = NORMAL")
                with database:
                    return action(database)
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "") or ""
            missing = "no such table" in str(error) or "no such column" in str(error)
            if name.startswith(DAMAGED) or missing:
                raise DamagedIndex(str(error)) from error
            raise DataError(
                f"the index '{self.folder / DATABASE}' cannot be used ({error}); free some space "
                f"there, wait for other programs, or name another folder with --cache-dir"
            ) from error


def _about(database: sqlite3.Connection, name: str) -> str | None:
    row = database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _numbered(database: sqlite3.Connection) -> tuple[str | None, list[str]]:
    """Return the name of the matrix and the paths of its rows, as of one moment."""
    database.execute("BEGIN")
    rows = database.execute("SELECT path FROM files WHERE row IS NOT NULL ORDER BY row")
    return _about(database, MATRIX), [str(path) for (path,) in rows]


def open_store(folder: Path, width: int) -> GalleryStore:
    """Open a gallery's index, or begin one; a damaged one is made anew."""
    try:
        return GalleryStore(folder, width)
    except DamagedIndex as error:
        return renewed(folder, width, error)


def renewed(folder: Path, width: int, reason: Exception) -> GalleryStore:
    """Remove a damaged index, saying so, and begin one."""
    log.warning("the index in '%s' is damaged (%s); it is made anew", folder, reason)
    for path in [folder / DATABASE, folder / f"{DATABASE}-journal", *folder.glob("features-*")]:
        path.unlink(missing_ok=True)
    return GalleryStore(folder, width)
