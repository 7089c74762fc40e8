"""From what the user names to a list of files, or to a dataset of the Hugging Face hub."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskery.core.errors import DataError
from maskery.data.corpus.compression import COMPRESSIONS

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".log": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# A README or a log lies in many folders of data without being data; these count when they are
# named, or matched by a glob that ends in their suffix.
NAMED_ONLY = {".md", ".rst", ".log"}
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?::([^\s:/][^\s:]*))?")

LONGEST_HUB_NAME = 200


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A dataset of the hub: `name`, `org/name`, or either with `:configuration`."""

    name: str
    configuration: str | None

    def __str__(self) -> str:
        return f"{self.name}:{self.configuration}" if self.configuration else self.name


def split_suffix(path: Path) -> tuple[str, str]:
    """The suffix of the format and that of the compression ("" if there is none), lower case."""
    name, compression = path.name.lower(), ""
    if Path(name).suffix in COMPRESSIONS:
        compression = Path(name).suffix
        name = name.removesuffix(compression)
    return Path(name).suffix, compression


def supported_suffixes() -> str:
    """What messages list."""
    packed = ", ".join(COMPRESSIONS)
    return f"{', '.join(FORMATS)} (each may be packed: {packed})"


def hub_name(sources: Sequence[str]) -> HubName | None:
    """The hub dataset that a single source names, or None if it must be files.

    It is a dataset if nothing of that name exists, it has the form of a hub name and no suffix of
    a file that Maskery reads, and its first part is not a folder that exists.
    """
    if len(sources) != 1:
        return None
    source = sources[0]
    match = HUB_NAME.fullmatch(source)
    if match is None or len(source) > LONGEST_HUB_NAME:
        return None
    path = Path(source)
    suffix, compression = split_suffix(path)
    if path.exists() or suffix in FORMATS or compression:
        return None
    if "/" in source and Path(source.split("/")[0]).is_dir():
        return None
    return HubName(name=match[1], configuration=match[2])


def find_files(sources: Sequence[str]) -> list[Path]:
    """The files that the sources name, sorted, each once.

    Args:
        sources: Files; folders (searched with all folders in them for files of usable suffixes,
            hidden ones left out); globs (`**` for any depth).

    Raises:
        DataError: A source does not exist, has an unsupported suffix, or holds no usable file.
    """
    if not sources:
        raise DataError("no corpus is named; name files, folders, globs or a hub dataset")
    found: dict[Path, Path] = {}
    for path in sorted(path for source in sources for path in _files_of(source)):
        found.setdefault(path.resolve(), path)
    return list(found.values())


def _files_of(source: str) -> list[Path]:
    path = Path(source).expanduser()
    try:
        exists = path.exists()
    except OSError as error:  # such as a name that is too long: the text itself, most likely
        raise DataError(f"{source[:60]!r}... is no name of a file; name a file") from error
    if path.is_dir():
        return _folder_files(path)
    if path.is_file():
        return [_supported(path)]
    if exists:
        raise DataError(f"{path} is neither a file nor a folder; write its text to a file first")
    if glob.has_magic(source):
        return _glob_files(path)
    raise missing(path)


def missing(path: Path) -> DataError:
    """The error for a path that does not exist."""
    near = near_names(path)
    return DataError(
        f"{path} does not exist; {f'did you mean {near}?' if near else 'check the name'}"
    )


def near_names(path: Path) -> str:
    """Up to three names like that of a missing path, in the folder it should lie in."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):  # a NUL character is in no name
        return ""
    names = [name for name in names if name != path.name]
    close = difflib.get_close_matches(path.name, names, n=3)
    return " or ".join(str(path.parent / name) for name in close)


def _supported(path: Path) -> Path:
    suffix, _ = split_suffix(path)
    if suffix not in FORMATS:
        what = f"the suffix {suffix!r}, which is not read" if suffix else "no suffix"
        raise DataError(
            f"{path} has {what}; Maskery reads {supported_suffixes()}: "
            "rename it to end in .txt if it is plain text"
        )
    return path


def _folder_files(folder: Path) -> list[Path]:
    files = [path for path in _walk(folder) if _usable(path)]
    if not files:
        suffixes = ", ".join(suffix for suffix in FORMATS if suffix not in NAMED_ONLY)
        raise DataError(
            f"the folder {folder} holds no file that is read from a folder: {suffixes}, plain or "
            f"packed ({', '.join(COMPRESSIONS)}); name other files by themselves"
        )
    return files


def _usable(path: Path) -> bool:
    suffix, _ = split_suffix(path)
    return suffix in FORMATS and suffix not in NAMED_ONLY


def _walk(folder: Path) -> Iterator[Path]:
    """All files under a folder that are not hidden; linked folders are followed once."""
    seen = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(Path(root, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _glob_files(pattern: Path) -> list[Path]:
    # Path.glob takes no absolute pattern and matches hidden files.
    names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207
    matches = [Path(name) for name in names]
    files = [_supported(path) for path in matches if not path.is_dir()]
    for folder in (path for path in matches if path.is_dir()):
        files.extend(path for path in _walk(folder) if _usable(path))
    if not files:
        raise DataError(
            f"the pattern {str(pattern)!r} matches no file; check it, and quote it so that the "
            "shell passes it on"
        )
    return files
