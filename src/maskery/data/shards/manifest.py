"""The files of a folder of shards: written whole, checked when read, listed in `shards.json`.

A shard is a safetensors file of four arrays: `tokens` (uint16 or uint32) and `word_starts` (bool)
of all documents end to end, without special tokens; `lengths` (uint32) and `ids` (uint64), one a
document. The same arrays make the same bytes. `held-out-*` files are shards of the documents set
aside for evaluation, `lengths.safetensors` tells how many documents of each length every shard has
(from which the steps of an epoch are counted without reading a shard), and `tokenizer/` is theirs.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from maskery.core.batch import Ints
from maskery.core.errors import MALFORMED, DataError, explained
from maskery.core.system import write_whole
from maskery.data.corpus.files import MANIFEST
from maskery.data.store import Documents, Part, token_type

FORMAT = 1  # Raised whenever shards would be read as others than they are
LENGTHS, TOKENIZER = "lengths.safetensors", "tokenizer"
# No folders: nothing that a manifest names may lie outside its own.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
SHA256, HASH = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")
DTYPES: dict[str, tuple[type[np.generic], ...]] = {
    "tokens": (np.uint16, np.uint32),
    "word_starts": (np.bool_,),
    "lengths": (np.uint32,),
    "ids": (np.uint64,),
}


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file as it was written."""

    file: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_sound(_fits(FILE_NAME, self.file), "file name")
        check_sound(is_count(self.bytes), "size")
        check_sound(_fits(SHA256, self.sha256), "checksum")


