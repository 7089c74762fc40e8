"""What a model folder says about finding pictures with its model: `maskery_retrieval.json`.

How captions were prepared, what candidates are ranked by and which losses made the model cannot be
told from weights, and a model is copied without the run that it comes from. So this lies beside
them. Of a folder without the file it is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from maskery.core.errors import ConfigError, ModelError, reason_of
from maskery.data.person_search.config import clean_caption
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.models.image_text.class_token import fusion_layers
from maskery.models.image_text.model import ImageTextModel
from maskery.models.loading import resolve
from maskery.objectives.terms import TERMS

FILE = "maskery_retrieval.json"
LOSSES = tuple(TERMS)


@dataclass(frozen=True, kw_only=True)
class ModelRetrieval:
    """How a model reads captions and ranks pictures.

    Attributes:
        clean_captions: Whether captions were lower-cased and stripped of punctuation.
        max_words: Most words of a cleaned caption.
        max_length: Most tokens of a caption; None for as many as the model has positions.
        rerank: Best pictures of each caption that the matching head ranks anew.
        score: What they are ranked by; see `RetrievalConfig`.
        odds_weight: Of the score `sum`.
        trained: The built-in loss terms whose heads the run that made the model trained, by these
            terms or by others that share them.
    """

    clean_captions: bool = False
    max_words: int = 50
    max_length: int | None = None
    rerank: int = 128
    score: Literal["matching", "odds", "sum"] = "matching"
    odds_weight: float = 1.0
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ConfigError(f"max_words is {self.max_words}: it must be at least 1")
        if self.max_length is not None and self.max_length < 3:
            raise ConfigError(f"max_length is {self.max_length}: it must be at least 3")
        unknown = sorted(set(self.trained) - set(LOSSES))
        if unknown:
            raise ConfigError(f"trained has '{unknown[0]}': the losses are {', '.join(LOSSES)}")
        assert self.ranking  # checks what it is made of

    @property
    def ranking(self) -> RetrievalConfig:
        """The same as settings of retrieval."""
        return RetrievalConfig(rerank=self.rerank, score=self.score, odds_weight=self.odds_weight)

    def prepare(self, caption: str) -> str:
        """A caption as the model was trained to read it."""
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
    """What a model's own file says; None where it has none.

    Args:
        name: A run folder or a model folder.

    Raises:
        ModelError: The file is damaged.
    """
    path = Path(resolve(name)) / FILE
    try:
        return _checked(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise ModelError(
            f"'{path}' is damaged ({reason_of(error)}); restore it, or remove it to have what it "
            f"says guessed"
        ) from error


def _checked(data: Any) -> ModelRetrieval:
    """The settings that were read from a file.

    Raises:
        ConfigError: They are not the ones that are written.
    """
    if not isinstance(data, dict) or data.keys() != KINDS.keys():
        raise ConfigError(f"it must have the settings {', '.join(KINDS)} and no others")
    for name, kinds in KINDS.items():
        if type(data[name]) not in kinds:
            wanted = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise ConfigError(f"{name} is {data[name]!r}: it must be {wanted}")
    for name in data["trained"]:
        if not isinstance(name, str):
            raise ConfigError(f"trained has {name!r}: the losses are {', '.join(LOSSES)}")
    return ModelRetrieval(**{**data, "trained": tuple(data["trained"])})


def guess_model_retrieval(model: ImageTextModel) -> ModelRetrieval:
    """What is likely of a model without a file: nothing but which losses made it.

    Biases start at exactly zero, and no optimiser leaves a trained one there. The bias over the
    vocabulary does not: it may start at the words' frequencies, so that head counts as trained.
    """
    trained = ["mlm"]
    if bool(model.text_proj.bias.any()) and bool(model.vision_proj.bias.any()):
        trained.append("itc")
    if fusion_layers(model.text_encoder) and bool(model.itm_head.bias.any()):
        trained.append("itm")
    return ModelRetrieval(trained=tuple(trained))
