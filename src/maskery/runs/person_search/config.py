"""Settings of person-search runs, and whole configurations as presets; light to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro

from maskery.core.errors import ConfigError
from maskery.core.ranges import Range
from maskery.data.images.config import ViewConfig
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.masking.config import MaskingConfig
from maskery.runs.image_text.config import ImageTextRunConfig, PairsTrainingConfig
from maskery.tasks.image_text_config import PersonSearchConfig

PresetName = Literal["small", "rasa", "albef"]
NO_MODEL = ""
EPOCHS = 30


@dataclass(frozen=True, kw_only=True)
class PersonSearchRunConfig(ImageTextRunConfig):
    """Train text-based person search: find people by their descriptions."""

    kind: ClassVar[str] = "person-search"

    data: Annotated[PersonSearchDataConfig, tyro.conf.OmitArgPrefixes]
    weak_pair_probability: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Chance that a picture is contrasted and matched with any caption of its person (RaSa)."""
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

    def require_start(self) -> None:
        """Raise a ConfigError if nothing is named to start from, as in presets of large models."""
        if self.text_model is None and not self.model:
            raise ConfigError(
                "no model is named to start from: give --model the folder that maskery convert "
                "ALBEF.pth writes, or --text-model and --vision-model"
            )

    def anchored(self) -> Self:
        """Return the same with absolute paths, which mean the same from any folder."""
        return replace(super().anchored(), data=self.data.anchored())


def rasa(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """RaSa as released (Bai et al., IJCAI 2023; `configs/PS_cuhk_pedes.yaml`).

    Thirteen pairs on each of four GPUs, 30 epochs, a cosine from 1e-5 to 1e-6, 1e-4 for the two
    heads that ALBEF lacks, no clipping, soft labels warmed up over the first epoch. It starts from
    ALBEF's checkpoint, converted.
    """
    # What is not set here is so by default: the defaults are RaSa's.
    return PersonSearchRunConfig(
        data=data,
        model=NO_MODEL,
        view=ViewConfig(flip_probability=0.5),
        objectives=PersonSearchConfig(alpha_warmup=1 / EPOCHS),
        training=PairsTrainingConfig(
            epochs=EPOCHS,
            batch_pairs=52,
            micro_batch_pairs=13,
            learning_rate=1e-5,
            head_learning_rate=1e-4,
            weight_decay=0.02,
            warmup_share=0.0,
            lr_schedule="cosine",
            lr_floor=0.1,
            clip_norm=0.0,
        ),
    )


def albef(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """ALBEF's pre-training objective (Li et al., NeurIPS 2021) on persons, otherwise as `rasa`.

    Contrast between images and texts alone, matching and masked words, all of weight 1, on the
    picture's own captions; no relations and no replaced words.
    """
    run = rasa(data)
    objectives = replace(
        run.objectives, itc_weight=1.0, prd_weight=0.0, mrtd_weight=0.0, within_modality=False
    )
    return replace(run, weak_pair_probability=0.0, objectives=objectives)


def small(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """A model from scratch on small pictures, for two cores and minutes.

    Most of what a small model learns in minutes comes from the contrast; matching teaches the
    fusion layer. Muon learns several times as much from a step as AdamW. The twin follows
    fast and the queue is short, for runs of few steps. Candidates are ranked by matching and
    similarity together, the odds of matching at a fifth of their weight: in minutes the contrast
    learns more than matching does.
    """
    return PersonSearchRunConfig(
        data=data,
        model="scratch:search",
        masking=MaskingConfig(policy="word", mask_rate=0.3),
        objectives=PersonSearchConfig(
            itc_weight=1.0,
            itm_weight=0.5,
            mlm_weight=0.0,
            prd_weight=0.0,
            mrtd_weight=0.0,
            momentum=0.98,
            alpha=0.0,
            queue_size=1024,
        ),
        retrieval=RetrievalConfig(rerank=16, score="sum", odds_weight=0.2),
        training=PairsTrainingConfig(
            epochs=3, batch_pairs=32, optimiser="muon", learning_rate=1e-3
        ),
    )


PRESETS: dict[PresetName, Callable[[PersonSearchDataConfig], PersonSearchRunConfig]] = {
    "small": small,
    "rasa": rasa,
    "albef": albef,
}


def preset_without_data(name: PresetName, missing: Any) -> PersonSearchRunConfig:
    """Return a preset with a stand-in for the dataset and its folder, as parsing flags needs it."""
    return PRESETS[name](PersonSearchDataConfig(dataset=missing, root=missing))
