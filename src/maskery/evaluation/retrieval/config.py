"""Settings of text-to-image retrieval, and those saved with a model; light to import.

How a model reads captions, its score and its losses cannot be told from its weights, and it is
copied without its run: so `maskery_retrieval.json` lies beside them. Without it they are guessed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

from maskery.core.errors import ConfigError, ModelError, reason_of
from maskery.core.ranges import Count, Range, Settings, Weight
from maskery.data.person_search.config import clean_caption
from maskery.objectives.terms import TERMS

# Names of figures in tables, by the fields of `maskery.evaluation.retrieval.metrics`.
LABELS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "map": "mAP", "minp": "mINP"}
FILE = "maskery_retrieval.json"


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Settings):
    """Contrastive ranking, then the matching head on the best of each text."""

    rerank: Annotated[int, Range(0)] = 128
    """Best images of each text that the matching head ranks anew (RaSa's k); 0: contrastive only.
    Time grows with it; more than there are images is all of them."""
    score: Literal["matching", "odds", "sum"] = "matching"
    """Score of those: the logit of a match, as ALBEF and RaSa were released; odds: less the
    logit of a mismatch; sum: the odds and the similarity over the temperature."""
    odds_weight: Weight = 1.0
    """Weight of the odds in the sum; lower where matching has learnt less than contrast."""
    batch_images: Count = 32
    """Images encoded at once; the figures do not depend on it."""
    batch_tokens: Count = 4096
    """Text tokens computed at once; the figures do not depend on it."""
    memory_mb: Count = 1024
    """Megabytes for image tokens, beyond which they are kept in a temporary file (in TMPDIR); and
    as many for projected images and similarities. The figures do not depend on it."""

    @property
    def memory_bytes(self) -> int:
        """`memory_mb` in bytes."""
        return self.memory_mb * 1_000_000


@dataclass(frozen=True, kw_only=True)
class ModelRetrieval(Settings):
    """Retrieval settings saved with a model: how it reads captions and ranks pictures."""

    clean_captions: bool = False  # true if captions were lower-cased and stripped of punctuation
    max_words: Count = 50  # most words of a cleaned caption
    max_length: Annotated[int | None, Range(3)] = None  # most tokens; None: the model's positions
    rerank: Annotated[int, Range(0)] = 128  # best pictures that the matching head ranks anew
    score: Literal["matching", "odds", "sum"] = "matching"  # their score; see `RetrievalConfig`
    odds_weight: Weight = 1.0  # of the score `sum`
    trained: tuple[str, ...] = ()  # built-in loss terms whose heads are trained, by them or others

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.trained:
            if name not in tuple(TERMS):  # what a damaged file holds may have no hash
                raise ConfigError(f"trained has {name!r}: the losses are {', '.join(TERMS)}")

    @property
    def ranking(self) -> RetrievalConfig:
        """Settings of retrieval with the model's own score."""
        return RetrievalConfig(rerank=self.rerank, score=self.score, odds_weight=self.odds_weight)

    def prepare(self, caption: str) -> str:
        """Return a caption as the model was trained to read it."""
        return clean_caption(caption, self.max_words) if self.clean_captions else caption


KINDS: Mapping[str, tuple[type, ...]] = {
    "clean_captions": (bool,),
    "max_words": (int,),
    "max_length": (int, NoneType),
    "rerank": (int,),
    "score": (str,),
    "odds_weight": (float, int),
    "trained": (list,),
}


def save_model_retrieval(folder: Path, retrieval: ModelRetrieval) -> None:
    """Write the file into a model folder."""
    (folder / FILE).write_text(f"{json.dumps(asdict(retrieval), indent=1)}\n", "utf-8")


def read_model_retrieval(name: str) -> ModelRetrieval | None:
    """Read the retrieval settings saved with a model; None where there are none."""
    from maskery.models.loading import resolve

    path = Path(resolve(name)) / FILE
    try:
        data: Any = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or data.keys() != KINDS.keys():
            raise ConfigError(f"it must have the settings {', '.join(KINDS)} and no others")
        for setting, kinds in KINDS.items():
            if type(data[setting]) not in kinds:
                wanted = " or ".join("null" if k is NoneType else k.__name__ for k in kinds)
                raise ConfigError(f"{setting} is {data[setting]!r}: it must be {wanted}")
        return ModelRetrieval(**{**data, "trained": tuple(data["trained"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        fix = "restore it, or remove it to have what it says guessed"
        raise ModelError(f"'{path}' is damaged ({reason_of(error)}); {fix}") from error
