"""Pairs as a Hugging Face `imagefolder`: images beside `metadata.jsonl` or `metadata.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.csv_records import csv_records
from maskery.data.pairs.json_records import json_records
from maskery.data.pairs.records import Record

METADATA = {"metadata.jsonl": json_records, "metadata.csv": csv_records}


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files in a folder and those below it, sorted.

    Raises:
        DataError: A folder has both kinds.
    """
    found = sorted(path for name in METADATA for path in folder.rglob(name))
    folders = [path.parent for path in found]
    for path in found:
        if folders.count(path.parent) > 1:
            raise DataError(
                f"{path.parent} has both {' and '.join(METADATA)}; remove the one not meant"
            )
    return found


def imagefolder_records(folder: Path, files: list[Path], config: PairsConfig) -> Iterator[Record]:
    """Read each metadata file; image names become relative to `folder`."""
    for path in files:
        prefix = path.parent.relative_to(folder).as_posix()
        for record in METADATA[path.name](path, config):
            inner = prefix != "." and config.images is None
            if inner and isinstance(record.image, str) and not record.image.startswith("/"):
                yield replace(record, image=f"{prefix}/{record.image}")
            else:
                yield record
