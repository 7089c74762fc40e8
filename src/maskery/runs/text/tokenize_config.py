"""The whole configuration of `maskery tokenize`, light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from maskery.core.errors import ConfigError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.shards.config import ShardingConfig


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Prepare token shards of a corpus for training."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS ... OUT")]
    """Files, folders and globs (.txt .jsonl .csv .tsv .parquet, also .gz .xz .zst), and last the
    folder of the shards; what is complete there is kept."""
    model: str = "minilm"
    """Whose tokenizer: minilm, a folder or a hub name."""
    sharding: Annotated[ShardingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=ShardingConfig
    )
    reading: Annotated[CorpusConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=CorpusConfig
    )

    def __post_init__(self) -> None:
        if len(self.paths) < 2:
            raise ConfigError(
                f"{len(self.paths)} path is named: give the files, folders or globs of the corpus, "
                "and last the folder for the shards"
            )
        if "://" in self.paths[-1]:
            raise ConfigError(
                f"the shards cannot be written to the address '{self.paths[-1]}': name a folder of "
                "this machine last, and copy it there when it is complete"
            )

    @property
    def corpus(self) -> tuple[str, ...]:
        """What is read."""
        return self.paths[:-1]

    @property
    def output(self) -> Path:
        """Where the shards go."""
        return Path(self.paths[-1])
