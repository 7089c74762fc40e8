"""The work of one process on one piece: read it, tokenise it, write its shards.

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
from typing import Any

import numpy as np

from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import ReadingReport, is_held_out
from maskery.data.shards.manifest import ShardEntry, is_count
from maskery.data.shards.pieces import Piece, PieceReader
from maskery.data.shards.shard_file import find_damage, write_bytes, write_shard
from maskery.data.tokenise import BATCH_CHARS, Encoded, batched

RECORDS = "records"
REPORTED = {field.name for field in fields(ReadingReport)}
# Characters of a shard beyond which a piece goes on in the next one. What is cut by bytes has no
# more characters than bytes, and stays below.
OVERFULL = 1.25

Batch = tuple[list[str], list[int]]
Encode = Callable[[list[str]], Encoded]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings that all pieces share, sent to every process."""

    files: tuple[Path, ...]
    sizes: tuple[int | None, ...]
    reading: CorpusConfig
    folder: Path
    fingerprint: str
    shard_bytes: int
    held_out_share: float
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Record of the shards that one stretch of a piece became.

    `lengths` are (length, count) of the training documents, ascending; an empty shard is None.
    """

    train: ShardEntry | None
    held_out: ShardEntry | None
    lengths: list[list[int]]

    def damage(self, folder: Path) -> str | None:
        """Return the first thing that is wrong with its files, or None."""
        for entry in (self.train, self.held_out):
            damage = entry and find_damage(folder / entry.file, entry.bytes, entry.sha256)
            if entry and damage:
                return f"{entry.file}: {damage}"
        return None


@dataclass(frozen=True, kw_only=True)
class PieceRecord:
    """Record of a finished piece."""

    shards: int
    report: dict[str, int]


def do_piece(piece: Piece, job: Job, encode: Encode) -> tuple[int, int, list[str]]:
    """Make what is missing of a piece's shards.

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
    remove_partials(piece.number, job.folder)
    reader = PieceReader(piece, job.files, job.sizes, job.reading)
    made = count = 0
    for count, batches in enumerate(stretches(reader, job.shard_bytes), start=1):
        name = f"{piece.number:06d}-{count - 1:04d}"
        record = load_shard(piece.number, count - 1, job)
        if record is not None and record.damage(job.folder) is None:
            for _ in batches:  # read on, without tokenising
                pass
            continue
        made += write_stretch(name, batches, job, encode)
    about = PieceRecord(shards=count, report=asdict(reader.report))
    write_record(f"{piece.number:06d}", asdict(about), job)
    return piece.number, made, damaged


def remove_partials(piece: int, folder: Path) -> None:
    """Remove what a process that was killed had begun to write of a piece."""
    for place in (folder, folder / RECORDS):
        for path in place.glob(f"*{piece:06d}*.partial-*"):
            path.unlink(missing_ok=True)


def stretches(reader: PieceReader, shard_bytes: int) -> Iterator[Iterator[Batch]]:
    """Yield one iterator of batches for each shard; each must be used up before the next."""
    limit = int(OVERFULL * shard_bytes)
    batches = batched(reader, min(BATCH_CHARS, limit))

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
    parts = []
    for texts, text_ids in batches:
        tokens, starts, lengths = encode(texts)
        kept = lengths > 0
        parts.append((tokens, starts, lengths[kept], np.array(text_ids, np.uint64)[kept]))
    tokens, starts, lengths, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    held = is_held_out(ids, job.held_out_share)
    entries: list[ShardEntry | None] = []
    for prefix, chosen in (("shard", ~held), ("held-out", held)):
        if not chosen.any():
            entries.append(None)
            continue
        inside = np.repeat(chosen, lengths)
        file = f"{prefix}-{name}.safetensors"
        num_bytes, sha256 = write_shard(
            job.folder / file,
            tokens=tokens[inside],
            word_starts=starts[inside],
            lengths=lengths[chosen],
            ids=ids[chosen],
            vocab_size=job.vocab_size,
        )
        entries.append(
            ShardEntry(
                file=file,
                bytes=num_bytes,
                sha256=sha256,
                documents=int(chosen.sum()),
                tokens=int(inside.sum()),
            )
        )
    values, counts = np.unique(lengths[~held], return_counts=True)
    record = ShardRecord(
        train=entries[0], held_out=entries[1], lengths=np.stack((values, counts), axis=1).tolist()
    )
    write_record(name, asdict(record), job)
    return len(tokens)


def write_record(name: str, data: dict[str, Any], job: Job) -> None:
    """Write a record: whole, or not at all."""
    text = json.dumps({"fingerprint": job.fingerprint, **data})
    write_bytes(job.folder / RECORDS / f"{name}.json", text.encode())


def load_shard(piece: int, number: int, job: Job) -> ShardRecord | None:
    """Return the record of a shard, or None if there is no valid one."""
    data = _read_record(f"{piece:06d}-{number:04d}", job)
    try:
        for name in ("train", "held_out"):
            data[name] = data[name] and ShardEntry(**data[name])
        record = ShardRecord(**data)
        documents = sum(count for _, count in record.lengths)
        tokens = sum(length * count for length, count in record.lengths)
    except (KeyError, TypeError, ValueError):
        return None
    entry = record.train
    known = (entry.documents, entry.tokens) if entry else (0, 0)
    return record if known == (documents, tokens) else None


def load_piece(piece: int, job: Job) -> PieceRecord | None:
    """Return the record of a finished piece, or None if there is no valid one."""
    try:
        record = PieceRecord(**_read_record(f"{piece:06d}", job))
        sound = is_count(record.shards) and all(map(is_count, record.report.values()))
    except (TypeError, AttributeError):
        return None
    return record if sound and record.report.keys() <= REPORTED else None


def _read_record(name: str, job: Job) -> dict[str, Any]:
    try:
        data = json.loads((job.folder / RECORDS / f"{name}.json").read_bytes())
        if data.pop("fingerprint") != job.fingerprint:
            return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
