"""The settings of a benchmark; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from maskery.core.errors import ConfigError

Name = Literal["maskery", "maskery-fp32", "hf-blocks", "hf-blocks-bf16", "hf-lines", "seed"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Contenders take turns, each in its own process; medians of the rounds are compared."""

    corpus: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")] = Path()
    """A text file; each line is an example. Default: the text of Python's language reference."""
    model: str = "minilm"
    """minilm, a folder or a hub name."""
    contenders: tuple[Name, ...] = get_args(Name)
    """Who takes part; the first is what the others are compared with. maskery chooses its precision
    as training does; HF's Trainer computes in fp32 unless it is told bf16."""
    rounds: int = 3
    """Turns of each contender."""
    tokens: int = 4096
    """Real tokens each contender trains on in a round, at least."""
    batch_tokens: int = 4096
    """Tokens of a step of Maskery, and of HF's block recipe (batches of 512-token blocks)."""
    dropout: Literal["model", "none"] = "model"
    """The model's own dropout for everybody, attention included, or none for anybody."""
    compile: bool = False
    """Let Maskery compile its step (a CUDA GPU); elsewhere it does not."""
    memory: bool = True
    """Also report the peak memory of each contender; on a GPU, of the GPU."""
    seed: int = 0
    """Of masks and dropout."""

    def __post_init__(self) -> None:
        if not self.contenders:
            raise ConfigError(f"no contender is named: choose from {', '.join(get_args(Name))}")
        for name in ("rounds", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.batch_tokens < 512 or self.batch_tokens % 512:
            raise ConfigError(
                f"batch_tokens is {self.batch_tokens}: it must be a multiple of 512, the block "
                f"length of HF's recipe"
            )
