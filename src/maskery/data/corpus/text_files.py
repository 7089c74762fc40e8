"""Plain text: lines, paragraphs or whole documents as examples.

Units of any length pass through a `Cutter`, which lets go of a piece as soon as it has more than
`max_example_chars`; so a line of a gigabyte is never held whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from maskery.data.corpus.compression import open_stream
from maskery.data.corpus.decoding import decoded_blocks
from maskery.data.corpus.reading import Reading, ReadingReport

BREAK = re.compile(r"\n\s*\n")
NOT_SPACE = re.compile(r"\S")


class Cutter:
    """Gathers the text of one unit and cuts it at white space where it grows too long.

    Where the cuts fall depends on the text of the unit alone, not on how it arrives.
    """

    def __init__(self, limit: int, report: ReadingReport) -> None:
        self.limit, self.report = limit, report
        self.parts: list[str] = []
        self.size = self.num_pieces = 0

    def add(self, text: str) -> list[str]:
        """Take more of the unit; return the pieces that are full."""
        if not self.parts:
            text = text.lstrip()
        if not text:
            return []
        self.parts.append(text)
        self.size += len(text)
        if self.size <= self.limit:
            return []
        pieces, rest = cut("".join(self.parts), self.limit)
        self.parts, self.size = [rest] if rest else [], len(rest)
        self.num_pieces += len(pieces)
        return pieces

    def finish(self) -> list[str]:
        """End the unit; return its last piece, if it is not blank."""
        last = "".join(self.parts).strip()
        num_pieces = self.num_pieces + bool(last)
        if num_pieces > 1:
            self.report.cut += 1
            self.report.pieces += num_pieces
        self.parts, self.size, self.num_pieces = [], 0, 0
        return [last] if last else []

    def whole(self, text: str) -> list[str]:
        """The pieces of a unit that is all there."""
        return self.add(text) + self.finish()


def cut(text: str, limit: int) -> tuple[list[str], str]:
    """Cut pieces of at most `limit` characters off a text that begins with no white space.

    A piece ends before the last white space that keeps it within the limit; a word longer than
    the limit is cut inside.

    Returns:
        The pieces, and the rest: at most `limit` characters that begin with no white space.
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


def lines(blocks: Iterable[str], cutter: Cutter) -> Iterator[str]:
    """The lines of a text; long ones come in pieces, the others as they are."""
    for block in blocks:
        yield from _units(block.split("\n"), cutter)
    yield from cutter.finish()


def paragraphs(blocks: Iterable[str], cutter: Cutter) -> Iterator[str]:
    """The runs of lines between blank lines."""
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
    """The whole text."""
    for block in blocks:
        yield from cutter.add(block)
    yield from cutter.finish()


def _units(units: list[str], cutter: Cutter) -> Iterator[str]:
    """The first unit ends what the cutter holds, the last goes on in the next block."""
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
    """The units of a plain text file; blank ones are among them.

    Raises:
        DataError: The file cannot be read or holds bad text.
    """
    config = reading.config
    cutter = Cutter(config.max_example_chars, reading.report)
    with open_stream(reading.path, reading.on_read, reading.span) as stream:
        blocks = decoded_blocks(
            stream,
            source=reading.place.source,
            encoding=config.encoding,
            on_bad_text=config.on_bad_text,
            block_bytes=reading.block_bytes,
        )
        yield from UNITS[config.unit](blocks, cutter)
