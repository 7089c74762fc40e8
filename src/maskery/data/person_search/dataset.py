"""A person-search dataset, checked and cut into what is trained on, chosen by and measured on."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskery.core.errors import DataError, counted
from maskery.data.images.loading import ImageRef, Skipped, content_hashes
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs, group_ids_of, split_pairs
from maskery.data.pairs.records import Reader, Record, brief, checked_captions
from maskery.data.person_search.config import SPLITS, PersonSearchDataConfig, clean_caption
from maskery.data.person_search.layouts import LAYOUTS, exchanged, read_annotations

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersonSearchData:
    """The splits of a dataset; persons are numbered in each split for itself."""

    title: str
    train: Pairs  # Pairs to train on
    val: Pairs  # Pairs that choose the best epoch; of the training identities where there are none
    test: Pairs | None  # Pairs to measure on; None where the dataset has no test split
    notes: tuple[str, ...]  # One line for each kind of thing that was left out or looks odd


def open_person_search(config: PersonSearchDataConfig) -> PersonSearchData:
    """Read and check a dataset; images stay where they are until they are loaded."""
    title, root = LAYOUTS[config.dataset].title, config.root
    records, noise = list(read_annotations(config)), ""
    if config.noise_file is not None:
        records, noise = exchanged(records, config.noise_file)
    images = _image_folder(config)
    annotated, leaks = {record.split for record in records}, leaks_note(records)
    records, missing = without_missing(records, images, config)
    notes = [noise, leaks, missing]
    by_split = {split: [r for r in records if r.split == split] for split in SPLITS}
    _need_all_splits(config, by_split)
    skipped = Skipped("caption", config.on_bad_caption)
    for split, found in by_split.items():
        by_split[split], note = merge_pictures(found, config, skipped)
        notes.append(note and f"{split}: {note}")
        if split in annotated or split == "train":
            _need_two_persons(by_split[split], f"the {split} split of '{root}'")
    if "val" not in annotated:
        by_split["train"], by_split["val"] = hold_out_persons(by_split["train"], config.val_share)
    notes += [*drop_copies(by_split, images), shared_captions(by_split)]
    notes = [note for note in (*notes, str(skipped)) if note]
    reading = PairsConfig(on_bad_caption=config.on_bad_caption)
    splits = {
        name: Pairs.of(Reader(found, images), reading, f"the {name} split of '{root}'")
        for name, found in by_split.items()
        if found
    }
    for note in notes:
        log.warning("%s", note)
    test = splits.pop("test", None)
    return PersonSearchData(title=title, test=test, notes=tuple(notes), **splits)


def _image_folder(config: PersonSearchDataConfig) -> Path:
    root = config.root.parent if config.root.is_file() else config.root
    folder = config.images or root / LAYOUTS[config.dataset].images
    if not folder.is_dir():
        fix = "put them there, or name another as --images"
        raise DataError(f"there is no folder '{folder}' with the images; {fix}")
    return folder


def leaks_note(records: Sequence[Record]) -> str:
    """Refuse images that are in two splits; returns a warning about ids that are, or ""."""
    if leaks := _in_several_splits((record.image, record.split) for record in records):
        name, (one, other, *_) = next(iter(leaks.items()))
        found = f"{counted(len(leaks), 'image')}, first {brief(name)} in {one} and {other}"
        fix = "what is measured on would be trained on; remove it from one of them"
        raise DataError(f"in two splits: {found}; {fix}")
    shared = _in_several_splits((record.person, record.split) for record in records)
    if not shared:
        return ""
    found = f"{counted(len(shared), 'id')}, first {next(iter(shared))}"
    meaning = "they count as different persons, as in datasets that number each split anew"
    risk = "where they are the same persons, figures on held-out people would be too good"
    return f"in more than one split: {found}; {meaning}; {risk}"


def _need_two_persons(records: Sequence[Record], what: str) -> None:
    """Refuse a split in which nobody can be mistaken: all of its figures would be 100%."""
    count = len({record.person for record in records})
    if count < 2:
        problem = f"{what} shows {counted(count, 'different person')}: nobody to tell anyone from"
        raise DataError(f"{problem}; bring at least 2")


def drop_copies(by_split: dict[str, list[Record]], images: Path) -> list[str]:
    """Leave out pictures that a split measured later also shows, as links or copies; notes them."""
    held: set[int] = set()
    notes = []
    for split in reversed(SPLITS):  # test first, then val, then train
        found = by_split[split]
        hashes = content_hashes(ImageRef.file(record.image, images) for record in found).tolist()
        kept = [record for record, own in zip(found, hashes, strict=True) if own not in held]
        held.update(hashes)
        if count := len(found) - len(kept):
            why = "held out as well under other names (links, or files of equal bytes)"
            notes.append(f"left out of the {split} split: {counted(count, 'picture')}, {why}")
            what = f"without its {counted(count, 'copy', 'copies')}, the {split} split"
            _need_two_persons(kept, what)
        by_split[split] = kept
    return notes


def shared_captions(by_split: Mapping[str, Sequence[Record]]) -> str:
    """Return a warning about captions that describe several persons of a split, else ""."""
    shared: dict[str, list[str]] = {}
    for found in by_split.values():
        shared |= _in_several_splits((c, r.person) for r in found for c in r.caption)
    if not shared:
        return ""
    told = f"{counted(len(shared), 'caption')}, first {brief(next(iter(shared)))}"
    return f"describe several persons word for word: {told}: no search can tell whom they mean"


def _in_several_splits(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the names that are in more than one split, with these, in their order."""
    splits: dict[str, list[str]] = {}
    for name, split in dict.fromkeys(found):
        splits.setdefault(name, []).append(split)
    return {name: among for name, among in splits.items() if len(among) > 1}


