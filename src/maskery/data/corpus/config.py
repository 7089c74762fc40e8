"""Settings of reading a corpus, of its shards and of its vocabulary, light to import."""

import codecs
from collections.abc import Callable, Container
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Needs, Range, Settings
from maskery.core.registry import plugin_identity

Unit = Literal["line", "paragraph", "document"]
Pieces = Literal["wordpiece", "bpe", "unigram", "bert-uncased"]
OnBadText = Literal["fail", "skip", "replace"]
AUTO: Literal["auto"] = "auto"
OF_SCRATCH = Needs("model", "scratch:", unless="text_model")
# The command line and config.yaml have strings only; in Python a reader may be an object.
if TYPE_CHECKING:
    ReaderChoice: TypeAlias = str | Callable[..., Any] | None
else:
    ReaderChoice = str | None
# Fields of the first version. Fingerprints of shards name them all, and later fields only where
# they are set, so that shards made before a field was added still fit.
FIRST_FIELDS = frozenset(
    {"unit", "text_column", "encoding", "on_bad_text", "split", "stream", "max_example_chars"}
)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(Settings):
    """Settings of reading text from files and datasets."""

    reader: ReaderChoice = None
    """Reads every file: text, jsonl, json, csv, tsv, parquet, or FILE.py:NAME with a callable that
    takes an open file and yields strings, or dicts (see --text-column). Default: by suffix."""
    unit: Unit = "line"
    """One example of a plain text file; paragraphs end at blank lines."""
    text_column: str = "text"
    """The column that holds the text (.jsonl, .json, .csv, .tsv, .parquet, hub datasets); note.body
    reaches into records, and title,body (or title body, after the corpus) joins several columns."""
    join: str = r"\n"
    r"""Put between joined columns; \n is a line end, \t a tab."""
    quoting: Literal["auto", "on", "off"] = AUTO
    """Quotes in tables: on, they may enclose fields with separators and line ends; off, they are
    text. auto: on in .csv, off in .tsv."""
    encoding: str = "utf-8"
    """The character encoding of text, JSON and CSV files; auto decides for each file."""
    on_bad_text: OnBadText = "fail"
    """Text that cannot be read (wrong bytes, NUL characters, values that are not
    strings): fail says where, skip leaves the example out and counts it, replace puts U+FFFD for
    each bad character."""
    split: str = "train"
    """The split of a hub dataset."""
    stream: bool = False
    """Read a hub dataset over the network while training, instead of downloading it first."""
    max_example_chars: Count = 1_000_000
    """Longer examples are cut at white space into several, in characters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value in (("--text-column", self.text_column), ("--split", self.split)):
            if not value:
                raise ConfigError(f"{flag} is empty: it must be a name; leave it out or name one")
        check_encoding(self.encoding)

    def has_quotes(self, kind: str) -> bool:
        """Return True if quotes enclose fields in tables of a format, csv or tsv."""
        return self.quoting == "on" or (self.quoting == AUTO and kind != "tsv")

    def columns_of(self, names: Container[str]) -> list[str]:
        """Return the text columns as asked for; a name with a comma that is a column is one."""
        return [self.text_column] if self.text_column in names else self.text_column.split(",")

    def signature(self) -> str:
        """Return all settings as text, for fingerprints; a plug-in counts with its file's hash."""
        values = dict(vars(self))
        if isinstance(self.reader, str):
            values["reader"] = plugin_identity(self.reader)
        elif self.reader is not None:
            values["reader"] = getattr(self.reader, "__qualname__", type(self.reader).__name__)
        defaults = {field.name: field.default for field in fields(self)}
        shown = [n for n in defaults if n in FIRST_FIELDS or values[n] != defaults[n]]
        return f"CorpusConfig({', '.join(f'{name}={values[name]!r}' for name in shown)})"


