"""Annotation files of the datasets of text-based person search: their places and keys.

CUHK-PEDES (Li et al., CVPR 2017), ICFG-PEDES (Ding et al., 2021), RSTPReid (Zhu et al., ACM MM
2021) and the output of RaSa's `data_process.py`: one JSON record for each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import Record, brief, checked_person, picture_name
from maskery.data.pairs.tables import json_records
from maskery.data.person_search.config import SPLITS, DatasetName

IMAGES = "imgs"


@dataclass(frozen=True)
class Layout:
    """One published layout."""

    title: str
    # Names of its annotation file; the first that exists is read. With `{split}` in them, each
    # split has a file of its own.
    files: tuple[str, ...]
    image_key: str  # Key of the image in its records
    splits: tuple[str, ...] = SPLITS  # Those it has


LAYOUTS: dict[DatasetName, Layout] = {
    "cuhk-pedes": Layout("CUHK-PEDES", ("reid_raw.json",), "file_path"),
    # The releases of ICFG-PEDES differ in the name of the file; its folders `train/` and `test/`
    # are not its split, which only the records tell.
    "icfg-pedes": Layout(
        "ICFG-PEDES",
        ("ICFG-PEDES.json", "ICFG_PEDES.json", "ICFG-PDES.json"),
        "file_path",
        splits=("train", "test"),
    ),
    "rstpreid": Layout("RSTPReid", ("data_captions.json",), "img_path"),
    "rasa": Layout(
        "RaSa's data_process.py", ("processed_data/{split}.json", "{split}.json"), "file_path"
    ),
    "drawn-people": Layout("drawn people", ("reid_raw.json",), "file_path"),
    "jsonl": Layout(
        "lines with image, caption and person", ("{split}.jsonl", "pairs_{split}.jsonl"), "image"
    ),
}


class AnnotationConfig(PairsConfig):
    """Settings of annotations, in which an `id` is a person."""

    id_is_person = True


def read_annotations(dataset: DatasetName, root: Path) -> Iterator[Record]:
    """Yield every record of a dataset with its split; image and person are names, and checked."""
    layout = LAYOUTS[dataset]
    if dataset == "jsonl" and root.is_file():
        files: list[tuple[str | None, Path]] = [(None, root)]
    elif root.is_dir():
        files = _files(dataset, root)
    else:
        raise DataError(f"there is no folder '{root}'; give the folder of {layout.title} as --root")
    for split, path in files:
        settings = AnnotationConfig(image_column=layout.image_key)
        try:
            for record in json_records(path, settings):
                yield _checked(layout, record, split)
        except DataError as error:
            raise _explained(error, layout, path) from error


def _files(dataset: DatasetName, root: Path) -> list[tuple[str | None, Path]]:
    """Return each annotation file with its split, None where the records name it."""
    for pattern in LAYOUTS[dataset].files:
        splits = SPLITS if "{split}" in pattern else (None,)
        paths = [(split, root / pattern.format(split=split)) for split in splits]
        found = [(split, path) for split, path in paths if path.is_file()]
        if found and found[0] == paths[0]:  # there is always one to train on
            return found
    named = {name: [f.format(split="train") for f in each.files] for name, each in LAYOUTS.items()}
    message = (
        f"'{root}' holds no {' or '.join(named[dataset])}, the annotations of "
        f"{LAYOUTS[dataset].title}"
    )
    for other, names in named.items():
        for name in names:
            if other != dataset and (root / name).is_file():
                title = LAYOUTS[other].title
                raise DataError(f"{message}, but {name}, those of {title}; give --dataset {other}")
    raise DataError(f"{message}; correct --root")


def _checked(layout: Layout, record: Record, split: str | None) -> Record:
    named = record.split if split is None else split
    if layout.image_key == "image" and named is None:
        named = "train"
    if named not in SPLITS:
        raise DataError(
            f"{record.where}: the split is {brief(named)}; it must be one of {', '.join(SPLITS)}"
        )
    if split is not None and record.split not in (None, split):
        raise DataError(
            f"{record.where}: the split is {brief(record.split)} in the file of {split}; move the "
            f"record to the file of its split"
        )
    person = checked_person(record.person, record.where)
    if person is None:
        raise DataError(
            f"{record.where}: no person is named; person search needs an id for each image"
        )
    return replace(record, split=named, person=person, image=picture_name(record))


def _explained(error: DataError, layout: Layout, path: Path) -> DataError:
    """Return the error, with the dataset whose image key the records have, if it is another's."""
    if "has no column" not in str(error):
        return error
    for other, candidate in LAYOUTS.items():
        if candidate.image_key != layout.image_key and repr(candidate.image_key) in str(error):
            return DataError(
                f"{path}: its records name the image {candidate.image_key!r} as {candidate.title} "
                f"does, not {layout.image_key!r} as {layout.title}; give --dataset {other}"
            )
    return error
