"""Image-caption pairs as a sequence, and their split into training and held-out ones.

Names and captions lie in Arrow arrays, ids and places in NumPy ones: a million pairs take little
more memory than their text, and forked workers share it.

Shapes: N pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskery.core.batch import Ids, Ints
from maskery.core.errors import DataError
from maskery.data.corpus.examples import example_id, is_held_out, mix
from maskery.data.images.loading import ImageRef, Skipped, content_hashes
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.formats import HELD_SPLITS, TRAIN_SPLITS, Source, open_source
from maskery.data.pairs.records import SPLIT_COLUMN, Reader, Record, brief, checked_rows
from maskery.data.split import connected, least_ids

log = logging.getLogger(__name__)

# In `Pairs.persons`: the pair names no person.
NOBODY = -1
# Pairs that wait as Python objects before they become an Arrow array, a tenth of the size.
CHUNK = 65536
SCHEMA = pa.schema(
    {
        **dict.fromkeys(("name", "person", "group", "split"), pa.large_string()),
        "captions": pa.large_list(pa.large_string()),
        "id": pa.uint64(),
        "place": pa.list_(pa.int64(), 3),
    }
)


@dataclass(frozen=True)
class Pair:
    """One image with its captions."""

    image: ImageRef  # not decoded yet
    captions: tuple[str, ...]  # at least one, each with a word in it


class Pairs:
    """A sequence of pairs; made by `Pairs.open`."""

    def __init__(self, table: pa.Table, reader: Reader, skipped: Skipped) -> None:
        self._table, self._reader = table, reader
        self.names, self._captions = (table[c].combine_chunks() for c in ("name", "captions"))
        self._places = np.array(table["place"].to_pylist(), np.int64)
        self._prepare: Callable[[str], str] = str
        # (N,) each: the id of each pair, from the image's name and the captions, the same in every
        # run; and the number of its person, `NOBODY` where there is none.
        self.ids: Ids = table["id"].to_numpy()
        persons = table["person"].combine_chunks().dictionary_encode()
        self.persons: Ints = persons.indices.fill_null(NOBODY).to_numpy().astype(np.int64)
        self.person_names: tuple[str, ...] = tuple(persons.dictionary.to_pylist())
        self.groups = table["group"]  # names; pairs of one stay on one side of a split
        self.skipped_captions = skipped  # a pair that has no other is left out too

    @classmethod
    def open(cls, source: Source, config: PairsConfig | None = None) -> Pairs:
        """Read the pairs of a source; images stay where they are until they are loaded.

        `source` is a path or pattern, an iterable of records (mappings with `image`, `caption` and
        perhaps `person`, `group`, `split`), or a `datasets` dataset with image and caption columns;
        see `maskery.data.pairs.formats.open_source`.

        Raises:
            DataError: It cannot be read, holds no pairs, or a record is bad.
            PluginError: The reader of `config` is none, or breaks its contract.
        """
        return cls._read(source, config or PairsConfig(), several=False)

    @classmethod
    def open_splits(
        cls, source: Source, config: PairsConfig | None = None
    ) -> tuple[Pairs, Pairs | None]:
        """Read the pairs to train on and, where splits are named, those to measure on.

        Of `train-00000-of-00001.parquet` beside `test-...`, as Hugging Face keeps them, or of a
        column `split`, the test split (else the validation split) is measured. A `split` in the
        settings is read alone.
        """
        pairs = cls._read(source, config or PairsConfig(), several=True)
        splits = pairs._table["split"].unique().to_pylist()
        if len(splits) < 2:
            return pairs, None
        wanted = halves(splits)
        if left := sorted(set(splits) - set(wanted)):
            log.warning("neither trained on nor measured: split %s", ", ".join(map(brief, left)))
        log.info("split %r is trained on and split %r measured", *wanted)
        parts = [pairs._table.filter(pc.field("split") == split) for split in wanted]
        train, held = (cls(part, pairs._reader, pairs.skipped_captions) for part in parts)
        return train, held

    @classmethod
    def _read(cls, source: Source, config: PairsConfig, *, several: bool) -> Pairs:
        name = source if isinstance(source, str | Path) else "the source"
        reader = open_source(source, config)
        records = _of_split(reader, config, name, several=several)
        return cls.of(replace(reader, records=records), config, name)

    @classmethod
    def of(cls, reader: Reader, config: PairsConfig, source: str | Path) -> Pairs:
        """Check the records of an opened source and make pairs of them."""
        skipped = Skipped("caption", config.on_bad_caption)
        rows = checked_rows(reader.records, config, skipped)
        tables = []
        while chunk := list(islice(rows, CHUNK)):
            tables.append(pa.Table.from_pylist(chunk, SCHEMA))
        if not tables:
            left_out = f" ({skipped})" if skipped.count else ""
            raise DataError(f"{source} holds no pairs{left_out}; name a source that does")
        # The records themselves are let go.
        return cls(pa.concat_tables(tables).combine_chunks(), replace(reader, records=()), skipped)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pair:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index %= len(self)
        shard, offset, size = self._places[index].tolist()
        image = self._reader.ref(self.names[index].as_py(), (shard, offset, size))
        return Pair(image, tuple(map(self._prepare, self._captions[index].as_py())))

    @cached_property
    def contents(self) -> Ids:
        """A hash of each picture's bytes, (N,): copies and links have one. Reads every picture."""
        return content_hashes(pair.image for pair in self)

    def prepared(self, prepare: Callable[[str], str]) -> Pairs:
        """Return the same pairs with something done to each caption, such as cleaning."""
        changed = copy(self)
        changed._prepare = prepare
        return changed

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))


