"""The formats of corpus files: a table from suffixes to readers, open to readers of the user's own.

A reader of the user's own is a callable that takes one open file, a `CorpusFile`, and yields
examples: strings, or dicts with the text under `--text-column`. It is named on the command line
(`--reader FILE.py:NAME`), passed in Python (`CorpusConfig(reader=read)`), or registered:

    register(".conllu", read_conllu)

Opening, decompression, decoding, ids, counting and messages are done here for all readers alike.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from maskery.core.errors import DataError, MaskeryError, PluginError, reason_of
from maskery.core.registry import Registry, is_plugin
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Cutter, Reading
from maskery.data.corpus.streams import COMPRESSIONS, open_blocks, open_stream

UserReader: TypeAlias = "Callable[[CorpusFile], Iterable[str | Mapping[str, object]]]"

CONTRACT = (
    "a callable that takes an open file (`for line in file`, or `file.read()`) and yields strings, "
    "or dicts with the text under --text-column"
)
RECORDS = "maskery.data.corpus.record_files"
# Named by module and attribute: a run on plain text imports no other reader.
OURS: dict[str, Any] = {
    "text": "maskery.data.corpus.formats:read_text",
    "jsonl": f"{RECORDS}:read_json_lines",
    "json": f"{RECORDS}:read_json",
    "csv": f"{RECORDS}:read_table",
    "tsv": f"{RECORDS}:read_table",
    "parquet": f"{RECORDS}:read_parquet",
}
READERS: Registry[Any] = Registry("--reader", CONTRACT, OURS)
SUFFIXES = {
    **dict.fromkeys([".txt", ".text", ".md", ".rst", ".log"], "text"),
    **dict.fromkeys([".jsonl", ".ndjson"], "jsonl"),
    **{f".{name}": name for name in ("json", "csv", "tsv", "parquet")},
}
# In a folder, a README or a log is no data; these count when they are named, also by a glob.
NAMED_ONLY = {".md", ".rst", ".log"}
BREAK = re.compile(r"\n\s*\n")


def register(suffix: str, reader: UserReader) -> None:
    """Read files of a suffix, also packed ones, with a reader of one's own from now on.

    Raises:
        PluginError: The suffix is read already or is none, or the reader cannot be called.
    """
    if not suffix or suffix != suffix.lower() or Path(f"a{suffix}").suffix != suffix:
        raise PluginError(f"'{suffix}' is no suffix; give one like '.conllu', in lower case")
    if suffix in SUFFIXES or suffix in COMPRESSIONS:
        raise PluginError(f"files that end in '{suffix}' are read already; choose another suffix")
    if not callable(reader):
        raise READERS.misfit(suffix, f"a {type(reader).__name__} was registered")
    READERS.register(suffix, reader)
    SUFFIXES[suffix] = suffix


def split_suffix(path: Path) -> tuple[str, str]:
    """Return the suffix of the format and of the compression ("" if there is none), lower case."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.name[: -len(suffix)].lower()).suffix, suffix
    return suffix, ""


def _choice(path: Path, config: CorpusConfig) -> Any:
    return SUFFIXES[split_suffix(path)[0]] if config.reader is None else config.reader


def format_of(path: Path, config: CorpusConfig) -> str:
    """Return the name of a file's format: one of `OURS`, or "" for a reader of the user's own."""
    choice = _choice(path, config)
    return choice if isinstance(choice, str) and choice in OURS else ""


def is_portable(path: Path, config: CorpusConfig) -> bool:
    """Return True if another process finds the reader of a file: it was not given in Python."""
    return bool(format_of(path, config)) or is_plugin(config.reader)


def read_texts(reading: Reading) -> Iterator[str]:
    """Yield the texts of a file by the reader of its format."""
    choice = _choice(reading.path, reading.config)
    reader: Any = READERS.find(choice)
    try:
        if format_of(reading.path, reading.config):
            yield from reader(reading)
        else:
            yield from read_by(reader, choice, reading)
    except MaskeryError:
        raise
    except Exception as error:
        if isinstance(reading.path, Path):
            raise
        # At an address, every file system has errors of its own.
        why = f"{type(error).__name__}: {reason_of(error)}"
        fix = "check the address and the network"
        raise DataError(f"{reading.source} cannot be read ({why}); {fix}") from error


def read_by(reader: UserReader, choice: object, reading: Reading) -> Iterator[str]:
    """Yield the texts that a reader of the user's own finds in a file."""
    reading.unit = "example"
    with CorpusFile(reading) as file, READERS.running(choice, f"reading {reading.path}"):
        found: Any = reader(file)
        if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
            name = getattr(reader, "__name__", type(reader).__name__)
            raise READERS.misfit(choice, f"{name} returned a {type(found).__name__}")
        for item in found:
            reading.number += 1
            if not isinstance(item, str | Mapping):
                kind = type(item).__name__
                raise READERS.misfit(choice, f"it yielded a {kind} at {reading.place}")
            yield from reading.value(item) if isinstance(item, str) else reading.text_of(item)


