"""Pairs in webdataset tar shards: `a.jpg` with `a.txt` or `a.json`, one after the other.

Shards are indexed once, and images are then read at random by their offset.
"""

import logging
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tarfile import GNUTYPE_LONGLINK, GNUTYPE_LONGNAME, SOLARIS_XHDTYPE, XGLTYPE, XHDTYPE
from typing import Any, BinaryIO, TypeAlias

from maskery.core.errors import DataError, counted, explained
from maskery.data.images.loading import SUFFIXES
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import Place, Reader, Record, find_column, other_columns, read_row
from maskery.data.pairs.tables import read_json

log = logging.getLogger(__name__)

# Larger `.txt` and `.json` members are refused unread.
MAX_TEXT_BYTES = 1 << 24
# Members that hold a name or settings of the next one: `tarfile` reads them at once.
HEADERS = (XHDTYPE, XGLTYPE, SOLARIS_XHDTYPE, GNUTYPE_LONGNAME, GNUTYPE_LONGLINK)
# What `tarfile` raises on damaged files.
UNSOUND = (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError)
# Text files that people put beside samples.
NOTES = frozenset({"README", "LICENSE", "LICENCE", "NOTICE", "DATASHEET"})
# The members of one stem, by suffix.
Members: TypeAlias = dict[str, tarfile.TarInfo]


def open_webdataset(paths: Sequence[Path], config: PairsConfig, root: Path) -> Reader:
    """Open one or more shards."""
    if config.images is not None:
        problem = f"images is {config.images}, but tar shards hold their images themselves"
        raise DataError(f"{problem}; leave it out")

    def records() -> Iterator[Record]:
        for number, path in enumerate(paths):
            with explained(f"{path} cannot be read", "restore it"), path.open("rb") as file:
                shard = Shard(number, path, path.relative_to(root).as_posix(), file, config)
                for stem, members in shard.samples():
                    yield shard.record(stem, members)

    def read(place: Place) -> bytes:
        shard, offset, size = place
        path = paths[shard]
        # Opened for each image, so that threads and forked workers share no position.
        with explained(f"{path} cannot be read", "restore it"), path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise DataError(f"{path} has been cut short since it was indexed; restore it")
        return content

    return Reader(records(), root, config.max_pixels, read)


class _Member(tarfile.TarInfo):
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Refuse a header that says it is large: so much memory would be asked for."""
        if self.type in HEADERS and self.size > MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


@dataclass(frozen=True)
class Shard:
    """One tar file, open to be indexed."""

    number: int  # among the shards
    path: Path
    name: str  # below the root
    file: BinaryIO
    config: PairsConfig

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield the regular files; an unsound shard is refused, not read in part."""
        end, problem = 0, f"{self.path} is not a sound, uncompressed tar file"
        reading = explained(problem, "restore or decompress it", *UNSOUND)
        with reading, tarfile.open(fileobj=self.file, mode="r:", tarinfo=_Member) as archive:
            for member in archive:
                blocks = -(-member.size // tarfile.BLOCKSIZE) if member.isreg() else 0
                end = member.offset_data + blocks * tarfile.BLOCKSIZE
                if not (member.isreg() or member.isdir()) or member.issparse():
                    problem = f"member {member.name!r} is a link, a device or sparse"
                    raise DataError(f"{self.path}: {problem}; pack the file itself")
                if member.isreg():
                    yield member
                # The archive would remember every member.
                archive.members = []  # type: ignore[attr-defined]
        # `tarfile` ends quietly at a damaged header, where shards were joined or cut short: only
        # zeros may follow the last member, and at least one block of them.
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(min(end, size))
        while chunk := self.file.read(1 << 20):
            if chunk.count(0) < len(chunk):
                problem = f"is damaged at byte {end}, or two shards were joined there"
                raise DataError(f"{self.path} {problem}; restore it")
        if size - end < tarfile.BLOCKSIZE:
            raise DataError(f"{self.path} is cut short: its end mark is missing; restore it")

    def samples(self) -> Iterator[tuple[str, Members]]:
        """Yield the members of each stem, which ends at the first dot of the file name."""
        found: dict[str, Members] = {}
        last, apart, passed_over = "", set[str](), 0
        for member in self.members():
            folder, _, base = posixpath.normpath(member.name).rpartition("/")
            base, _, suffix = base.partition(".")
            stem, suffix = f"{folder}/{base}" if folder else base, suffix.lower()
            # macOS packs attributes as `._NAME` and `__MACOSX/`, webdataset notes as `__meta__`.
            hidden = not base or any(part.startswith((".", "__")) for part in stem.split("/"))
            if hidden or suffix == "md" or base.upper() in NOTES:
                passed_over += 1
                continue
            if stem in found and stem != last:
                apart.add(stem)
            if suffix in found.setdefault(stem, {}):
                raise DataError(f"{self.path}: member {member.name!r} occurs twice; remove one")
            last, found[stem][suffix] = stem, member
        if apart:
            told = "%s: members of %s lie apart, first of %r; they are joined here, but other "
            told += "readers lose them: pack them side by side"
            log.warning(told, self.path, counted(len(apart), "sample"), min(apart))
        if passed_over:
            told = "%s: passed over: %s, hidden, notes or without a key"
            log.info(told, self.path, counted(passed_over, "member"))
        yield from found.items()

    def record(self, stem: str, members: Members) -> Record:
        """Return the record of one sample."""
        where, asked = f"{self.path}, sample {stem!r}", self.config.image_column
        images = [s for s in members if (s in SUFFIXES if asked is None else s == asked)]
        if len(images) != 1:
            found = ", ".join(f".{suffix}" for suffix in members)
            fix = "one is expected, or name the suffix as image_column"
            raise DataError(f"{where} has {len(images)} images among its members ({found}); {fix}")
        image = members[images[0]]
        caption, row = self._annotation(members, where)
        columns = other_columns(row, self.config, where) if row else {}
        name = f"{self.name}/{posixpath.normpath(image.name)}"
        place = (self.number, image.offset_data, image.size)
        return read_row(row, columns, where, image=name, caption=caption, place=place)

    def _annotation(self, members: Members, where: str) -> tuple[Any, dict[str, Any]]:
        """Return the caption (the `.txt` member, unless a key is named), and the `.json` member."""
        row: Any = {}
        try:
            if "json" in members:
                found = read_json(self._text(members["json"]), f"{where}, .json")
                if not isinstance(found, dict):
                    raise DataError(f"{where}: its .json member is not an object; write one")
                row = found
            if "txt" in members and self.config.caption_column is None:
                return self._text(members["txt"]).decode("utf-8-sig"), row
            if not row:
                problem = "has neither a .txt nor a .json member with its caption"
                raise DataError(f"{where} {problem}; add one")
            return row[find_column(row, self.config, "caption", where)], row
        except UnicodeDecodeError:
            return DataError(f"{where}: its .txt member is not valid UTF-8; mend it"), row
        except DataError as error:
            # It stands in the caption's place, for whoever checks that and may leave it out.
            return error, row

    def _text(self, member: tarfile.TarInfo) -> bytes:
        if member.size > MAX_TEXT_BYTES:
            problem = f"has {member.size} bytes, more than the {MAX_TEXT_BYTES} allowed for text"
            raise DataError(f"{self.path}: member {member.name!r} {problem}; shorten it")
        self.file.seek(member.offset_data)
        return self.file.read(member.size)
