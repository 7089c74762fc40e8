"""One record of a pairs file: what readers find, and how it is checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PureWindowsPath
from typing import Any

from maskery.core.errors import DataError
from maskery.data.images.skipped import Skipped
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.image_refs import ImageRef, Place

IMAGE_COLUMNS = ("image", "file_name", "filepath", "file_path", "image_path", "img_path")
CAPTION_COLUMNS = ("caption", "captions", "title", "text")
PERSON_COLUMNS = ("person", "id")
SPLIT_COLUMN = "split"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a reader found, unchecked.

    Attributes:
        image: Its name; relative to the image root where images are files.
        caption: A string or a list of strings, if all is well.
        person: An int, a string or None, if all is well.
        split: A string or None, if all is well.
        where: File and line (or record, row, member), for messages.
        place: Where the image's bytes lie; the reader's `ref` understands it.
        is_file: Whether the image is a file of its own, so that its name is a path.
    """

    image: Any
    caption: Any
    person: Any
    split: Any
    where: str
    place: Place = (0, 0, 0)
    is_file: bool = True


@dataclass(frozen=True)
class Reader:
    """An opened source.

    Attributes:
        records: Every record, in order; may raise `DataError` on the way.
        ref: From an image's name and place to the image.
    """

    records: Iterator[Record]
    ref: Callable[[str, Place], ImageRef]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that are read; None for those that a file lacks."""

    image: str
    caption: str
    person: str | None
    split: str | None

    def read(self, row: dict[str, Any], where: str, place: Place = (0, 0, 0)) -> Record:
        """The record in a row; a missing key reads as None."""
        return Record(
            image=row.get(self.image),
            caption=row.get(self.caption),
            person=row.get(self.person) if self.person else None,
            split=row.get(self.split) if self.split else None,
            where=where,
            place=place,
        )


def find_columns(available: Collection[str], config: PairsConfig, where: str) -> Columns:
    """Choose the columns, by the settings or by their usual names.

    Raises:
        DataError: A column is missing, or several could be meant.
    """
    return Columns(
        image=find_column(available, config.image_column, IMAGE_COLUMNS, "image", where),
        caption=find_column(available, config.caption_column, CAPTION_COLUMNS, "caption", where),
        person=next((name for name in PERSON_COLUMNS if name in available), None),
        split=SPLIT_COLUMN if SPLIT_COLUMN in available else None,
    )


def _shown(names: Collection[str]) -> str:
    text = ", ".join(repr(name) for name in list(names)[:12])
    return text + (", ..." if len(names) > 12 else "") if names else "none"


def find_column(
    available: Collection[str],
    wanted: str | None,
    usual: tuple[str, ...],
    kind: str,
    where: str,
) -> str:
    """Choose one column: the one wanted, or the only one that has a usual name.

    Raises:
        DataError: It is missing, or several could be meant.
    """
    if wanted is not None:
        if wanted not in available:
            raise DataError(
                f"{where} has no column {wanted!r}, only {_shown(available)}; "
                f"name one of them as {kind}_column"
            )
        return wanted
    found = [name for name in usual if name in available]
    if not found:
        raise DataError(
            f"{where} has no {kind} column ({', '.join(usual)}), only {_shown(available)}; "
            f"name one of them as {kind}_column"
        )
    if len(found) > 1:
        raise DataError(
            f"{where} has several columns that may hold the {kind}: {_shown(found)}; "
            f"name one of them as {kind}_column"
        )
    return found[0]


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8, which lone surrogates from JSON cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A name from inside a container, with what is not valid text written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def checked_image_name(value: object, where: str) -> str:
    """The name of an image file, which stays below the image root.

    Raises:
        DataError: It is no name, or leads elsewhere.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: the image is {brief(value)}, not the path of a file; give one")
    if "\0" in value or not is_text(value):
        raise DataError(f"{where}: the image path {brief(value)} holds characters no path may have")
    if "://" in value:
        raise DataError(
            f"{where}: the image {brief(value)} is an address; download the images and name files"
        )
    path, foreign = Path(value), PureWindowsPath(value)
    if path.is_absolute() or path.drive or foreign.is_absolute() or foreign.root:
        raise DataError(
            f"{where}: the image path {brief(value)} is absolute; write it relative to the image "
            f"folder and name that folder as images"
        )
    if ".." in foreign.parts:
        raise DataError(
            f"{where}: the image path {brief(value)} climbs out of the image folder with '..'; "
            f"write it relative to the image folder and name that folder as images"
        )
    return value


def brief(value: object) -> str:
    """A value as it is shown in a message: on one line, and short."""
    text = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked_captions(
    value: object, where: str, max_chars: int, skipped: Skipped
) -> tuple[str, ...]:
    """The captions of a record that can be used, with white space at their ends removed.

    Args:
        value: A string or a list of strings, if all is well.
        where: File and line, for messages.
        max_chars: The most characters of a caption.
        skipped: Told of each caption that is no string, empty or too long, and of a list without
            any; its policy decides what follows.

    Raises:
        DataError: One cannot be used, and `skipped` does not skip it.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        skipped.report(
            DataError(f"{where}: the list of captions is empty; give at least one caption")
        )
    captions: list[str] = []
    for caption in values:
        try:
            captions.append(_checked_caption(caption, where, max_chars))
        except DataError as error:
            skipped.report(error)
    return tuple(captions)


def _checked_caption(caption: object, where: str, max_chars: int) -> str:
    if not isinstance(caption, str):
        raise DataError(
            f"{where}: the caption is {brief(caption)}, not a string or a list of strings; "
            f"write the caption as text"
        )
    if len(caption) > max_chars:
        raise DataError(
            f"{where}: the caption has {len(caption)} characters, more than the {max_chars} "
            f"allowed; shorten it or raise max_caption_chars"
        )
    if not any(character.isalnum() for character in caption) or not is_text(caption):
        raise DataError(
            f"{where}: the caption {brief(caption)} holds no word that could be masked; "
            f"write one or remove it"
        )
    return caption.strip()


def checked_person(value: object, where: str) -> str | None:
    """The name of a person; numbers are named by their digits.

    Raises:
        DataError: It is neither a whole number nor a string.
    """
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: the person is {brief(value)}; give a whole number or a string")
    name = value if isinstance(value, str) else f"{value:d}"
    if not is_text(name):
        raise DataError(f"{where}: the person {brief(value)} is not valid text; give another name")
    return name


def pair_id(image: str, captions: tuple[str, ...]) -> int:
    """A 64-bit id that depends on the image's name and the captions alone."""
    content = json.dumps([image, *captions]).encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