class CorpusFile(io.TextIOBase):
    r"""An open file of a corpus as a reader of the user's own gets it: text, decompressed, decoded.

    Line ends are `\n`. Iterate over it for its lines, or call `read`. For formats that are not
    text, `buffer` is a binary stream of the decompressed file.

    Attributes:
        path: The file; its suffix is that of the packed file.
        name: The file as messages call it.
    """

    def __init__(self, reading: Reading) -> None:
        self.path, self.name = reading.path, reading.source
        self._reading, self._stack = reading, ExitStack()
        self._blocks = self._stack.enter_context(open_blocks(reading))
        self._block = io.StringIO()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        """Return the next line with its line end, or "" at the end of the file."""
        del size  # part of the interface; lines come whole
        line, most = "", self._reading.max_record_chars
        while not line.endswith("\n"):
            if not (part := self._block.readline() or self._next_block().readline()):
                break
            line += part
            if len(line) > most:
                fix = "cut it, or read the file by parts with `file.read(size)`"
                raise DataError(f"{self.name} has a line longer than {most:,} characters; {fix}")
        return line

    def read(self, size: int | None = -1, /) -> str:
        """Return the next `size` characters, or all that follow."""
        parts: list[str] = []
        left = -1 if size is None else size
        while left and (part := self._block.read(left) or self._next_block().read(left)):
            parts.append(part)
            left -= len(part) if left > 0 else 0
        return "".join(parts)

    def _next_block(self) -> io.StringIO:
        self._block = io.StringIO(next(filter(None, self._blocks), ""))
        return self._block

    @cached_property
    def buffer(self) -> io.BufferedReader:
        """The decompressed bytes of the file, from its start."""
        opened = open_stream(self.path, self._reading.on_read, self._reading.span)
        return self._stack.enter_context(opened)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()
        super().close()


def paragraphs(blocks: Iterable[str], limit: int) -> Iterator[list[str]]:
    """Yield the runs of lines between blank lines; see `UNITS`."""
    held = ""
    for block in blocks:
        # A break is white space; what stands at the end may be the start of one and waits.
        text = held + block
        body = text.rstrip()
        held = text[len(body) :]
        yield BREAK.split(body)
        if len(held) > limit:
            # No piece reaches across so much white space, whether or not it is a break.
            yield ["", ""]
            held = "\n" * min(held.count("\n"), 2)


# From the blocks of a text, and the longest piece, to the units of each block: the first goes on
# with what was held, and the last may go on in the next block.
UNITS: dict[str, Callable[[Iterable[str], int], Iterator[list[str]]]] = {
    "line": lambda blocks, _: (block.split("\n") for block in blocks),
    "paragraph": paragraphs,
    "document": lambda blocks, _: ([block] for block in blocks),
}


def cut_units(unit: str, blocks: Iterable[str], cutter: Cutter) -> Iterator[str]:
    """Yield the units of a text; long ones come in pieces, the others as they are."""
    for first, *complete in UNITS[unit](blocks, cutter.limit):
        yield from cutter.add(first)
        if not complete:
            continue
        yield from cutter.finish()
        last = complete.pop()
        if max(map(len, complete), default=0) <= cutter.limit:
            yield from complete  # the common case, in which nothing is cut
        else:
            for whole in complete:
                yield from cutter.whole(whole)
        del complete  # a million where lines are blank: let go before the next come
        yield from cutter.add(last)
    yield from cutter.finish()


def read_text(reading: Reading) -> Iterator[str]:
    """Yield the units of a plain text file; blank ones are among them."""
    cutter = Cutter(reading.config.max_example_chars, reading.report)
    with open_blocks(reading) as blocks:
        yield from cut_units(reading.config.unit, blocks, cutter)


def whole_lines(blocks: Iterable[str], reading: Reading) -> Iterator[str]:
    r"""Yield the lines of a text, without their `\n`."""
    held, number = "", 0
    for block in blocks:
        first, *others = block.split("\n")
        held += first
        if len(held) > reading.max_record_chars:
            reading.number = number + 1
            raise too_long(reading)
        if others:
            yield held
            yield from others[:-1]
            number += len(others)
            held = others[-1]
    if held:
        yield held


def too_long(reading: Reading) -> DataError:
    """Return the error for a record that is too long to be held."""
    problem = f"{reading.place} starts a record longer than {reading.max_record_chars:,} characters"
    fix = "a closing quote may be missing; mend it, or write the text as a .txt file"
    return DataError(f"{problem}; {fix}")
