"""Opens plain and compressed files as one kind of binary stream.

gzip, xz and bzip2 come from the standard library, Zstandard from pyarrow. Archives of several
streams or frames (as `cat a.gz b.gz`, pigz, pbzip2 and pzstd write them) are read whole, and one
that is cut short or damaged fails: nothing is dropped at a damaged seam.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from maskery.core.errors import DataError

CHUNK_BYTES = 1 << 18
# Dictionaries of more than this are not allocated: `xz -9` writes 64 MiB, a hostile file 4 GiB.
XZ_MEMORY = 1 << 28
Decompressor: TypeAlias = lzma.LZMADecompressor | bz2.BZ2Decompressor


class Readable(Protocol):
    """The one thing asked of a binary stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class CountedFile:
    """A raw file that tells how much of it is read.

    Has as much of the file interface as gzip and pyarrow ask for.
    """

    closed = False

    def __init__(
        self, file: BinaryIO, on_read: Callable[[int], object], limit: int | None = None
    ) -> None:
        self.file, self.on_read, self.left = file, on_read, limit

    def read(self, size: int = CHUNK_BYTES, /) -> bytes:
        """At most `size` bytes; none at the end."""
        data = self.file.read(size if self.left is None else min(size, self.left))
        if self.left is not None:
            self.left -= len(data)
        self.on_read(len(data))
        return data

    def close(self) -> None:
        """Nothing: who opened the file closes it. pyarrow calls this."""


class MultiStream:
    """The streams of an xz or bzip2 file, one after the other.

    `lzma.open` and `bz2.open` take whatever follows the first stream and is not a stream for
    rubbish and drop it in silence; here it is an error. Padding of zero bytes is allowed.
    """

    def __init__(self, file: Readable, decompressor: Callable[[], Decompressor]) -> None:
        self.file, self.new_decompressor = file, decompressor
        self.decompressor: Decompressor | None = None
        self.waiting = b""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        while True:
            if self.decompressor is None and not self._next_stream():
                return b""
            assert self.decompressor is not None
            data = b""
            if self.decompressor.needs_input:
                data, self.waiting = self.waiting or self.file.read(CHUNK_BYTES), b""
                if not data:
                    raise EOFError("it ends too early")
            output = self.decompressor.decompress(data, size)
            if self.decompressor.eof:
                self.waiting, self.decompressor = self.decompressor.unused_data, None
            if output:
                return output

    def _next_stream(self) -> bool:
        """Pass over padding and stand before the next stream, if there is one."""
        self.waiting = self.waiting.lstrip(b"\0")
        while not self.waiting:
            data = self.file.read(CHUNK_BYTES)
            if not data:
                return False
            self.waiting = data.lstrip(b"\0")
        self.decompressor = self.new_decompressor()
        return True


def open_gzip(file: CountedFile) -> Readable:
    """A gzip file of any number of members."""
    return gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[call-overload, no-any-return]


def open_xz(file: CountedFile) -> Readable:
    """An xz file of any number of streams."""
    return MultiStream(file, partial(lzma.LZMADecompressor, memlimit=XZ_MEMORY))


def open_bz2(file: CountedFile) -> Readable:
    """A bzip2 file of any number of streams."""
    return MultiStream(file, bz2.BZ2Decompressor)


def open_zstd(file: CountedFile) -> Readable:
    """A Zstandard file of any number of frames."""
    import pyarrow as pa

    stream: Readable = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return stream


COMPRESSIONS: dict[str, Callable[[CountedFile], Readable]] = {
    ".gz": open_gzip,
    ".xz": open_xz,
    ".bz2": open_bz2,
    ".zst": open_zstd,
}


class NamedStream:
    """A stream whose failures are one line that names the file."""

    def __init__(self, path: Path, stream: Readable) -> None:
        self.path, self.stream = path, stream

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            DataError: The file cannot be read, or its archive is damaged.
        """
        try:
            return self.stream.read(size)
        except EOFError as error:
            raise self._damaged("it ends too early") from error
        except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise self._damaged(str(error)) from error
        except OSError as error:
            # bz2 and pyarrow raise OSError for bad data; only the system's errors have a number.
            if error.errno is None and self.path.suffix.lower() in COMPRESSIONS:
                raise self._damaged(str(error)) from error
            raise cannot_read(self.path, error) from error

    def _damaged(self, why: str) -> DataError:
        suffix = self.path.suffix.lower()
        return DataError(
            f"{self.path} is no whole {suffix} archive ({why}): it is cut short, damaged or of "
            "another kind; fetch it again, or give it the suffix of what it is"
        )


def cannot_read(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not give us."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return DataError(f"{path} cannot be read ({reason}); check the file and its permissions")


@contextmanager
def open_stream(
    path: Path, on_read: Callable[[int], object], span: tuple[int, int] | None = None
) -> Iterator[Readable]:
    """Open a file as a binary stream, decompressed if its last suffix says so.

    Args:
        path: The file.
        on_read: Told the number of bytes of the file, before decompression, as they are read.
        span: The first byte and the one after the last, of a plain file. Default: all of it.

    Raises:
        DataError: The file cannot be opened; `read` raises it for damaged archives.
    """
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise cannot_read(path, error) from error
    with file:
        opener = COMPRESSIONS.get(path.suffix.lower())
        first, end = span or (0, None)
        file.seek(first)
        counted = CountedFile(file, on_read, None if end is None else end - first)
        yield NamedStream(path, opener(counted) if opener else counted)
