"""Opening a source of pairs: files of one of our formats, a user's reader, or Python objects."""

import glob
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, starmap
from pathlib import Path
from typing import Any, TypeAlias

from maskery.core.errors import DataError, MaskeryError, reason_of
from maskery.data.corpus.files import instead_of
from maskery.data.images.loading import ImageRef
from maskery.data.pairs.config import CONTRACT, ENDINGS, FORMATS, OURS, PairsConfig
from maskery.data.pairs.records import Columns, Place, Reader, Record, brief, find_columns, read_row
from maskery.data.pairs.tables import stored_bytes, table_folder

# A path or pattern, an iterable of records, or a `datasets` dataset.
Source: TypeAlias = str | Path | Iterable[Mapping[str, Any]]
METADATA = ("metadata.jsonl", "metadata.csv")
CONTAINERS = (".parquet", ".tar")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# A range of more names is a slip of the keyboard, and writing it out would fill the memory.
MAX_RANGE = 1_000_000
# In the order in which they are preferred; those of `HELD_SPLITS` for measuring.
TRAIN_SPLITS = ("train", "training")
HELD_SPLITS = ("test", "testing", "validation", "valid", "val", "dev", "evaluation", "eval")
# As Hugging Face finds it in the name of a file or folder, between separators or digits:
# `train-00000-of-00002.parquet`, `cc3m-train-0000.tar`, `val2017/`.
SPLIT_NAME = re.compile(
    rf"(?:.*?[-._ \d])??({'|'.join(TRAIN_SPLITS + HELD_SPLITS)})(?:[-._ \d].*)?", re.IGNORECASE
)


def open_source(source: Source, config: PairsConfig) -> Reader:
    """Find out the format of a source, unless `config.reader` names it, and open it.

    A source is a file; a folder with image metadata, Parquet tables or tar shards; several files
    by a pattern (`shards/*.tar`, `shards/{0000..0031}.tar`); or records in Python.
    """
    if config.images is not None and not config.images.is_dir():
        fix = instead_of(config.images) or "correct --images"
        raise DataError(f"the image folder {config.images} does not exist; {fix}")
    if not isinstance(source, str | Path):
        return _open_object(source, config)
    paths, root = source_files(source, config)
    choice = config.reader or _format_of(paths, source)
    opener = FORMATS.find(choice)
    if choice not in OURS:
        parts = ((partial(opener, p), str(p), table_folder(p, config, root)) for p in paths)
        return GivenRecords(config, root, choice).reader(parts)
    reader: Reader = opener(paths, config, root)
    return replace(reader, splits=file_splits(paths, root) if len(paths) > 1 else ())


def source_files(source: str | Path, config: PairsConfig) -> tuple[list[Path], Path]:
    """Return the files that a source names, and the folder that their names are relative to."""
    paths = expand(source)
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        own = config.reader is not None and config.reader not in OURS
        return ([folder] if own else _files_in(folder)), folder
    for path in paths:
        # Reading a FIFO or a device may wait for ever.
        if not path.is_file():
            raise DataError(f"{path} is no regular file; name a file, a folder or a pattern")
    return paths, Path(os.path.commonpath([path.parent for path in paths]))


def _format_of(paths: Sequence[Path], source: object) -> str:
    suffixes = sorted({path.suffix.lower() for path in paths})
    first, *others = {ENDINGS.get(suffix, suffix) for suffix in suffixes}
    if others:
        problem = f"{source} names files of several formats ({', '.join(suffixes)})"
        raise DataError(f"{problem}; name one format")
    if suffixes[0] not in ENDINGS:
        known = f"pairs are read from {', '.join(ENDINGS)} and from folders"
        fix = "for another format add --reader FILE.py:NAME"
        raise DataError(f"{paths[0]} has the ending {suffixes[0]!r}; {known}; {fix}")
    return first


def _files_in(folder: Path) -> list[Path]:
    for patterns in (METADATA, *((f"*{suffix}",) for suffix in CONTAINERS)):
        found = sorted(p for name in patterns for p in folder.rglob(name) if p.is_file())
        lines, table = METADATA
        for path in found:
            if path.name == table and path.with_name(lines) in found:
                both = " and ".join(METADATA)
                raise DataError(f"{path.parent} has both {both}; remove the one not meant")
        if found:
            return found
    expected = f"{' or '.join(METADATA)} beside the images, or {' or '.join(CONTAINERS)} files"
    raise DataError(f"folder {folder} holds no pairs: expected {expected}")


def expand(source: str | Path) -> list[Path]:
    """Return the files (or the one folder) that a source names."""
    text = str(source)
    if "\0" in text:
        raise DataError("the path of the pairs holds a null character; correct it")
    path = Path(text)
    if os.path.lexists(path):
        return [path]
    if RANGE.search(text):
        paths = [Path(name) for name in _ranged(text)]
        if missing := [path for path in paths if not path.is_file()]:
            count = f"{len(missing)} of the {len(paths)} files that {text} names"
            fix = "restore them or correct the range"
            raise DataError(f"{count} are missing, first {missing[0]}; {fix}")
        return paths
    # Path.glob takes no absolute pattern.
    names = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
    paths = [path for path in map(Path, names) if path.is_file()]
    if not paths:
        fix = "name a file, a folder or a pattern of pairs"
        raise DataError(f"{text} does not exist; {instead_of(path) or fix}")
    return paths