def halves(splits: Iterable[str | None]) -> list[str | None]:
    """Return the split to train on and the one to measure on, by their names; None for neither."""
    known = {str(split).lower(): split for split in splits}
    both = (TRAIN_SPLITS, HELD_SPLITS)
    return [next((known[name] for name in names if name in known), None) for names in both]


def _of_split(
    reader: Reader, config: PairsConfig, source: str | Path, *, several: bool
) -> Iterator[Record]:
    """Yield the records of the split that is asked for; several are not mixed unasked."""
    found: dict[str | None, None] = {}  # in their order
    for record in reader.records:
        of_file = reader.splits[record.place[0]] if reader.splits else None
        split = of_file if record.split is None else str(record.split)
        found[split] = None
        if config.split is not None and split is None:
            problem = f"has no {SPLIT_COLUMN!r}, so split {config.split!r} cannot be chosen"
            raise DataError(f"{record.where} {problem}; leave split out")
        if None in found and len(found) > 1:
            problem = f"{source} holds records with a {SPLIT_COLUMN!r} and records without"
            fix = "name the split of every record, or of none"
            raise DataError(f"{record.where}: {problem}; {fix}")
        if config.split is None or split == config.split:
            yield replace(record, split=split)
    if empty := set(reader.splits).difference(found):
        raise DataError(f"{source}: split {min(empty)!r} holds no pairs; fill or remove its files")
    known = ", ".join(map(brief, found)) or "none"
    if config.split is None and len(found) > 1 and (not several or None in halves(found)):
        raise DataError(f"{source} holds several splits ({known}); choose one as split")
    if config.split is not None and config.split not in found:
        problem = f"{source} has no split {config.split!r}, only {known}"
        raise DataError(f"{problem}; choose one of these")


def group_ids(pairs: Pairs) -> Ids:
    """Return (N,) uint64: a hash of the person shown, else of the group, else of the picture.

    Where they share a picture, by its name or by its bytes, they are one.
    """
    columns = pairs.persons.tolist(), pairs.groups.to_pylist(), pairs.names.to_pylist()
    named = []
    for person, group, name in zip(*columns, strict=True):
        of_group = f"image\0{name}" if group is None else f"group\0{group}"
        named.append(of_group if person == NOBODY else f"person\0{pairs.person_names[person]}")
    own = group_ids_of(named)
    unique, numbers = np.unique(own, return_inverse=True)
    of_picture = np.unique(pairs.contents, return_inverse=True)[1]
    joined = connected(numbers, of_picture + len(unique))[numbers]
    # Known by the least name, which is its own where nothing is shared.
    return least_ids(own, joined)[joined]


def group_ids_of(names: Iterable[str]) -> Ids:
    """Return (N,) uint64: a hash of each name."""
    return np.array([*map(example_id, names)], np.uint64)


def split_pairs(groups: Ids, share: float) -> tuple[Ints, Ints]:
    """Split pairs into training and held-out ones, about `share` of groups (N,), by their hash."""
    unique = np.unique(groups)
    if len(unique) < 3:
        problem = f"the pairs show {len(unique)} different pictures or persons"
        rule = "at least 3 are needed: one to learn from and two to measure on"
        raise DataError(f"{problem}, and {rule}; bring more, or pass --eval-pairs")
    order = unique[np.argsort(mix(unique), kind="stable")]
    # The hash decides, whatever share it happens to hit; at the ends at least two and one are left.
    count = int(np.clip(is_held_out(unique, share).sum(), 2, len(unique) - 1))
    held = np.isin(groups, order[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


def wrong_pairs(groups: Ids, among: Ints) -> Ints:
    """Return for each pair of `among`, (M,), a fixed one of another group among them."""
    own = groups[among]
    unique, counts = np.unique(own, return_counts=True)
    if len(unique) < 2:
        problem = "all held-out pairs show the same picture or person, so there is no wrong picture"
        raise DataError(f"{problem} to compare with; hold out more, or bring other --eval-pairs")
    members = np.split(np.argsort(own, kind="stable"), np.cumsum(counts)[:-1])  # of each group
    # Each group's wrong one is the next in a circle by hash: the same in every run, and no
    # neighbour of the file, which may be of the same kind.
    order = np.argsort(mix(unique), kind="stable").tolist()
    wrong = np.empty_like(among)
    for group, following in pairwise([*order, order[0]]):
        wrong[members[group]] = np.resize(among[members[following]], len(members[group]))
    return wrong
