"""From the texts of one file to N examples with content-based ids; what a reader works with."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskery.core.batch import Bools, Ids
from maskery.core.errors import ConfigError, DataError
from maskery.data.corpus.config import CorpusConfig

NOT_SPACE = re.compile(r"\S")
BLOCK_BYTES = 1 << 20  # Read at once: calls cost nothing beside decoding
MAX_RECORD_CHARS = 1 << 26  # A JSON line or value, or a CSV row, is held whole
# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
# 2014): the increment, then the shifts and multipliers of its finaliser.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
FINALISER = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


class Example(NamedTuple):
    """One text of a corpus."""

    text: str  # stripped of white space at both ends, never blank; line ends are "\n"
    source: str  # the file, or the hub dataset, it comes from
    id: int  # unsigned 64-bit, from `example_id`


def example_id(text: str) -> int:
    """Return the id of a text: the first 8 bytes, little-endian, of BLAKE2b (RFC 7693) of UTF-8.

    It stays when files move, and duplicates share it: no text is both trained on and held out.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(ids: Ids, share: float) -> Bools:
    """Choose the held-out share of examples, by a hash of their ids: (N,) bool.

    A larger share holds out a superset of a smaller one.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"the held-out share is {share}: it must be from 0 to 1")
    if share == 1.0:  # 2**64 is no uint64
        return np.ones(len(ids), np.bool_)
    # Mixed once more, so that the choice is independent of any other use of the ids.
    return mix(ids) < np.uint64(int(share * 2.0**64))


def mix(ids: Ids) -> Ids:
    """Return the first output of SplitMix64 for each seed of `ids`: (N,) uint64, a bijection."""
    mixed = ids + np.uint64(GOLDEN_GAMMA)
    for shift, multiplier in FINALISER:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(multiplier)
    return mixed


class Piece(str):
    """A piece of a text that was cut; `of` is the id of the text's first piece."""

    of: int


def piece_id(text: str, first: int) -> int:
    """Return the id of a piece that follows another of this id, on the same side of a split.

    `mix` of the pieces' ids agrees in the upper 32 bits, by which a share is held out.
    """
    of_first, own = mix(np.array([first, example_id(text)], np.uint64)).tolist()
    mixed: int = of_first >> 32 << 32 | own & 0xFFFFFFFF
    # Backwards, to the seed whose output this is.
    for shift, multiplier in reversed(FINALISER):
        mixed = mixed * pow(multiplier, -1, 1 << 64) % (1 << 64)
        mixed ^= mixed >> shift ^ mixed >> 2 * shift
    return (mixed - GOLDEN_GAMMA) % (1 << 64)


@dataclass(kw_only=True)
class ReadingReport:
    """Counts of what reading came upon, from the start of an iteration."""

    examples: int = 0  # given out
    skipped: int = 0  # texts dropped because they could not be read (`--on-bad-text skip`)
    replaced: int = 0  # texts in which bad characters became U+FFFD (`--on-bad-text replace`)
    cut: int = 0  # texts longer than `--max-example-chars`
    pieces: int = 0  # examples that those became
    empty_files: int = 0
    empty: int = 0  # records without text; blank lines of plain text do not count
    merged: int = 0  # rows of tables that span several lines, by quotes
    encodings: Counter[str] = field(default_factory=Counter, init=False)  # decided by `auto`

    def describe(self) -> str | None:
        """Return one line on everything unusual, or None if nothing was."""
        found = (
            (self.skipped, "skipped", "text", " that cannot be read"),
            (self.replaced, "replaced bad characters in", "text", ""),
            (self.cut, "cut", "long text", f" into {self.pieces:,} examples"),
            (self.empty_files, "passed over", "empty file", ""),
            (self.empty, "left out", "empty text", ""),
            (self.merged, "read", "table row", " of several lines, by quotes"),
        )
        parts = [f"{done} {n:,} {noun}{'s'[: n != 1]}{rest}" for n, done, noun, rest in found if n]
        if counts := self.encodings.most_common():
            parts.append("--encoding auto: " + ", ".join(f"{n:,} as {one}" for one, n in counts))
        return "; ".join(parts) or None


MISSING = object()