def _ranged(text: str) -> list[str]:
    """Write out `{000..012}`, as webdataset does, keeping leading zeros."""
    match = RANGE.search(text)
    if match is None:
        return [text]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= MAX_RANGE:
        fix = f"give a rising one of at most {MAX_RANGE}"
        raise DataError(f"the range {match[0]} has {len(numbers)} numbers; {fix}")
    written = (RANGE.sub(f"{n:0{len(first)}d}", text, count=1) for n in numbers)
    return list(chain.from_iterable(map(_ranged, written)))


def file_splits(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the split in each file's name, as Hugging Face does; none unless all have one."""
    names = ([path.stem, *reversed(path.relative_to(root).parts[:-1])] for path in paths)
    found = [next(filter(None, map(SPLIT_NAME.fullmatch, parts)), None) for parts in names]
    splits = [match[1].lower() for match in found if match]
    return splits if len(splits) == len(found) else []


class GivenRecords:
    """Turns mappings into records; images that are bytes wait in a temporary file.

    `choice` is the user's reader, for messages; None where the records are an object in Python.
    """

    def __init__(self, config: PairsConfig, root: Path, choice: str | None = None) -> None:
        self.config, self.choice, self.root = config, choice, config.images or root
        self._spool: Any = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its readers
        weakref.finalize(self, self._spool.close)
        self._columns: dict[frozenset[str], Columns] = {}

    def reader(self, parts: Iterable[tuple[Callable[[], Any], str, str]]) -> Reader:
        """Open some parts: of each, the function that returns its mappings, its name and folder."""

        def read(place: Place) -> bytes:
            # `pread` has no position that threads or forked workers would share.
            return os.pread(self._spool.fileno(), place[2], place[1])

        records = chain.from_iterable(starmap(self._records, parts))
        return Reader(records, self.root, self.config.max_pixels, read)

    def _records(self, rows: Callable[[], Any], source: str, folder: str) -> Iterator[Record]:
        number = 0
        try:
            for number, row in enumerate(rows(), start=1):
                if not isinstance(row, Mapping):
                    raise self._misfit(f"record {number} of {source} is {brief(row)}")
                yield self._record(row, f"{source}, record {number}", folder)
        except MaskeryError:
            raise
        except Exception as error:  # a user's code raises anything
            what = f"fails after record {number} of {source}"
            raise self._misfit(f"{what}: {type(error).__name__}: {reason_of(error)}") from error

    def _misfit(self, found: str) -> MaskeryError:
        if self.choice is not None:
            return FORMATS.misfit(self.choice, found)
        records = CONTRACT.partition("yields ")[2]
        return DataError(f"the pairs: {found}; they must be an iterable of {records}")

    def _record(self, row: Mapping[str, Any], where: str, folder: str) -> Record:
        keys = frozenset(row)
        if keys not in self._columns:
            try:
                self._columns[keys] = find_columns(row, self.config, where)
            except DataError as error:
                raise self._misfit(str(error)) from error
        columns = self._columns[keys]
        image = row.get(columns["image"])
        if isinstance(image, Mapping):  # as `datasets` has undecoded images
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if isinstance(image, bytes | bytearray | memoryview):
            offset, size = self._spool.seek(0, os.SEEK_END), self._spool.write(image)
            self._spool.flush()
            return read_row(row, columns, where, image=where, place=(0, offset, size))
        if isinstance(image, Path | str):
            found = {"image": str(image), "folder": folder, "images": self.root}
            return read_row(row, columns, where, **found)
        raise self._misfit(f"{where} has the image {brief(image)}")


def _open_object(source: Any, config: PairsConfig) -> Reader:
    """Open an iterable of mappings, or a `datasets` dataset, whose images stay where they are."""
    where = "the records"
    if hasattr(source, "cast_column") and hasattr(source, "features"):
        import datasets

        where = "the dataset"
        columns = find_columns(list(source.features), config, where)
        image = columns["image"]
        kind = source.features[image]
        if isinstance(kind, datasets.Image):
            source = source.cast_column(image, datasets.Image(decode=False))
        is_path = isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")
        if hasattr(source, "__len__") and not is_path:  # a stream has no rows to come back to
            return _open_rows(source, columns, config)
    return GivenRecords(config, Path()).reader([(lambda: source, where, "")])


def _open_rows(dataset: Any, columns: Columns, config: PairsConfig) -> Reader:
    """Open a `datasets` dataset with images in it, which are read when they are needed."""

    def content(place: Place) -> bytes:
        value, where = dataset[place[1]][columns["image"]], f"the dataset, row {place[1]}"
        return stored_bytes(value, where, lambda p: ImageRef.file(Path(p).name, Path(p).parent))

    records = (
        read_row(row, columns, f"the dataset, row {n}", image=f"row {n}", place=(0, n, 0))
        for n, row in enumerate(dataset.remove_columns(columns["image"]))
    )
    return Reader(records, Path(), config.max_pixels, content)
