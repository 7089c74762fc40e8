"""Whole lines for the formats whose records must be held whole: JSON lines and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from maskery.core.errors import DataError
from maskery.data.corpus.compression import open_stream
from maskery.data.corpus.decoding import decoded_blocks
from maskery.data.corpus.reading import Reading


@contextmanager
def open_blocks(reading: Reading) -> Iterator[Iterator[str]]:
    """The decoded blocks of a file."""
    with open_stream(reading.path, reading.on_read, reading.span) as stream:
        yield decoded_blocks(
            stream,
            source=reading.place.source,
            encoding=reading.config.encoding,
            on_bad_text=reading.config.on_bad_text,
            block_bytes=reading.block_bytes,
        )


def whole_lines(blocks: Iterable[str], reading: Reading) -> Iterator[str]:
    r"""The lines of a text, without their `\n`.

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
    """The error for a record that is not held."""
    return DataError(
        f"{reading.place} starts a record longer than {reading.max_record_chars:,} characters; "
        "a closing quote may be missing; mend it, or write the text as a .txt file"
    )
