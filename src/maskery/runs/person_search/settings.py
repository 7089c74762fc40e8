"""Retrieval settings of models, read from the run that made them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from maskery.evaluation.image_text.opening import OpenImageText, open_image_text
from maskery.evaluation.retrieval.config import ModelRetrieval, read_model_retrieval
from maskery.objectives.terms import TERMS
from maskery.runs.frame.config_file import CONFIG, load_config, run_kind
from maskery.runs.frame.run_folder import MODEL
from maskery.runs.person_search.config import PersonSearchRunConfig


def retrieval_of(
    config: PersonSearchRunConfig, trained: tuple[str, ...] | None = None
) -> ModelRetrieval:
    """Return the settings saved with a model; `trained` are by default the terms that are on."""
    return ModelRetrieval(
        clean_captions=config.data.clean_captions,
        max_words=config.data.max_words,
        max_length=config.max_length,
        rerank=config.retrieval.rerank,
        score=config.retrieval.score,
        odds_weight=config.retrieval.odds_weight,
        trained=tuple(config.objectives.weights) if trained is None else trained,
    )


def released_retrieval(missing: Iterable[str]) -> ModelRetrieval:
    """Return retrieval settings for released ALBEF and RaSa checkpoints.

    Its `Retrieval.py` and `configs/PS_cuhk_pedes.yaml` (Bai et al., IJCAI 2023): cleaned captions
    of 50 words, cut at 50 tokens, and the 128 most similar pictures ranked by the logit of a match.
    `missing` are parameters of the model that the checkpoint lacks.
    """
    absent = tuple(missing)
    trained = [
        name for name, term in TERMS.items() if not any(term.trains(head) for head in absent)
    ]
    return ModelRetrieval(
        clean_captions=True,
        max_words=50,
        max_length=50,
        rerank=128,
        score="matching",
        trained=tuple(trained),
    )


def run_config_of(folder: Path) -> PersonSearchRunConfig | None:
    """Return the configuration of the run that a folder, or the model in it, belongs to."""
    if folder.name == MODEL and run_kind(folder) is None:
        folder = folder.parent
    if run_kind(folder) != PersonSearchRunConfig.kind:
        return None
    return load_config(folder / CONFIG, PersonSearchRunConfig)


def known_retrieval(name: str) -> ModelRetrieval | None:
    """Return the retrieval settings in a model's own file or, of older models, of its run."""
    found = read_model_retrieval(name)
    if found is not None:
        return found
    config = run_config_of(Path(name))
    return None if config is None else retrieval_of(config)


def finds_alone(name: str) -> bool:
    """Return True if an image-text model is known to find pictures, and not to fill words."""
    known = known_retrieval(name)
    return known is not None and "itc" in known.trained and "mlm" not in known.trained


def open_for_retrieval(name: str) -> OpenImageText:
    """`open_image_text`, with everything that is known of the model."""
    opened = open_image_text(name)
    return replace(opened, retrieval=known_retrieval(name) or opened.retrieval)
