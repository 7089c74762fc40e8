"""A person-search dataset, checked and cut into what is trained on, chosen by and measured on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskery.core.errors import DataError
from maskery.data.images.config import DEFAULT_MAX_PIXELS
from maskery.data.images.loading import Skipped
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs, group_ids_of, split_pairs
from maskery.data.pairs.pictures import image_refs
from maskery.data.pairs.records import Record, brief, checked_captions, checked_person, picture_name
from maskery.data.person_search.config import SPLITS, PersonSearchDataConfig, clean_caption
from maskery.data.person_search.layouts import IMAGES, LAYOUTS, read_annotations

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersonSearchData:
    """The splits of a dataset; persons are numbered in each split for itself."""

    title: str
    train: Pairs  # Pairs to train on
    val: Pairs  # Pairs that choose the best epoch
    test: Pairs | None  # Pairs to measure on; None where the dataset has no test split
    val_held_out: bool  # True if `val` was held out of the training identities
    notes: tuple[str, ...]  # One line for each kind of thing that was left out or looks odd


def open_person_search(config: PersonSearchDataConfig) -> PersonSearchData:
    """Read and check a dataset; images stay where they are until they are loaded.

    Raises:
        DataError: Annotations are missing, bad or of another dataset, an image is in two splits or
            said to show two persons, images are missing, or a split shows fewer than two persons.
    """
    title, root = LAYOUTS[config.dataset].title, config.root
    records = list(read_annotations(config.dataset, root))
    images = _image_folder(config)
    refuse_leaks(records)
    annotated = {record.split for record in records}
    notes = [shared_ids(records)]
    records, missing = without_missing(records, images, config)
    notes.append(missing)
    by_split = {split: [r for r in records if r.split == split] for split in SPLITS}
    _need_expected_splits(config, by_split)
    held_out = "val" not in annotated
    by_split, told = _by_picture(by_split, config)
    notes += told
    for split in SPLITS:
        if split in annotated or split == "train":
            _need_two_persons(by_split[split], f"the {split} split of '{root}'")
    if held_out:
        by_split["train"], by_split["val"] = hold_out_persons(by_split["train"], config.val_share)
    reading = PairsConfig(on_bad_image=config.on_bad_image, on_bad_caption=config.on_bad_caption)

    ref = image_refs(images, DEFAULT_MAX_PIXELS)
    splits = {
        name: Pairs.of(found, ref, reading, f"the {name} split of '{root}'") if found else None
        for name, found in by_split.items()
    }
    train, val = splits["train"], splits["val"]
    assert train is not None
    assert val is not None
    notes = [note for note in notes if note]
    for note in notes:
        log.warning("%s", note)
    return PersonSearchData(
        title=title,
        train=train,
        val=val,
        test=splits["test"],
        val_held_out=held_out,
        notes=tuple(notes),
    )


def _by_picture(
    by_split: dict[str, list[Record]], config: PersonSearchDataConfig
) -> tuple[dict[str, list[Record]], list[str]]:
    """Return one record for each picture of each split, its captions checked, and notes."""
    skipped = Skipped("caption", config.on_bad_caption)
    merged: dict[str, list[Record]] = {}
    notes: list[str] = []
    for split, found in by_split.items():
        merged[split], note = merge_pictures(found, partial(_captions, config, skipped))
        notes += [f"{split}: {note}"] if note else []
    return merged, [*notes, str(skipped)]


def _captions(config: PersonSearchDataConfig, skipped: Skipped, record: Record) -> tuple[str, ...]:
    """Return the captions of a record, cleaned and checked."""
    captions = record.caption
    if config.clean_captions:
        captions = [
            clean_caption(text, config.max_words) if isinstance(text, str) else text
            for text in captions
        ]
    return checked_captions(captions, record.where, PairsConfig().max_caption_chars, skipped)


def _image_folder(config: PersonSearchDataConfig) -> Path:
    """Return the folder of the images."""
    folder = config.images
    if folder is None and config.dataset == "jsonl":
        folder = config.root.parent if config.root.is_file() else config.root
    folder = folder or config.root / IMAGES
    if not folder.is_dir():
        raise DataError(
            f"there is no folder '{folder}' with the images; put them there, or name another "
            f"as --images"
        )
    return folder


def refuse_leaks(records: Sequence[Record]) -> None:
    """Make sure that every image is a path below the image folder, and none is in two splits."""
    split_of: dict[str, str] = {}
    leaks: dict[str, tuple[str, str]] = {}
    for record in records:
        name = picture_name(record)
        first = split_of.setdefault(name, record.split)
        if first != record.split:
            leaks.setdefault(name, (first, record.split))
    if leaks:
        name, (one, other) = next(iter(leaks.items()))
        raise DataError(
            f"{len(leaks)} images are in two splits, first {brief(name)} in {one} and {other}: "
            f"what is measured on would be trained on; remove it from one of them"
        )


def shared_ids(records: Sequence[Record]) -> str:
    """Return a warning where splits share ids (they may be numbered anew in each), else ""."""
    splits_of: dict[str, set[str]] = {}
    for record in records:
        person = checked_person(record.person, record.where)
        splits_of.setdefault(str(person), set()).add(record.split)
    shared = [person for person, splits in splits_of.items() if len(splits) > 1]
    if not shared:
        return ""
    return (
        f"{len(shared):,} ids occur in more than one split, first {shared[0]}: they count as "
        f"different persons, as in datasets that number each split anew; where they are the same "
        f"persons, figures on held-out people would be too good"
    )


def without_missing(
    records: list[Record], images: Path, config: PersonSearchDataConfig
) -> tuple[list[Record], str]:
    """Return the records whose image is on disk, and a note about the others."""
    names = [picture_name(record) for record in records]
    found = {name: (images / name).exists() for name in dict.fromkeys(names)}
    count = list(found.values()).count(False)
    if not count:
        return records, ""
    first = next(r for r, name in zip(records, names, strict=True) if not found[name])
    note = f"{count:,} of {len(found):,} annotated images are not in '{images}'"
    if count == len(found):
        raise DataError(f"{note}; name the folder that {brief(first.image)} lies in as --images")
    if config.missing_images == "fail":
        raise DataError(
            f"{note}, first {brief(first.image)} ({first.where}); bring them, or go on without "
            f"them with --missing-images skip"
        )
    kept = [record for record, name in zip(records, names, strict=True) if found[name]]
    return kept, f"{note} and are left out, first {brief(first.image)}"


def _need_two_persons(records: Sequence[Record], what: str) -> None:
    """Refuse a split in which nobody can be mistaken: all of its figures would be 100%."""
    persons = {checked_person(record.person, record.where) for record in records}
    if len(persons) < 2:
        raise DataError(
            f"{what} shows {len(persons)} different person{'' if len(persons) == 1 else 's'}: "
            f"nobody to tell anyone from; bring at least 2"
        )


def _need_expected_splits(
    config: PersonSearchDataConfig, by_split: dict[str, list[Record]]
) -> None:
    """Refuse annotations that lack a split that the published dataset has."""
    layout = LAYOUTS[config.dataset]
    if config.dataset not in ("cuhk-pedes", "icfg-pedes", "rstpreid"):
        return
    for split in layout.splits:
        if not by_split[split]:
            raise DataError(
                f"the annotations in '{config.root}' have no {split} split, which {layout.title} "
                f"has: they are of another dataset, or cut short; correct --dataset or --root"
            )


def hold_out_persons(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Cut training identities into those to train on and those that choose the epoch."""
    groups = group_ids_of([f"person\0{checked_person(r.person, r.where)}" for r in records])
    if len(np.unique(groups)) < 4:
        raise DataError(
            f"the training split shows {len(np.unique(groups))} persons, and there is no "
            f"validation split: at least 4 are needed, two to learn from and two to choose the "
            f"best epoch by"
        )
    train, held = split_pairs(groups, share)
    return [records[i] for i in train], [records[i] for i in held]


