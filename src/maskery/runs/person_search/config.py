"""The whole configuration of a person-search run, light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from maskery.core.errors import ConfigError
from maskery.core.ranges import take_text_as_paths
from maskery.data.images.config import ViewConfig
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.masking.config import MaskingConfig
from maskery.runs.pairs.config import SCRATCH, SIZES, PairsTrainingConfig
from maskery.tasks.image_text_config import PersonSearchConfig


@dataclass(frozen=True, kw_only=True)
class PersonSearchRunConfig:
    """Train text-based person search: find people by what is said of them."""

    kind: ClassVar[str] = "person-search"

    data: Annotated[PersonSearchDataConfig, tyro.conf.OmitArgPrefixes]
    model: str = "scratch:tiny"
    """An image-text model folder (from convert or a run), or scratch:search, scratch:tiny,
    scratch:small."""
    text_model: str | None = None
    """A BERT folder or hub name to start the text side from; with --vision-model."""
    vision_model: str | None = None
    """A ViT, DeiT, CLIP, SigLIP or DINOv2 folder or hub name to start the vision side from."""
    fusion_layer: int | None = None
    """First text layer that looks at the picture, with --text-model. Default: the middle one."""
    output: Path | None = None
    """The run folder. Default: runs/ROOT-MODEL, numbered if taken."""
    resume: Literal["no", "auto"] = "no"
    """auto: go on from the newest sound checkpoint in the run folder, or start if there is none."""
    weak_pair_probability: float = 0.1
    """How often a picture is contrasted and matched with any caption of its person (RaSa)."""
    max_length: int | None = None
    """Most tokens of a caption; longer ones are cut, and counted. Default: the model's."""
    vocab_size: int = 8000
    """Most pieces of the WordPiece vocabulary that --model scratch:... trains on the captions."""
    image_cache_mb: int = 1024
    """Megabytes of memory for decoded pictures, so that they are not decoded in every epoch."""
    view: Annotated[ViewConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ViewConfig)
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MaskingConfig
    )
    mrtd_mask_rate: float = 0.3
    """Share of the words that the momentum twin fills anew for replaced token detection (RaSa)."""
    objectives: Annotated[PersonSearchConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=PersonSearchConfig
    )
    retrieval: Annotated[RetrievalConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=RetrievalConfig
    )
    training: Annotated[PairsTrainingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=PairsTrainingConfig
    )
    """Held-out figures are computed every --eval-every steps. Default: every epoch."""

    def __post_init__(self) -> None:
        take_text_as_paths(self)
        if (self.text_model is None) != (self.vision_model is None):
            raise ConfigError(
                "--text-model and --vision-model belong together: give both, or neither and --model"
            )
        if self.text_model is None and self.fusion_layer is not None:
            raise ConfigError("--fusion-layer needs --text-model and --vision-model")
        for name in ("mrtd_mask_rate", "weak_pair_probability"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"{name} is {value}: it must be from 0 to below 1")
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
        self._check_start()
        if not self.objectives.learns:
            raise ConfigError("all weights are 0, so nothing would be learnt; raise --itc-weight")

    def _check_start(self) -> None:
        if (self.view.height is None) != (self.view.width is None):
            raise ConfigError("--height and --width belong together: give both, or neither")
        size = self.model.removeprefix(SCRATCH)
        if self.text_model is None and self.model.startswith(SCRATCH) and size not in SIZES:
            raise ConfigError(
                f"{self.model} is no size; choose {', '.join(SCRATCH + name for name in SIZES)}"
            )

    def require_start(self) -> None:
        """Make sure that there is something to start from; presets of large models name nothing.

        Raises:
            ConfigError: There is not.
        """
        if self.text_model is None and not self.model:
            raise ConfigError(
                "no model is named to start from: give --model the folder that maskery convert "
                "ALBEF.pth writes, or --text-model and --vision-model"
            )

    @property
    def start(self) -> str:
        """What the model starts from, for names and messages."""
        if self.text_model is not None and self.vision_model is not None:
            return f"{Path(self.text_model).name}+{Path(self.vision_model).name}"
        return self.model
