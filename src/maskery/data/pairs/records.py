"""One record of a source of pairs, the checks it must pass, and where its picture lies."""

import io
import json
import logging
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeAlias

from maskery.core.errors import DataError, counted
from maskery.data.corpus.examples import example_id
from maskery.data.images.config import DEFAULT_MAX_PIXELS
from maskery.data.images.loading import ImageRef, Skipped
from maskery.data.pairs.config import PairsConfig

log = logging.getLogger(__name__)

# The usual names of columns, in `imagefolder`, open_clip and person search.
USUAL = {
    "image": ("image", "file_name", "filepath", "file_path", "image_path", "img_path"),
    "caption": ("caption", "captions", "title", "text"),
}
PERSON_COLUMN, GROUP_COLUMN, SPLIT_COLUMN = "person", "group", "split"
# Keys of a record of CUHK-PEDES and ICFG-PEDES, and of RSTPReid: there `id` is a person.
PUBLISHED = ({"id", "captions", "file_path"}, {"id", "captions", "img_path"})
# Names of the columns that are read, by the fields of `Record`; missing ones are left out.
Columns: TypeAlias = dict[str, str]
# Three numbers that say where bytes lie; their meaning is up to the reader that made them.
Place: TypeAlias = tuple[int, int, int]
# The second number of images that are files of their own, where others have a row or an offset.
IN_FILE = -1
FILE: Place = (0, IN_FILE, 0)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record as a reader found it, unchecked."""

    image: Any = None  # its name; where images are files, their path below `folder`
    caption: Any = None  # a string or a list of strings, if all is well
    person: Any = None  # an int, a string or None, if all is well
    group: Any = None  # likewise; records of one group stay on one side of a split
    split: Any = None  # a string or None, if all is well
    where: str  # file and line (or record, row, member), for messages
    place: Place = FILE  # of the image's bytes; the reader's `ref` understands it
    folder: str = ""  # folder of the table that names the image, below the root of all images
    images: Path | None = None  # the root, where absolute paths below it are allowed

    @property
    def name(self) -> str:
        """The name that tells its picture from all others; a DataError if it can have none."""
        if self.place[1] != IN_FILE:
            return printable(str(self.image))
        # A file has one name however its path is written: `a/./b.jpg` is `a/b.jpg`.
        below = _below(self.image, self.images)
        folder, name = (self.folder, self.image) if below is None else ("", below)
        name = checked_image_name(name, self.where).replace("\\", "/")
        return posixpath.normpath(posixpath.join(folder, name))


@dataclass(frozen=True)
class Reader:
    """An opened source."""

    records: Iterable[Record]  # every record, in order; may raise `DataError` on the way
    root: Path  # of the images that are files
    max_pixels: int = DEFAULT_MAX_PIXELS
    read: Callable[[Place], bytes] | None = None  # the bytes of the others, by their place
    splits: Sequence[str] = ()  # in the names of its files, by the first number of the places

    def ref(self, name: str, place: Place) -> ImageRef:
        """Return the image of a name and a place."""
        if place[1] == IN_FILE or (read := self.read) is None:
            return ImageRef.file(name, self.root, self.max_pixels)
        return ImageRef(name, lambda: io.BytesIO(read(place)), self.max_pixels)


def read_row(row: Mapping[str, Any], columns: Columns, where: str, **found: Any) -> Record:
    """Return the record in a row; a missing key reads as None, and `found` goes first."""
    read: dict[str, Any] = {field: row.get(name) for field, name in columns.items()}
    return Record(where=where, **(read | found))


def find_columns(available: Collection[str], config: PairsConfig, where: str) -> Columns:
    """Choose the columns, by the settings or by their usual names."""
    columns = other_columns(available, config, where)
    if "person" not in columns and "id" in available:
        log.info("%s: 'id' is not read as a person; if it is one, add --person-column id", where)
    return columns | {kind: find_column(available, config, kind, where) for kind in USUAL}


def other_columns(available: Collection[str], config: PairsConfig, where: str) -> Columns:
    """Choose those besides image and caption, which data may lack."""
    require_named(available, config, where, "person", "group")
    person, group = person_column(available, config), config.group_column or GROUP_COLUMN
    chosen = {"person": person, "split": SPLIT_COLUMN, "group": group}
    return {kind: name for kind, name in chosen.items() if name and name in available}


def person_column(available: Collection[str], config: PairsConfig) -> str | None:
    """Return the column that names the person, or None."""
    wanted = config.person_column or PERSON_COLUMN
    if wanted in available:
        return wanted
    # An `id` is a person only in a published layout: in COCO and many others it numbers captions.
    # Taken for a person, it would put captions of one picture on both sides of a split.
    published = config.id_is_person or any(keys <= set(available) for keys in PUBLISHED)
    return "id" if published and config.person_column is None and "id" in available else None


def _shown(names: Collection[str]) -> str:
    # Twelve: a table of many columns is told by its first, and the message stays a line.
    text = ", ".join(repr(name) for name in list(names)[:12])
    return text + (", ..." if len(names) > 12 else "") if names else "none"


def require_named(available: Collection[str], config: PairsConfig, where: str, *kinds: str) -> None:
    """Refuse data that lacks a column which the settings name."""
    for kind in kinds:
        wanted = getattr(config, f"{kind}_column")
        if wanted is not None and wanted not in available:
            problem = f"no column {wanted!r}, only {_shown(available)}"
            raise DataError(f"{where} has {problem}; name one of them as {kind}_column")


def find_column(available: Collection[str], config: PairsConfig, kind: str, where: str) -> str:
    """Choose one column: the one that the settings name, or the only one with a usual name."""
    require_named(available, config, where, kind)
    named: str | None = getattr(config, f"{kind}_column")
    found = [name for name in USUAL[kind] if name in available] if named is None else [named]
    if len(found) == 1:
        return found[0]
    problem = f"no {kind} column ({', '.join(USUAL[kind])}), only {_shown(available)}"
    if found:
        problem = f"several columns that may hold the {kind}: {_shown(found)}"
    raise DataError(f"{where} has {problem}; name one of them as {kind}_column")


def checked_rows(
    records: Iterable[Record], config: PairsConfig, skipped: Skipped
) -> Iterator[dict[str, Any]]:
    """Check records and yield those with a usable caption, as rows of `Pairs`."""
    empty = 0
    for record in records:
        name, where = record.name, record.where
        person = checked_person(record.person, where)
        group = checked_person(record.group, where, "group")
        empty += group is None
        if config.group_column is not None and person is not None:
            fix = f"leave out --group-column {config.group_column}, or name another --person-column"
            raise DataError(f"{where} names a person, and persons are never split; {fix}")
        captions = checked_captions(record.caption, where, config.max_caption_chars, skipped)
        if captions:
            row = {"name": name, "captions": captions, "person": person, "group": group}
            number = pair_id(name, captions)
            yield row | {"split": record.split, "id": number, "place": record.place}
    if config.group_column is not None and empty:
        problem = f"is empty for {counted(empty, 'pair')}, which could stand on either side"
        fix = "fill it, or leave those pairs out"
        raise DataError(f"--group-column {config.group_column} {problem}; {fix}")


def printable(name: str) -> str:
    """Return a name from inside a container, escaping what is not valid text."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_text(value: str) -> bool:
    """Return True if a string can be written as UTF-8; lone surrogates from JSON cannot."""
    return printable(value) == value


