"""From names to a list of files, here or at an address, or to a dataset of the hub."""

import difflib
import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast
from urllib.parse import unquote, urlsplit

from maskery.core.errors import DataError, MaskeryError, MissingExtraError, reason_of
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.formats import NAMED_ONLY, READERS, SUFFIXES, split_suffix
from maskery.data.corpus.streams import COMPRESSIONS

log = logging.getLogger(__name__)

HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?::([^\s:/][^\s:]*))?")
LONGEST_HUB_NAME = 200  # longer ones are texts, passed where a name was asked for
TOLD_EVERY = 100_000  # objects of a long listing, between two lines that say so
# Written by `maskery tokenize`: the list of all shards at the end, the plan before any other file.
MANIFEST, PLAN = "shards.json", "plan.json"
# What file systems of fsspec tell of a file's content: a hash, or a version of it.
STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "sha256", "blob_id", "generation")
PANDOC = (".docx", ".odt", ".epub", ".html", ".htm", ".xhtml", ".rtf", ".tex")
# From a document of each suffix, which `{}` stands for, to text or a table.
CONVERTERS = (
    {".pdf": "pdftotext FILE{} FILE.txt"}
    | dict.fromkeys(PANDOC, "pandoc -t plain --wrap=none FILE{} -o FILE.txt")
    | dict.fromkeys((".doc", ".pages"), "soffice --headless --convert-to txt:Text FILE{}")
    | dict.fromkeys((".xlsx", ".xls", ".ods"), "soffice --headless --convert-to csv FILE{}")
)


class HubName(NamedTuple):
    """A dataset of the hub: `name`, `org/name`, or either with `:configuration`."""

    name: str
    configuration: str | None

    def __str__(self) -> str:
        return f"{self.name}:{self.configuration}" if self.configuration else self.name


@dataclass(frozen=True, eq=False, slots=True)
class RemoteFile:
    """A file at an address, with as much of the interface of `Path` as reading asks for."""

    filesystem: Any  # of fsspec; it can be pickled
    path: str  # the file's name in it
    size: int | None  # in bytes; None if the file system does not tell
    stamp: str | None  # changes with the content; None if the file system does not tell

    def __str__(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """The last part of the name, without the query of a web address."""
        path = unquote(urlsplit(self.path).path) if "http" in self.path[:4] else self.path
        return path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        return PurePosixPath(self.name).suffix

    def stat(self) -> SimpleNamespace:
        """Return the size as `st_size`."""
        return SimpleNamespace(st_size=self.size)

    def open(self, mode: str = "rb", buffering: int = -1) -> BinaryIO:
        """Open the file for reading its bytes; `buffering` is the file system's own affair."""
        del buffering
        return cast(BinaryIO, self.filesystem.open(self.path, mode))


def is_address(source: str) -> bool:
    """Return True for an address such as `s3://bucket/file.txt`."""
    return "://" in source


def open_address(source: str) -> tuple[Any, str]:
    """Return the file system of an address, and the name in it."""
    import fsspec

    with asked(source):
        filesystem, path = fsspec.core.url_to_fs(source)
    return filesystem, str(path)


@contextmanager
def asked(source: object, done: str = "read") -> Iterator[None]:
    """Turn what a file system raises in the block, each its own errors, into one line."""
    try:
        yield
    except MaskeryError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"'{source}' does not exist; check the address") from error
    except Exception as error:
        raise unreadable(source, error, done) from error


def one_file(source: str | Path, holds: str) -> Path:
    """Return a file, here or at an address (then a `RemoteFile`), that `holds` something."""
    path = Path(source)
    if is_address(str(source)):
        filesystem, root = open_address(str(source))
        with asked(source):
            info = filesystem.info(root)
        if "file" in protocols(filesystem):
            path = Path(root)
        elif info["type"] == "file":
            return cast(Path, _remote(filesystem, root, info))
    if path.is_file():
        return path
    is_folder = path.is_dir() or is_address(str(source))
    what = "is a folder" if is_folder else "is no file" if path.exists() else "does not exist"
    fix = "" if is_folder or path.exists() else instead_of(path)
    raise DataError(f"'{source}' {what}; {fix or f'name a file with {holds}'}")


def unreadable(source: object, error: Exception, done: str = "read") -> MaskeryError:
    """Return the error for an address that cannot be read or written, in one line."""
    why = reason_of(error)
    if isinstance(error, ImportError):
        fix = "install it with pip"
        return MissingExtraError(f"'{source}' needs a package that is not installed ({why}); {fix}")
    refused = isinstance(error, PermissionError) or "credentials" in why.lower()
    check = "credentials, and what they allow" if refused else "address and the network"
    if not is_address(str(source)):
        check = "file and its permissions"
    return DataError(f"'{source}' cannot be {done} ({why}); check the {check}")


