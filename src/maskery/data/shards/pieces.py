"""Cut a corpus into pieces that are tokenised independently: a pure function of the files.

A piece is a list of spans: whole files, stretches of text and JSON lines that begin and end at line
ends, and row groups of Parquet. Plain text and JSON lines are cut at multiples of a size in bytes,
moved to the next line end. Whoever reads a piece finds the two line ends by itself, so planning
asks for the sizes of the files alone. What cannot be cut (compressed files, CSV with its quoted
line ends, `.json`, documents, encodings whose line ends are not the byte 0x0A) is read whole, and
makes several shards one after the other where it is large.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from maskery.data.corpus.config import AUTO, CorpusConfig
from maskery.data.corpus.examples import Example
from maskery.data.corpus.formats import format_of, split_suffix
from maskery.data.corpus.reader import READING_VERSION, Corpus
from maskery.data.corpus.streams import cannot_read
from maskery.data.corpus.table_files import parquet_errors
from maskery.data.shards.config import ShardingConfig

# Raised whenever the same files are cut elsewhere than before.
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
LONGEST_END = 3  # bytes of a paragraph end

Kind = Literal["whole", "bytes", "row groups"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of one file, by its number; `kind` is what `start` and `end` count.

    Of bytes, it really begins after the first line end from `start` on, and ends so too.
    """

    file: int
    size: int  # about its bytes
    kind: Kind = "whole"
    start: int = 0
    end: int = 0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a corpus that one process tokenises at a time."""

    number: int
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """About its bytes."""
        return sum(span.size for span in self.spans)


def plan_pieces(corpus: Corpus, shard_bytes: int) -> list[Piece]:
    """Cut files into pieces of about `shard_bytes`: small files share one, large ones are cut."""
    # Here, as in `row_group_spans`: the processes that read pieces plan none, and need no torch.
    from maskery.data.batching import cut_by_sum

    numbers = range(len(corpus.files))
    spans = [span for number in numbers for span in spans_of(number, corpus, shard_bytes)]
    cuts = cut_by_sum(np.array([span.size for span in spans], np.int64), shard_bytes)
    edges = enumerate(pairwise(cuts.tolist()))
    return [Piece(number=number, spans=tuple(spans[a:b])) for number, (a, b) in edges]


def spans_of(number: int, corpus: Corpus, shard_bytes: int) -> list[Span]:
    """Return the spans of one file."""
    path, size = corpus.files[number], corpus.sizes[number]
    if size is None:  # a web server that does not tell; such a file cannot be sought in either
        return [Span(file=number, size=shard_bytes)]
    if size == 0:
        return []
    count = -(-size // shard_bytes)
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
    if not LINE_ENCODINGS.fullmatch(codecs.lookup(config.encoding).name):
        return False
    file_format = format_of(path, config)
    return file_format == "jsonl" or (file_format == "text" and config.unit != "document")


def row_group_spans(number: int, path: Path, size: int, shard_bytes: int) -> list[Span]:
    """Put neighbouring row groups together up to `shard_bytes`; one row group is never cut."""
    import pyarrow.parquet as pq

    from maskery.data.batching import cut_by_sum

    with parquet_errors(path), path.open("rb") as file:
        metadata = pq.read_metadata(file)
    rows = np.array(
        [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], np.int64
    )
    if not len(rows):
        return [Span(file=number, size=size)]
    total = max(1, int(rows.sum()))
    spans = []
    for first, end in pairwise(cut_by_sum(rows, shard_bytes * total // size).tolist()):
        share = int(rows[first:end].sum()) * size // total
        spans.append(Span(file=number, size=share, kind="row groups", start=first, end=end))
    return spans


def line_boundary(path: Path, offset: int, size: int, *, paragraphs: bool) -> int:
    """Find the first byte after a line end (or a blank line) at or after `offset`.

    The start and the end of the file stay as they are.
    """
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    pattern = PARAGRAPH_END if paragraphs else LINE_END
    start, held = offset - 1, b""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                held += block
                found = pattern.search(held)
                # The byte after it must be known.
                if found and start + found.end() < size and found.end() < len(held):
                    return start + found.end()
                start += max(0, len(held) - LONGEST_END)
                held = held[-LONGEST_END:]
    except OSError as error:
        raise cannot_read(path, error) from error
    return size


def plan_fingerprint(corpus: Corpus, sharding: ShardingConfig, tokenizer: str) -> str:
    """Hash everything that decides what the shards hold, but for the content of the files.

    Their names (without folders) and sizes stand for it: reading a corpus of many terabytes once
    more on every machine would cost more than it gives.
    """
    config, digest = corpus.config, blake2b(digest_size=16)
    digest.update(f"({CUTTING_VERSION}, {READING_VERSION}, {config.signature()})".encode())
    decisive = (sharding.shard_bytes, sharding.held_out_share, tokenizer)
    digest.update(repr(decisive).encode())
    for path, size in zip(corpus.files, corpus.sizes, strict=True):
        digest.update(repr((path.name, size)).encode("utf-8", "surrogateescape"))
        # Shards made when quotes enclosed fields in .tsv files hold other examples.
        if format_of(path, config) == "tsv" and not config.has_quotes("tsv"):
            digest.update(b"without quotes")
    return digest.hexdigest()


def read_piece(piece: Piece, corpus: Corpus) -> Iterator[Example]:
    """Yield the examples of a piece, as reading its files would; `corpus.report` is of them."""
    corpus.begin()
    for span in piece.spans:
        if span.kind != "bytes":
            rows = (span.start, span.end) if span.kind == "row groups" else None
            yield from corpus.read_file(span.file, rows)
            continue
        path, size = corpus.files[span.file], corpus.sizes[span.file]
        assert size is not None  # else it would not have been cut
        is_text = format_of(path, corpus.config) == "text"
        paragraphs = is_text and corpus.config.unit == "paragraph"
        first, end = (
            line_boundary(path, offset, size, paragraphs=paragraphs)
            for offset in (span.start, span.end)
        )
        if first < end:  # else no line begins in it
            yield from corpus.read_file(span.file, (first, end))
