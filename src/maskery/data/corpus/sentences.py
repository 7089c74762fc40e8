"""Files of one sentence, word or pair of sentences a line."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

from maskery.core.errors import DataError
from maskery.data.corpus.config import check_encoding
from maskery.data.corpus.files import asked, one_file
from maskery.data.corpus.streams import decoded_blocks, open_stream

STANDARD_INPUT = "-"


class Line(NamedTuple):
    """One line that is not blank."""

    number: int
    text: str


def read_sentences(path: str | Path, *, encoding: str = "utf-8") -> Iterator[Line]:
    """Yield the lines of a file that are not blank, in order.

    The file may be packed (.gz, .xz, .zst or .bz2), or an address; `-` is the standard input.

    Raises:
        DataError: It cannot be read, is not in that encoding, or has no text.
        ConfigError: Python knows no such encoding.
    """
    check_encoding(encoding)
    if str(path) == STANDARD_INPUT:
        if sys.stdin is None:  # as `<&-` leaves it
            raise DataError("the standard input is closed; pipe sentences in, or name a file")
        opened: AbstractContextManager[BinaryIO] = nullcontext(sys.stdin.buffer)
    else:
        opened = open_stream(one_file(path, "one sentence on each line"), lambda _: None)
    with asked(path), opened as stream:
        blocks = decoded_blocks(stream, source=name_of(path), encoding=encoding, on_bad_text=None)
        numbered = enumerate("".join(blocks).split("\n"), 1)
    lines = [Line(number, text.strip()) for number, text in numbered if text.strip()]
    if not lines:
        raise DataError(f"{name_of(path)} has no text; put one sentence on each line")
    yield from lines


def read_sentence_pairs(
    path: str | Path, *, encoding: str = "utf-8"
) -> Iterator[tuple[Line, Line]]:
    """Yield pairs of sentences, a tab between them; the one that should be likelier comes first."""
    for number, text in read_sentences(path, encoding=encoding):
        parts = [part.strip() for part in text.split("\t")]
        if len(parts) != 2 or not all(parts):
            found = f"line {number} has {len([p for p in parts if p])} sentence(s)"
            rule = "a pair is two with one tab between them"
            raise DataError(f"{name_of(path)}: {found} and {rule}; correct the line")
        yield Line(number, parts[0]), Line(number, parts[1])


def name_of(path: str | Path) -> str:
    """Return a file's name for messages."""
    return "the standard input" if str(path) == STANDARD_INPUT else str(path)
