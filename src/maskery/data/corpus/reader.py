"""The corpus: a stream of examples from whatever the user names or passes."""

from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from maskery.core.errors import DataError
from maskery.core.registry import plugin_identity
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import BLOCK_BYTES, Example, Reading, ReadingReport, examples
from maskery.data.corpus.files import find_files, hub_name
from maskery.data.corpus.formats import format_of, is_portable, read_texts, split_suffix
from maskery.data.corpus.streams import cannot_read, named_in_errors

if TYPE_CHECKING:
    from maskery.data.corpus.dataset_corpus import GivenTexts

READING_VERSION = 2  # Raised when the same files give other examples, so that stores are rebuilt


class Corpus:
    """Examples of text from files, a dataset or an iterable; every iteration gives the same ones.

    Attributes:
        files: The files, sorted (those at an address are `RemoteFile`s); none for a dataset.
        num_bytes: The size of the files as stored; None for a dataset, or if it is not known.
        bytes_read: How much of `num_bytes` the current or last iteration has read; of a dataset,
            the characters it has given out.
        report: What the current or last iteration came upon.
    """

    def __init__(
        self,
        *,
        config: CorpusConfig,
        files: Sequence[Path] = (),
        source: "GivenTexts | None" = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.config, self.files, self.block_bytes = config, tuple(files), block_bytes
        self._source = source
        self.sizes: list[int | None] = [path.stat().st_size for path in self.files]
        known = [size for size in self.sizes if size is not None]
        self.num_bytes = sum(known) if source is None and len(known) == len(self.sizes) else None
        self._group_column: str | None = None
        self.begin()

    @classmethod
    def open(cls, sources: Sequence[str], config: CorpusConfig | None = None) -> Self:
        """Find what the sources name.

        Args:
            sources: Files, folders and globs, here or at an address (`s3://bucket/web/*.jsonl.gz`),
                or one hub dataset (`name`, `org/name`, either with `:configuration`).

        Raises:
            DataError: A source is missing or unsupported, all files are empty, or the hub dataset
                cannot be loaded.
            PluginError: The reader cannot be loaded.
        """
        config = config or CorpusConfig()
        if name := hub_name(sources):
            from maskery.data.corpus.dataset_corpus import HubDataset

            return cls(config=config, source=HubDataset(name, config))
        files = find_files(sources, config)
        try:
            corpus = cls(config=config, files=files)
        except OSError as error:
            raise cannot_read(Path(str(error.filename)), error) from error
        if corpus.num_bytes == 0:
            what = f"{files[0]} is" if len(files) == 1 else f"all {len(files)} files are"
            raise DataError(f"{what} empty; a corpus needs text: name a file that has some")
        return corpus

    @classmethod
    def of(cls, data: Any, config: CorpusConfig | None = None, *, name: str = "the data") -> Self:
        """Read what is passed in Python; ids depend on the texts alone, as for files.

        Args:
            data: A `Dataset` or `IterableDataset` of the `datasets` library, or an iterable of
                strings or of mappings with the text under the text column. It is read several
                times, and must give the same texts each time.
            name: How messages call it.

        Raises:
            DataError: It is none of these.
        """
        from maskery.data.corpus.dataset_corpus import GivenTexts

        return cls(config=config or CorpusConfig(), source=GivenTexts(data, name))

    def begin(self) -> None:
        """Count anew what is read and come upon."""
        self.bytes_read, self.report = 0, ReadingReport()

    def __iter__(self) -> Iterator[Example]:
        """Read from the start.

        Raises:
            DataError: A file cannot be read as the config says, or there is no text at all.
            PluginError: A reader of the user's own fails.
        """
        self.begin()
        report, before = self.report, 0
        if self._source is not None:
            reading = self._reading(self._source.label, Path())
            yield from examples(self._source.texts(reading), reading)
        for number, size in enumerate(self.sizes):
            if size == 0:
                report.empty_files += 1
                continue
            yield from self.read_file(number)
            # Parquet reads some bytes twice and others never; at the end the sum is right.
            before = before + size if size is not None else self.bytes_read
            self.bytes_read = before
        if not report.examples:
            raise self._no_text(report)

    def groups(self, column: str) -> Iterator[tuple[int, str]]:
        """Read from the start, and yield each example's id with its value in a column.

        Raises:
            DataError: As `__iter__`; or some rows have none, or files have no columns.
        """
        for path in self.files:
            if format_of(path, self.config) == "text":
                problem = f"--group-column {column}: {path} is plain text, which has no columns"
                raise DataError(f"{problem}; name tables or JSON, or leave it out")
        self._group_column, empty = column, 0
        try:
            for example in self:
                # Readers go from record to record: the one at hand is that of the example.
                empty += not self._now.group
                yield example.id, self._now.group
        finally:
            self._group_column = None
        if empty:
            problem = f"{column} is empty for {empty:,} of {self.report.examples:,} examples"
            why = "which could stand on either side; fill it, or leave those rows out"
            raise DataError(f"--group-column {problem}, {why}")

    def fingerprint(self) -> str:
        """Hash all that the examples depend on: contents and order of the files, and the config.

        Names do not count, beyond the suffixes. Reads every file once, unless a file system tells
        of a remote one what it is known by. Returns 32 hexadecimal digits.
        """
        common = (READING_VERSION, self.config.on_bad_text, self.config.max_example_chars)
        digest = blake2b(repr(common).encode(), digest_size=16)
        known = self._source.fingerprint() if self._source else None
        if known is not None:
            digest.update(known.encode())
        elif self._source or not all(is_portable(path, self.config) for path in self.files):
            # The code of a reader that was passed in Python cannot be hashed; what it reads can.
            for example in self:
                digest.update(example.id.to_bytes(8, "little"))
        else:
            for path, size in zip(self.files, self.sizes, strict=True):
                digest.update(repr((size, *self._how(path))).encode())
                digest.update(_content_hash(path))
        return digest.hexdigest()

    def read_file(self, number: int, span: tuple[int, int] | None = None) -> Iterator[Example]:
        """Yield the examples of one file, or of a part of it as `Reading.span` says."""
        path = self.files[number]
        source = str(path)
        if span and span[0] and format_of(path, self.config) != "parquet":
            # Lines are counted from there, so messages have to say where that is.
            source += f" from byte {span[0]} on"
        reading = self._reading(source, path, span)
        yield from examples(read_texts(reading), reading)

    def _how(self, path: Path) -> tuple[str, ...]:
        """Return the settings that decide what a file's text becomes."""
        config = self.config
        file_format = format_of(path, config)
        encoding = "" if file_format == "parquet" else config.encoding
        how = config.unit if file_format == "text" else config.text_column
        if "," in how:
            how += f" joined by {config.join}"
        if file_format in ("csv", "tsv") and not config.has_quotes(file_format):
            file_format += " without quotes"
        _, compression = split_suffix(path)
        return file_format or plugin_identity(str(config.reader)), compression, how, encoding

    def _reading(self, source: str, path: Path, span: tuple[int, int] | None = None) -> Reading:
        self._now = Reading(
            path=path,
            config=self.config,
            report=self.report,
            source=source,
            on_read=self._advance,
            group_column=self._group_column,
            block_bytes=self.block_bytes,
            span=span,
        )
        return self._now

    def _advance(self, num_bytes: int) -> None:
        self.bytes_read += num_bytes

    def _no_text(self, report: ReadingReport) -> DataError:
        if self._source or len(self.files) == 1:
            what = self._source.name if self._source else str(self.files[0])
        else:
            what = f"the {len(self.files)} files from {self.files[0]} to {self.files[-1]}"
        if report.skipped:
            why = f"all {report.skipped:,} texts were skipped because they cannot be read"
            return DataError(f"{what} has no text left: {why}; check --encoding and --text-column")
        return DataError(f"{what} contains no text, only white space; name a file that has some")


def _content_hash(path: Path) -> bytes:
    """Hash a file's content; of a remote one, what it is known by, without reading it."""
    if stamp := getattr(path, "stamp", None):
        return blake2b(f"{path} {stamp}".encode(), digest_size=32).digest()
    with named_in_errors(path), path.open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=32)).digest()
