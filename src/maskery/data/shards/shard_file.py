"""One shard: a safetensors file of four arrays.

`tokens` (uint16 or uint32) and `word_starts` (bool) of all documents end to end, without special
tokens; `lengths` (uint32) and `ids` (uint64), one a document. The same arrays make the same bytes.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError, reason_of
from maskery.core.system import write_whole
from maskery.data.shards.manifest import FileEntry, ShardEntry
from maskery.data.store import Documents, Part, token_type

DTYPES: dict[str, tuple[type[np.generic], ...]] = {
    "tokens": (np.uint16, np.uint32),
    "word_starts": (np.bool_,),
    "lengths": (np.uint32,),
    "ids": (np.uint64,),
}


def write_shard(path: Path, part: Part, *, vocab_size: int) -> ShardEntry:
    """Write a shard: whole, or not at all."""
    from safetensors.numpy import save

    tokens, word_starts, lengths, ids = part
    data = save(
        {
            "tokens": tokens.astype(token_type(vocab_size)),
            "word_starts": word_starts,
            "lengths": lengths.astype(np.uint32),
            "ids": ids,
        }
    )
    return ShardEntry(**vars(write_bytes(path, data)), documents=len(ids), tokens=len(tokens))


def write_bytes(path: Path, data: bytes) -> FileEntry:
    """Write a file whole, or not at all; ranks may write the same one at once."""
    try:
        write_whole(path, data, aside=f"partial-{secrets.token_hex(4)}")
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be written ({error.strerror}); free some space there and repeat the "
            f"command: what is complete is kept"
        ) from error
    return _entry(path.name, data)


def entry_of(path: Path) -> FileEntry:
    """Describe a small file that is there."""
    return _entry(path.name, path.read_bytes())


def _entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_first(path: Path, data: bytes) -> None:
    """Write a file as `write_bytes` does, unless there is one: the first is never replaced."""
    aside = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    write_bytes(aside, data)
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: between these two another may be first
        if not path.exists():
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def find_damage(path: Path, num_bytes: int, sha256: str) -> str | None:
    """Return the difference of a file from its recorded size and checksum, or None."""
    try:
        size = path.stat().st_size
        if size != num_bytes:
            return f"it has {size} of {num_bytes} bytes"
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                return "it does not match its checksum"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def read_shards(paths: Sequence[Path], *, vocab_size: int) -> Documents:
    """Read at least one shard into memory, several as one, and check that their arrays fit."""
    return Documents.gather(_read(path, vocab_size) for path in paths)


def _read(path: Path, vocab_size: int) -> Part:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        why = _misfit(arrays, vocab_size)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        why = reason_of(error)
    if why:
        raise DataError(
            f"'{path}' is no sound token shard ({why}); repair the folder by repeating the "
            f"maskery tokenize command that made it"
        )
    return arrays["tokens"], arrays["word_starts"], arrays["lengths"], arrays["ids"]


def _misfit(arrays: dict[str, npt.NDArray[Any]], vocab_size: int) -> str:
    """Return the first thing that is wrong with the arrays of a shard, or ""."""
    for name, kinds in DTYPES.items():
        if arrays[name].dtype not in kinds or arrays[name].ndim != 1:
            return f"{name} is of type {arrays[name].dtype}, {arrays[name].ndim}-dimensional"
    tokens = arrays["tokens"]
    if len(arrays["ids"]) != len(arrays["lengths"]):
        return "it has not as many ids as documents"
    if not len(tokens) == len(arrays["word_starts"]) == arrays["lengths"].sum(dtype=np.int64):
        return "its documents have not as many tokens as it has"
    if len(tokens) and int(tokens.max()) >= vocab_size:
        return f"it holds ids beyond the vocabulary of {vocab_size}"
    return ""
