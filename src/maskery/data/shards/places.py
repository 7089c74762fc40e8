"""Places of shards: a folder, or any address that fsspec knows (s3://, gs://, https://).

A file is written to an address in one request, whole or not at all. Files from an address are
copied to the local disk, whole or not at all, and the oldest copies go when there are more than are
wanted, so the space used is bounded.
"""

import glob
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from maskery.core.errors import DataError
from maskery.core.system import sha256_of
from maskery.data.corpus import files
from maskery.data.corpus.files import MANIFEST, PLAN, RemoteFile, is_address, unreadable
from maskery.data.corpus.formats import SUFFIXES, split_suffix
from maskery.data.corpus.streams import named_in_errors
from maskery.data.shards.manifest import FileEntry
from maskery.data.store import create_owned, own_folder, ownerless, partial_of

log = logging.getLogger(__name__)

T = TypeVar("T")
COPY_BYTES = 1 << 22  # A shard is never held in memory whole to be copied
PAUSES = (1.0, 5.0, 25.0)  # Seconds between attempts to read from an address
MAX_MANIFEST_BYTES = 1 << 30  # An address may send anything


def find_damage(path: Path, num_bytes: int, sha256: str) -> str | None:
    """Return the difference of a file from its recorded size and checksum, or None."""
    try:
        # The size first: it costs nothing, and most damage is a file that was cut short.
        size = path.stat().st_size
        if size != num_bytes:
            return f"it has {size} of {num_bytes} bytes"
        if sha256_of(path) != sha256:
            return "it does not match its checksum"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


class Place:
    """A folder of shards on this machine; nothing is copied."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)

    def manifest(self) -> bytes:
        """Return the bytes of `shards.json`."""
        path = self.folder / MANIFEST
        if not path.is_file():
            fix = "repeat the maskery tokenize command that began them"
            raise DataError(f"the shards in '{self.folder}' are not complete; {fix}")
        with named_in_errors(path):
            return path.read_bytes()

    def fetch(self, entry: FileEntry, folder: str = "") -> Path:
        """Return the path of a local file whose checksum is right: a shard, or one beside it."""
        path = self.folder / f"{folder}{entry.file}"
        if damage := find_damage(path, entry.bytes, entry.sha256):
            fix = "make it anew by repeating the maskery tokenize command that made it"
            raise DataError(f"'{path}' is damaged ({damage}); {fix}")
        return path

    def trim(self, keep: int) -> None:
        """Let go of all but the `keep` local copies used last."""


class RemotePlace(Place):
    """An address of shards; files are copied to the `folder` of the cache that belongs to it."""

    def __init__(
        self, address: str, cache_dir: Path, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        name = address.rstrip("/")  # which holds characters that no file name may have
        here = blake2b(name.encode(), digest_size=8).hexdigest()
        super().__init__(own_folder(cache_dir, "shards") / here)
        self.name, self.sleep = name, sleep

    def manifest(self) -> bytes:
        """See `Place.manifest`."""
        try:
            data = self._tried(MANIFEST, lambda stream: stream.read(MAX_MANIFEST_BYTES + 1))
        except FileNotFoundError as error:
            why = "there are no complete shards of maskery tokenize; check the address"
            raise DataError(f"'{self.name}' has no {MANIFEST}: {why}") from error
        if len(data) > MAX_MANIFEST_BYTES:
            raise DataError(f"'{self.name}/{MANIFEST}' is larger than a gigabyte; it is no list")
        return data

    def fetch(self, entry: FileEntry, folder: str = "") -> Path:
        """See `Place.fetch`."""
        file = f"{folder}{entry.file}"
        path = self.folder / file
        if find_damage(path, entry.bytes, entry.sha256) is None:
            with suppress(FileNotFoundError):  # another run may have let go of it by now
                os.utime(path)  # the copies used last are kept
                return path
        try:
            self._tried(file, lambda stream: self._copy(stream, path, entry))
        except FileNotFoundError as error:
            raise unreadable(f"{self.name}/{file}", error) from error
        return path

    def trim(self, keep: int) -> None:
        """See `Place.trim`."""
        used = []
        for path in self.folder.glob("*.safetensors"):
            with suppress(OSError):  # another process was first
                used.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(used, reverse=True)[keep:]:
            path.unlink(missing_ok=True)

    def _copy(self, stream: BinaryIO, path: Path, entry: FileEntry) -> None:
        """Copy a file aside, check it and rename it; no more than it should have is read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_behind in ownerless(path.parent):  # by a run of this machine that was killed
            left_behind.unlink(missing_ok=True)
        partial = partial_of(path)
        try:
            left = entry.bytes + 1  # one more, to tell a file that is too long
            with create_owned(partial) as out:
                while left and (block := stream.read(min(left, COPY_BYTES))):
                    out.write(block)
                    left -= len(block)
                out.flush()
                if damage := find_damage(partial, entry.bytes, entry.sha256):
                    problem = f"'{self.name}/{path.relative_to(self.folder)}' is damaged ({damage})"
                    fix = "upload it again, or make it anew with maskery tokenize"
                    raise DataError(f"{problem}; {fix}")
                partial.replace(path)  # while it is owned: else another run may remove it
        finally:
            partial.unlink(missing_ok=True)

    def _tried(self, file: str, read: Callable[[BinaryIO], T]) -> T:
        """Read a file of the address, again after a pause where the network may be at fault."""
        filesystem, root = files.open_address(self.name)
        pauses = iter(PAUSES)
        while True:
            try:
                with filesystem.open(f"{root}/{file}", "rb") as stream:
                    return read(stream)
            except FileNotFoundError:
                raise
            except Exception as error:  # every file system has its own
                # What another attempt would not mend.
                lasting = isinstance(error, PermissionError | ImportError | ValueError)
                pause = None if lasting else next(pauses, None)
                if pause is None:
                    if isinstance(error, DataError):  # of `read`
                        raise
                    raise unreadable(f"{self.name}/{file}", error) from error
                log.warning("reading '%s' failed (%s); trying again", self.name, error)
                self.sleep(pause)