def without_missing(
    records: list[Record], images: Path, config: PersonSearchDataConfig
) -> tuple[list[Record], str]:
    """Return the records whose image is on disk, and a note about the others."""
    # `Path.exists` fails on a name that is too long for a file.
    found = {n: os.path.exists(images / n) for n in {r.image for r in records}}  # noqa: PTH110
    absent = [record for record in records if not found[record.image]]
    if not absent:
        return records, ""
    first, count = absent[0], list(found.values()).count(False)
    note = f"{count:,} of {len(found):,} annotated images are not in '{images}'"
    if count == len(found):
        raise DataError(f"{note}; name the folder that {brief(first.image)} lies in as --images")
    if config.missing_images == "fail":
        fix = "bring them, or go on without them with --missing-images skip"
        raise DataError(f"{note}, first {brief(first.image)} ({first.where}); {fix}")
    kept = [record for record in records if found[record.image]]
    return kept, f"{note} and are left out, first {brief(first.image)}"


def _need_all_splits(config: PersonSearchDataConfig, by_split: dict[str, list[Record]]) -> None:
    """Refuse annotations that lack a split that the published dataset has."""
    layout = LAYOUTS[config.dataset]
    absent = [split for split in layout.splits if not by_split[split]]
    if absent and config.dataset in ("cuhk-pedes", "icfg-pedes", "rstpreid"):
        problem = f"have no {absent[0]} split, which {layout.title} has"
        why = "they are of another dataset, or cut short; correct --dataset or --root"
        raise DataError(f"the annotations in '{config.root}' {problem}: {why}")


def hold_out_persons(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Cut training identities into those to train on and those that choose the epoch."""
    # By persons, and by a hash: nobody is on both sides, and every run has the same sides.
    groups = group_ids_of([f"person\0{record.person}" for record in records])
    if (count := len(np.unique(groups))) < 4:
        problem = f"the training split shows {count} persons, and there is no validation split"
        rule = "at least 4 are needed, two to learn from and two to choose the best epoch by"
        raise DataError(f"{problem}: {rule}")
    train, held = split_pairs(groups, share)
    return [records[i] for i in train], [records[i] for i in held]


def merge_pictures(
    records: Iterable[Record], config: PersonSearchDataConfig, skipped: Skipped
) -> tuple[list[Record], str]:
    """Join the captions of records that name the same picture; returns a note about them, too.

    A picture without usable captions is left out, and so is a caption that an earlier record of the
    picture has word for word; what a single record lists twice is left alone, as it was published.
    """
    # By picture: its first record, its captions as the annotations have them, and the usable ones.
    pictures: dict[str, tuple[Record, set[str], list[str]]] = {}
    joined = repeated = 0
    for record in records:
        own = record.caption
        first, known, captions = pictures.setdefault(record.image, (record, set(), []))
        # What is no string is left for the check.
        fresh = [text for text in own if not (isinstance(text, str) and text in known)]
        known.update(text for text in fresh if isinstance(text, str))
        if first is not record:
            if record.person != first.person:
                one, other = (f"person {r.person} ({r.where})" for r in (first, record))
                problem = f"image {brief(record.image)} is said to show {one} and {other}"
                raise DataError(f"{problem}; correct the one that is wrong")
            joined, repeated = joined + 1, repeated + len(own) - len(fresh)
            if own and not fresh:
                continue
        if config.clean_captions:
            fresh = [clean_caption(c, config.max_words) if isinstance(c, str) else c for c in fresh]
        captions += checked_captions(fresh, record.where, PairsConfig().max_caption_chars, skipped)
    merged = [replace(first, caption=own) for first, _, own in pictures.values() if own]
    left_out = f"; captions left out that it had already: {repeated:,}" if repeated else ""
    note = f"records that name the picture of an earlier one: {joined:,}"
    rule = "each picture counts once, with the captions of all its records"
    return merged, f"{note}; {rule}{left_out}" if joined else ""
