"""Settings of runs on image-caption pairs; light to import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

import tyro

from maskery.core.errors import ConfigError
from maskery.core.ranges import Range
from maskery.data.pairs.config import PairsConfig
from maskery.masking.config import MaskingConfig
from maskery.runs.image_text.config import ImageTextRunConfig
from maskery.tasks.image_text_config import ImageTextMLMConfig

DRAWN_PEOPLE = "drawn-people"


@dataclass(frozen=True, kw_only=True)
class PairsRunConfig(ImageTextRunConfig):
    """Train masked language modelling with pictures: on any image-caption data."""

    kind: ClassVar[str] = "pairs"

    pairs: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")]
    """A .json .jsonl .csv .tsv .parquet or .tar file or pattern, or a folder with metadata."""
    eval_pairs: str | None = None
    """Held-out pairs of their own, read like the others. Default: a share of the pairs."""
    held_out_share: Annotated[float, Range(0, 1, above=True, below=True, hint="try {flag} 0.1")] = (
        0.1
    )
    """Share of the pictures (persons, where named) that is held out, chosen by a hash."""
    score_words: tuple[str, ...] = ()
    """Words scored one at a time on held-out captions; grey|gray count for each other; drawn-people
    stands for the colours and garments of drawn people."""
    reading: Annotated[PairsConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=PairsConfig)
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: MaskingConfig(policy="word", mask_rate=0.4)
    )
    objectives: Annotated[ImageTextMLMConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: ImageTextMLMConfig(itc_weight=0.5)
    )

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ConfigError("no pairs are named: give a file, a pattern or a folder")
        super().__post_init__()
        if self.reading.group_column is not None and self.eval_pairs is not None:
            raise ConfigError(
                f"--group-column {self.reading.group_column} and --eval-pairs do not go together: "
                f"with held-out pairs of their own nothing is split; leave out one of them"
            )

    def anchored(self) -> Self:
        """Return the same with absolute paths, which mean the same from any folder."""
        held_out = None if self.eval_pairs is None else str(Path(self.eval_pairs).absolute())
        return replace(
            super().anchored(),
            pairs=str(Path(self.pairs).absolute()),
            eval_pairs=held_out,
            reading=self.reading.anchored(),
        )
