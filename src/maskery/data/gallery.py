"""A folder of pictures, found by name and told apart by content, and the index of their features.

The index is an SQLite file and a snapshot of the features in it. SQLite holds what was found out
about each file: path, stamp, digest; and for each content, its feature or why there is none. Every
batch is a transaction, so an interrupted run loses at most one. The snapshot (paths and float16
features of the readable pictures, in the order of the paths) is derived: it is written anew
whenever the database has changed, or if it is lost.

Several programs may index and search one gallery at once: a snapshot replaces the last one whole,
and who has opened one keeps it, whatever others do.
"""

import errno
import json
import logging
import os
import sqlite3
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from maskery.core.errors import DataError, counted, explained, reason_of
from maskery.data.images.loading import SUFFIXES, ImageRef, open_file

log = logging.getLogger(__name__)

DATABASE, SNAPSHOT = "index.sqlite", "features.safetensors"
# Version of the tables; files of another are made again.
LAYOUT = 1
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL
);
CREATE INDEX files_by_digest ON files (digest);
CREATE TABLE contents (digest BLOB PRIMARY KEY, feature BLOB, trouble TEXT);
"""
JOINED = "FROM files JOIN contents USING (digest)"
# Errors after which the index is made anew; others, as of a full disk, leave it alone.
DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class Stamp(NamedTuple):
    """Size and time of a file, which tell without reading that it changed."""

    size: int
    mtime_ns: int


def find_pictures(folder: Path) -> dict[str, Stamp]:
    """Return the pictures below a folder, sorted: relative path with slashes, and stamp.

    A file without an ending may be one. Hidden names and links to folders are passed over.
    """
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise DataError(f"the gallery '{folder}' {what}; name a folder of pictures")
    found: dict[str, Stamp] = {}
    special, others = list[str](), list[str]()

    def refuse(error: OSError) -> None:
        problem = f"the gallery folder '{error.filename}' cannot be listed ({error.strerror})"
        raise DataError(f"{problem}; correct its permissions") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            key = path.relative_to(folder).as_posix()
            if path.suffix and path.suffix[1:].lower() not in SUFFIXES:
                others.append(key)
                continue
            try:
                status = path.stat()
            except OSError as error:
                if error.errno == errno.ELOOP:
                    special.append(key)
                continue  # gone since it was listed, or a link to nothing
            if stat.S_ISREG(status.st_mode):
                found[key] = Stamp(status.st_size, status.st_mtime_ns)
            else:
                special.append(key)  # reading a FIFO or a device may wait for ever
    for passed, what in ((special, "no regular files"), (others, "without a picture's ending")):
        if passed:
            told = "passed over in the gallery: %s, %s, first '%s'"
            log.warning(told, counted(len(passed), "entry", "entries"), what, min(passed))
    return dict(sorted(found.items()))


def read_picture(folder: Path, name: str) -> ImageRef:
    """Read a picture's bytes, once, to be hashed and decoded."""
    path = folder / name
    try:
        name.encode("utf-8")  # the index keeps names as text
    except UnicodeEncodeError as error:
        raise DataError(f"image {path} has a name that is not UTF-8; rename it") from error
    with explained(f"image {path} cannot be read", "restore it"), open_file(path) as file:
        return ImageRef.held(str(path), file.read())


def digest_of(picture: ImageRef) -> bytes:
    """Return a hash of a picture's bytes."""
    with picture.open() as file:
        # Of 16 bytes, two of a million pictures are never taken for one.
        return blake2b(file.read(), digest_size=16).digest()


class DamagedIndex(Exception):  # noqa: N818
    """The index cannot be trusted; it has to be made anew."""


class Snapshot(NamedTuple):
    """The readable pictures of a gallery at one moment."""

    features: npt.NDArray[np.float16]  # (I, E), memory-mapped copy-on-write
    paths: list[str]  # of each row


