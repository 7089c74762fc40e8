"""Plain text: lines, paragraphs or whole documents as examples; whole lines for other formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from maskery.core.errors import DataError
from maskery.data.corpus.examples import Cutter, Reading
from maskery.data.corpus.streams import open_blocks

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
    """Yield the units of a plain text file; blank ones are among them.

    Raises:
        DataError: The file cannot be read or holds bad text.
    """
    cutter = Cutter(reading.config.max_example_chars, reading.report)
    with open_blocks(reading) as blocks:
        yield from UNITS[reading.config.unit](blocks, cutter)


def whole_lines(blocks: Iterable[str], reading: Reading) -> Iterator[str]:
    r"""Yield the lines of a text, without their `\n`.

    Raises:
        DataError: A line is longer than `reading.max_record_chars`.
    """
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
