"""Settings of text-to-image retrieval; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maskery.core.errors import ConfigError

SCORES = ("matching", "odds", "sum")


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Contrastive ranking, then the matching head on the best of each text."""

    rerank: int = 128
    """Best images of each text that the matching head ranks anew (RaSa's k); 0: contrastive only.
    Time grows with it; more than there are images is all of them."""
    score: Literal["matching", "odds", "sum"] = "matching"
    """What they are ranked by: the logit of a match, as ALBEF and RaSa were released; odds: less
    the logit of a mismatch; sum: the odds and the similarity over the temperature."""
    odds_weight: float = 1.0
    """What the odds count for in the sum; less where matching has learnt less than contrast."""
    batch_images: int = 32
    """Images encoded at once; the figures do not depend on it."""
    batch_tokens: int = 4096
    """Text tokens computed at once; the figures do not depend on it."""
    memory_mb: int = 1024
    """Megabytes for image tokens, beyond which they are kept in a temporary file (in TMPDIR); and
    as many for projected images and similarities. The figures do not depend on it."""

    def __post_init__(self) -> None:
        if self.rerank < 0:
            raise ConfigError(f"rerank is {self.rerank}: it must be 0 (do not) or more")
        if self.score not in SCORES:
            raise ConfigError(f"score is '{self.score}': it must be one of {', '.join(SCORES)}")
        if not 0.0 <= self.odds_weight < float("inf"):
            raise ConfigError(f"odds_weight is {self.odds_weight}: it must be 0 or more")
        for name in ("batch_images", "batch_tokens", "memory_mb"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")

    @property
    def memory_bytes(self) -> int:
        """`memory_mb` in bytes."""
        return self.memory_mb * 1_000_000
