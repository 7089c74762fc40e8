"""`maskery tokenize`: a corpus becomes token shards. Light to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from maskery.core.errors import ConfigError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.shards.config import ShardingConfig

if TYPE_CHECKING:
    from maskery.data.shards.making import Made

# Rank and count by `--ranks-from`.
VARIABLES = {
    "slurm-array": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    "slurm-tasks": ("SLURM_PROCID", "SLURM_NTASKS"),
    "torchrun": ("RANK", "WORLD_SIZE"),
}


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Prepare token shards of a corpus for training."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS ... OUT")]
    """Files, folders and globs (.txt .jsonl .csv .tsv .parquet, also .gz .xz .zst), and last the
    folder of the shards; what is complete there is kept. Each may be an address (s3://)."""
    model: str = "minilm"
    """The model whose tokenizer is used: minilm, a folder or a hub name."""
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

    @property
    def corpus(self) -> tuple[str, ...]:
        """Return the sources to read."""
        return self.paths[:-1]


def tokenize_corpus(config: TokenizeConfig, *, progress: bool = True) -> Made:
    """Make the shards that are missing, or this rank's part of them."""
    from maskery.data.corpus.reader import Corpus
    from maskery.data.shards.making import make_shards
    from maskery.data.shards.places import output_folder
    from maskery.models.loading import load_tokenizer

    sharding = resolve_ranks(config.sharding, os.environ)
    folder = output_folder(config.paths[-1])
    corpus = Corpus.open(config.corpus, config.reading)
    tokenizer = load_tokenizer(config.model)
    return make_shards(corpus, tokenizer, folder, sharding, progress=progress)


def resolve_ranks(config: ShardingConfig, environment: Mapping[str, str]) -> ShardingConfig:
    """Return the config with rank and count, read from the environment if it says so."""
    if config.ranks_from == "flags":
        return config
    rank_name, count_name = VARIABLES[config.ranks_from]
    rank, count = (_number(environment, name, config) for name in (rank_name, count_name))
    if config.ranks_from == "slurm-array":  # --array=5-19:2 has neither rank 0 nor steps of 1
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        rank = (rank - first) // int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    return replace(config, ranks_from="flags", shard_rank=rank, shard_count=count)


def _number(environment: Mapping[str, str], name: str, config: ShardingConfig) -> int:
    value = environment.get(name)
    if value is None or not value.isdigit():
        found = "is not set" if value is None else f"is {value!r}"
        raise ConfigError(
            f"--ranks-from {config.ranks_from} reads {name}, which {found}; give --shard-rank and "
            f"--shard-count instead"
        )
    return int(value)
