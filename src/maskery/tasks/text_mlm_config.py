"""What a text run learns from; light to import, so that flags and help are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from maskery.core.errors import ConfigError

Objective = Literal["mlm", "mlm+mrtd"]
DEFAULT_MOMENTUM = 0.995


@dataclass(frozen=True, kw_only=True)
class TextMLMConfig:
    """Masked language modelling of text, alone or with a momentum twin."""

    objective: Objective = "mlm"
    """mlm+mrtd: also say of every word whether the momentum twin replaced it (RaSa's MRTD)."""
    momentum: float | None = None
    """What the momentum twin keeps of its weights at each optimiser step. Default: 0.995 with
    mlm+mrtd; with mlm there is a twin only where this is set."""
    alpha: float = 0.4
    """Weight of the twin's soft labels, once warmed up, against the true words; 0: none."""
    alpha_warmup: float = 0.067
    """The share of the run over which alpha rises from 0 (RaSa: 2 of 30 epochs)."""
    mrtd_weight: float = 0.5
    """Weight of the replaced token detection loss."""
    mrtd_mask_rate: float = 0.3
    """Share of the words that the twin fills anew for replaced token detection (RaSa)."""
    twin_train_mode: bool = False
    """Leave dropout on in the momentum twin, as ALBEF and RaSa were released."""

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ConfigError(
                f"objective is '{self.objective}': it must be one of "
                f"{', '.join(get_args(Objective))}"
            )
        for name in ("momentum", "alpha", "alpha_warmup"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} is {value}: it must be from 0 to 1")
        if not 0.0 < self.mrtd_weight < float("inf"):
            raise ConfigError(
                f"mrtd_weight is {self.mrtd_weight}: it must be above 0; to leave the term out, "
                f"use --objective mlm"
            )
        if not 0.0 < self.mrtd_mask_rate < 1.0:
            raise ConfigError(
                f"mrtd_mask_rate is {self.mrtd_mask_rate}: it must lie between 0 and 1; try 0.3"
            )
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        detects = self.objective == "mlm+mrtd"
        for field in fields(self):
            if getattr(self, field.name) == field.default or field.name in (
                "objective",
                "momentum",
            ):
                continue
            if field.name.startswith("mrtd_") and not detects:
                raise ConfigError(f"{field.name} is set: it needs --objective mlm+mrtd")
            if not self.has_twin:
                raise ConfigError(
                    f"{field.name} is set, and there is no momentum twin; add --momentum "
                    f"{DEFAULT_MOMENTUM} or --objective mlm+mrtd"
                )
        if self.has_twin and not detects and self.alpha == 0.0:
            raise ConfigError(
                "alpha is 0, so the momentum twin would teach nothing; raise it, leave out "
                "--momentum, or use --objective mlm+mrtd"
            )

    @property
    def has_twin(self) -> bool:
        """Whether there is a momentum twin."""
        return self.momentum is not None or self.objective == "mlm+mrtd"

    @property
    def weights(self) -> Mapping[str, float]:
        """By loss term, its weight."""
        return {"mlm": 1.0, "mrtd": self.mrtd_weight} if "mrtd" in self.objective else {"mlm": 1.0}

    def alpha_at(self, progress: float) -> float:
        """Alpha after the share `progress` of the run, in [0, 1)."""
        if progress >= self.alpha_warmup:
            return self.alpha
        return self.alpha * progress / self.alpha_warmup
