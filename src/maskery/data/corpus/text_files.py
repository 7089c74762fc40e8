"""Plain text as examples: lines, paragraphs, documents; and files of one sentence a line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from maskery.core.errors import DataError
from maskery.data.corpus.examples import Cutter, Reading
from maskery.data.corpus.streams import decoded_blocks, open_blocks, open_stream

BREAK = re.compile(r"\n\s*\n")


def lines(blocks: Iterable[str], cutter: Cutter) -> Iterator[str]:
    """Yield the lines of a text; long ones come in pieces, the others as they are."""
    for block in blocks:
        yield from _units(block.split("\n"), cutter)
    yield from cutter.finish()


def paragraphs(blocks: Iterable[str], cutter: Cutter) -> Iterator[str]:
    """Yield the runs of lines between blank lines."""
    held = ""
    for block in blocks:
        # A break is white space; what stands at the end may be the start of one and waits.
        text = held + block
        body = text.rstrip()
        held = text[len(body) :]
        yield from _units(BREAK.split(body), cutter)
        if len(held) > cutter.limit:
            # No piece reaches across so much white space, whether or not it is a break.
            yield from cutter.finish()
            held = "\n" * min(held.count("\n"), 2)
    yield from cutter.finish()


def documents(blocks: Iterable[str], cutter: Cutter) -> Iterator[str]:
    """Yield the whole text, in pieces if it is long."""
    for block in blocks:
        yield from cutter.add(block)
    yield from cutter.finish()


def _units(units: list[str], cutter: Cutter) -> Iterator[str]:
    """Yield the units of a block: the first ends what is held, the last goes on in the next."""
    yield from cutter.add(units[0])
    if len(units) == 1:
        return
    yield from cutter.finish()
    complete = units[1:-1]
    if max(map(len, complete), default=0) <= cutter.limit:
        yield from complete
    else:
        for unit in complete:
            yield from cutter.whole(unit)
    yield from cutter.add(units[-1])


UNITS = {"line": lines, "paragraph": paragraphs, "document": documents}


def read_text(reading: Reading) -> Iterator[str]:
    """Yield the units of a plain text file; blank ones are among them."""
    cutter = Cutter(reading.config.max_example_chars, reading.report)
    with open_blocks(reading) as blocks:
        yield from UNITS[reading.config.unit](blocks, cutter)


def whole_lines(blocks: Iterable[str], reading: Reading) -> Iterator[str]:
    r"""Yield the lines of a text, without their `\n`."""
    parts: list[str] = []
    size = number = 0
    for block in blocks:
        first, *others = block.split("\n")
        parts.append(first)
        size += len(first)
        if size > reading.max_record_chars:
            reading.place.number = number + 1
            raise too_long(reading)
        if not others:
            continue
        yield "".join(parts)
        yield from others[:-1]
        number += len(others)
        parts, size = [others[-1]], len(others[-1])
    if size:
        yield "".join(parts)


def too_long(reading: Reading) -> DataError:
    """Return the error for a record that is too long to be held."""
    return DataError(
        f"{reading.place} starts a record longer than {reading.max_record_chars:,} characters; "
        "a closing quote may be missing; mend it, or write the text as a .txt file"
    )


STANDARD_INPUT = Path("-")


class Line(NamedTuple):
    """One line that is not blank."""

    number: int
    text: str


def read_sentences(path: Path, *, encoding: str = "utf-8") -> Iterator[Line]:
    """Yield the lines of a file that are not blank, in order.

    Args:
        path: A text file, also .gz, .xz, .zst or .bz2; `-` for standard input.
        encoding: Of the text.

    Raises:
        DataError: It cannot be read, is not in that encoding, or has no text.
    """
    empty = True
    for number, text in enumerate(_lines(path, encoding), 1):
        if text.strip():
            empty = False
            yield Line(number, text.strip())
    if empty:
        raise DataError(f"{name_of(path)} has no text; put one sentence on each line")


def read_sentence_pairs(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[Line, Line]]:
    """Yield pairs of sentences, a tab between them; the one that should be likelier comes first.

    Raises:
        DataError: As `read_sentences`, or a line does not have two sentences.
    """
    for number, text in read_sentences(path, encoding=encoding):
        parts = [part.strip() for part in text.split("\t")]
        if len(parts) != 2 or not all(parts):
            raise DataError(
                f"{name_of(path)}: line {number} has {len([p for p in parts if p])} sentence(s) "
                f"and a pair is two with one tab between them; correct the line"
            )
        yield Line(number, parts[0]), Line(number, parts[1])


def name_of(path: Path) -> str:
    """Return a file's name for messages."""
    return "the standard input" if path == STANDARD_INPUT else str(path)


def _lines(path: Path, encoding: str) -> Iterator[str]:
    if path == STANDARD_INPUT:
        yield from _split(_decode(sys.stdin.buffer, path, encoding))
        return
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"'{path}' {what}; name a file with one sentence on each line")
    with open_stream(path, lambda _: None) as stream:
        yield from _split(_decode(stream, path, encoding))


def _decode(stream: object, path: Path, encoding: str) -> Iterator[str]:
    return decoded_blocks(
        stream,  # type: ignore[arg-type]
        source=name_of(path),
        encoding=encoding,
        on_bad_text="fail",
    )


def _split(blocks: Iterator[str]) -> Iterator[str]:
    held = ""
    for block in blocks:
        *complete, held = (held + block).split("\n")
        yield from complete
    if held:
        yield held
