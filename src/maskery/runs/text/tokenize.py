"""`maskery tokenize`: a corpus becomes token shards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from maskery.core.errors import ConfigError
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.config import ShardingConfig
from maskery.data.shards.making import Made, make_shards
from maskery.models.loading import load_tokenizer
from maskery.runs.text.tokenize_config import TokenizeConfig

# Rank and count by `--ranks-from`.
VARIABLES = {
    "slurm-array": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    "slurm-tasks": ("SLURM_PROCID", "SLURM_NTASKS"),
    "torchrun": ("RANK", "WORLD_SIZE"),
}


def tokenize_corpus(config: TokenizeConfig, *, progress: bool = True) -> Made:
    """Make the shards that are missing, or this rank's part of them.

    Args:
        config: What to tokenise into which folder.
        progress: Whether to draw a progress bar.

    Raises:
        MaskeryError: Something the user can mend.
    """
    sharding = resolve_ranks(config.sharding, os.environ)
    corpus = Corpus.open(config.corpus, config.reading)
    tokenizer = load_tokenizer(config.model)
    return make_shards(corpus, tokenizer, config.output, sharding, progress=progress)


def resolve_ranks(config: ShardingConfig, environment: Mapping[str, str]) -> ShardingConfig:
    """Rank and count, from the environment if the config says so.

    Raises:
        ConfigError: The variables are missing, or are no numbers.
    """
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
