"""Pieces of a corpus: cut by the sizes of its files alone, read and tokenised each by itself.

A piece is a list of spans: whole files, stretches of text and JSON lines that begin and end at line
ends, and row groups of Parquet. Plain text and JSON lines are cut at multiples of a size in bytes,
moved to the next line end, which whoever reads a piece finds by itself. What cannot be cut
(compressed files, CSV with its quoted line ends, `.json`, documents, encodings whose line ends are
not the byte 0x0A) is read whole, and makes several shards one after the other where it is large.

Each shard is written aside, flushed and renamed, and then a record of it beside; a shard without a
record is absent. A piece that makes several shards goes on after the last sound one: its text is
read again, but not tokenised.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import blake2b
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from tokenizers import Tokenizer

from maskery.core.errors import MALFORMED
from maskery.data.corpus.config import AUTO, CorpusConfig, ShardingConfig
from maskery.data.corpus.examples import Example, ReadingReport, is_held_out
from maskery.data.corpus.formats import format_of, split_suffix
from maskery.data.corpus.reader import READING_VERSION, Corpus
from maskery.data.corpus.record_files import parquet_errors
from maskery.data.corpus.streams import named_in_errors
from maskery.data.shards.manifest import ShardEntry, check_sound, is_count, write_bytes, write_shard
from maskery.data.shards.places import find_damage
from maskery.data.store import Documents
from maskery.data.tokenise import BATCH_CHARS, Batch, Encode, batched, encode_batches, encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUTTING_VERSION = 1  # Raised whenever the same files are cut elsewhere than before
BLOCK_BYTES = 1 << 20  # Read at once in search of a line end
# Encodings in which the byte 0x0A is a line end wherever it stands.
LINE_ENCODINGS = r"utf-8|ascii|iso8859-\d+|latin.*|cp125\d|koi8-.|gb18030|gbk|big5|euc.*"
# Never before a byte that begins a byte-order mark: at the start of a span it would be one.
LINE_END = re.compile(rb"\n(?![\xef\xfe\xff])")
PARAGRAPH_END = re.compile(rb"\n\r?\n(?![\xef\xfe\xff])")
LONGEST_END = 3  # bytes of a paragraph end
RECORDS = "records"
# Characters of a shard beyond which a piece goes on in the next one. What is cut by bytes has no
# more characters than bytes, and stays below.
OVERFULL = 1.25

RecordT = TypeVar("RecordT")
Done = tuple[int, int, list[str]]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of one file, by its number; `kind` is what `start` and `end` count.

    Of bytes, it really begins after the first line end from `start` on, and ends so too.
    """

    file: int
    size: int  # about its bytes
    kind: Literal["whole", "bytes", "row groups"] = "whole"
    start: int = 0
    end: int = 0


Piece = tuple[Span, ...]  # that one process tokenises at a time


def plan_pieces(corpus: Corpus, shard_bytes: int) -> list[Piece]:
    """Cut files into pieces of about `shard_bytes`: small files share one, large ones are cut."""
    # Here, as in `row_group_spans`: the processes that read pieces plan none, and need no torch.
    from maskery.data.batching import cut_by_sum

    numbers = range(len(corpus.files))
    spans = [span for number in numbers for span in spans_of(number, corpus, shard_bytes)]
    cuts = cut_by_sum(np.array([span.size for span in spans], np.int64), shard_bytes)
    return [tuple(spans[a:b]) for a, b in pairwise(cuts.tolist())]


