"""Settings of runs on pairs and of person search, and presets; light to import."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from maskery.core.errors import ConfigError
from maskery.core.flags import conf
from maskery.core.ranges import Count, Range, Settings, Weight
from maskery.data.corpus.config import VocabularyConfig
from maskery.data.images.config import ViewConfig
from maskery.data.pairs.config import PairsConfig
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.retrieval.config import ModelRetrieval, RetrievalConfig
from maskery.masking.config import MaskingConfig
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.objectives.terms import TERMS
from maskery.tasks.image_text_config import ImageTextMLMConfig, PersonSearchConfig
from maskery.training.config import BaseTrainingConfig

SCRATCH = "scratch:"
Part = partial(Range, 0, 1, above=True, below=True)  # neither nothing nor all
NO_MODEL = ""  # In presets of large models, whose start the user must name
EPOCHS = 30
# The weights of all loss terms, for presets that have few of them.
OFF: dict[str, Any] = dict.fromkeys((term.flag for term in TERMS.values()), 0.0)
# In RaSa's training as released, and in IRRA's.
RELEASED: dict[str, Any] = {"learning_rate": 1e-5, "lr_schedule": "cosine", "clip_norm": 0.0}
DRAWN_PEOPLE = "drawn-people"  # in --score-words, stands for their colours and garments
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


@conf.configure(conf.OmitArgPrefixes)
@dataclass(frozen=True, kw_only=True)
class ImageTextRunConfig(VocabularyConfig):
    """Settings that every image-text run has; see `PairsRunConfig`, `PersonSearchRunConfig`."""

    kind: ClassVar[str]
    # Heads that learn at the rate of new ones although a checkpoint may have them.
    NEW_HEADS: ClassVar[tuple[str, ...]] = ()

    model: str = "scratch:tiny"
    """An image-text model folder (from convert or a run), a CLIP, SigLIP or SigLIP 2 (folder or hub
    name, both towers), or scratch:tiny, scratch:search, scratch:small."""
    fusion_layers: Annotated[int, Range(0, hint="IRRA has {flag} 4")] = 0
    """Layers of IRRA's fusion encoder on top of a CLIP or SigLIP, for words that look at the
    picture (MLM, matching); 0: a dual encoder alone."""
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
    view: ViewConfig = ViewConfig()
    masking: MaskingConfig = MaskingConfig()
    mrtd_mask_rate: Annotated[float, Part(hint="try {flag} 0.3")] = 0.3
    """Share of the words that the momentum twin fills anew for replaced token detection (RaSa)."""
    objectives: ImageTextMLMConfig = ImageTextMLMConfig()
    training: PairsTrainingConfig = PairsTrainingConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text_model is None) != (self.vision_model is None):
            problem = "--text-model and --vision-model belong together"
            raise ConfigError(f"{problem}: give both, or neither and --model")
        if self.text_model is None and self.fusion_layer is not None:
            raise ConfigError("--fusion-layer needs --text-model and --vision-model")
        if (self.view.height is None) != (self.view.width is None):
            raise ConfigError("--height and --width belong together: give both, or neither")
        size = self.model.removeprefix(SCRATCH)
        if self.text_model is None and self.model.startswith(SCRATCH) and size not in SIZES:
            sizes = ", ".join(SCRATCH + name for name in SIZES)
            raise ConfigError(f"{self.model} is no size; choose {sizes}")
        if not self.objectives.learns:
            problem = "all weights are 0, so nothing would be learnt"
            raise ConfigError(f"{problem}; raise --mlm-weight or --itc-weight")

    @property
    def start(self) -> str:
        """The name of the model that the run starts from."""
        if self.text_model is not None and self.vision_model is not None:
            return f"{Path(self.text_model).name}+{Path(self.vision_model).name}"
        return self.model


@dataclass(frozen=True, kw_only=True)
class PairsRunConfig(ImageTextRunConfig):
    """Train masked language modelling with pictures: on any image-caption data."""

    kind: ClassVar[str] = "pairs"

    pairs: Annotated[str, conf.Positional, conf.arg(metavar="PAIRS")]
    """A .json .jsonl .csv .tsv .parquet or .tar file or pattern, or a folder with metadata."""
    eval_pairs: str | None = None
    """Held-out pairs of their own; their pictures are not trained on. Default: the test split, or a
    share of the pairs."""
    held_out_share: Annotated[float, Part(hint="try {flag} 0.1")] = 0.1
    """Share of the pictures (persons, where named) that is held out, chosen by a hash."""
    score_words: tuple[str, ...] = ()
    """Words scored one at a time on held-out captions; grey|gray count for each other; drawn-people
    stands for the colours and garments of drawn people."""
    reading: PairsConfig = PairsConfig()
    masking: MaskingConfig = MaskingConfig(policy="word", mask_rate=0.4)
    objectives: ImageTextMLMConfig = ImageTextMLMConfig(itc_weight=0.5)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ConfigError("no pairs are named: give a file, a pattern or a folder")
        super().__post_init__()
        column = self.reading.group_column
        if column is not None and self.eval_pairs is not None:
            problem = f"--group-column {column} and --eval-pairs do not go together"
            why = "with held-out pairs of their own nothing is split"
            raise ConfigError(f"{problem}: {why}; leave out one of them")

    def anchored(self) -> Self:
        """Return the same with absolute paths, which mean the same from any folder."""
        held = None if self.eval_pairs is None else str(Path(self.eval_pairs).absolute())
        return replace(super().anchored(), pairs=str(Path(self.pairs).absolute()), eval_pairs=held)


@dataclass(frozen=True, kw_only=True)
class PersonSearchRunConfig(ImageTextRunConfig):
    """Train text-based person search: find people by their descriptions."""

    kind: ClassVar[str] = "person-search"
    # RaSa trains these two, which ALBEF does not have, at a rate of their own.
    NEW_HEADS = ("prd_head", "mrtd_head")

    data: PersonSearchDataConfig
    weak_pair_probability: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Chance that a picture is contrasted and matched with any caption of its person (RaSa)."""
    objectives: PersonSearchConfig = PersonSearchConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    training: PairsTrainingConfig = PairsTrainingConfig()
    """Held-out figures are computed every --eval-every steps. Default: every epoch."""


