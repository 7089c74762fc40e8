"""Pairs in Parquet tables; images are bytes, as Hugging Face datasets writes them, or paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskery.core.errors import DataError, reason_of
from maskery.data.images.loading import ImageRef
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pictures import IN_FILE, Place, image_refs, stored_bytes
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
    tables = [Table(path, config, root, number) for number, path in enumerate(paths)]

    def records() -> Iterator[Record]:
        for table in tables:
            yield from table.records()

    # A row group is read whole, for any of its images.
    group = lru_cache(GROUPS_KEPT)(lambda number, group: tables[number].group(group))
    read = partial(_read_image, tables, group, config.images or root)
    return Reader(records(), image_refs(config.images or root, config.max_pixels, read))


def _read_image(tables: Sequence[Table], group_of: Any, root: Path, place: Place) -> bytes:
    """Return the bytes of the image in row `place[1]` of table `place[0]`."""
    number, row, _ = place
    table = tables[number]
    where = f"{table.path}, row {row}"

    def file(path: object) -> ImageRef:
        name = picture_name(Record(image=path, where=where, folder=table.folder))
        return ImageRef.file(name, root)

    group = int(np.searchsorted(table.first_rows, row, side="right")) - 1
    value = group_of(number, group)[row - int(table.first_rows[group])].as_py()
    return stored_bytes(value, where, file)


class Table:
    """One Parquet table, opened for each row group and closed again, for forked workers' sake."""

    def __init__(self, path: Path, config: PairsConfig, root: Path, number: int) -> None:
        self.path, self.number = path, number
        self.name = path.relative_to(root).as_posix()
        self.folder = table_folder(path, config, root)
        self.metadata = self._opened().metadata
        sizes = [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]
        self.first_rows = np.cumsum([0, *sizes])
        schema = self._opened().schema_arrow
        self.columns: Columns = find_columns(schema.names, config, str(path))
        self.kind = schema.field(self.columns.image).type
        self.is_path = pa.types.is_string(self.kind) or pa.types.is_large_string(self.kind)
        is_bytes = pa.types.is_binary(self.kind) or pa.types.is_large_binary(self.kind)
        is_struct = pa.types.is_struct(self.kind) and self.kind.get_field_index("bytes") >= 0
        if not (is_bytes or is_struct or self.is_path):
            raise DataError(
                f"{path}: column {self.columns.image!r} is of type {self.kind}; expected bytes, "
                f"paths, or Hugging Face's struct of both"
            )

    def _opened(self) -> Any:
        try:
            return pq.ParquetFile(self.path)
        except UNSOUND as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        why = reason_of(error, most=200)
        return DataError(f"{self.path} is not a sound Parquet file ({why}); restore or remove it")

    def records(self) -> Iterator[Record]:
        """Yield every row, without its image bytes."""
        columns = self.columns
        wanted = [columns.caption, *filter(None, (columns.person, columns.split, columns.group))]
        if self.is_path:
            wanted.append(columns.image)
        elif pa.types.is_struct(self.kind) and self.kind.get_field_index("path") >= 0:
            wanted.append(f"{columns.image}.path")
        try:
            batches = self._opened().iter_batches(batch_size=4096, columns=wanted)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield self._record(row, number)
        except UNSOUND as error:
            raise self._damaged(error) from error

    def _record(self, row: dict[str, Any], number: int) -> Record:
        where, columns = f"{self.path}, row {number}", self.columns
        if self.is_path:
            place = (self.number, IN_FILE, 0)
            return columns.read(row, where, place=place, folder=self.folder)
        name, image = f"{self.name}#{number}", row.get(str(columns.image))
        if isinstance(image, dict) and image.get("path"):
            # Beside bytes the path is only a name, and often the same in every row.
            name = f"{name}/{Path(image['path']).name}"
        return columns.read(row, where, place=(self.number, number, 0), image=printable(name))

    def group(self, group: int) -> Any:
        """Return the image column of a row group."""
        expected = self.metadata.row_group(group).num_rows
        try:
            with pq.ParquetFile(self.path, metadata=self.metadata) as file:
                table = file.read_row_group(group, columns=[self.columns.image], use_threads=False)
            if table.num_rows != expected:
                raise ValueError(f"row group {group} has {table.num_rows} of {expected} rows")
        except UNSOUND as error:
            raise self._damaged(error) from error
        return table.column(0)
