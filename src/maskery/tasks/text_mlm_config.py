"""Text objectives by name, and their settings; light to import, for flags and help."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from maskery.core.errors import ConfigError
from maskery.core.ranges import Range, Settings, Share, number_or_word
from maskery.core.registry import Registry, is_plugin

if TYPE_CHECKING:
    from maskery.core.task import Task
    from maskery.tasks.text_mlm import TextParts

DEFAULT_MOMENTUM = 0.995
MRTD = "mlm+mrtd"
DIFFUSION = "diffusion"
AUTO_OFF = ("auto", "off")
NEED_NO_TWIN = ("objective", "keep_embedding", "time_sampling")

OBJECTIVES: "Registry[Callable[[TextParts], Task[Any, Any]]]" = Registry(
    "--objective",
    "a callable that makes a Task (maskery.core.task) from TextParts (maskery.tasks.text_mlm)",
    {
        "mlm": "maskery.tasks.text_mlm:text_mlm",
        MRTD: "maskery.tasks.momentum_text:momentum_text_mlm",
        DIFFUSION: "maskery.tasks.text_mlm:diffusion",
    },
)
register_objective = OBJECTIVES.register


@dataclass(frozen=True, kw_only=True)
class TextMLMConfig(Settings):
    """Masked language modelling of text, alone or with a momentum twin."""

    objective: str = "mlm"
    """mlm; mlm+mrtd: also say of every word whether the momentum twin replaced it (RaSa's MRTD);
    diffusion: masked at any rate, so that it also writes text; or FILE.py:NAME, one of your own."""
    time_sampling: Literal["uniform", "bell"] = "uniform"
    """How --objective diffusion draws rates t of masking: bell, more of them around 1/2."""
    keep_embedding: str = "auto"
    """Weight that holds the vector of each text to the start's, so that its vectors stay good; off:
    none. auto: 10 where a sentence encoder is trained by mlm."""
    momentum: Share | None = None
    """Share of its weights that the momentum twin keeps at each optimiser step. Default: 0.995 with
    mlm+mrtd; with mlm there is a twin only where this is set."""
    alpha: Share = 0.4
    """Weight of the twin's soft labels, once warmed up, against the true words; 0: none."""
    alpha_warmup: Share = 0.067
    """The share of the run over which alpha rises from 0 (RaSa: 2 of 30 epochs)."""
    mrtd_weight: Annotated[
        float, Range(0, above=True, hint="to leave the term out, use --objective mlm")
    ] = 0.5
    """Weight of the replaced token detection loss."""
    mrtd_mask_rate: Annotated[float, Range(0, 1, above=True, below=True, hint="try 0.3")] = 0.3
    """Share of the words that the twin fills anew for replaced token detection (RaSa)."""
    twin_train_mode: bool = False
    """Leave dropout on in the momentum twin, as ALBEF and RaSa were released."""

    def __post_init__(self) -> None:
        OBJECTIVES.check(self.objective)
        super().__post_init__()
        if self.keep_weight and (self.objective != "mlm" or self.has_twin):
            rule = "it goes with --objective mlm alone, without a momentum twin; use auto or off"
            raise ConfigError(f"keep_embedding is {self.keep_embedding}: {rule}")
        # Which settings an objective of the user's own reads is not known here.
        if not is_plugin(self.objective):
            self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        given = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        if self.time_sampling != "uniform" and self.objective != DIFFUSION:
            raise ConfigError("time_sampling is set: it needs --objective diffusion")
        if self.momentum is not None and self.objective == DIFFUSION:
            rule = "the twin learns by --objective mlm or mlm+mrtd, not diffusion"
            raise ConfigError(f"momentum is set: {rule}; leave out one of them")
        for name in given:
            if name.startswith("mrtd_") and not self.detects:
                raise ConfigError(f"{name} is set: it needs --objective mlm+mrtd")
            if not self.has_twin and name not in NEED_NO_TWIN:
                fix = f"add --momentum {DEFAULT_MOMENTUM} or --objective mlm+mrtd"
                raise ConfigError(f"{name} is set, and there is no momentum twin; {fix}")
        if self.has_twin and not self.detects and self.alpha == 0.0:
            fix = "raise it, leave out --momentum, or use --objective mlm+mrtd"
            raise ConfigError(f"alpha is 0, so the momentum twin would teach nothing; {fix}")

    @property
    def keep_weight(self) -> float:
        """The weight of `--keep-embedding`; 0 for off, and for auto until a run has chosen."""
        above_0 = Range(0, above=True, hint="try 10")
        return number_or_word("keep_embedding", self.keep_embedding, AUTO_OFF, above_0) or 0.0

    @property
    def detects(self) -> bool:
        """True with replaced token detection."""
        return self.objective == MRTD

    @property
    def has_twin(self) -> bool:
        """True with a momentum twin."""
        return self.momentum is not None or self.detects

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weight of each loss term."""
        return {"mlm": 1.0, "mrtd": self.mrtd_weight} if self.detects else {"mlm": 1.0}

    def alpha_at(self, progress: float) -> float:
        """Return alpha after the share `progress` of the run, in [0, 1)."""
        if progress >= self.alpha_warmup:
            return self.alpha
        return self.alpha * progress / self.alpha_warmup
