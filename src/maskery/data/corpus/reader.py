"""The corpus: what the user names, as a stream of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from maskery.core.errors import DataError
from maskery.data.corpus import hub
from maskery.data.corpus.compression import cannot_read
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.csv_files import read_csv, read_tsv
from maskery.data.corpus.examples import Example, example_id
from maskery.data.corpus.json_files import read_json, read_json_lines
from maskery.data.corpus.parquet_files import read_parquet
from maskery.data.corpus.reading import BLOCK_BYTES, Place, Reading, ReadingReport
from maskery.data.corpus.sources import FORMATS, HubName, find_files, hub_name, split_suffix
from maskery.data.corpus.text_files import Cutter, read_text

READERS: dict[str, Callable[[Reading], Iterator[str]]] = {
    "text": read_text,
    "jsonl": read_json_lines,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
}
# Raised whenever the same files give other examples than before, so that stores are rebuilt.
READING_VERSION = 1


class Corpus:
    """Examples of text from files or from a hub dataset; every iteration gives the same ones.

    Attributes:
        config: How the text is read.
        files: The files, sorted; none for a hub dataset.
        num_bytes: The size of the files on disk, or None for a hub dataset.
        bytes_read: How much of `num_bytes` the current or last iteration has read; of a hub
            dataset, the characters it has given out.
        report: What the current or last iteration came upon.
    """

    def __init__(
        self,
        *,
        config: CorpusConfig,
        files: Sequence[Path] = (),
        dataset: tuple[HubName, Any] | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.config, self.files, self.block_bytes = config, tuple(files), block_bytes
        self._dataset = dataset
        self._sizes = [path.stat().st_size for path in self.files]
        self.num_bytes = sum(self._sizes) if dataset is None else None
        self.bytes_read = 0
        self.report = ReadingReport()

    @classmethod
    def open(cls, sources: Sequence[str], config: CorpusConfig | None = None) -> Corpus:
        """Find what the sources name.

        Args:
            sources: Files, folders and globs, or one hub dataset (`name`, `org/name`, either with
                `:configuration`).
            config: How the text is read.

        Raises:
            DataError: A source is missing or unsupported, all files are empty, or the hub dataset
                cannot be loaded.
        """
        config = config or CorpusConfig()
        name = hub_name(sources)
        if name is not None:
            return cls(config=config, dataset=(name, hub.load(name, config)))
        files = find_files(sources)
        try:
            corpus = cls(config=config, files=files)
        except OSError as error:
            raise cannot_read(Path(str(error.filename)), error) from error
        if not corpus.num_bytes:
            what = f"{files[0]} is" if len(files) == 1 else f"all {len(files)} files are"
            raise DataError(f"{what} empty; a corpus needs text: name a file that has some")
        return corpus

    def __iter__(self) -> Iterator[Example]:
        """Read from the start.

        Raises:
            DataError: A file cannot be read as the config says, or there is no text at all.
        """
        self.bytes_read, self.report = 0, ReadingReport()
        report = self.report
        yield from self._dataset_examples() if self._dataset else self._file_examples()
        if not report.examples:
            raise self._no_text(report)

    def fingerprint(self) -> str:
        """What the examples depend on, hashed: contents and order of the files, and the config.

        Names do not count, beyond the suffixes. Reads every file once.

        Returns:
            32 hexadecimal digits: BLAKE2b (RFC 7693) of 16 bytes.

        Raises:
            DataError: A file cannot be read, or the hub cannot be asked for its revision.
        """
        config = self.config
        digest = blake2b(digest_size=16)
        common = (READING_VERSION, config.on_bad_text, config.max_example_chars)
        digest.update(repr(common).encode())
        if self._dataset:
            name, dataset = self._dataset
            content = hub.fingerprint(dataset, name, config)
            digest.update(repr((str(name), config.split, config.text_column, content)).encode())
        for path, size in zip(self.files, self._sizes, strict=True):
            suffix, compression = split_suffix(path)
            file_format = FORMATS[suffix]
            how = config.unit if file_format == "text" else config.text_column
            encoding = "" if file_format == "parquet" else config.encoding
            digest.update(repr((size, file_format, compression, how, encoding)).encode())
            digest.update(self._digest_of(path))
        return digest.hexdigest()

    def _digest_of(self, path: Path) -> bytes:
        digest = blake2b(digest_size=32)
        try:
            with path.open("rb") as file:
                while block := file.read(self.block_bytes):
                    digest.update(block)
        except OSError as error:
            raise cannot_read(path, error) from error
        return digest.digest()

    def _file_examples(self) -> Iterator[Example]:
        before = 0
        for path, size in zip(self.files, self._sizes, strict=True):
            reading = self._reading(str(path), path)
            if size == 0:
                self.report.empty_files += 1
                continue
            reader = READERS[FORMATS[split_suffix(path)[0]]]
            yield from examples(reader(reading), reading)
            # Parquet reads some bytes twice and others never; at the end the sum is right.
            before += size
            self.bytes_read = before

    def _dataset_examples(self) -> Iterator[Example]:
        assert self._dataset is not None
        name, dataset = self._dataset
        reading = self._reading(str(name), Path())
        yield from examples(hub.read_dataset(dataset, name, reading), reading)

    def _reading(self, source: str, path: Path) -> Reading:
        return Reading(
            path=path,
            config=self.config,
            report=self.report,
            place=Place(source=source),
            on_read=self._advance,
            block_bytes=self.block_bytes,
        )

    def _advance(self, num_bytes: int) -> None:
        self.bytes_read += num_bytes

    def _no_text(self, report: ReadingReport) -> DataError:
        if self._dataset:
            what = f"the hub dataset {self._dataset[0]}"
        elif len(self.files) == 1:
            what = str(self.files[0])
        else:
            what = f"the {len(self.files)} files from {self.files[0]} to {self.files[-1]}"
        if report.skipped:
            return DataError(
                f"{what} has no text left: all {report.skipped:,} texts were skipped because they "
                "cannot be read; check --encoding and --text-column"
            )
        return DataError(f"{what} contains no text, only white space; name a file that has some")


def examples(texts: Iterator[str], reading: Reading) -> Iterator[Example]:
    """Give texts their ids; blank ones are left out, long ones cut.

    Raises:
        DataError: A text holds a NUL character or a surrogate, and bad text is to fail.
    """
    source, report, limit = reading.place.source, reading.report, reading.config.max_example_chars
    from_bytes, hash_of = int.from_bytes, blake2b
    cutter = Cutter(limit, report)
    for raw_text in texts:
        text: str | None = raw_text.strip()
        if not text:
            continue
        try:
            data = text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, as JSON may spell it
            data = b"\0"
        if b"\0" in data:
            text = reading.mend(text)
            if text is None:
                continue
            data = text.encode()
        if len(text) > limit:
            for piece in cutter.whole(text):
                report.examples += 1
                yield Example(piece, source, example_id(piece))
            continue
        report.examples += 1
        yield Example(text, source, from_bytes(hash_of(data, digest_size=8).digest(), "little"))
