"""One record for each picture, whether annotations list its captions together or line by line.

A gallery has every picture once: were each record an entry of its own, the same picture would stand
at several ranks, and figures would be measured on another gallery than the pictures'.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from maskery.core.errors import DataError
from maskery.data.pairs.records import Record, brief, checked_person


def picture_name(record: Record) -> str:
    """The name of a record's picture, however its path is written: `a/./b.jpg` is `a/b.jpg`.

    Args:
        record: One whose image was checked already.
    """
    name: str = posixpath.normpath(record.image)
    return name


@dataclass(frozen=True)
class _Picture:
    """What is known of one picture so far.

    Attributes:
        first: Its first record.
        person: Who it shows.
        listed: Its captions as the annotations have them.
        captions: Those that are used, prepared and checked, in order.
    """

    first: Record
    person: str | None
    listed: set[str]
    captions: list[str]

    def fresh(self, captions: list[Any]) -> list[Any]:
        """Those that no record listed yet; what is no string is left for the check to name."""
        new = [text for text in captions if not (isinstance(text, str) and text in self.listed)]
        self.listed.update(text for text in new if isinstance(text, str))
        return new


def merge_pictures(
    records: Iterable[Record], prepare: Callable[[Record], tuple[str, ...]]
) -> tuple[list[Record], str]:
    """Join the captions of records that name the same picture.

    The captions of a picture stay in the order of the records. A caption that an earlier record of
    the picture has word for word is left out; what a single record lists twice is left alone, so
    that a dataset with one record for each picture stays as it was published.

    Args:
        records: Of one split, in order, their images checked.
        prepare: From a record to its captions as they are used, perhaps none; may raise.

    Returns:
        One record for each picture that has a caption, and a note about what was joined, or "".

    Raises:
        DataError: A picture is said to show two persons.
    """
    pictures: dict[str, _Picture] = {}
    joined = repeated = 0
    for record in records:
        captions = record.caption if isinstance(record.caption, list) else [record.caption]
        name, person = picture_name(record), checked_person(record.person, record.where)
        known = pictures.setdefault(name, _Picture(record, person, set(), []))
        fresh = known.fresh(captions)
        if known.first is not record:
            _need_same_person(known, record, person)
            joined, repeated = joined + 1, repeated + len(captions) - len(fresh)
            if captions and not fresh:
                continue
        known.captions.extend(prepare(replace(record, caption=fresh)))
    merged = [replace(p.first, caption=p.captions) for p in pictures.values() if p.captions]
    return merged, _note(joined, repeated)


def _need_same_person(known: _Picture, record: Record, person: str | None) -> None:
    if person != known.person:
        raise DataError(
            f"image {brief(record.image)} is said to show person {known.person} "
            f"({known.first.where}) and person {person} ({record.where}); correct the one that is "
            f"wrong"
        )


def _note(joined: int, repeated: int) -> str:
    if not joined:
        return ""
    left_out = f"; captions left out that it had already: {repeated:,}" if repeated else ""
    return (
        f"records that name the picture of an earlier one: {joined:,}; each picture counts once, "
        f"with the captions of all its records{left_out}"
    )