def brief(value: object) -> str:
    """Return a value as it is shown in a message: on one line, and short."""
    text = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked_image_name(value: object, where: str) -> str:
    """Return the name of an image file; refuse one that leads out of the image root."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: the image is {brief(value)}, not the path of a file; give one")
    if "\0" in value or not is_text(value):
        raise DataError(f"{where}: the image path {brief(value)} holds characters no path may have")
    if "://" in value:
        fix = "download the images and name files"
        raise DataError(f"{where}: the image {brief(value)} is an address; {fix}")
    # Data made on Windows has its separators and drives, which Path does not see elsewhere.
    foreign = PureWindowsPath(value)
    if foreign.root:  # any absolute path has one
        problem = "is absolute"
    elif ".." in foreign.parts:
        problem = "climbs out of the image folder with '..'"
    else:
        return value
    fix = "write it relative to the image folder, or name a folder that it lies under as --images"
    raise DataError(f"{where}: the image path {brief(value)} {problem}; {fix}")


def _below(path: object, images: Path | None) -> str | None:
    """Return an absolute path relative to the image folder; None where it does not lie there."""
    if images is None or not isinstance(path, str) or "\0" in path:
        return None
    for root in (images.absolute(), images.resolve()):
        if Path(path).is_relative_to(root):
            return str(Path(path).relative_to(root))
    foreign = PureWindowsPath(path)
    if foreign.is_absolute():
        # The folder is known by its name: C:\data\imgs\a.png lies under /mnt/imgs, as a.png.
        for place in [n for n, part in enumerate(foreign.parts) if part == images.absolute().name]:
            name = "/".join(foreign.parts[place + 1 :])
            if (images / name).is_file():
                return name
    return None


def checked_captions(value: object, where: str, longest: int, skipped: Skipped) -> tuple[str, ...]:
    """Return the usable captions of a record, stripped; `skipped` is told of each other one."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        values = [DataError(f"{where}: the list of captions is empty; give at least one caption")]
    captions: list[str] = []
    for caption in values:
        try:
            captions.append(_checked_caption(caption, where, longest))
        except DataError as error:
            skipped.report(error)
    return tuple(captions)


def _checked_caption(caption: object, where: str, longest: int) -> str:
    if isinstance(caption, DataError):  # there is none, or the reader found none
        raise caption
    if not isinstance(caption, str):
        problem = f"is {brief(caption)}, not a string or a list of strings"
        fix = "write the caption as text"
    elif len(caption) > longest:
        problem = f"has {len(caption)} characters, more than the {longest} allowed"
        fix = "shorten it or raise max_caption_chars"
    elif not any(character.isalnum() for character in caption) or not is_text(caption):
        problem = f"{brief(caption)} holds no word that could be masked"
        fix = "write one or remove it"
    else:
        return caption.strip()
    raise DataError(f"{where}: the caption {problem}; {fix}")


def checked_person(value: object, where: str, what: str = "person") -> str | None:
    """Return the name of a person (or group); numbers are named by their digits."""
    if value is None or value == "":
        return None
    # Tables with missing values turn whole numbers into floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: the {what} is {brief(value)}; give a whole number or a string")
    name = value if isinstance(value, str) else f"{value:d}"
    if not is_text(name):
        raise DataError(f"{where}: the {what} {brief(value)} is not valid text; give another name")
    return name


def pair_id(image: str, captions: tuple[str, ...]) -> int:
    """Return a 64-bit id that depends on the image's name and the captions alone."""
    return example_id(json.dumps([image, *captions]))
