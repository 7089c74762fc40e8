"""Write drawn people to a folder, in the layout of CUHK-PEDES and as pairs."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskery.core.errors import ConfigError, DataError
from maskery.core.random import Stream
from maskery.people.attributes import identity_at, max_people
from maskery.people.config import SPLITS, PeopleConfig
from maskery.people.drawing import render
from maskery.people.draws import permutation
from maskery.people.grammar import captions_of

MANIFEST = "drawn_people.json"
ANNOTATIONS = "reid_raw.json"
IMAGES = "imgs"
# In the format of RDE's noise files (Qin et al., CVPR 2024): (C,) int64, for each training caption,
# in the order of the annotations, the one that was written for its picture's place.
SWAPPED = "swapped_captions.npy"
# Part of the manifest: folders drawn by another version of the drawing code are not mixed.
DRAWING_VERSION = 1
JPEG_QUALITY = 95

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DrawnSummary:
    """The files that `draw_people` has written."""

    folder: Path
    num_people: dict[str, int]  # By split, as the next two
    num_images: dict[str, int]
    num_captions: dict[str, int]
    num_drawn: int  # Pictures drawn by this call; the others were there already


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One picture's annotation; `file` is relative to `IMAGES`."""

    number: int
    image_index: int
    split: str
    file: str
    captions: tuple[str, ...]


def draw_people(
    folder: Path, config: PeopleConfig, progress: Progress | None = None
) -> DrawnSummary:
    """Draw a dataset of people into `folder`.

    Writes `imgs/` with the pictures, `reid_raw.json` as CUHK-PEDES has it (`id` from 1, `split`,
    `file_path` below `imgs/`, `captions`, `processed_tokens`), and `pairs_train.jsonl`,
    `pairs_val.jsonl` and `pairs_test.jsonl` with `image`, `caption` (a list) and `person`. People
    are disjoint between splits. A call that was interrupted is continued by the next. With
    `swap_captions`, `swapped_captions.npy` tells whose caption each training caption is.

    Args:
        folder: New, empty, or left by an earlier call with the same settings.
        config: What to draw.
        progress: Called with pictures done and pictures in all, after each.

    Raises:
        ConfigError: More people are wanted than look different, or too few to swap captions.
        DataError: The folder holds something else.
    """
    if config.num_people > max_people():
        raise ConfigError(
            f"num_people is {config.num_people}: at most {max_people()} look different; draw fewer"
        )
    index = _swapped(config) if config.swap_captions else None
    _claim(folder, config)
    pictures: list[_Picture] = []
    num_drawn = 0
    num_images = config.num_people * config.images_per_person
    for picture in _plan(config):
        num_drawn += _draw_file(folder / IMAGES / picture.file, picture, config)
        pictures.append(picture)
        if progress is not None:
            progress(len(pictures), num_images)
    if index is not None:
        pictures = _exchanged(pictures, index)
        buffer = io.BytesIO()
        np.save(buffer, index)
        _write(folder / SWAPPED, buffer.getvalue())
    _write_annotations(folder, pictures)
    return _summary(folder, config, pictures, num_drawn)


def _manifest(config: PeopleConfig) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    # As folders of before these settings have it, where they are not used.
    for field in fields(config):
        if field.name in ("style", "swap_captions") and settings[field.name] == field.default:
            del settings[field.name]
    return {"maskery": "drawn people", "drawing_version": DRAWING_VERSION, **settings}


def _claim(folder: Path, config: PeopleConfig) -> None:
    """Create the folder, or check by its manifest that it is one of ours."""
    path = folder / MANIFEST
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder to draw people into")
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise DataError(
                f"{folder} is not empty and holds no {MANIFEST}, so it was not drawn by Maskery; "
                f"name a new or empty folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(_manifest(config), indent=1).encode())
        return
    wanted = _manifest(config)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); name another folder") from error
    if found != wanted:
        found = found if isinstance(found, dict) else {}
        differing = [
            f"{key} {found.get(key)!r} there, {value!r} asked for"
            for key, value in wanted.items()
            if found.get(key) != value
        ]
        raise DataError(
            f"{folder} holds people drawn with other settings ({'; '.join(differing) or 'more'}); "
            f"name another folder or repeat its settings"
        )