@dataclass(frozen=True, kw_only=True)
class ShardEntry(FileEntry):
    """A shard as it was written, and its number of documents and of their tokens."""

    documents: int
    tokens: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sound(is_count(self.documents) and is_count(self.tokens), "count")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a folder of shards."""

    fingerprint: str  # of the plan they were made by
    tokenizer: str  # the name that --model gave
    tokenizer_fingerprint: str
    tokenizer_files: tuple[FileEntry, ...]  # in the folder `tokenizer/`
    vocab_size: int  # all ids are below
    held_out_share: float
    lengths: FileEntry  # of `LengthCounts`
    shards: tuple[ShardEntry, ...]  # for training
    held_out: tuple[ShardEntry, ...]

    def __post_init__(self) -> None:
        hashes = (self.fingerprint, self.tokenizer_fingerprint)
        check_sound(all(_fits(HASH, value) for value in hashes), "hash")
        check_sound(isinstance(self.tokenizer, str), "tokenizer")
        # Tokens are stored in 32 bits at most.
        check_sound(is_count(self.vocab_size) and 0 < self.vocab_size < 1 << 31, "vocabulary size")
        share = self.held_out_share
        check_sound(isinstance(share, float) and 0.0 < share < 1.0, "held-out share")
        check_sound(self.tokens > 0, "number of tokens")

    @property
    def documents(self) -> int:
        """Number of documents to train on."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Number of tokens to train on."""
        return sum(shard.tokens for shard in self.shards)

    def to_json(self) -> bytes:
        """Return the bytes of the file; the same manifest makes the same bytes."""
        data = {"format": FORMAT, "documents": self.documents, "tokens": self.tokens}
        return (json.dumps({**data, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Read it back."""
        fix = "repeat the maskery tokenize command that made it"
        with explained(f"{where} is no sound list of shards", fix, *MALFORMED):
            fields = json.loads(data)
            if (version := fields.pop("format")) != FORMAT:
                problem = f"{where} has format {version!r}, and this version of Maskery reads"
                fix = "make the shards again with maskery tokenize"
                raise DataError(f"{problem} {FORMAT}; {fix}")
            del fields["documents"], fields["tokens"]
            for name in ("shards", "held_out"):
                fields[name] = tuple(ShardEntry(**entry) for entry in fields[name])
            fields["tokenizer_files"] = tuple(FileEntry(**f) for f in fields["tokenizer_files"])
            fields["lengths"] = FileEntry(**fields["lengths"])
            return cls(**fields)


def is_count(value: object) -> bool:
    """Return True for an `int` from 0 to 2**62, whose sums stay below the limit of int64."""
    return type(value) is int and 0 <= value < 1 << 62


def check_sound(sound: bool, what: str) -> None:
    """Raise a ValueError that names the part of a file that is not valid."""
    if not sound:
        raise ValueError(f"a {what} in it is not valid")


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


@dataclass(frozen=True, kw_only=True)
class LengthCounts:
    """Counts of documents by length, for each shard."""

    offsets: Ints  # (number of shards + 1,), into the other two
    lengths: npt.NDArray[np.uint32]  # ascending within a shard
    counts: npt.NDArray[np.uint32]

    @classmethod
    def gather(cls, histograms: Sequence[Sequence[Sequence[int]]]) -> Self:
        """Make it from a list of (length, count) for each shard."""
        flat = np.array([pair for rows in histograms for pair in rows], np.uint32).reshape(-1, 2)
        offsets = np.cumsum([0, *map(len, histograms)], dtype=np.int64)
        return cls(offsets=offsets, lengths=flat[:, 0].copy(), counts=flat[:, 1].copy())

    def of(self, shard: int) -> tuple[Ints, Ints]:
        """Return lengths and counts of one shard, int64."""
        chosen = slice(int(self.offsets[shard]), int(self.offsets[shard + 1]))
        return self.lengths[chosen].astype(np.int64), self.counts[chosen].astype(np.int64)

    def to_bytes(self) -> bytes:
        """Return the bytes of a safetensors file."""
        from safetensors.numpy import save

        return save(dict(vars(self)))

    @classmethod
    def open(cls, path: Path, manifest: Manifest) -> Self:
        """Read a file and compare it with the manifest."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        errors = (OSError, SafetensorError, TypeError, ValueError)
        with explained(f"'{path}' cannot be read", "restore it", *errors):
            found = cls(**load_file(path))
            if not found._fits_to(manifest):
                raise DataError(f"'{path}' does not fit to {MANIFEST}; repeat maskery tokenize")
            return found

    def _fits_to(self, manifest: Manifest) -> bool:
        """Return True if the arrays fit together, and their sums are those of the manifest."""
        if not (
            self.offsets.dtype == np.int64
            and self.lengths.dtype == self.counts.dtype == np.uint32
            and len(self.offsets) == len(manifest.shards) + 1
            and len(self.lengths) == len(self.counts) == self.offsets[-1]
            and self.offsets[0] == 0
            and bool((np.diff(self.offsets) >= 0).all())
        ):
            return False
        told = [(shard.documents, shard.tokens) for shard in manifest.shards]
        found = map(self.of, range(len(told)))
        return told == [(int(c.sum()), int(lengths @ c)) for lengths, c in found]


def write_shard(path: Path, part: Part, *, vocab_size: int) -> ShardEntry:
    """Write a shard: whole, or not at all."""
    from safetensors.numpy import save

    tokens, word_starts, lengths, ids = part
    stored = tokens.astype(token_type(vocab_size)), word_starts, lengths.astype(np.uint32), ids
    written = write_bytes(path, save(dict(zip(DTYPES, stored, strict=True))))
    return ShardEntry(**vars(written), documents=len(ids), tokens=len(tokens))


def write_bytes(path: Path, data: bytes) -> FileEntry:
    """Write a file whole, or not at all; ranks may write the same one at once."""
    if isinstance(path, Path):
        fix = "free some space there and repeat the command: what is complete is kept"
        with explained(f"'{path}' cannot be written", fix):
            write_whole(path, data, aside=f"partial-{secrets.token_hex(4)}")
    else:  # a `RemoteFolder`
        path.write_bytes(data)
    return FileEntry(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_shards(paths: Iterable[Path], *, vocab_size: int) -> Documents:
    """Read at least one shard into memory, several as one, and check that their arrays fit."""
    return Documents.gather(_read(path, vocab_size) for path in paths)


def _read(path: Path, vocab_size: int) -> Part:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    fix = "repair the folder by repeating the maskery tokenize command that made it"
    errors = (OSError, SafetensorError, ValueError, KeyError, TypeError)
    with explained(f"'{path}' is no sound token shard", fix, *errors):
        return _checked(load_file(path), vocab_size)


def _checked(arrays: dict[str, npt.NDArray[Any]], vocab_size: int) -> Part:
    """Return the arrays of a shard, or raise a ValueError with the first thing that is wrong."""
    for name, kinds in DTYPES.items():
        kind, num_axes = arrays[name].dtype, arrays[name].ndim
        if kind not in kinds or num_axes != 1:
            raise ValueError(f"{name} is of type {kind}, {num_axes}-dimensional")
    tokens, word_starts, lengths, ids = (arrays[name] for name in DTYPES)
    if len(ids) != len(lengths):
        raise ValueError("it has not as many ids as documents")
    # In int64, which no sum of uint32 leaves.
    if not len(tokens) == len(word_starts) == lengths.sum(dtype=np.int64):
        raise ValueError("its documents have not as many tokens as it has")
    if len(tokens) and int(tokens.max()) >= vocab_size:
        raise ValueError(f"it holds ids beyond the vocabulary of {vocab_size}")
    return tokens, word_starts, lengths, ids
