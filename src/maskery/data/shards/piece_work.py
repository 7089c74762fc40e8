"""Make the shards of one piece: read it, tokenise it, write.

Each shard is written aside, flushed and renamed, and then a record of it beside; a shard without a
record is absent. A piece that makes several shards goes on after the last sound one: its text is
read again, but not tokenised.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from maskery.data.corpus.examples import ReadingReport, is_held_out
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.config import ShardingConfig
from maskery.data.shards.manifest import ShardEntry, check_sound, is_count
from maskery.data.shards.pieces import Piece, read_piece
from maskery.data.shards.shard_file import find_damage, write_bytes, write_shard
from maskery.data.store import Documents
from maskery.data.tokenise import BATCH_CHARS, Batch, Encode, batched, encode_batches

RECORDS = "records"
# Characters of a shard beyond which a piece goes on in the next one. What is cut by bytes has no
# more characters than bytes, and stays below.
OVERFULL = 1.25

RecordT = TypeVar("RecordT")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that all pieces share, sent to every process."""

    corpus: Corpus
    config: ShardingConfig
    folder: Path
    fingerprint: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """The files that one stretch of a piece became; an empty one is None."""

    train: ShardEntry | None
    held_out: ShardEntry | None
    lengths: list[list[int]]  # (length, count) of the training documents, ascending

    def __post_init__(self) -> None:
        documents = sum(count for _, count in self.lengths)
        tokens = sum(length * count for length, count in self.lengths)
        known = (self.train.documents, self.train.tokens) if self.train else (0, 0)
        check_sound(known == (documents, tokens), "count")

    @property
    def files(self) -> list[ShardEntry]:
        """Those that are there."""
        return [entry for entry in (self.train, self.held_out) if entry]

    def damage(self, folder: Path) -> str | None:
        """Return the first thing that is wrong with its files, or None."""
        for entry in self.files:
            damage = find_damage(folder / entry.file, entry.bytes, entry.sha256)
            if damage:
                return f"{entry.file}: {damage}"
        return None


@dataclass(frozen=True, kw_only=True)
class PieceRecord:
    """A finished piece: its number of shards, and the counts of its `ReadingReport`."""

    shards: int
    report: dict[str, int]

    def __post_init__(self) -> None:
        check_sound(is_count(self.shards) and all(map(is_count, self.report.values())), "count")
        check_sound(self.report.keys() <= {field.name for field in fields(ReadingReport)}, "report")


def do_piece(piece: Piece, job: Job, encode: Encode) -> tuple[int, int, list[str]]:
    """Make the shards of a piece that are missing.

    Returns:
        The piece's number, the tokens that were made now, and what was found damaged.
    """
    finished = load_piece(piece.number, job)
    damaged: list[str] = []
    if finished is not None:
        found = [load_shard(piece.number, i, job) for i in range(finished.shards)]
        damage = [record.damage(job.folder) if record else "its record" for record in found]
        damaged = [what for what in damage if what]
        if not damaged:
            return piece.number, 0, []
    for place in (job.folder, job.folder / RECORDS):  # what a killed process had begun
        for path in place.glob(f"*{piece.number:06d}*.partial-*"):
            path.unlink(missing_ok=True)
    made = count = 0
    examples = read_piece(piece, job.corpus)
    for count, batches in enumerate(stretches(examples, job.config.shard_bytes), start=1):
        record = load_shard(piece.number, count - 1, job)
        if record is not None and record.damage(job.folder) is None:
            for _ in batches:  # read on, without tokenising
                pass
        else:
            made += write_stretch(f"{piece.number:06d}-{count - 1:04d}", batches, job, encode)
    about = PieceRecord(shards=count, report=asdict(job.corpus.report))
    write_record(f"{piece.number:06d}", about, job)
    return piece.number, made, damaged


def stretches(examples: Iterator[Any], shard_bytes: int) -> Iterator[Iterator[Batch]]:
    """Yield one iterator of batches for each shard; each must be used up before the next."""
    limit = int(OVERFULL * shard_bytes)
    batches = batched(examples, min(BATCH_CHARS, limit))

    def stretch(first: Batch) -> Iterator[Batch]:
        chars = 0
        for batch in chain([first], batches):
            yield batch
            chars += sum(map(len, batch[0]))
            if chars >= limit:
                return

    for first in batches:
        yield stretch(first)


def write_stretch(name: str, batches: Iterator[Batch], job: Job, encode: Encode) -> int:
    """Tokenise and write one shard, and what is held out of it; returns their tokens."""
    read = Documents.gather(encode_batches(batches, encode))
    lengths, ids = read.lengths(), read.ids
    held = is_held_out(ids, job.config.held_out_share)
    entries: list[ShardEntry | None] = []
    for prefix, chosen in (("shard", ~held), ("held-out", held)):
        if not chosen.any():
            entries.append(None)
            continue
        inside = np.repeat(chosen, lengths)
        part = read.tokens[inside], read.word_starts[inside], lengths[chosen], ids[chosen]
        path = job.folder / f"{prefix}-{name}.safetensors"
        entries.append(write_shard(path, part, vocab_size=job.vocab_size))
    values, counts = np.unique(lengths[~held], return_counts=True)
    histogram = np.stack((values, counts), axis=1).tolist()
    write_record(name, ShardRecord(train=entries[0], held_out=entries[1], lengths=histogram), job)
    return read.num_tokens


def write_record(name: str, record: ShardRecord | PieceRecord, job: Job) -> None:
    """Write a record: whole, or not at all."""
    text = json.dumps({"fingerprint": job.fingerprint, **asdict(record)})
    write_bytes(job.folder / RECORDS / f"{name}.json", text.encode())


def load_shard(piece: int, number: int, job: Job) -> ShardRecord | None:
    """Return the record of a shard, or None if there is no valid one."""
    return _load(_shard_record, f"{piece:06d}-{number:04d}", job)


def _shard_record(train: Any, held_out: Any, lengths: Any) -> ShardRecord:
    return ShardRecord(
        train=train and ShardEntry(**train),
        held_out=held_out and ShardEntry(**held_out),
        lengths=lengths,
    )


def load_piece(piece: int, job: Job) -> PieceRecord | None:
    """Return the record of a finished piece, or None if there is no valid one."""
    return _load(PieceRecord, f"{piece:06d}", job)


def _load(parse: Callable[..., RecordT], name: str, job: Job) -> RecordT | None:
    try:
        data = json.loads((job.folder / RECORDS / f"{name}.json").read_bytes())
        # A record of another plan counts as none.
        return parse(**data) if data.pop("fingerprint") == job.fingerprint else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
