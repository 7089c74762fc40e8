"""Pairs in Parquet tables; images are bytes, as Hugging Face datasets writes them, or paths."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskery.core.errors import DataError, reason_of
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pictures import IN_FILE, FileImage, Place, image_refs
from maskery.data.pairs.records import (
    Columns,
    Reader,
    Record,
    find_columns,
    picture_name,
    printable,
)
from maskery.data.pairs.tables import table_folder

# Row groups whose images stay in memory: a few, as each may hold hundreds of megabytes.
GROUPS_KEPT = 4
# What pyarrow raises on damaged files.
UNSOUND = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError)


def open_parquet(paths: Sequence[Path], config: PairsConfig, root: Path) -> Reader:
    """Open one or more Parquet tables; DataError if a file is none, or lacks a column."""
    store = ParquetImages(paths, config, root)
    ref = image_refs(store.root, config.max_pixels, store.read)
    return Reader(records=store.records(), ref=ref)


class ParquetImages:
    """The images of Parquet tables.

    The images of a row are read with their row group, of which the last few are kept. Files are
    opened for each group and closed again, so that the object may be shared with forked workers.
    """

    def __init__(self, paths: Sequence[Path], config: PairsConfig, root: Path) -> None:
        self.paths, self.config, self.root = paths, config, config.images or root
        self.names = [path.relative_to(root).as_posix() for path in paths]
        self.folders = [table_folder(path, config, root) for path in paths]
        self.metadata = [_opened(path).metadata for path in paths]
        self.first_rows = [
            np.cumsum([0] + [data.row_group(i).num_rows for i in range(data.num_row_groups)])
            for data in self.metadata
        ]
        self.columns: list[Columns] = []
        for path in paths:
            schema = _opened(path).schema_arrow
            columns = find_columns(schema.names, config, str(path))
            _check_type(path, columns.image, schema.field(columns.image).type)
            self.columns.append(columns)
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = Lock()

    def records(self) -> Iterator[Record]:
        """Yield every row, without its image bytes."""
        for number, path in enumerate(self.paths):
            try:
                yield from self._file_records(number, path)
            except UNSOUND as error:
                raise _damaged(path, error) from error

    def _file_records(self, number: int, path: Path) -> Iterator[Record]:
        file, columns = _opened(path), self.columns[number]
        kind = file.schema_arrow.field(columns.image).type
        wanted = [columns.caption, *filter(None, (columns.person, columns.split))]
        if pa.types.is_struct(kind):
            wanted += [f"{columns.image}.path"] if kind.get_field_index("path") >= 0 else []
        elif _is_string(kind):
            wanted.append(columns.image)
        row_number = 0
        for batch in file.iter_batches(batch_size=4096, columns=wanted):
            for row in batch.to_pylist():
                where = f"{path}, row {row_number}"
                record = columns.read(row, where, (number, row_number, 0))
                yield self._named(record, kind, number, row_number)
                row_number += 1

    def _named(self, record: Record, kind: Any, number: int, row: int) -> Record:
        """Return the record with its image's name, and `IN_FILE` where the image is a file."""
        if _is_string(kind):
            return replace(record, folder=self.folders[number], place=(number, IN_FILE, 0))
        name = f"{self.names[number]}#{row}"
        if isinstance(record.image, dict) and record.image.get("path"):
            # Beside bytes the path is only a name, and often the same in every row.
            name = f"{name}/{Path(record.image['path']).name}"
        return replace(record, image=printable(name), is_file=False)

    def read(self, place: Place) -> bytes:
        """Return the bytes of the image in row `place[1]` of table `place[0]`."""
        number, row, _ = place
        group = int(np.searchsorted(self.first_rows[number], row, side="right")) - 1
        value = self._group(number, group)[row - int(self.first_rows[number][group])].as_py()
        where = f"{self.paths[number]}, row {row}"
        if isinstance(value, dict):
            if value.get("bytes") is None:
                return self._from_file(value.get("path"), where, self.folders[number])
            value = value["bytes"]
        if not isinstance(value, bytes):
            raise DataError(f"{where}: the image is null; remove the row")
        return value

    def _from_file(self, path: object, where: str, folder: str) -> bytes:
        """Read the file that a Hugging Face table may name in place of the bytes."""
        record = Record(
            image=path, caption=None, person=None, split=None, where=where, folder=folder
        )
        image = FileImage(picture_name(record), self.root, self.config.max_pixels)
        try:
            return image.path.read_bytes()
        except OSError as error:
            raise DataError(f"{where}: image {path} cannot be read ({error.strerror})") from error

    def _group(self, number: int, group: int) -> Any:
        """Return the image column of a row group."""
        with self._lock:
            if (number, group) in self._kept:
                self._kept.move_to_end((number, group))
                return self._kept[number, group]
        path, column = self.paths[number], self.columns[number].image
        try:
            with pq.ParquetFile(path, metadata=self.metadata[number]) as file:
                table = file.read_row_group(group, columns=[column], use_threads=False)
        except UNSOUND as error:
            raise _damaged(path, error) from error
        expected = self.metadata[number].row_group(group).num_rows
        if table.num_rows != expected:
            shortfall = ValueError(f"row group {group} has {table.num_rows} of {expected} rows")
            raise _damaged(path, shortfall)
        with self._lock:
            self._kept[number, group] = table.column(0)
            while len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
        return table.column(0)


def _opened(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except UNSOUND as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is not a sound Parquet file ({reason_of(error, most=200)}); restore or remove it"
    )


def _is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_type(path: Path, column: str, kind: Any) -> None:
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (is_bytes or is_struct or _is_string(kind)):
        raise DataError(
            f"{path}: column {column!r} is of type {kind}; expected bytes, paths, or Hugging "
            f"Face's struct of both"
        )
