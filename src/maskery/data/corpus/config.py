"""How a corpus is read."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal, get_args

from maskery.core.errors import ConfigError

Unit = Literal["line", "paragraph", "document"]
OnBadText = Literal["fail", "skip", "replace"]


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How text is read from files and hub datasets.

    Raises:
        ConfigError: A value is outside its range.
    """

    unit: Unit = "line"
    """What one example of a plain text file is; paragraphs end at blank lines."""
    text_column: str = "text"
    """The column that holds the text (.jsonl, .json, .csv, .tsv, .parquet, hub datasets)."""
    encoding: str = "utf-8"
    """The character encoding of text, JSON and CSV files."""
    on_bad_text: OnBadText = "fail"
    """What to do with text that cannot be read (wrong bytes, NUL characters, values that are not
    strings): fail and say where, skip the example and count it, or replace each bad character
    with U+FFFD."""
    split: str = "train"
    """The split of a hub dataset."""
    stream: bool = False
    """Read a hub dataset over the network while training, instead of downloading it first."""
    max_example_chars: int = 1_000_000
    """Longer examples are cut at white space into several, in characters."""

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ConfigError(f"--unit is {self.unit!r}: it must be one of {_names(Unit)}")
        if self.on_bad_text not in get_args(OnBadText):
            raise ConfigError(
                f"--on-bad-text is {self.on_bad_text!r}: it must be one of {_names(OnBadText)}"
            )
        for flag, value in (("--text-column", self.text_column), ("--split", self.split)):
            if not value:
                raise ConfigError(f"{flag} is empty: it must be a name; leave it out or name one")
        if self.max_example_chars < 1:
            raise ConfigError(
                f"--max-example-chars is {self.max_example_chars}: it must be at least 1"
            )
        _check_encoding(self.encoding)


def _names(literal: object) -> str:
    return ", ".join(get_args(literal))


def _check_encoding(encoding: str) -> None:
    """Refuse names that Python does not know and codecs that are not of text (rot13, base64)."""
    try:
        b"    ".decode(encoding, "replace")  # of no bytes at all, Python decodes anything
        codecs.getincrementaldecoder(encoding)
    except (LookupError, UnicodeError, ValueError) as error:
        raise ConfigError(
            f"--encoding is {encoding!r}: it must be a text encoding that Python knows, "
            "such as utf-8, utf-16, cp1252, latin-1, shift_jis or gb18030"
        ) from error