@dataclass(frozen=True, kw_only=True)
class ShardingConfig(Settings):
    """Size of the shards, and who makes them."""

    shard_mb: Annotated[float, Range(0, 4096, above=True, hint="try 16")] = 16.0
    """Text of one shard, in millions of bytes."""
    held_out_share: Annotated[float, Range(0, 1, above=True, below=True, hint="try 0.005")] = 0.005
    """Share of the examples that is held out for evaluation, chosen by a hash of their content."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Where shards are made: in processes of this machine, on the Ray cluster of RAY_ADDRESS, or by
    an array of Slurm jobs. The last two: pip install 'maskery[cluster]'."""
    workers: Count | None = None
    """Processes on this machine (default: one for each processor it may use); with ray, pieces that
    are made at once; with slurm, jobs of the array (default: 64)."""
    slurm: tuple[str, ...] = ()
    """Options of sbatch; partition and time are needed, and cpus-per-task is the processes of a
    job: --slurm partition=cpu time=4:00:00 cpus-per-task=8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = {"partition", "time"} <= self.sbatch.keys()
        if not (whole if self.executor == "slurm" else not self.slurm):
            given = f"--executor is {self.executor} and --slurm '{' '.join(self.slurm)}'"
            rule = "slurm needs options of sbatch, --slurm partition=NAME time=4:00:00"
            raise ConfigError(f"{given}: {rule}; others take none")

    @property
    def sbatch(self) -> dict[str, str]:
        """`slurm` by the names of the options; of those without a value it is empty."""
        return {name: value for name, _, value in (o.partition("=") for o in self.slurm)}

    @property
    def shard_bytes(self) -> int:
        """`shard_mb` in bytes."""
        return max(1, int(self.shard_mb * 1e6))


@dataclass(frozen=True, kw_only=True)
class StreamingConfig(Settings):
    """Settings of a run that reads token shards, and of how much held-out text any run scores."""

    shuffle_shards: Count = 4
    """Shards whose examples are shuffled together; memory grows with it."""
    cache_shards: Annotated[int, Range(0)] = 16
    """Shards from an address that are kept on the local disk, besides those in use."""
    held_out_tokens: Count = 250_000
    """Most held-out tokens of a text that are scored; of more, a random sample, the same in every
    run."""


def check_encoding(encoding: str) -> None:
    """Refuse names that Python does not know and codecs that are not of text (rot13, base64)."""
    if encoding == AUTO:
        return
    try:
        b"    ".decode(encoding, "replace")  # of no bytes at all, Python decodes anything
        codecs.getincrementaldecoder(encoding)
    except (LookupError, UnicodeError, ValueError) as error:
        some = "utf-8, utf-16, cp1252, latin-1, shift_jis or gb18030"
        rule = f"it must be a text encoding that Python knows, such as {some}"
        raise ConfigError(f"--encoding is {encoding!r}: {rule}") from error


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig(Settings):
    """The tokenizer that --model scratch:... learns from its texts."""

    vocab_size: Annotated[int, Range(100), OF_SCRATCH] = 8000
    """Most pieces of the vocabulary that --model scratch:... learns."""
    tokenizer: Annotated[Pieces, OF_SCRATCH] = "wordpiece"
    """Kind of pieces that --model scratch:... learns. wordpiece; bpe: of bytes; unigram: bytes for
    what is rare. The last two know any character and keep every space. bert-uncased: wordpiece in
    lower case and without accents, as earlier versions made it."""
    lowercase: Annotated[bool, OF_SCRATCH] = False
    """Fold the case of letters, with --model scratch:..."""
    strip_accents: Annotated[bool, OF_SCRATCH] = False
    """Strip the marks of letters, with --model scratch:...; in Hindi, Hebrew and other scripts that
    merges words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # 256 bytes, the special tokens and some pieces.
        if self.tokenizer in ("bpe", "unigram") and self.vocab_size < 280:
            given = f"--vocab-size {self.vocab_size} and --tokenizer {self.tokenizer}"
            rule = "the 256 bytes are pieces, so it must be at least 280"
            raise ConfigError(f"{given}: {rule}; try 1000")

    def described_vocabulary(self) -> str:
        """Return the flags that make the tokenizer, for model cards."""
        folded = " --lowercase" * self.lowercase + " --strip-accents" * self.strip_accents
        return f"--tokenizer {self.tokenizer}{folded}"

    def new_pieces(self, start: str) -> str:
        """Return what follows the name of a start in model cards; nothing for a trained model."""
        pieces = f" with new pieces ({self.described_vocabulary()})"
        return pieces if start.startswith("scratch:") else ""

    def learns(self) -> dict[str, str]:
        """Return what a continuation must share; earlier versions had one kind and no name."""
        earlier = self.tokenizer == "bert-uncased"
        return {} if earlier else {"vocabulary": self.described_vocabulary()}

    @staticmethod
    def upgraded(settings: dict[str, Any]) -> dict[str, Any]:
        """Return a file's settings with what earlier versions did, which did not write it."""
        earlier = "vocab_size" in settings and "tokenizer" not in settings
        return {**settings, "tokenizer": "bert-uncased"} if earlier else settings