def _plan(config: PeopleConfig) -> Iterator[_Picture]:
    """Yield every picture of the dataset, person by person."""
    sizes = config.split_sizes()
    splits = [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    for number, split in enumerate(splits):
        identity = identity_at(config.seed, number)
        for image_index in range(config.images_per_person):
            name = f"{number + 1:06d}_{image_index:02d}.{config.image_format}"
            yield _Picture(
                number=number,
                image_index=image_index,
                split=split,
                file=f"{number // 1000:03d}/{name}",
                captions=captions_of(identity, image_index),
            )


def _swapped(config: PeopleConfig) -> npt.NDArray[np.int64]:
    """Return for each training caption the one to have in its place: (C,) int64.

    Those to swap are drawn by the seed. Each takes the caption half of the drawn ones further on,
    which is another person's.
    """
    owners = np.repeat(np.arange(config.split_sizes()[0]), 2 * config.images_per_person)
    count = round(config.swap_captions * len(owners))
    order = permutation(config.seed, Stream.NEGATIVE, 0, len(owners))
    drawn = np.sort(order[:count])
    taken = np.roll(drawn, count // 2)
    if not count or (owners[drawn] == owners[taken]).any():
        raise ConfigError(
            f"swap_captions is {config.swap_captions:g}: this share of {len(owners)} training "
            f"captions cannot be exchanged between persons; draw more people"
        )
    index = np.arange(len(owners))
    index[drawn] = taken
    return index


def _exchanged(pictures: list[_Picture], index: npt.NDArray[np.int64]) -> list[_Picture]:
    """Give each training caption's place the caption that `index` names."""
    train = [picture for picture in pictures if picture.split == "train"]
    captions = [caption for picture in train for caption in picture.captions]
    given = iter([captions[i] for i in index.tolist()])
    swapped = [replace(p, captions=tuple(islice(given, len(p.captions)))) for p in train]
    return [*swapped, *(picture for picture in pictures if picture.split != "train")]


def _draw_file(path: Path, picture: _Picture, config: PeopleConfig) -> bool:
    """Draw a picture's file. Returns False if it exists already."""
    if path.exists():
        return False
    identity = identity_at(config.seed, picture.number)
    image = render(identity, picture.image_index, config.size, config.style)
    buffer = io.BytesIO()
    if config.image_format == "jpg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(buffer, "PNG", compress_level=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, buffer.getvalue())
    return True


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it exists whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content)
    partial.replace(path)


def _tokens(caption: str) -> list[str]:
    """Return lower-case words without punctuation, as CUHK-PEDES's `processed_tokens`."""
    return caption.lower().replace(",", " ").replace(".", " ").split()


def _write_annotations(folder: Path, pictures: list[_Picture]) -> None:
    records = [
        {
            "split": picture.split,
            "captions": list(picture.captions),
            "file_path": picture.file,
            "processed_tokens": [_tokens(caption) for caption in picture.captions],
            "id": picture.number + 1,
        }
        for picture in pictures
    ]
    text = ",\n".join(json.dumps(record) for record in records)
    _write(folder / ANNOTATIONS, f"[\n{text}\n]\n".encode())
    for split in SPLITS:
        lines = ""
        for picture in (picture for picture in pictures if picture.split == split):
            image, captions = f"{IMAGES}/{picture.file}", list(picture.captions)
            pair = {"image": image, "caption": captions, "person": picture.number + 1}
            lines += f"{json.dumps(pair)}\n"
        if lines:
            _write(folder / f"pairs_{split}.jsonl", lines.encode())


def _summary(
    folder: Path, config: PeopleConfig, pictures: list[_Picture], num_drawn: int
) -> DrawnSummary:
    num_images, num_captions = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for picture in pictures:
        num_images[picture.split] += 1
        num_captions[picture.split] += len(picture.captions)
    return DrawnSummary(
        folder=folder,
        num_people=dict(zip(SPLITS, config.split_sizes(), strict=True)),
        num_images=num_images,
        num_captions=num_captions,
        num_drawn=num_drawn,
    )
