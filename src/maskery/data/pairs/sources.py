"""Which format a source of pairs has."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.csv_records import csv_records
from maskery.data.pairs.image_refs import FileImage, ImageRef, Place
from maskery.data.pairs.imagefolder import METADATA, imagefolder_records, metadata_files
from maskery.data.pairs.json_records import json_records
from maskery.data.pairs.records import Reader, Record

RecordReader = Callable[[Path, PairsConfig], Iterator[Record]]
TABLES: dict[str, RecordReader] = {
    ".json": json_records,
    ".jsonl": json_records,
    ".ndjson": json_records,
    ".csv": csv_records,
    ".tsv": csv_records,
}
CONTAINERS = (".parquet", ".tar")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_RANGE = 1_000_000


def open_source(source: str | Path, config: PairsConfig) -> Reader:
    """Find out the format of a source and open it.

    Args:
        source: A file; a folder with image metadata, Parquet tables or tar shards; or several files
            by a pattern (`shards/*.tar`, `shards/{0000..0031}.tar`).
        config: How to read it.

    Raises:
        DataError: There is nothing there, or nothing of a known format.
    """
    if config.images is not None and not config.images.is_dir():
        raise DataError(f"the image folder {config.images} does not exist; correct images")
    paths = expand(source)
    if len(paths) == 1 and paths[0].is_dir():
        return _open_folder(paths[0], config)
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise DataError(
            f"{source} names files of several formats ({', '.join(suffixes)}); name one format"
        )
    return _open_files(paths, suffixes[0], config)


def expand(source: str | Path) -> list[Path]:
    """The files (or the one folder) that a source names.

    Raises:
        DataError: There is none.
    """
    text = str(source)
    if "\0" in text:
        raise DataError("the path of the pairs holds a null character; correct it")
    path = Path(text)
    if os.path.lexists(path):
        return [path]
    if RANGE.search(text):
        paths = [Path(name) for name in _ranged(text)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(paths)} files that {text} names are missing, first "
                f"{missing[0]}; restore them or correct the range"
            )
        return paths
    paths = [Path(name) for name in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(f"{text} does not exist; name a file, a folder or a pattern of pairs")
    return paths


def _ranged(text: str) -> list[str]:
    """Write out `{000..012}`, as webdataset does, keeping leading zeros."""
    match = RANGE.search(text)
    if match is None:
        return [text]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= MAX_RANGE:
        raise DataError(
            f"the range {match[0]} has {len(numbers)} numbers; give a rising one of at most "
            f"{MAX_RANGE}"
        )
    width = len(first)
    names = (f"{text[: match.start()]}{n:0{width}d}{text[match.end() :]}" for n in numbers)
    return list(chain.from_iterable(_ranged(name) for name in names))


def _open_folder(folder: Path, config: PairsConfig) -> Reader:
    metadata = metadata_files(folder)
    if metadata:
        return _with_files(
            imagefolder_records(folder, metadata, config), config.images or folder, config
        )
    for suffix in CONTAINERS:
        paths = sorted(folder.rglob(f"*{suffix}"))
        if paths:
            return _open_files(paths, suffix, config)
    raise DataError(
        f"folder {folder} holds no pairs: expected {' or '.join(METADATA)} beside the images, or "
        f"{' or '.join(CONTAINERS)} files"
    )


def _open_files(paths: list[Path], suffix: str, config: PairsConfig) -> Reader:
    if suffix == ".parquet":
        from maskery.data.pairs.parquet import open_parquet

        return open_parquet(paths, config)
    if suffix == ".tar":
        from maskery.data.pairs.webdataset import open_webdataset

        if config.images is not None:
            raise DataError(
                f"images is {config.images}, but tar shards hold their images themselves; "
                f"leave it out"
            )
        return open_webdataset(paths, config)
    if suffix not in TABLES:
        raise DataError(
            f"{paths[0]} has the ending {suffix!r}; pairs are read from "
            f"{', '.join([*TABLES, *CONTAINERS])} and from folders"
        )
    roots = {path.parent for path in paths}
    if config.images is None and len(roots) > 1:
        raise DataError(
            f"the pairs lie in {len(roots)} folders, so it is not clear what their image paths are "
            f"relative to; set images"
        )
    records = chain.from_iterable(TABLES[suffix](path, config) for path in paths)
    return _with_files(records, config.images or paths[0].parent, config)


def _with_files(records: Iterator[Record], root: Path, config: PairsConfig) -> Reader:
    def ref(name: str, _place: Place) -> ImageRef:
        return FileImage(name, root, config.max_pixels)

    return Reader(records=records, ref=ref)
