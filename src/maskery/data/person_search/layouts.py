"""Annotation files of the datasets of text-based person search: their places and keys.

CUHK-PEDES (Li et al., CVPR 2017), ICFG-PEDES (Ding et al., 2021), RSTPReid (Zhu et al., ACM MM
2021) and the output of RaSa's `data_process.py`: one JSON record for each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import Record, brief
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

    @property
    def by_split(self) -> bool:
        """True if each split has a file of its own."""
        return "{split}" in self.files[0]


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
    """Yield every record of a dataset with its split, unchecked otherwise."""
    layout = LAYOUTS[dataset]
    if dataset == "jsonl" and root.is_file():
        return _records(layout, root, split=None)
    if not root.is_dir():
        raise DataError(f"there is no folder '{root}'; give the folder of {layout.title} as --root")
    if not layout.by_split:
        return _records(layout, _only_file(dataset, root), split=None)
    return chain.from_iterable(
        _records(layout, path, split) for split, path in _split_files(dataset, root).items()
    )


def _only_file(dataset: DatasetName, root: Path) -> Path:
    layout = LAYOUTS[dataset]
    for name in layout.files:
        if (root / name).is_file():
            return root / name
    raise DataError(_missing(dataset, root, " or ".join(layout.files)))


def _split_files(dataset: DatasetName, root: Path) -> dict[str, Path]:
    """Return the file of each split that has one; there is always one to train on."""
    for pattern in LAYOUTS[dataset].files:
        paths = {split: root / pattern.format(split=split) for split in SPLITS}
        found = {split: path for split, path in paths.items() if path.is_file()}
        if "train" in found:
            return found
    wanted = " or ".join(pattern.format(split="train") for pattern in LAYOUTS[dataset].files)
    raise DataError(_missing(dataset, root, wanted))


def _missing(dataset: DatasetName, root: Path, wanted: str) -> str:
    """Return the message for missing annotations; it names another dataset that lies there."""
    message = f"'{root}' holds no {wanted}, the annotations of {LAYOUTS[dataset].title}"
    for other, layout in LAYOUTS.items():
        names = [name.format(split="train") for name in layout.files]
        found = next((name for name in names if (root / name).is_file()), None)
        if found is not None and other != dataset:
            return f"{message}, but {found}, those of {layout.title}; give --dataset {other}"
    return f"{message}; correct --root"


def _records(layout: Layout, path: Path, split: str | None) -> Iterator[Record]:
    """Yield the records of one file, with its split if the file is for one."""
    settings = AnnotationConfig(image_column=layout.image_key)
    try:
        for record in json_records(path, settings):
            yield _in_split(layout, record, split)
    except DataError as error:
        raise _explained(error, layout, path) from error


def _in_split(layout: Layout, record: Record, split: str | None) -> Record:
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
    if record.person in (None, ""):
        raise DataError(
            f"{record.where}: no person is named; person search needs an id for each image"
        )
    return replace(record, split=named)


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
