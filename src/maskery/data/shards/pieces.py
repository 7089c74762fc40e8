"""Cutting a corpus into pieces that are tokenised independently: a pure function of the files.

A piece is a list of spans: whole files, stretches of text and JSON lines that begin and end at line
ends, and row groups of Parquet. Plain text and JSON lines are cut at multiples of a size in bytes,
moved to the next line end; whoever reads a piece finds the two line ends by itself, so planning
asks for the sizes of the files alone. What cannot be cut (compressed files, CSV with its quoted
line ends, `.json`, documents, encodings whose line ends are not the byte 0x0A) is read whole, and
makes several shards one after the other where it is large.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Literal

from maskery.core.errors import DataError
from maskery.data.corpus.config import AUTO, CorpusConfig
from maskery.data.corpus.examples import Example, Place, Reading, ReadingReport, examples
from maskery.data.corpus.formats import format_of, read_texts, split_suffix
from maskery.data.corpus.reader import READING_VERSION
from maskery.data.corpus.streams import cannot_read

CUTTING_VERSION = 1
BLOCK_BYTES = 1 << 20
# Encodings in which the byte 0x0A is a line end wherever it stands.
LINE_ENCODINGS = re.compile(
    r"utf-8|ascii|iso8859-\d+|latin.*|cp125\d|koi8-.|gb18030|gbk|big5|euc.*"
)
# A cut never stands before a byte that a byte-order mark begins with: at the start of a span it
# would be taken for one.
LINE_END = re.compile(rb"\n(?![\xef\xfe\xff])")
PARAGRAPH_END = re.compile(rb"\n\r?\n(?![\xef\xfe\xff])")

Kind = Literal["whole", "bytes", "row groups"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of one file, by its number; `kind` is what `start` and `end` count.

    Of bytes, it really begins after the first line end from `start` on, and ends so too.
    """

    file: int
    kind: Kind = "whole"
    start: int = 0
    end: int = 0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a corpus that one process tokenises at a time; `size` is about its bytes."""

    number: int
    spans: tuple[Span, ...]
    size: int


def plan_pieces(
    files: Sequence[Path], sizes: Sequence[int | None], config: CorpusConfig, shard_bytes: int
) -> list[Piece]:
    """Cut files into pieces of about `shard_bytes`: small files share one, large ones are cut."""
    pieces: list[Piece] = []
    held: list[Span] = []
    held_size = 0

    def close() -> None:
        nonlocal held_size
        if held:
            pieces.append(Piece(number=len(pieces), spans=tuple(held), size=held_size))
        held.clear()
        held_size = 0

    for number, (path, size) in enumerate(zip(files, sizes, strict=True)):
        for span, span_size in spans_of(number, path, size, config, shard_bytes):
            if held_size + span_size > shard_bytes:
                close()
            held.append(span)
            held_size += span_size
    close()
    return pieces


def spans_of(
    number: int, path: Path, size: int | None, config: CorpusConfig, shard_bytes: int
) -> list[tuple[Span, int]]:
    """Return the spans of one file with their sizes in bytes."""
    if size is None:  # a web server that does not tell; such a file cannot be sought in either
        return [(Span(file=number), shard_bytes)]
    count = -(-size // shard_bytes)
    if size == 0:
        return []
    if count > 1 and not split_suffix(path)[1] and format_of(path, config) == "parquet":
        return row_group_spans(number, path, size, shard_bytes)
    if count > 1 and is_cuttable(path, config):
        edges = [size * i // count for i in range(count + 1)]
        return [
            (Span(file=number, kind="bytes", start=a, end=b), b - a) for a, b in pairwise(edges)
        ]
    return [(Span(file=number), size)]


def is_cuttable(path: Path, config: CorpusConfig) -> bool:
    """Return True if a file may be cut at the byte 0x0A."""
    if split_suffix(path)[1] or config.encoding == AUTO:
        return False
    if not LINE_ENCODINGS.fullmatch(codecs.lookup(config.encoding).name):
        return False
    file_format = format_of(path, config)
    return file_format == "jsonl" or (file_format == "text" and config.unit != "document")


def row_group_spans(number: int, path: Path, size: int, shard_bytes: int) -> list[tuple[Span, int]]:
    """Put neighbouring row groups together up to `shard_bytes`; one row group is never cut."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise cannot_read(path, error) from error
        raise DataError(
            f"{path} is no whole Parquet file ({str(error).splitlines()[0]}); fetch it again"
        ) from error
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if not rows:
        return [(Span(file=number), size)]
    total = max(1, sum(rows))
    spans: list[tuple[Span, int]] = []
    first = held = 0
    for index, count in enumerate(rows):
        if held and (held + count) * size > shard_bytes * total:
            span = Span(file=number, kind="row groups", start=first, end=index)
            spans.append((span, held * size // total))
            first, held = index, 0
        held += count
    span = Span(file=number, kind="row groups", start=first, end=len(rows))
    return [*spans, (span, held * size // total)]


def line_boundary(path: Path, offset: int, size: int, *, paragraphs: bool) -> int:
    """Find the first byte after a line end (or a blank line) at or after `offset`.

    The start and the end of the file stay as they are.
    """
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    pattern = PARAGRAPH_END if paragraphs else LINE_END
    start = offset - 1
    held = b""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                held += block
                found = pattern.search(held)
                # The byte after it must be known.
                if found and start + found.end() < size and found.end() < len(held):
                    return start + found.end()
                keep = 3  # the longest pattern
                start += max(0, len(held) - keep)
                held = held[-keep:]
    except OSError as error:
        raise cannot_read(path, error) from error
    return size


def plan_fingerprint(
    files: Sequence[Path],
    sizes: Sequence[int | None],
    config: CorpusConfig,
    shard_bytes: int,
    held_out_share: float,
    tokenizer: str,
) -> str:
    """Hash everything that decides what the shards hold, but for the content of the files.

    Their names (without folders) and sizes stand for it: reading a corpus of many terabytes once
    more on every machine would cost more than it gives.
    """
    digest = blake2b(digest_size=16)
    # As `repr` wrote it before the config wrote its own signature.
    digest.update(f"({CUTTING_VERSION}, {READING_VERSION}, {config.signature()})".encode())
    digest.update(repr((shard_bytes, held_out_share, tokenizer)).encode())
    for path, size in zip(files, sizes, strict=True):
        digest.update(repr((path.name, size)).encode("utf-8", "surrogateescape"))
        # Shards made when quotes enclosed fields in .tsv files hold other examples.
        if format_of(path, config) == "tsv" and not config.has_quotes("tsv"):
            digest.update(b"without quotes")
    return digest.hexdigest()


class PieceReader:
    """Reads the examples of a piece, in the order of its spans: the same as reading its files."""

    def __init__(
        self, piece: Piece, files: Sequence[Path], sizes: Sequence[int | None], config: CorpusConfig
    ) -> None:
        self.piece, self.files, self.sizes, self.config = piece, files, sizes, config
        self.num_bytes: int | None = piece.size
        self.bytes_read = 0
        self.report = ReadingReport()

    def __iter__(self) -> Iterator[Example]:
        """Read from the start."""
        self.bytes_read, self.report = 0, ReadingReport()
        for span in self.piece.spans:
            yield from self._span_examples(span)

    def fingerprint(self) -> str:
        """Return the number of the piece, which tells it apart."""
        return str(self.piece.number)

    def _span_examples(self, span: Span) -> Iterator[Example]:
        path = self.files[span.file]
        reading = Reading(
            path=path,
            config=self.config,
            report=self.report,
            place=Place(source=str(path)),
            on_read=self._advance,
        )
        if span.kind == "row groups":
            reading.span = (span.start, span.end)
        elif span.kind == "bytes":
            is_text = format_of(path, self.config) == "text"
            paragraphs = is_text and self.config.unit == "paragraph"
            size = self.sizes[span.file]
            assert size is not None  # else it would not have been cut
            first, end = (
                line_boundary(path, offset, size, paragraphs=paragraphs)
                for offset in (span.start, span.end)
            )
            if first == end:
                return
            reading.span = (first, end)
            if first:
                reading.place.source = f"{path} from byte {first} on"
        yield from examples(read_texts(reading), reading)

    def _advance(self, num_bytes: int) -> None:
        self.bytes_read += num_bytes