def open_place(source: str, cache_dir: Path) -> Place:
    """Return the place for a folder or an address."""
    if is_address(source):
        return RemotePlace(source, cache_dir)
    return Place(Path(source).expanduser())


class RemoteFolder(RemoteFile):
    """A folder at an address, or a name in one, with as much of `Path` as writing shards asks for.

    What is not there is a FileNotFoundError, and any other failure a DataError.
    """

    __slots__ = ()

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self.filesystem, f"{self.path}/{name}", None, None)

    def mkdir(self, **_: bool) -> None:
        """Make it where folders are made; most stores have none, and no bucket is made."""
        with suppress(Exception):
            self.filesystem.mkdir(self.path, create_parents=False)

    def iterdir(self) -> Iterator["RemoteFolder"]:
        """Yield what is in it; nothing if it is not there."""
        with suppress(FileNotFoundError):
            for name in self._asked("ls", detail=False):
                yield self / name.rstrip("/").rpartition("/")[2]

    def glob(self, _pattern: str) -> tuple[()]:
        """Return nothing: what was being written when a process was killed is not there."""
        return ()

    def is_file(self) -> bool:
        """Return True if there is a file of that name."""
        with suppress(FileNotFoundError):
            return bool(self._asked("info")["type"] == "file")
        return False

    def stat(self) -> SimpleNamespace:
        """Return the size as `st_size`."""
        return SimpleNamespace(st_size=self._asked("info")["size"])

    def read_bytes(self) -> bytes:
        """Return the content."""
        return cast(bytes, self._asked("cat_file"))

    def write_bytes(self, data: bytes) -> None:
        """Write it whole, in one request; a process that is killed in it leaves nothing."""
        with files.asked(self, "written"):
            self.filesystem.pipe_file(self.path, data)

    def _asked(self, method: str, **how: Any) -> Any:
        self.filesystem.invalidate_cache()  # other machines write here too
        try:
            return getattr(self.filesystem, method)(self.path, **how)
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has its own
            raise unreadable(self, error) from error


def output_folder(name: str) -> Path:
    """Return the folder that shards are written to: a path, or a `RemoteFolder`."""
    if not is_address(name):
        return Path(name).expanduser()
    filesystem, path = files.open_address(name)
    if "file" in files.protocols(filesystem):
        return Path(path)
    return cast(Path, RemoteFolder(filesystem, path.rstrip("/"), None, None))


def holds_shards(source: str) -> bool:
    """Return True for a folder or address of shards that `maskery tokenize` has made or begun."""
    path = urlsplit(source).path if is_address(source) else ""
    # At an address, a file or a glob is no folder; the rest is asked for.
    if glob.has_magic(path) or split_suffix(Path(path))[0] in SUFFIXES:
        return False
    with suppress(OSError):  # such as a name that is too long
        return any((output_folder(source) / name).is_file() for name in (MANIFEST, PLAN))
    return False