def spans_of(number: int, corpus: Corpus, shard_bytes: int) -> list[Span]:
    """Return the spans of one file."""
    path, size = corpus.files[number], corpus.sizes[number]
    if size is None:  # a web server that does not tell; such a file cannot be sought in either
        return [Span(file=number, size=shard_bytes)]
    if size == 0:
        return []
    count = -(-size // shard_bytes)  # rounded up: no piece is larger than asked for
    if count > 1 and not split_suffix(path)[1] and format_of(path, corpus.config) == "parquet":
        return row_group_spans(number, path, size, shard_bytes)
    if count > 1 and is_cuttable(path, corpus.config):
        edges = pairwise(size * i // count for i in range(count + 1))
        return [Span(file=number, size=b - a, kind="bytes", start=a, end=b) for a, b in edges]
    return [Span(file=number, size=size)]


def is_cuttable(path: Path, config: CorpusConfig) -> bool:
    """Return True if a file may be cut at the byte 0x0A."""
    if split_suffix(path)[1] or config.encoding == AUTO:
        return False
    if not re.fullmatch(LINE_ENCODINGS, codecs.lookup(config.encoding).name):
        return False
    file_format = format_of(path, config)
    return file_format == "jsonl" or (file_format == "text" and config.unit != "document")


def row_group_spans(number: int, path: Path, size: int, shard_bytes: int) -> list[Span]:
    """Put neighbouring row groups together up to `shard_bytes`; one row group is never cut."""
    import pyarrow.parquet as pq

    from maskery.data.batching import cut_by_sum

    with parquet_errors(path), path.open("rb") as file:
        metadata = pq.read_metadata(file)
    groups = range(metadata.num_row_groups)
    rows = np.array([metadata.row_group(group).num_rows for group in groups], np.int64)
    if not len(rows):
        return [Span(file=number, size=size)]
    total = max(1, int(rows.sum()))
    spans = []
    for first, end in pairwise(cut_by_sum(rows, shard_bytes * total // size).tolist()):
        share = int(rows[first:end].sum()) * size // total
        spans.append(Span(file=number, size=share, kind="row groups", start=first, end=end))
    return spans


def line_boundary(path: Path, offset: int, size: int, *, paragraphs: bool) -> int:
    """Find the first byte after a line end (or a blank line) at or after `offset`."""
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    pattern = PARAGRAPH_END if paragraphs else LINE_END
    start, held = offset - 1, b""
    with named_in_errors(path), path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES):
            held += block
            found = pattern.search(held)
            # The byte after it must be known.
            if found and start + found.end() < size and found.end() < len(held):
                return start + found.end()
            # An end may lie across two blocks.
            start += max(0, len(held) - LONGEST_END)
            held = held[-LONGEST_END:]
    return size


def plan_fingerprint(corpus: Corpus, sharding: ShardingConfig, tokenizer: str) -> str:
    """Hash everything that decides what the shards hold; names and sizes stand for the content."""
    # Reading many terabytes once more on every machine would cost more than it gives.
    config, digest = corpus.config, blake2b(digest_size=16)
    digest.update(f"({CUTTING_VERSION}, {READING_VERSION}, {config.signature()})".encode())
    digest.update(repr((sharding.shard_bytes, sharding.held_out_share, tokenizer)).encode())
    for path, size in zip(corpus.files, corpus.sizes, strict=True):
        digest.update(repr((path.name, size)).encode("utf-8", "surrogateescape"))
        # Shards made when quotes enclosed fields in .tsv files hold other examples.
        if format_of(path, config) == "tsv" and not config.has_quotes("tsv"):
            digest.update(b"without quotes")
    return digest.hexdigest()


def read_piece(piece: Piece, corpus: Corpus) -> Iterator[Example]:
    """Yield the examples of a piece, as reading its files would; `corpus.report` is of them."""
    corpus.begin()
    for span in piece:
        start, end = span.start, span.end
        if span.kind == "bytes":
            path, size = corpus.files[span.file], corpus.sizes[span.file]
            assert size is not None  # else it would not have been cut
            whole = corpus.config.unit == "paragraph" and format_of(path, corpus.config) == "text"
            start, end = (line_boundary(path, at, size, paragraphs=whole) for at in (start, end))
        if span.kind == "whole":
            yield from corpus.read_file(span.file)
        elif start < end:  # else no line begins in it
            yield from corpus.read_file(span.file, (start, end))


@dataclass(frozen=True, kw_only=True, repr=False)
class Job:
    """The plan: what all pieces share, sent to every process. With it a number makes a piece."""

    corpus: Corpus
    config: ShardingConfig
    folder: Path
    pieces: tuple[Piece, ...]
    tokenizer: "Tokenizer | PreTrainedTokenizerBase"  # in Rust as texts are read, or in Python
    fingerprint: str
    vocab_size: int
    about: dict[str, Any]  # of the tokenizer, for the manifest

    @cached_property
    def encode(self) -> Encode:
        """The function from texts to tokens."""
        return encoder(self.tokenizer)

    def load_shard(self, piece: int, number: int) -> "ShardRecord | None":
        """Return the record of a shard, or None if there is no valid one."""

        def parse(lengths: Any, **entries: Any) -> ShardRecord:
            read = {name: entry and ShardEntry(**entry) for name, entry in entries.items()}
            return ShardRecord(lengths=lengths, **read)

        return self._load(parse, f"{piece:06d}-{number:04d}")

    def load_piece(self, piece: int) -> "PieceRecord | None":
        """Return the record of a finished piece, or None if there is no valid one."""
        return self._load(PieceRecord, f"{piece:06d}")

    def _load(self, parse: Callable[..., RecordT], name: str) -> RecordT | None:
        try:
            data = json.loads((self.folder / RECORDS / f"{name}.json").read_bytes())
            # A record of another plan counts as none.
            return parse(**data) if data.pop("fingerprint") == self.fingerprint else None
        except (OSError, *MALFORMED):
            return None


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

    def damage(self, folder: Path) -> str | None:
        """Return the first thing that is wrong with its files, or None."""
        for entry in filter(None, (self.train, self.held_out)):
            if damage := find_damage(folder / entry.file, entry.bytes, entry.sha256):
                return f"{entry.file}: {damage}"
        return None


@dataclass(frozen=True, kw_only=True)
class PieceRecord:
    """A finished piece: its number of shards, and the counts of its `ReadingReport`."""

    shards: int
    report: dict[str, int]
    encodings: dict[str, int] = field(default_factory=dict)  # earlier versions kept none

    def __post_init__(self) -> None:
        counts = [self.shards, *self.report.values(), *self.encodings.values()]
        check_sound(all(map(is_count, counts)), "count")
        known = {field.name for field in fields(ReadingReport) if field.init}
        check_sound(self.report.keys() <= known, "report")


def do_piece(number: int, job: Job) -> Done:
    """Make the shards of a piece that are missing; the same bytes whoever does it, and how often.

    Returns the piece's number, the tokens that were made now, and what was found damaged.
    """
    damaged: list[str] = []
    if finished := job.load_piece(number):
        found = [job.load_shard(number, i) for i in range(finished.shards)]
        damage = [record.damage(job.folder) if record else "its record" for record in found]
        damaged = [what for what in damage if what]
        if not damaged:
            return number, 0, []
    for place in (job.folder, job.folder / RECORDS):  # what a killed process had begun
        for path in place.glob(f"*{number:06d}*.partial-*"):
            path.unlink(missing_ok=True)
    made = count = 0
    examples = read_piece(job.pieces[number], job.corpus)
    for count, batches in enumerate(stretches(examples, job.config.shard_bytes), start=1):
        record = job.load_shard(number, count - 1)
        if record is not None and record.damage(job.folder) is None:
            for _ in batches:  # read on, without tokenising
                pass
        else:
            made += write_stretch(f"{number:06d}-{count - 1:04d}", batches, job, job.encode)
    counts = {**vars(job.corpus.report)}
    about = PieceRecord(shards=count, encodings=dict(counts.pop("encodings")), report=counts)
    write_record(f"{number:06d}", about, job)
    return number, made, damaged


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
    entries: list[ShardEntry | None] = [None, None]
    for number, (prefix, chosen) in enumerate((("shard", ~held), ("held-out", held))):
        if chosen.any():
            inside = np.repeat(chosen, lengths)
            part = read.tokens[inside], read.word_starts[inside], lengths[chosen], ids[chosen]
            path = job.folder / f"{prefix}-{name}.safetensors"
            entries[number] = write_shard(path, part, vocab_size=job.vocab_size)
    values, counts = np.unique(lengths[~held], return_counts=True)
    histogram = np.stack((values, counts), axis=1).tolist()
    write_record(name, ShardRecord(train=entries[0], held_out=entries[1], lengths=histogram), job)
    return read.num_tokens


def write_record(name: str, record: ShardRecord | PieceRecord, job: Job) -> None:
    """Write a record: whole, or not at all."""
    text = json.dumps({"fingerprint": job.fingerprint, **asdict(record)})
    write_bytes(job.folder / RECORDS / f"{name}.json", text.encode())
