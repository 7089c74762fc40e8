"""Reading one piece of a corpus: the same examples as reading its files gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Example
from maskery.data.corpus.reader import READERS, examples
from maskery.data.corpus.reading import Place, Reading, ReadingReport
from maskery.data.corpus.sources import FORMATS, split_suffix
from maskery.data.shards.cutting import Piece, Span, line_boundary


class PieceReader:
    """The examples of a piece, in the order of its spans.

    Attributes:
        num_bytes: About how many bytes it has.
        bytes_read: How many of them are read.
        report: What reading came upon.
    """

    def __init__(
        self, piece: Piece, files: Sequence[Path], sizes: Sequence[int], config: CorpusConfig
    ) -> None:
        self.piece, self.files, self.sizes, self.config = piece, files, sizes, config
        self.num_bytes: int | None = piece.size
        self.bytes_read = 0
        self.report = ReadingReport()

    def __iter__(self) -> Iterator[Example]:
        """Read from the start.

        Raises:
            DataError: A file cannot be read as the config says.
        """
        self.bytes_read, self.report = 0, ReadingReport()
        for span in self.piece.spans:
            yield from self._span_examples(span)

    def fingerprint(self) -> str:
        """Pieces are told apart by their number."""
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
            paragraphs = (
                FORMATS[split_suffix(path)[0]] == "text" and self.config.unit == "paragraph"
            )
            first, end = (
                line_boundary(path, offset, self.sizes[span.file], paragraphs=paragraphs)
                for offset in (span.start, span.end)
            )
            if first == end:
                return
            reading.span = (first, end)
            if first:
                reading.place.source = f"{path} from byte {first} on"
        yield from examples(READERS[FORMATS[split_suffix(path)[0]]](reading), reading)

    def _advance(self, num_bytes: int) -> None:
        self.bytes_read += num_bytes