class GalleryStore:
    """One gallery's index, under one model whose features are `width` (E) wide."""

    def __init__(self, folder: Path, width: int) -> None:
        """Open an index, or begin one; use `open_store`, which repairs."""
        self.folder, self.width = folder, width
        problem = f"the index folder '{folder}' cannot be made"
        with explained(problem, "name another with --cache-dir"):
            folder.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {LAYOUT}")
                database.execute("INSERT INTO about VALUES ('width', ?)", (width,))
            elif layout != LAYOUT:
                raise DamagedIndex(f"layout {layout}, and {LAYOUT} is expected")
            elif (found := _about(database, "width")) != str(width):
                raise DamagedIndex(f"features of {found}, not of {width}")

    def files(self) -> dict[str, Stamp]:
        """Return the known files: by path, the stamp at which the content was read."""
        with self._transaction() as database:
            rows = database.execute("SELECT path, size, mtime_ns FROM files").fetchall()
        return {path: Stamp(size, mtime) for path, size, mtime in rows}

    def known(self, digests: Iterable[bytes], *, readable: bool = False) -> set[bytes]:
        """Return the contents that are done already, or those of them that could be read."""
        kind = "AND feature IS NOT NULL" if readable else ""
        query = f"SELECT digest FROM contents WHERE digest = ? {kind}"
        with self._transaction() as database:
            return {d for d in digests if database.execute(query, (d,)).fetchone()}

    def save(
        self,
        files: Mapping[str, tuple[Stamp, bytes]],  # stamp and digest, by path
        features: Mapping[bytes, npt.NDArray[np.float16]],  # (E,), by digest
        troubles: Mapping[bytes, str],  # why there is no feature, by digest
    ) -> None:
        """Take in one batch, whole or not at all."""
        # Little-endian on any machine, since an index may be moved.
        read = [(digest, feature.astype("<f2").tobytes()) for digest, feature in features.items()]
        rows = [(path, *stamp, digest) for path, (stamp, digest) in files.items()]
        columns = "path, size, mtime_ns, digest"  # older indices have one more
        with self._transaction() as database:
            database.executemany("REPLACE INTO contents VALUES (?, ?, NULL)", read)
            database.executemany("REPLACE INTO contents VALUES (?, NULL, ?)", troubles.items())
            database.executemany(f"REPLACE INTO files ({columns}) VALUES (?, ?, ?, ?)", rows)
            _changed(database)

    def forget(self, paths: Iterable[str]) -> None:
        """Drop files, and contents that no file has any more."""
        with self._transaction() as database:
            database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
            database.execute("DELETE FROM contents WHERE digest NOT IN (SELECT digest FROM files)")
            _changed(database)

    def troubles(self) -> list[str]:
        """Return the reason of each file that has no feature, in the order of the paths."""
        query = f"SELECT trouble {JOINED} WHERE feature IS NULL ORDER BY path"
        with self._transaction() as database:
            return [str(trouble) for (trouble,) in database.execute(query)]

    def snapshot(self) -> Snapshot:
        """Return features and paths as the database has them now."""
        with self._transaction() as database:
            version = str(_about(database, "version"))
        try:
            with safe_open(self.folder / SNAPSHOT, "pt") as file:
                found = file.metadata()
                if found and found["version"] == version:
                    paths = json.loads(file.get_tensor("paths").numpy().tobytes())
                    return Snapshot(file.get_tensor("features").numpy(), paths)
        except FileNotFoundError:  # as in a new folder
            pass
        except (OSError, SafetensorError, LookupError, ValueError):
            log.info("the snapshot of the gallery's features was lost; it is made again")
        with self._transaction() as database:
            version, snapshot = self._read_snapshot(database)
        self._write_snapshot(version, snapshot)
        return snapshot

    def _read_snapshot(self, database: sqlite3.Connection) -> tuple[str, Snapshot]:
        readable = f"{JOINED} WHERE feature IS NOT NULL"
        database.execute("BEGIN")  # version, count and rows are of one moment
        version = str(_about(database, "version"))
        (count,) = database.execute(f"SELECT count(*) {readable}").fetchone()
        features = np.empty((count, self.width), "<f2")
        paths: list[str] = []
        for path, feature in database.execute(f"SELECT path, feature {readable} ORDER BY path"):
            if len(feature) != 2 * self.width:
                raise DamagedIndex(f"a feature of {len(feature)} bytes")
            features[len(paths)] = np.frombuffer(feature, "<f2")
            paths.append(path)
        return version, Snapshot(features, paths)

    def _write_snapshot(self, version: str, snapshot: Snapshot) -> None:
        named = torch.frombuffer(bytearray(json.dumps(snapshot.paths), "utf-8"), dtype=torch.uint8)
        tensors = {"features": torch.from_numpy(snapshot.features), "paths": named}
        made = self.folder / f"features-{uuid.uuid4().hex}"
        try:
            save_file(tensors, made, {"version": version})
            made.replace(self.folder / SNAPSHOT)
            for old in self.folder.glob("features-*.npy"):  # as it used to be kept
                old.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            made.unlink(missing_ok=True)
            problem = f"the features cannot be written to '{self.folder}' ({reason_of(error)})"
            fix = "free some space there, or name another folder with --cache-dir"
            raise DataError(f"{problem}; {fix}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the database for the block, all of it or nothing; its errors become ours."""
        try:
            # Others write a batch within seconds; who waits a minute waits for something broken.
            with closing(sqlite3.connect(self.folder / DATABASE, timeout=60)) as database:
                # A loss of power may damage the file; it is then made anew.
                database.execute("PRAGMA synchronous = NORMAL")
                with database:
                    yield database
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "") or ""
            missing = "no such table" in str(error) or "no such column" in str(error)
            if name.startswith(DAMAGED) or missing:
                raise DamagedIndex(str(error)) from error
            problem = f"the index '{self.folder / DATABASE}' cannot be used ({error})"
            fix = "free some space there, wait for other programs"
            raise DataError(f"{problem}; {fix}, or name another folder with --cache-dir") from error


def _about(database: sqlite3.Connection, name: str) -> str | None:
    row = database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _changed(database: sqlite3.Connection) -> None:
    """Give the database a new version, of which there is no snapshot yet."""
    database.execute("REPLACE INTO about VALUES ('version', ?)", (uuid.uuid4().hex,))


def open_store(folder: Path, width: int) -> GalleryStore:
    """Open a gallery's index, or begin one; a damaged one is made anew."""
    try:
        return GalleryStore(folder, width)
    except DamagedIndex as error:
        return renewed(folder, width, error)


def renewed(folder: Path, width: int, reason: Exception) -> GalleryStore:
    """Remove a damaged index, saying so, and begin one."""
    log.warning("the index in '%s' is damaged (%s); it is made anew", folder, reason)
    for path in [folder / DATABASE, folder / f"{DATABASE}-journal", *folder.glob("features*")]:
        path.unlink(missing_ok=True)
    return GalleryStore(folder, width)
