"""The whole configuration of an image-text run, light to import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from maskery.core.errors import ConfigError
from maskery.core.ranges import take_text_as_paths
from maskery.data.images.config import ViewConfig
from maskery.data.pairs.config import PairsConfig
from maskery.masking.config import MaskingConfig
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.tasks.image_text_config import ImageTextMLMConfig
from maskery.training.config import TrainingConfig

SCRATCH = "scratch:"
SIZES: dict[str, ImageTextSizes] = {
    "tiny": ImageTextSizes(patch_size=8),
    "search": ImageTextSizes(patch_size=8, image_layers=3, text_layers=2, fusion_layers=1),
    "small": ImageTextSizes(
        image_size=(128, 64),
        patch_size=8,
        image_layers=4,
        text_layers=2,
        fusion_layers=2,
        width=256,
        embed_dim=128,
        max_length=128,
    ),
}
DRAWN_PEOPLE = "drawn-people"


@dataclass(frozen=True, kw_only=True)
class PairsTrainingConfig(TrainingConfig):
    """`TrainingConfig` whose steps are counted in pairs."""

    epochs: int = 20
    """Times the pairs are read; each time with other views, captions and masks."""
    batch_pairs: int = 64
    """Pairs of one optimiser step, over all processes."""
    micro_batch_pairs: int | None = None
    """Most pairs one device computes at once; smaller values accumulate. Default: batch_pairs."""
    batch_tokens: Annotated[int, tyro.conf.Suppress, tyro.conf.Fixed] = 4096
    """Not used: steps are counted in pairs."""
    micro_batch_tokens: Annotated[int | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """Not used: steps are counted in pairs."""
    compile: Annotated[bool, tyro.conf.Suppress, tyro.conf.Fixed] = False
    """Not used: image-text steps are not compiled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile:
            raise ConfigError("compile is true, and image-text steps cannot be compiled; remove it")
        for name in ("batch_pairs", "micro_batch_pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PairsRunConfig:
    """Train masked language modelling with pictures: on any image-caption data."""

    kind: ClassVar[str] = "pairs"

    pairs: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")]
    """A .json .jsonl .csv .tsv .parquet or .tar file or pattern, or a folder with metadata."""
    model: str = "scratch:tiny"
    """An image-text model folder (from convert or a run), or scratch:tiny, scratch:small."""
    text_model: str | None = None
    """A BERT folder or hub name to start the text side from; with --vision-model."""
    vision_model: str | None = None
    """A ViT, DeiT, CLIP, SigLIP or DINOv2 folder or hub name to start the vision side from."""
    fusion_layer: int | None = None
    """First text layer that looks at the picture, with --text-model. Default: the middle one."""
    output: Path | None = None
    """The run folder. Default: runs/PAIRS-MODEL, numbered if taken."""
    resume: Literal["no", "auto"] = "no"
    """auto: go on from the newest sound checkpoint in the run folder, or start if there is none."""
    eval_pairs: str | None = None
    """Held-out pairs of their own, read like the others. Default: a share of the pairs."""
    held_out_share: float = 0.1
    """Share of the pictures (persons, where named) that is held out, chosen by a hash."""
    score_words: tuple[str, ...] = ()
    """Words scored one at a time on held-out captions; grey|gray count for each other; drawn-people
    stands for the colours and garments of drawn people."""
    max_length: int | None = None
    """Most tokens of a caption; longer ones are cut, and counted. Default: the model's."""
    vocab_size: int = 8000
    """Most pieces of the WordPiece vocabulary that --model scratch:... trains on the captions."""
    image_cache_mb: int = 1024
    """Megabytes of memory for decoded pictures, so that they are not decoded in every epoch."""
    reading: Annotated[PairsConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=PairsConfig)
    view: Annotated[ViewConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ViewConfig)
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: MaskingConfig(policy="word", mask_rate=0.4)
    )
    mrtd_mask_rate: float = 0.3
    """Share of the words that the momentum twin fills anew for replaced token detection (RaSa)."""
    objectives: Annotated[ImageTextMLMConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: ImageTextMLMConfig(itc_weight=0.5)
    )
    training: Annotated[PairsTrainingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=PairsTrainingConfig
    )

    def __post_init__(self) -> None:
        take_text_as_paths(self)
        if not self.pairs:
            raise ConfigError("no pairs are named: give a file, a pattern or a folder")
        if (self.text_model is None) != (self.vision_model is None):
            raise ConfigError(
                "--text-model and --vision-model belong together: give both, or neither and --model"
            )
        if self.text_model is None and self.fusion_layer is not None:
            raise ConfigError("--fusion-layer needs --text-model and --vision-model")
        if not 0.0 < self.mrtd_mask_rate < 1.0:
            raise ConfigError(
                f"mrtd_mask_rate is {self.mrtd_mask_rate}: it must lie between 0 and 1; try 0.3"
            )
        self._check_size()
        if not 0.0 < self.held_out_share < 1.0:
            raise ConfigError(
                f"held_out_share is {self.held_out_share}: it must lie between 0 and 1; try 0.1"
            )
        if self.max_length is not None and self.max_length < 3:
            raise ConfigError(
                f"max_length is {self.max_length}: a caption needs at least 3 tokens; try 64"
            )
        if self.vocab_size < 100:
            raise ConfigError(f"vocab_size is {self.vocab_size}: it must be at least 100")
        if self.image_cache_mb < 0:
            raise ConfigError(
                f"image_cache_mb is {self.image_cache_mb}: it must be 0 (keep none) or more"
            )
        if not self.objectives.learns:
            raise ConfigError("all weights are 0, so nothing would be learnt; raise --mlm-weight")

    def _check_size(self) -> None:
        if (self.view.height is None) != (self.view.width is None):
            raise ConfigError("--height and --width belong together: give both, or neither")
        size = self.model.removeprefix(SCRATCH)
        if self.text_model is None and self.model.startswith(SCRATCH) and size not in SIZES:
            raise ConfigError(
                f"{self.model} is no size; choose {', '.join(SCRATCH + name for name in SIZES)}"
            )

    def anchored(self) -> PairsRunConfig:
        """The same with absolute paths of the data, which mean the same from any folder."""
        held_out = None if self.eval_pairs is None else str(Path(self.eval_pairs).absolute())
        return replace(
            self,
            pairs=str(Path(self.pairs).absolute()),
            eval_pairs=held_out,
            reading=self.reading.anchored(),
            masking=self.masking.anchored(),
            objectives=self.objectives.anchored(),
        )

    @property
    def start(self) -> str:
        """What the model starts from, for names and messages."""
        if self.text_model is not None and self.vision_model is not None:
            return f"{Path(self.text_model).name}+{Path(self.vision_model).name}"
        return self.model
