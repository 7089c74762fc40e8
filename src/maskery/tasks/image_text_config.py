"""Settings of the image-text tasks; light to import, so that flags and help are made from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeAlias

from maskery.core.errors import ConfigError
from maskery.core.flags import conf
from maskery.core.ranges import Count, Range, Settings, Share
from maskery.core.registry import plugin_identity, split_weight
from maskery.objectives.terms import TERMS, Term, chosen_weights

TermWeight: TypeAlias = Annotated[float, Range(0, hint="0 leaves the term out")]


@dataclass(frozen=True, kw_only=True)
class ImageTextMLMConfig(Settings):
    """Masked language modelling and replaced token detection on image-caption pairs."""

    mlm_weight: TermWeight = 1.0
    """Weight of the masked language modelling loss."""
    mrtd_weight: TermWeight = 0.5
    """Weight of the replaced token detection loss; 0 leaves its passes out."""
    mrtd_start: Share = 0.0
    """Share of the run before which replaced words are left out. Their passes cost as much as all
    others, and from a twin that knows little yet there is little to detect."""
    itc_weight: TermWeight = 0.0
    """Weight of ALBEF's contrastive loss within the batch; helps small models learn to look."""
    term: Annotated[
        tuple[str, ...], conf.UseAppendAction, conf.arg(metavar="NAME=WEIGHT|FILE.py:NAME[=WEIGHT]")
    ] = ()
    """A loss term, with its weight (default 1): one of yours in a Python file, or itc, itm, mlm,
    prd, mrtd, and of dual encoders sdm, tal, infonce, sigmoid, id. Repeat the flag for more."""
    objective: Literal["mlm", "mlm+mrtd"] | None = None
    """Which word losses are on, as in train text: mlm alone, or with replaced token detection.
    Default: those whose weight is above 0."""
    momentum: Share = 0.995
    """Share of its weights that the momentum twin keeps at each optimiser step."""
    twin_train_mode: bool = False
    """Leave dropout on in the momentum twin, as ALBEF and RaSa were released."""
    alpha: Share = 0.4
    """Weight of the twin's soft labels, once warmed up, against the true words; 0: none."""
    alpha_warmup: Share = 0.067
    """The share of the run over which alpha rises from 0 (as released: the first epoch)."""
    distill_over: Literal["vocabulary", "sequence"] = "vocabulary"
    """Dimension of the soft-label log-softmax; `sequence` is the released code's."""
    mrtd_sample_at: Literal["masked", "every"] = "masked"
    """Places of sampled replacements: masked words, or every token as RaSa was released."""
    doubt: bool = False
    """Doubt captions that may be another person's: in losses of whole pairs a caption counts by how
    likely it is its picture's, as the twin finds them alike."""
    mlm_with_image: bool = True
    """Fill masked words with the picture's help; off to measure what the picture adds."""
    seed: Annotated[int, conf.Suppress, conf.Fixed, conf.arg(name="step-seed")] = 0
    """Seed of the sampled replacements and the drawn negatives; a run gives it its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen_weights(self.term, [term.name for term in self._terms()])

    @classmethod
    def _terms(cls) -> list[Term]:
        """The built-in terms that this kind of run has: those with a `*_weight` of theirs."""
        return [term for term in TERMS.values() if hasattr(cls, term.flag)]

    @property
    def weights(self) -> Mapping[str, float]:
        """By built-in loss term, its weight; terms of weight 0 are left out."""
        weights = {term.name: float(getattr(self, term.flag)) for term in self._terms()}
        if self.objective is not None:
            chosen = self.objective.split("+")
            for name, default in (("mlm", 1.0), ("mrtd", 0.5)):  # the defaults of the weights
                weights[name] = (weights[name] or default) if name in chosen else 0.0
        weights |= chosen_weights(self.term, weights)
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def learns(self) -> bool:
        """True if any term is on, of the user's own or built in."""
        own = {split_weight(choice)[0] for choice in self.term} - TERMS.keys()
        return bool(self.weights or own)

    def described(self) -> dict[str, Any]:
        """Return what decides the course of a run: the settings, plug-ins by their files' code."""
        # As runs of before these two settings wrote it down, where they are not used.
        unused = {name for name in ("term", "objective", "doubt") if not getattr(self, name)}
        described = {name: value for name, value in asdict(self).items() if name not in unused}
        if self.term:
            terms = map(split_weight, self.term)
            described["term"] = [f"{plugin_identity(name)}={weight:g}" for name, weight in terms]
        return described

    def alpha_at(self, progress: float) -> float:
        """Alpha after the share `progress` of the run, in [0, 1)."""
        if progress >= self.alpha_warmup:
            return self.alpha
        return self.alpha * progress / self.alpha_warmup


@dataclass(frozen=True, kw_only=True)
class PersonSearchConfig(ImageTextMLMConfig):
    """RaSa's five losses (IJCAI 2023, section 3.4); the defaults are its released settings.

    Only `alpha_warmup` is not: as a share of the run, its preset sets it to one epoch of 30.
    """

    itc_weight: TermWeight = 0.5
    """Weight of the contrastive loss."""
    itm_weight: TermWeight = 1.0
    """Weight of the matching loss."""
    prd_weight: TermWeight = 0.5
    """Weight of the relation loss."""
    within_modality: bool = True
    """Contrast images with images and texts with texts too (RaSa); ALBEF does not."""
    queue_size: Count = 65536
    """Features of earlier batches to contrast with."""
    min_temperature: float = 0.001
    """The learnt temperature is kept at or above this."""
    max_temperature: float = 0.5
    """The learnt temperature is kept at or below this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_temperature, self.max_temperature
        if not 0 < low <= high:
            rule = "the first must be positive and not above the second"
            raise ConfigError(f"the temperature is to stay from {low} to {high}: {rule}")