def rasa(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """RaSa as released (Bai et al., IJCAI 2023; `configs/PS_cuhk_pedes.yaml`)."""
    # What is not set here is so by default: the defaults are RaSa's.
    return PersonSearchRunConfig(
        data=data,
        model=NO_MODEL,  # ALBEF's checkpoint, converted
        view=ViewConfig(flip_probability=0.5),
        objectives=PersonSearchConfig(alpha_warmup=1 / EPOCHS),  # over the first epoch
        training=PairsTrainingConfig(
            **RELEASED,
            epochs=EPOCHS,
            batch_pairs=52,  # of four GPUs
            micro_batch_pairs=13,
            head_learning_rate=1e-4,  # of the two heads that ALBEF lacks
            weight_decay=0.02,
            warmup_share=0.0,
            lr_floor=0.1,  # a cosine from 1e-5 to 1e-6
        ),
    )


def albef(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """ALBEF's pre-training objective (Li et al., NeurIPS 2021) on persons, otherwise as `rasa`."""
    run = rasa(data)
    # No relations, no replaced words, contrast between images and texts alone.
    objectives = replace(
        run.objectives, itc_weight=1.0, prd_weight=0.0, mrtd_weight=0.0, within_modality=False
    )
    return replace(run, weak_pair_probability=0.0, objectives=objectives)  # its own captions alone


def clip(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """CLIP's own loss, trained as IRRA's baseline (Jiang and Ye, CVPR 2023; `run_irra.sh`)."""
    view = ViewConfig(height=384, width=128, pad=10, erase_probability=0.5, erase_scale=(0.02, 0.4))
    return PersonSearchRunConfig(
        data=replace(data, clean_captions=False),
        model=NO_MODEL,  # ViT-B/16 of CLIP
        weak_pair_probability=0.0,
        view=view,
        objectives=PersonSearchConfig(**OFF, term=("infonce",), alpha=0.0, queue_size=1),
        retrieval=RetrievalConfig(rerank=0),
        training=PairsTrainingConfig(
            **RELEASED, epochs=60, head_learning_rate=5e-5, weight_decay=4e-5, warmup_share=5 / 60
        ),
    )


def irra(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """IRRA: identities, and masked words under four fusion layers, beside SDM."""
    run = replace(clip(data), fusion_layers=4)
    return replace(run, objectives=replace(run.objectives, term=("sdm", "id"), mlm_weight=1.0))


def rde(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """RDE's loss (Qin et al., CVPR 2024) of global features, with doubt in captions."""
    run = clip(data)
    # The queue is what a caption's share of strangers is counted in.
    objectives = replace(run.objectives, term=("tal",), doubt=True, queue_size=1024)
    return replace(run, objectives=objectives)


def small(data: PersonSearchDataConfig) -> PersonSearchRunConfig:
    """A model from scratch on small pictures, for two cores and minutes."""
    return PersonSearchRunConfig(
        data=data,
        model="scratch:search",
        masking=MaskingConfig(policy="word", mask_rate=0.3),
        objectives=PersonSearchConfig(
            # From a trained start similarity alone finds 91% of drawn people in 91 s; with matching
            # 88%, and 89% ranked anew, in 122 s.
            **(OFF | {"itc_weight": 1.0}),
            # For runs of few steps the twin follows fast and the queue is short.
            momentum=0.98,
            alpha=0.0,
            queue_size=1024,
        ),
        # For --itm-weight 0.5 --rerank 16: in minutes the contrast learns more than matching does.
        retrieval=RetrievalConfig(rerank=0, score="sum", odds_weight=0.2),
        # Muon learns several times as much from a step as AdamW. The decay is strong: R@1 after an
        # epoch of drawn people is 52% with 0.01, 60% with 0.15, 74% with 0.4 and 66% with 1.
        training=PairsTrainingConfig(
            epochs=3, batch_pairs=32, optimiser="muon", learning_rate=1e-3, weight_decay=0.3
        ),
    )


PRESETS = {preset.__name__: preset for preset in (small, rasa, albef, irra, rde, clip)}


def preset_without_data(name: str, missing: Any) -> PersonSearchRunConfig:
    """Return a preset with a stand-in for the dataset and its folder, as parsing flags needs it."""
    return PRESETS[name](PersonSearchDataConfig(dataset=missing, root=missing))


@dataclass(frozen=True, kw_only=True)
class Overrides(Settings):
    """The user's overrides where a model or a run is measured; what is not given stays its own."""

    root: Annotated[Path | None, conf.arg(metavar="DIR")] = None
    """The folder of the run's dataset now. Default: where it was."""
    images: Annotated[Path | None, conf.arg(metavar="DIR")] = None
    """Likewise the folder that its image paths are relative to."""
    rerank: Annotated[int | None, Range(0)] = None
    """The best pictures of each caption that the matching head ranks anew; 0: none. Default: the
    model's, or 128."""
    score: Literal["matching", "odds", "sum"] | None = None
    """The ranking of those, as in train person-search. Default: the model's, or matching."""
    odds_weight: Weight | None = None
    """The weight of the odds in --score sum. Default: the model's, or 1."""
    clean_captions: Literal["auto", "yes", "no"] = "auto"
    """Lower-case captions and strip them of punctuation. auto: as the captions were that the model
    was trained on, where that is known."""
    batch_tokens: Annotated[int | None, Range(8)] = None
    """Text tokens computed at once; the figures do not depend on it. Default: the run's or
    4096."""
    memory_mb: Count | None = None
    """Megabytes for image tokens, beyond which they are kept in a temporary file (in TMPDIR); the
    figures do not depend on it. Default: the run's, or 1024."""

    def of(self, *names: str) -> dict[str, Any]:
        """Return the overrides of these names that are set."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def of_model(self, retrieval: ModelRetrieval) -> ModelRetrieval:
        """Return a model's settings with the overrides."""
        changed = self.of("rerank", "score", "odds_weight")
        if self.clean_captions != "auto":
            changed["clean_captions"] = self.clean_captions == "yes"
        return replace(retrieval, **changed)

    def of_data(
        self, data: PersonSearchDataConfig, retrieval: ModelRetrieval
    ) -> PersonSearchDataConfig:
        """Return where a run's dataset lies now, its captions prepared as a model reads them."""
        clean, words = retrieval.clean_captions, retrieval.max_words
        return replace(data, **self.of("root", "images"), clean_captions=clean, max_words=words)