def _inside(record: Mapping[str, object], name: str) -> object:
    """Return the value that a record holds at a name such as `note.body`, or `MISSING`."""
    if name in record:
        return record[name]
    head, dot, rest = name.partition(".")
    inner = record.get(head)
    if dot and isinstance(inner, list):
        return inner  # no path leads through it: its type is refused
    return _inside(inner, rest) if dot and isinstance(inner, Mapping) else MISSING


@dataclass(kw_only=True)
class Reading:
    """The reading of one file or dataset: settings, position and counts."""

    path: Path
    config: CorpusConfig
    report: ReadingReport
    source: str  # its name in messages, and in examples
    on_read: Callable[[int], object]  # is told the bytes that were read, before decompression
    block_bytes: int = BLOCK_BYTES
    max_record_chars: int = MAX_RECORD_CHARS
    # The part to read: bytes of text and JSON lines, row groups of Parquet. Default: all.
    span: tuple[int, int] | None = None
    group_column: str | None = None  # also read by `text_of`; may be nested, as the text's may
    group: str = field(default="", init=False)  # of the record at hand
    unit: str = field(default="line", init=False)
    number: int = field(default=0, init=False)  # of the line or row at hand, from 1
    first_record: bool = field(default=True, init=False)

    @property
    def place(self) -> str:
        """The position, for messages."""
        return f"{self.source}, {self.unit} {self.number}" if self.number else self.source

    def refuse(self, problem: str) -> None:
        """Skip the text at hand if the config says so, or fail."""
        if self.config.on_bad_text != "skip":
            fix = "mend it, or pass --on-bad-text skip to leave it out"
            raise DataError(f"{self.place} {problem}; {fix}")
        self.report.skipped += 1

    def missing_column(self, found: Iterable[object], group: str | None = None) -> DataError:
        """Return the error for a table without the text column, or without the group's."""
        columns = [repr(str(name)) for name in found]
        names = ", ".join(columns[:20]) + ", ..." * (len(columns) > 20)
        flag = "--text-column" if group is None else "--group-column"
        fix = f"there {'is' if len(columns) == 1 else 'are'} {names or 'none'}: name one by {flag}"
        return DataError(f"{self.place} has no column {group or self.config.text_column!r}; {fix}")

    def read_group(self, record: Mapping[str, object]) -> None:
        """Take note of a record's group, if groups are read."""
        if self.group_column is None:
            return
        value = _inside(record, self.group_column)
        if value is MISSING and self.first_record:
            raise self.missing_column(record, self.group_column)
        # NaN, which tables have where nothing is, is not equal to itself.
        none = value is MISSING or value is None or value != value
        self.group = "" if none else str(value).strip()

    def text_of(self, record: Mapping[str, object]) -> Iterator[str]:
        """Yield the text of a record, unless it is skipped."""
        self.read_group(record)
        values = [_inside(record, name) for name in self.config.columns_of(record)]
        others = [value for value in values if value is not None and not isinstance(value, str)]
        texts = [value for value in values if isinstance(value, str)]
        if any(value is MISSING for value in values):
            # If the first record lacks a column, its name is most likely wrong: all would be.
            if self.first_record or self.config.on_bad_text != "skip":
                raise self.missing_column(record)
            self.report.skipped += 1
        elif len(values) == 1:
            yield from self.value(values[0])
        elif others or not texts:
            self._refuse_type(others[0] if others else None)
        else:
            between = self.config.join.replace(r"\n", "\n").replace(r"\t", "\t")
            yield from self.value(between.join(text for text in texts if text.strip()))

    def roots_of(self, names: Sequence[str]) -> list[str]:
        """Return the columns of a table that records with the text are made of."""
        roots: dict[str, None] = {}
        groups = [] if self.group_column is None else [self.group_column]
        for column in [*self.config.columns_of(names), *groups]:
            root = column if column in names else column.partition(".")[0]
            if root not in names:
                raise self.missing_column(names, column if column == self.group_column else None)
            roots[root] = None
        return list(roots)

    def texts(self, items: Iterable[Any]) -> Iterator[str]:
        """Yield the texts of items: texts themselves, or records with the text column."""
        for item in items:
            self.number += 1
            yield from self.text_of(item) if hasattr(item, "keys") else self.value(item)

    def value(self, value: object) -> Iterator[str]:
        """Yield the text of a table's cell, unless it is skipped."""
        self.first_record = False
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                if self.config.on_bad_text != "replace":
                    bad = f"0x{error.object[error.start]:02x} at byte {error.start} of its value"
                    self.refuse(f"holds {bad}, which is not valid utf-8")
                    return
                self.report.replaced += 1
                value = error.object.decode("utf-8", "replace")
        if not isinstance(value, str):
            self._refuse_type(value)
        else:
            # The same text has the same id whatever the line ends of the system it comes from.
            yield value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value

    def _refuse_type(self, value: object) -> None:
        self.first_record = False
        kind = "null" if value is None else type(value).__name__
        self.refuse(f"has a value of type {kind} in {self.config.text_column!r}, not a string")

    def mend(self, text: str) -> str | None:
        """Deal with a text of NUL (bad bytes, too) or surrogate characters; None skips it."""
        policy = self.config.on_bad_text
        if policy == "fail":
            what = "a NUL character" if "\0" in text else "half a surrogate pair"
            fix = "mend it, or pass --on-bad-text skip or replace"
            raise DataError(f"{self.place} holds {what}, which is not text; {fix}")
        if policy == "skip":
            self.report.skipped += 1
            return None
        self.report.replaced += 1
        text = text.replace("\0", "\ufffd")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Cutter:
    """Gathers the text of one unit and cuts it at white space where it grows too long.

    The cuts depend on the text alone, not on how it arrives; a full piece is let go at once.
    """

    def __init__(self, limit: int, report: ReadingReport) -> None:
        self.limit, self.report = limit, report
        self.parts: list[str] = []
        self.size = self.num_pieces = self.first = 0

    def add(self, text: str) -> list[str]:
        """Take more of the unit; return the pieces that are full."""
        text = text if self.parts else text.lstrip()
        if not text:
            return []
        self.parts.append(text)
        self.size += len(text)
        if self.size <= self.limit:
            return []
        pieces, rest = cut("".join(self.parts), self.limit)
        self.parts, self.size = [rest] if rest else [], len(rest)
        return [self._piece(piece) for piece in pieces]

    def finish(self) -> list[str]:
        """End the unit; return its last piece, if it is not blank."""
        last = "".join(self.parts).strip()
        pieces = [self._piece(last)] if last else []
        if self.num_pieces > 1:
            self.report.cut += 1
            self.report.pieces += self.num_pieces
        self.parts, self.size, self.num_pieces = [], 0, 0
        return pieces

    def _piece(self, text: str) -> str:
        """Count a piece; those after the first know its id."""
        self.num_pieces += 1
        if self.num_pieces == 1:
            self.first = example_id(text)
            return text
        piece = Piece(text)
        piece.of = self.first
        return piece

    def whole(self, text: str) -> list[str]:
        """Return the pieces of a unit that is all there."""
        return self.add(text) + self.finish()


