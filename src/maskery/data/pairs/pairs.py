"""Image-caption pairs as a sequence.

Names and captions lie in Arrow arrays, ids and places in NumPy ones: a million pairs take little
more memory than their text, and forked workers share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskery.core.errors import DataError
from maskery.data.images.skipped import Skipped
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.image_refs import ImageRef, Place
from maskery.data.pairs.records import (
    SPLIT_COLUMN,
    Reader,
    Record,
    brief,
    checked_captions,
    checked_image_name,
    checked_person,
    pair_id,
)
from maskery.data.pairs.sources import open_source

NOBODY = -1
"""In `Pairs.persons`: the pair names no person."""

CHUNK = 65536


@dataclass(frozen=True)
class Pair:
    """One image with its captions.

    Attributes:
        image: Not decoded yet.
        captions: At least one, each with a word in it.
        id: 64 bits, from the image's name and the captions; the same in every run.
        person: Dense number of the person, or None.
    """

    image: ImageRef
    captions: tuple[str, ...]
    id: int
    person: int | None


class Pairs:
    """A sequence of pairs; made by `Pairs.open`.

    Attributes:
        ids: (N,) uint64, the `id` of each pair.
        persons: (N,) int64, the `person` of each pair, `NOBODY` where there is none.
        person_names: What the data calls the persons, by their numbers.
        skipped_captions: Captions that were left out; a pair that has no other is left out too.
    """

    def __init__(self, columns: _Columns, ref: Callable[[str, Place], ImageRef]) -> None:
        self._names, self._captions = columns.arrow()
        self._places = np.array(columns.places, np.int64).reshape(-1, 3)
        self._ref = ref
        self.ids: npt.NDArray[np.uint64] = np.array(columns.ids, np.uint64)
        self.persons: npt.NDArray[np.int64] = np.array(columns.persons, np.int64)
        self.person_names = tuple(columns.person_numbers)
        self.skipped_captions = columns.skipped

    @classmethod
    def open(cls, source: str | Path, config: PairsConfig | None = None) -> Pairs:
        """Read the pairs of a source; images stay where they are until they are loaded.

        Args:
            source: See `maskery.data.pairs.sources.open_source`.
            config: Defaults to `PairsConfig()`.

        Raises:
            DataError: It cannot be read, holds no pairs, or a record is bad.
        """
        config = config or PairsConfig()
        reader = open_source(source, config)
        return cls.of(_of_split(reader, config, source), reader.ref, config, source)

    @classmethod
    def of(
        cls,
        records: Iterable[Record],
        ref: Callable[[str, Place], ImageRef],
        config: PairsConfig,
        source: str | Path,
    ) -> Pairs:
        """Check records and make pairs of them.

        Args:
            records: Unchecked.
            ref: From an image's name and place to the image.
            config: How to read them.
            source: Where they come from, for messages.

        Raises:
            DataError: There are none, or one is bad.
        """
        columns = _Columns(config)
        for record in records:
            columns.add(record)
        if not columns.ids:
            left_out = f" ({columns.skipped})" if columns.skipped.count else ""
            raise DataError(f"{source} holds no pairs{left_out}; name a source that does")
        return cls(columns, ref)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pair:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index %= len(self)
        shard, offset, size = self._places[index].tolist()
        person = int(self.persons[index])
        return Pair(
            image=self._ref(self._names[index].as_py(), (shard, offset, size)),
            captions=tuple(self._captions[index].as_py()),
            id=int(self.ids[index]),
            person=None if person == NOBODY else person,
        )

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))


def _of_split(reader: Reader, config: PairsConfig, source: str | Path) -> Iterator[Record]:
    """The records of the split that is asked for; several splits are not mixed unasked."""
    found: dict[str, None] = {}
    without = False
    for record in reader.records:
        split = None if record.split is None else str(record.split)
        if config.split is not None and split is None:
            raise DataError(
                f"{record.where} has no {SPLIT_COLUMN!r}, so split {config.split!r} cannot be "
                f"chosen; leave split out"
            )
        if split is not None:
            found[split] = None
        without = without or split is None
        if found and without:
            raise DataError(
                f"{record.where}: {source} holds records with a {SPLIT_COLUMN!r} and records "
                f"without; name the split of every record, or of none"
            )
        if config.split is None and len(found) > 1:
            raise DataError(
                f"{record.where}: {source} holds several splits ({', '.join(map(brief, found))}, "
                f"perhaps more); choose one as split"
            )
        if config.split is None or split == config.split:
            yield record
    if config.split is not None and config.split not in found:
        raise DataError(
            f"{source} has no split {config.split!r}, only "
            f"{', '.join(map(brief, found)) or 'none'}; choose one of these"
        )


class _Columns:
    """Pairs as they are collected."""

    def __init__(self, config: PairsConfig) -> None:
        self.config = config
        self.skipped = Skipped("caption", config.on_bad_caption)
        self.ids: list[int] = []
        self.persons: list[int] = []
        self.places: list[Place] = []
        self.person_numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._captions: list[Sequence[str]] = []
        self._done: list[tuple[Any, Any]] = []

    def add(self, record: Record) -> None:
        """Check a record and keep it with the captions that can be used, if there are any."""
        name = record.image
        if record.is_file:
            name = checked_image_name(name, record.where)
        person = checked_person(record.person, record.where)
        captions = checked_captions(
            record.caption, record.where, self.config.max_caption_chars, self.skipped
        )
        if not captions:
            return
        numbers = self.person_numbers
        self.persons.append(NOBODY if person is None else numbers.setdefault(person, len(numbers)))
        self.ids.append(pair_id(name, captions))
        self.places.append(record.place)
        self._names.append(name)
        self._captions.append(captions)
        if len(self._names) == CHUNK:
            self._pack()

    def _pack(self) -> None:
        self._done.append(
            (
                pa.array(self._names, pa.large_string()),
                pa.array(self._captions, pa.large_list(pa.large_string())),
            )
        )
        self._names, self._captions = [], []

    def arrow(self) -> tuple[Any, Any]:
        """Names and captions as two Arrow arrays."""
        if self._names:
            self._pack()
        names, captions = zip(*self._done, strict=True)
        return pa.concat_arrays(names), pa.concat_arrays(captions)
