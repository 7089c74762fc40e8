"""The layouts of published person-search datasets, and of larger sets to start from; reading them.

CUHK-PEDES (Li et al., CVPR 2017), ICFG-PEDES (Ding et al., 2021), RSTPReid (Zhu et al., ACM MM
2021) and the output of RaSa's `data_process.py` are one JSON record for each image. SYNTH-PEDES
(Zuo et al., NeurIPS 2024), MALS (Yang et al., ACM MM 2023), LUPerson-MLLM (Tan et al., CVPR 2024)
and WebPerson (Zheng et al., EMNLP 2025) have a training split alone, and the last two are as
GA-DMS's released code reads them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from maskery.core.errors import DataError, counted, explained
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import Record, brief, checked_person
from maskery.data.pairs.tables import json_records, read_json
from maskery.data.person_search.config import SPLITS, DatasetName, PersonSearchDataConfig

TRAIN = ("train",)


def keyed_records(path: Path, _: PairsConfig, *, flat: bool) -> Iterator[Record]:
    """Read objects from a picture's name to its caption, or to `caption1`, `caption2` and so on.

    Where pictures lie `flat` in one folder, only the last part of the names counts.
    """
    with explained(f"{path} cannot be read", "correct the path"):
        found = read_json(path.read_bytes(), str(path))
    for named in found if isinstance(found, list) else [found]:
        if not isinstance(named, dict):
            expected = "an object from pictures to their captions"
            raise DataError(f"{path} holds {brief(named)} where {expected} must stand; correct it")
        for name, value in named.items():
            captions = value
            if isinstance(value, dict):
                captions = [value[key] for key in sorted(value) if key.startswith("caption")]
            image = PurePosixPath(name).name if flat else name
            where = f"{path}, {brief(name)}"  # nobody is named, so each shows somebody else
            yield Record(image=image, caption=captions, person=image, where=where)


@dataclass(frozen=True)
class Layout:
    """One published layout."""

    title: str
    # Names of its annotation file; the first that exists is read, and of a pattern all. With
    # `{split}` in them, each split has a file of its own.
    files: tuple[str, ...]
    image_key: str = "file_path"  # Key of the image in its records
    splits: tuple[str, ...] = SPLITS  # Those it has
    images: str = "imgs"  # Where its pictures are, below the root
    read: Callable[[Path, PairsConfig], Iterator[Record]] = json_records
    person_key: str | None = None  # Key of the person; by default `id`


# The releases of ICFG-PEDES differ in the name of the file; its folders `train/` and `test/` are
# not its split, which only the records tell.
ICFG = ("ICFG-PEDES.json", "ICFG_PEDES.json", "ICFG-PDES.json")
RASA = ("processed_data/{split}.json", "{split}.json")
LINES = ("{split}.jsonl", "pairs_{split}.jsonl")
SYNTH = ("synthpedes-dataset.json", "synthpedes_dataset.json")
MLLM = ("captions/*.json", "caption/*.json")
FLAT, NESTED = (partial(keyed_records, flat=flat) for flat in (True, False))
LAYOUTS: dict[DatasetName, Layout] = {
    "cuhk-pedes": Layout("CUHK-PEDES", ("reid_raw.json",)),
    "icfg-pedes": Layout("ICFG-PEDES", ICFG, splits=("train", "test")),
    "rstpreid": Layout("RSTPReid", ("data_captions.json",), "img_path"),
    "rasa": Layout("RaSa's data_process.py", RASA),
    "drawn-people": Layout("drawn people", ("reid_raw.json",)),
    "jsonl": Layout("lines with image, caption and person", LINES, "image", images=""),
    "synth-pedes": Layout("SYNTH-PEDES", SYNTH, splits=TRAIN, images=""),
    "mals": Layout("MALS", ("gene_attrs/*.json",), "image", TRAIN, "", person_key="image_id"),
    "luperson-mllm": Layout("LUPerson-MLLM", MLLM, "file_path", TRAIN, "LUPerson-MLLM", FLAT),
    "webperson": Layout("WebPerson", ("*.json",), "file_path", TRAIN, "images", NESTED),
}


class AnnotationConfig(PairsConfig):
    """Settings of annotations, in which an `id` is a person."""

    id_is_person = True


def read_annotations(config: PersonSearchDataConfig) -> Iterator[Record]:
    """Yield each record of a dataset, checked: split, image and person named, captions a list."""
    layout, root = LAYOUTS[config.dataset], config.root
    if config.dataset == "jsonl" and root.is_file():
        files: list[tuple[str | None, Path]] = [(None, root)]
    elif root.is_dir():
        files = _files(config.dataset, root)
    else:
        raise DataError(f"there is no folder '{root}'; give the folder of {layout.title} as --root")
    for split, path in files:
        settings = AnnotationConfig(image_column=layout.image_key, person_column=layout.person_key)
        try:
            for record in layout.read(path, settings):
                yield _checked(layout, replace(record, images=config.images), split)
        except DataError as error:
            for other, its in LAYOUTS.items() if "has no column" in str(error) else ():
                if its.image_key != layout.image_key and repr(its.image_key) in str(error):
                    found = f"its records name the image {its.image_key!r} as {its.title} does"
                    asked = f"not {layout.image_key!r} as {layout.title}; give --dataset {other}"
                    raise DataError(f"{path}: {found}, {asked}") from error
            raise


def _files(dataset: DatasetName, root: Path) -> list[tuple[str | None, Path]]:
    """Return each annotation file with its split, None where the records name it."""
    for pattern in LAYOUTS[dataset].files:
        splits = SPLITS if "{split}" in pattern else (None,)
        named = [(split, sorted(root.glob(pattern.format(split=split)))) for split in splits]
        found = [(split, path) for split, paths in named for path in paths if path.is_file()]
        if found and found[0][0] == splits[0]:  # there is always one to train on
            return found
    usual = {name: [f.format(split="train") for f in each.files] for name, each in LAYOUTS.items()}
    title = LAYOUTS[dataset].title
    message = f"'{root}' holds no {' or '.join(usual[dataset])}, the annotations of {title}"
    for other, names in usual.items():
        for name in names:
            if other != dataset and (root / name).is_file():
                title = LAYOUTS[other].title
                raise DataError(f"{message}, but {name}, those of {title}; give --dataset {other}")
    raise DataError(f"{message}; correct --root")


def _checked(layout: Layout, record: Record, split: str | None) -> Record:
    named = record.split if split is None else split
    if named is None and (layout.image_key == "image" or layout.splits == TRAIN):
        named = "train"
    if named not in SPLITS:
        rule = f"it must be one of {', '.join(SPLITS)}"
        raise DataError(f"{record.where}: the split is {brief(named)}; {rule}")
    if split is not None and record.split not in (None, split):
        problem = f"the split is {brief(record.split)} in the file of {split}"
        raise DataError(f"{record.where}: {problem}; move the record to the file of its split")
    person = checked_person(record.person, record.where)
    if person is None:
        rule = "person search needs an id for each image"
        raise DataError(f"{record.where}: no person is named; {rule}")
    captions = record.caption if isinstance(record.caption, list) else [record.caption]
    return replace(record, split=named, person=person, image=record.name, caption=captions)


def exchanged(records: Sequence[Record], path: Path) -> tuple[list[Record], str]:
    """Exchange training captions as a noise file says; returns a note about them, too.

    RDE's `noiseindex` (Qin et al., CVPR 2024): an index for each caption of the training split, in
    the order of the annotations, into the same captions.
    """
    captions = [caption for r in records if r.split == "train" for caption in r.caption]
    try:
        index, count = np.asarray(np.load(path)), len(captions)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the noise file '{path}' is no .npy that can be read: {error}") from error
    is_whole = index.shape == (count,) and index.dtype.kind in "iu"
    if not is_whole or (count and not 0 <= index.min() <= index.max() < count):
        rule = f"a number from 0 to {count - 1} for each of the {count:,} training captions"
        fix = "name the file that was made for this dataset"
        shape = f"has the shape {index.shape} of {index.dtype}"
        raise DataError(f"the noise file '{path}' {shape}: it must hold {rule}; {fix}")
    given = iter([captions[i] for i in index.tolist()])
    moved = int((index != np.arange(len(index))).sum())
    return [
        replace(r, caption=list(islice(given, len(r.caption)))) if r.split == "train" else r
        for r in records
    ], f"exchanged by '{path}': {moved:,} of {counted(len(captions), 'training caption')}"