def cut(text: str, limit: int) -> tuple[list[str], str]:
    """Cut pieces of at most `limit` characters off a text that begins with no white space.

    A piece ends before the last white space that keeps it within the limit; a word longer than
    the limit is cut inside. The rest, which is returned after the pieces, is as short, and begins
    with no white space either.
    """
    pieces, start = [], 0
    while len(text) - start > limit:
        head = text[start : start + limit + 1]
        if head[-1].isspace():
            length = len(head.rstrip())
        else:
            words = head.rsplit(None, 1)
            length = len(words[0]) if len(words) == 2 else limit
        pieces.append(head[:length])
        following = NOT_SPACE.search(text, start + length)
        start = following.start() if following else len(text)
    return pieces, text[start:]


def examples(texts: Iterator[str], reading: Reading) -> Iterator[Example]:
    """Give texts their ids; blank ones are left out, long ones cut."""
    report, limit = reading.report, reading.config.max_example_chars
    for raw_text in texts:
        text: str | None = raw_text.strip()
        if not text:
            # Records alone pass through `Reading.value`, which clears the mark.
            report.empty += not reading.first_record
            continue
        if not _is_sound(text) and (text := reading.mend(text)) is None:
            continue
        # What reads plain text has cut it already.
        of = raw_text.of if isinstance(raw_text, Piece) else None
        for piece in [text] if len(text) <= limit else Cutter(limit, report).whole(text):
            first = piece.of if isinstance(piece, Piece) else of
            report.examples += 1
            number = example_id(piece) if first is None else piece_id(piece, first)
            yield Example(piece, reading.source, number)


def _is_sound(text: str) -> bool:
    """Return False for a text with a NUL, or half a surrogate pair, as JSON may spell it."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