@dataclass(frozen=True)
class _Picture:
    """Person and captions of one picture, collected over its records."""

    first: Record  # Its first record
    person: str | None  # The person it shows
    listed: set[str]  # Its captions as the annotations have them
    captions: list[str]  # Usable ones, prepared and checked, in order

    def fresh(self, captions: list[Any]) -> list[Any]:
        """Return captions that no record listed yet; what is no string is left for the check."""
        new = [text for text in captions if not (isinstance(text, str) and text in self.listed)]
        self.listed.update(text for text in new if isinstance(text, str))
        return new


def merge_pictures(
    records: Iterable[Record], prepare: Callable[[Record], tuple[str, ...]]
) -> tuple[list[Record], str]:
    """Join the captions of records that name the same picture; returns a note about them, too.

    The captions of a picture stay in the order of the records, `prepare` makes those that are used,
    and a picture without any is left out. A caption that an earlier record of the picture has word
    for word is left out; what a single record lists twice is left alone, so that a dataset with one
    record for each picture stays as it was published.
    """
    pictures: dict[str, _Picture] = {}
    joined = repeated = 0
    for record in records:
        captions = record.caption if isinstance(record.caption, list) else [record.caption]
        name, person = picture_name(record), checked_person(record.person, record.where)
        known = pictures.setdefault(name, _Picture(record, person, set(), []))
        fresh = known.fresh(captions)
        if known.first is not record:
            if person != known.person:
                raise DataError(
                    f"image {brief(record.image)} is said to show person {known.person} "
                    f"({known.first.where}) and person {person} ({record.where}); correct the one "
                    f"that is wrong"
                )
            joined, repeated = joined + 1, repeated + len(captions) - len(fresh)
            if captions and not fresh:
                continue
        known.captions.extend(prepare(replace(record, caption=fresh)))
    merged = [replace(p.first, caption=p.captions) for p in pictures.values() if p.captions]
    return merged, _note(joined, repeated)


def _note(joined: int, repeated: int) -> str:
    if not joined:
        return ""
    left_out = f"; captions left out that it had already: {repeated:,}" if repeated else ""
    return (
        f"records that name the picture of an earlier one: {joined:,}; each picture counts once, "
        f"with the captions of all its records{left_out}"
    )
