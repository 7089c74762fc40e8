"""One shard: a safetensors file of four arrays, memory-mapped.

`tokens` (uint16 or uint32) and `word_starts` (bool) of all documents end to end, without special
tokens; `lengths` (uint32) and `ids` (uint64), one a document. The same arrays make the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError, reason_of
from maskery.core.system import flush
from maskery.data.store import Documents

# The names of the safetensors format (huggingface/safetensors, README, "Format").
DTYPES = {"U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "BOOL": np.bool_}
ARRAYS = {"tokens": ("U16", "U32"), "word_starts": ("BOOL",), "lengths": ("U32",), "ids": ("U64",)}
# A header of four arrays has some 300 bytes; a large one is of another file.
MAX_HEADER_BYTES = 1 << 16


def write_shard(
    path: Path,
    *,
    tokens: npt.NDArray[np.integer[Any]],
    word_starts: npt.NDArray[np.bool_],
    lengths: npt.NDArray[np.int64],
    ids: npt.NDArray[np.uint64],
    vocab_size: int,
) -> tuple[int, str]:
    """Write a shard: whole, or not at all.

    Args:
        path: Where it goes.
        tokens: (t,) ids of the documents end to end.
        word_starts: (t,).
        lengths: (n,), summing to t.
        ids: (n,).
        vocab_size: Decides how wide the tokens are.

    Returns:
        Its size in bytes and its sha256.
    """
    from safetensors.numpy import save

    data = save(
        {
            "tokens": tokens.astype(np.uint16 if vocab_size <= 1 << 16 else np.uint32),
            "word_starts": word_starts.astype(np.bool_),
            "lengths": lengths.astype(np.uint32),
            "ids": ids.astype(np.uint64),
        }
    )
    write_bytes(path, data)
    return len(data), hashlib.sha256(data).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file aside, flush it to disk and rename it into place."""
    _write_aside(path, data, lambda partial: partial.replace(path))


def write_first(path: Path, data: bytes) -> None:
    """Write a file as `write_bytes` does, unless there is one: the first is never replaced."""

    def place(partial: Path) -> None:
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links: between these two another may be first
            if not path.exists():
                partial.replace(path)
        partial.unlink(missing_ok=True)

    _write_aside(path, data, place)


def _write_aside(path: Path, data: bytes, place: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        flush(partial)
        place(partial)
        flush(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"'{path}' cannot be written ({error.strerror}); free some space there and repeat the "
            f"command: what is complete is kept"
        ) from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_damage(path: Path, num_bytes: int, sha256: str) -> str | None:
    """Return the difference of a file from its recorded size and checksum, or None."""
    try:
        size = path.stat().st_size
        if size != num_bytes:
            return f"it has {size} of {num_bytes} bytes"
        if file_sha256(path) != sha256:
            return "it does not match its checksum"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


class TokenShard(Documents):
    """A shard, read through a memory map.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, *, vocab_size: int) -> None:
        """Map a shard and check that its arrays fit together."""
        self.path = path
        try:
            arrays = map_arrays(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(reason_of(error)) from error
        self.tokens = arrays["tokens"]
        self.word_starts = arrays["word_starts"]
        self.ids = arrays["ids"]
        lengths = arrays["lengths"]
        self.boundaries = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=self.boundaries[1:], dtype=np.int64)
        if len(self.ids) != len(lengths):
            raise self._damaged("it has not as many ids as documents")
        if not len(self.tokens) == len(self.word_starts) == self.boundaries[-1]:
            raise self._damaged("its documents have not as many tokens as it has")
        if len(self.tokens) and int(self.tokens.max()) >= vocab_size:
            raise self._damaged(f"it holds ids beyond the vocabulary of {vocab_size}")

    def _damaged(self, why: str) -> DataError:
        return DataError(
            f"'{self.path}' is no sound token shard ({why}); repair the folder by repeating the "
            f"maskery tokenize command that made it"
        )


def map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Map the arrays of a shard into memory."""
    with path.open("rb") as file:
        size = path.stat().st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError("its header is missing")
        header = json.loads(file.read(header_bytes))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for name, kinds in ARRAYS.items():
        entry = header[name]
        (count,), (first, end) = entry["shape"], entry["data_offsets"]
        if entry["dtype"] not in kinds:
            raise ValueError(f"{name} is of type {entry['dtype']}")
        dtype = np.dtype(DTYPES[entry["dtype"]])
        start = 8 + header_bytes + first
        if not (
            0 <= first <= end <= size - 8 - header_bytes and count * dtype.itemsize == end - first
        ):
            raise ValueError(f"{name} does not lie inside the file")
        array = np.frombuffer(data, np.uint8, count=end - first, offset=start)
        arrays[name] = array.view(dtype)
    return arrays


class Joined:
    """Mapped arrays one after the other, read by index arrays, never copied whole."""

    def __init__(self, parts: Sequence[npt.NDArray[Any]]) -> None:
        self.parts = list(parts)
        self.edges = np.concatenate(([0], np.cumsum([len(part) for part in parts]))).astype(
            np.int64
        )
        self.dtype = parts[0].dtype if parts else np.dtype(np.uint16)

    def __len__(self) -> int:
        return int(self.edges[-1])

    def __getitem__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the elements at some indices.

        Args:
            index: (t,) int64; runs of neighbours are fast.
        """
        values = np.empty(len(index), self.dtype)
        owner = np.searchsorted(self.edges, index, side="right") - 1
        for number in np.unique(owner).tolist():
            own = owner == number
            values[own] = self.parts[number][index[own] - self.edges[number]]
        return values


class JoinedShards(Documents):
    """Several shards as one."""

    def __init__(self, shards: Sequence[TokenShard]) -> None:
        self.shards = list(shards)
        self.tokens = Joined([shard.tokens for shard in shards])
        self.word_starts = Joined([shard.word_starts for shard in shards])
        edges = self.tokens.edges
        self.boundaries = np.concatenate(
            [
                *(shard.boundaries[:-1] + edge for shard, edge in zip(shards, edges, strict=False)),
                edges[-1:],
            ]
        )
        ids = [shard.ids for shard in shards]
        self.ids = np.concatenate(ids) if ids else np.zeros(0, np.uint64)

    def token_counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """Return how often each token stands in them: (vocab_size,) int64."""
        counts = [shard.token_counts(vocab_size) for shard in self.shards]
        total: npt.NDArray[np.int64] = np.sum([np.zeros(vocab_size, np.int64), *counts], axis=0)
        return total