def hub_name(sources: Sequence[str]) -> HubName | None:
    """Return the hub dataset that a single source names, or None if it must be files.

    It is a dataset if nothing of that name exists, it has the form of a hub name and no suffix of
    a file that Maskery reads, and its first part is not a folder that exists.
    """
    match = HUB_NAME.fullmatch(sources[0]) if len(sources) == 1 else None
    if match is None or len(match[0]) > LONGEST_HUB_NAME:
        return None
    path = Path(match[0])
    suffix, compression = split_suffix(path)
    slip = len(path.parts) > 1 and Path(path.parts[0]).is_dir()  # in the name of a file
    if slip or path.exists() or suffix in SUFFIXES or suffix in CONVERTERS or compression:
        return None
    return HubName(name=match[1], configuration=match[2])


def find_files(sources: Sequence[str], config: CorpusConfig | None = None) -> list[Path]:
    """Return the files that the sources name, sorted, each once; those at addresses come last.

    Sources are files; folders (searched with all folders in them for files of usable suffixes,
    hidden ones left out); globs (`**` for any depth); addresses of any of these. The reader of
    `config` decides which suffixes are usable.
    """
    if not sources:
        raise DataError("no corpus is named; name files, folders, globs or a hub dataset")
    finder = Finder(config or CorpusConfig())
    found = [path for source in sources for path in finder.files_of(source)]
    here = sorted((path for path in found if isinstance(path, Path)), reverse=True)
    # A file that two sources name, or a link to it, is read once.
    local = {path.resolve(): path for path in here}
    remote = {str(file): file for file in found if not isinstance(file, Path)}
    if passed := finder.passed_over:
        told = "passed over %s that are no files (pipes, devices, sockets or links to nothing), "
        log.warning(f"{told}such as %s", len(passed), passed[0])
    if documents := finder.documents:
        told = "passed over %s documents that are no plain text, such as %s: %s"
        log.warning(told, len(documents), documents[0], conversion(documents[0]))
    return [*sorted(local.values()), *(remote[address] for address in sorted(remote))]


