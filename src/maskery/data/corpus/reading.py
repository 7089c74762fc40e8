"""What every reader of one file works with: the place it has reached, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig

BLOCK_BYTES = 1 << 20
# A JSON line, a JSON value or a CSV row must be held whole to be understood.
MAX_RECORD_CHARS = 1 << 26


@dataclass(kw_only=True)
class ReadingReport:
    """What reading came upon, counted from the start of an iteration.

    Attributes:
        examples: Examples given out.
        skipped: Texts dropped because they could not be read (`--on-bad-text skip`).
        replaced: Texts in which bad characters became U+FFFD (`--on-bad-text replace`).
        cut: Texts longer than `--max-example-chars`.
        pieces: Examples that those became.
        empty_files: Files of zero bytes.
    """

    examples: int = 0
    skipped: int = 0
    replaced: int = 0
    cut: int = 0
    pieces: int = 0
    empty_files: int = 0

    def describe(self) -> str | None:
        """One line on everything unusual, or None if nothing was."""
        parts = []
        if self.skipped:
            parts.append(f"skipped {_count(self.skipped, 'text')} that cannot be read")
        if self.replaced:
            parts.append(f"replaced bad characters in {_count(self.replaced, 'text')}")
        if self.cut:
            parts.append(f"cut {_count(self.cut, 'long text')} into {self.pieces:,} examples")
        if self.empty_files:
            parts.append(f"passed over {_count(self.empty_files, 'empty file')}")
        return "; ".join(parts) or None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(kw_only=True)
class Place:
    """Where a reader is, for messages: a file, and the line or row it is at, from 1."""

    source: str
    unit: str = "line"
    number: int = 0

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}" if self.number else self.source


@dataclass(kw_only=True)
class Reading:
    """The reading of one file or dataset."""

    path: Path
    config: CorpusConfig
    report: ReadingReport
    place: Place
    on_read: Callable[[int], object]
    """Told the bytes of the file as they are read, before decompression."""
    block_bytes: int = BLOCK_BYTES
    max_record_chars: int = MAX_RECORD_CHARS
    span: tuple[int, int] | None = None
    """The part to read: bytes of text and JSON lines, row groups of Parquet. Default: all."""
    first_record: bool = field(default=True, init=False)

    def refuse(self, problem: str) -> None:
        """Skip the text at hand if the config says so, or fail.

        Raises:
            DataError: `--on-bad-text` is not `skip`.
        """
        if self.config.on_bad_text != "skip":
            raise DataError(
                f"{self.place} {problem}; mend it, or pass --on-bad-text skip to leave it out"
            )
        self.report.skipped += 1

    def missing_column(self, columns: list[str]) -> DataError:
        """The error for a table without the text column."""
        names = ", ".join(repr(name) for name in columns[:20]) + ", ..." * (len(columns) > 20)
        return DataError(
            f"{self.place} has no column {self.config.text_column!r}; there "
            f"{'is' if len(columns) == 1 else 'are'} {names or 'none'}: name one by --text-column"
        )

    def value(self, value: object) -> str | None:
        """The text of a table's cell, or None if it is skipped.

        Raises:
            DataError: It is not a string, and bad text is not to be skipped.
        """
        self.first_record = False
        if isinstance(value, str):
            # The same text has the same id whatever the line ends of the system it comes from.
            return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
        kind = "null" if value is None else type(value).__name__
        self.refuse(f"has a value of type {kind} in {self.config.text_column!r}, not a string")
        return None

    def mend(self, text: str) -> str | None:
        """A text with NUL or surrogate characters, dealt with as the config says.

        Decoding marks bad bytes by NUL characters, so both kinds of bad text arrive here.

        Raises:
            DataError: `--on-bad-text` is `fail`.
        """
        policy = self.config.on_bad_text
        if policy == "fail":
            what = "a NUL character" if "\0" in text else "half a surrogate pair"
            raise DataError(
                f"{self.place} holds {what}, which is not text; mend it, or pass "
                "--on-bad-text skip or replace"
            )
        if policy == "skip":
            self.report.skipped += 1
            return None
        self.report.replaced += 1
        text = text.replace("\0", "\ufffd")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
