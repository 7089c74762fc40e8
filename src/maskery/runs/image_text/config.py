"""Settings that pairs and person-search runs share; light to import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro

from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Range, check_ranges, take_text_as_paths
from maskery.data.corpus.config import VocabularyConfig
from maskery.data.images.config import ViewConfig
from maskery.masking.config import MaskingConfig
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.tasks.image_text_config import ImageTextMLMConfig
from maskery.training.config import BaseTrainingConfig

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


@dataclass(frozen=True, kw_only=True)
class PairsTrainingConfig(BaseTrainingConfig):
    """Optimiser, schedule, length and bookkeeping of a run whose steps are counted in pairs."""

    # Settings of text runs that earlier versions wrote into config.yaml of image-text runs, too.
    FORMER: ClassVar[frozenset[str]] = frozenset({"batch_tokens", "micro_batch_tokens", "compile"})

    epochs: Count = 20
    """Times the pairs are read; each time with other views, captions and masks."""
    batch_pairs: Count = 64
    """Pairs of one optimiser step, over all processes."""
    micro_batch_pairs: Count | None = None
    """Most pairs one device computes at once; smaller values accumulate. Default: batch_pairs."""

    def course(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share."""
        # Checkpoints of earlier versions say this, too, and may still be resumed.
        return super().course() | {"batch_tokens": 4096}


@dataclass(frozen=True, kw_only=True)
class ImageTextRunConfig(VocabularyConfig):
    """Settings that every image-text run has; see `PairsRunConfig`, `PersonSearchRunConfig`."""

    model: str = "scratch:tiny"
    """An image-text model folder (from convert or a run), or scratch:tiny, scratch:search,
    scratch:small."""
    text_model: str | None = None
    """A BERT folder or hub name to start the text side from; with --vision-model."""
    vision_model: str | None = None
    """A ViT, DeiT, CLIP, SigLIP or DINOv2 folder or hub name to start the vision side from."""
    fusion_layer: int | None = None
    """First text layer that looks at the picture, with --text-model. Default: the middle one."""
    output: Path | None = None
    """The run folder. Default: runs/DATA-MODEL, numbered if taken."""
    resume: Literal["no", "auto"] = "no"
    """auto: go on from the newest sound checkpoint in the run folder, or start if there is none."""
    max_length: Annotated[int | None, Range(3, unit="tokens", hint="try {flag} 64")] = None
    """Most tokens of a caption; longer ones are cut, and counted. Default: the model's."""
    image_cache_mb: Annotated[int, Range(0, unit="MB")] = 1024
    """Megabytes of memory for decoded pictures, so that they are not decoded in every epoch; 0
    keeps none."""
    view: Annotated[ViewConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ViewConfig)
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MaskingConfig
    )
    mrtd_mask_rate: Annotated[float, Range(0, 1, above=True, below=True, hint="try {flag} 0.3")] = (
        0.3
    )
    """Share of the words that the momentum twin fills anew for replaced token detection (RaSa)."""
    objectives: Annotated[ImageTextMLMConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=ImageTextMLMConfig
    )
    training: Annotated[PairsTrainingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=PairsTrainingConfig
    )

    def __post_init__(self) -> None:
        take_text_as_paths(self)
        check_ranges(self)
        self.check_vocabulary()
        if (self.text_model is None) != (self.vision_model is None):
            raise ConfigError(
                "--text-model and --vision-model belong together: give both, or neither and --model"
            )
        if self.text_model is None and self.fusion_layer is not None:
            raise ConfigError("--fusion-layer needs --text-model and --vision-model")
        if (self.view.height is None) != (self.view.width is None):
            raise ConfigError("--height and --width belong together: give both, or neither")
        size = self.model.removeprefix(SCRATCH)
        if self.text_model is None and self.model.startswith(SCRATCH) and size not in SIZES:
            raise ConfigError(
                f"{self.model} is no size; choose {', '.join(SCRATCH + name for name in SIZES)}"
            )
        if not self.objectives.learns:
            raise ConfigError(
                "all weights are 0, so nothing would be learnt; raise --mlm-weight or --itc-weight"
            )

    def anchored(self) -> Self:
        """Return the same with absolute paths, which mean the same from any folder."""
        return replace(self, masking=self.masking.anchored(), objectives=self.objectives.anchored())

    @property
    def start(self) -> str:
        """The name of the model that the run starts from."""
        if self.text_model is not None and self.vision_model is not None:
            return f"{Path(self.text_model).name}+{Path(self.vision_model).name}"
        return self.model