def near_names(path: Path) -> str:
    """Return up to three names like that of a missing path, in the folder it should lie in."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.name != path.name)
    except (OSError, ValueError):  # a NUL character is in no name
        return ""
    close = difflib.get_close_matches(path.name, names, n=3)
    return " or ".join(str(path.parent / name) for name in close)


def instead_of(path: Path) -> str:
    """Return what to try in place of a missing path or pattern; empty if nothing is like it."""
    slashed = Path(path.as_posix().replace("\\", "/"))  # on Windows, this is the path itself
    near = near_names(slashed)
    if slashed != path and glob.glob(str(slashed), recursive=True):  # noqa: PTH207
        near = str(slashed)
    meant = f"did you mean {near}?" if near else ""
    if slashed == path:
        return meant
    return f"it has backslashes, and slashes separate folders here; {meant or 'write those'}"


def conversion(path: Any) -> str:
    """Return how a document becomes text, or "" for a file of another kind."""
    suffix, _ = split_suffix(path)
    by = CONVERTERS.get(suffix, "").format(suffix)
    return by and f"turn it into text first, for example by: {by}"


class Finder:
    """Finds the files of sources."""

    def __init__(self, config: CorpusConfig) -> None:
        self.any_suffix = config.reader is not None
        self.folder_suffixes = frozenset(SUFFIXES) - NAMED_ONLY
        if self.any_suffix:
            # A reader may say which files of a folder are its own; else all are.
            self.folder_suffixes = frozenset(getattr(READERS.find(config.reader), "suffixes", ()))
        # Of what lies in folders: what is no file, and what another program can turn into text.
        self.passed_over: list[Path] = []
        self.documents: list[Any] = []

    def files_of(self, source: str) -> list[Any]:
        """Return the files of one source: paths, or `RemoteFile`s."""
        if is_address(source):
            return self._remote_files(source)
        path = Path(source).expanduser()
        try:
            exists = path.exists()
        except OSError as error:  # such as a name that is too long: the text itself, most likely
            raise DataError(f"{source[:60]!r}... is no name of a file; name a file") from error
        if path.is_dir():
            return self._folder_files(path) or self._fail_empty(f"the folder {path}")
        if path.is_file():
            return [self._supported(path)]
        if exists:
            fix = "write its text to a file first"
            raise DataError(f"{path} is neither a file nor a folder; {fix}")
        if glob.has_magic(source):
            return self._glob_files(path)
        raise DataError(f"{path} does not exist; {instead_of(path) or 'check the name'}")

    def _supported(self, path: Any) -> Any:
        suffix, _ = split_suffix(path)
        if self.any_suffix or suffix in SUFFIXES:
            return path
        what = f"the suffix {suffix!r}, which is not read" if suffix else "no suffix"
        known = f"{', '.join(SUFFIXES)} (each may be packed: {', '.join(COMPRESSIONS)})"
        fix = conversion(path) or "rename it to end in .txt if it is plain text, or name a --reader"
        raise DataError(f"{path} has {what}; Maskery reads {known}: {fix}")

    def _usable(self, path: Any) -> bool:
        suffix, _ = split_suffix(path)
        if suffix in self.folder_suffixes or (self.any_suffix and not self.folder_suffixes):
            return True
        if suffix in CONVERTERS:
            self.documents.append(path)
        return False

    def _fail_empty(self, folder: str) -> NoReturn:
        ours = [suffix for suffix in SUFFIXES if suffix in self.folder_suffixes]
        suffixes = ", ".join(ours or sorted(self.folder_suffixes)) or "any"
        kinds = f"{suffixes}, plain or packed ({', '.join(COMPRESSIONS)})"
        fix = conversion(next(iter(self.documents), Path())) or "name other files by themselves"
        raise DataError(f"{folder} holds no file that is read from a folder: {kinds}; {fix}")

    def _folder_files(self, folder: Path) -> list[Path]:
        """Return the usable files under a folder, but hidden ones; linked folders count once."""
        files, seen = list[Path](), {os.path.realpath(folder)}
        for root, folders, names in os.walk(folder, followlinks=True):
            kept = []
            for name in sorted(folders):
                real = os.path.realpath(Path(root, name))
                if not name.startswith(".") and real not in seen:
                    seen.add(real)
                    kept.append(name)
            folders[:] = kept
            for path in (Path(root, name) for name in names if not name.startswith(".")):
                if self._usable(path):
                    # False also where nobody may look, on which `Path.is_file` fails.
                    is_file = os.path.isfile(path)  # noqa: PTH113
                    (files if is_file else self.passed_over).append(path)
        return files

    def _glob_files(self, pattern: Path) -> list[Path]:
        files = []
        # Path.glob takes no absolute pattern and matches hidden files.
        for path in map(Path, glob.glob(str(pattern), recursive=True)):  # noqa: PTH207
            if path.is_dir():
                files += self._folder_files(path)
            elif os.path.isfile(path):  # noqa: PTH113
                files.append(self._supported(path))
            else:
                self.passed_over.append(path)
        if not files:
            fix = instead_of(pattern) or "check it, and quote it so that the shell passes it on"
            raise DataError(f"the pattern '{pattern}' matches no file; {fix}")
        return files

    def _remote_files(self, source: str) -> list[Any]:
        filesystem, root = open_address(source)
        if "file" in protocols(filesystem):
            return self.files_of(root)
        with asked(source):
            return self._listed(filesystem, root) or self._fail_empty(f"'{source}'")

    def _listed(self, filesystem: Any, root: str) -> list[RemoteFile]:
        # In a web address, a question mark begins the query.
        web = not {"http", "https"}.isdisjoint(protocols(filesystem))
        is_glob = "*" in root if web else glob.has_magic(root)
        keep: Callable[[Any], Any] = self._supported if is_glob else self._usable
        if not is_glob and (info := filesystem.info(root))["type"] != "directory":
            return [cast(RemoteFile, self._supported(_remote(filesystem, root, info)))]
        # What is certain of all names: hidden files that the user spelled out count.
        plain = re.split(r"[*?[]", root)[0] if is_glob else f"{root.rstrip('/')}/"
        depth, files = plain.count("/"), []
        for number, (path, info) in enumerate(_found(filesystem, root, plain), 1):
            hidden = any(part.startswith(".") for part in path.split("/")[depth:])
            file = _remote(filesystem, path, info)
            if info["type"] == "file" and not hidden and keep(file):
                files.append(file)
            if number % TOLD_EVERY == 0:
                log.info("%s objects of %s listed so far", f"{number:,}", root)
        return files


def _found(filesystem: Any, root: str, plain: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and description of what lies in a folder or matches a pattern."""
    # `plain` is what all names begin with: the folder and a slash, or a part of the pattern.
    is_glob = not plain.startswith(root)
    if "s3" not in protocols(filesystem):
        yield from (filesystem.glob if is_glob else filesystem.find)(root, detail=True).items()
        return
    from fsspec.utils import glob_translate

    # Page by page: its own `find` holds all of them, a gigabyte and more for a million objects.
    matches = re.compile(glob_translate(root) if is_glob else "").match
    bucket, _, prefix = plain.partition("/")
    page: dict[str, Any] = {"IsTruncated": True}
    while page["IsTruncated"]:
        more = page.get("NextContinuationToken")
        then = {"ContinuationToken": more} if more else {}
        page = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **then)
        for entry in page.get("Contents", ()):
            name = f"{bucket}/{entry['Key']}"
            if matches(name) and not name.endswith("/"):  # which stands for a folder
                yield name, {"type": "file", "size": entry["Size"], "ETag": entry["ETag"]}


def _remote(filesystem: Any, path: str, info: dict[str, Any]) -> RemoteFile:
    stamp = next((f"{name}={info[name]}" for name in STAMPS if info.get(name)), None)
    size = info.get("size")
    return RemoteFile(filesystem, path, None if size is None else int(size), stamp)


def protocols(filesystem: Any) -> set[str]:
    """Return the names before `://` that a file system goes by."""
    protocol = filesystem.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)
