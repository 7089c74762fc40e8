"""Text-to-image retrieval: contrastive ranking, then matching on the best of each text.

ALBEF (NeurIPS 2021, section 3.2) and RaSa (IJCAI 2023, section 4.1) rank a gallery by the
similarity of contrastive features, and rank the best k anew by the matching head. What lies beyond
the k keeps its contrastive order here; the released code leaves it in no particular order.

Shapes: T texts, I images, K = min(rerank, I) candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.core.processes import Processes
from maskery.core.random import Int64Array
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.features import (
    ReadImages,
    ReadTexts,
    read_images,
    read_texts,
    require_fusion,
)
from maskery.evaluation.retrieval.metrics import (
    RankingFigures,
    matches_of,
    rank,
    summarise_texts,
    text_figures,
)
from maskery.evaluation.retrieval.rerank import match_logits
from maskery.evaluation.text.masked import require_numbers
from maskery.models.image_text.model import ImageTextModel

log = logging.getLogger(__name__)

# Images kept per text when there is no re-ranking.
KEPT = 10


@dataclass(frozen=True, kw_only=True)
class RetrievalFigures:
    """Figures of texts that look for their images."""

    contrastive: RankingFigures  # by similarity alone
    # With the best K ranked anew by matching; None where that was not asked for.
    reranked: RankingFigures | None
    # Images finding their texts, by similarity; None where a person of the gallery has no text.
    image_to_text: RankingFigures | None
    chance: float  # R@1 of a ranking at random
    rerank: int  # K
    num_texts: int  # T
    num_images: int  # I
    num_persons: int  # persons that the texts describe


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Figures, and the rankings that they come from."""

    figures: RetrievalFigures  # of all texts
    # (T, max(K, 10) or I) int64, the best images of each text, best first.
    contrastive: torch.Tensor
    reranked: torch.Tensor | None  # (T, K) int64, likewise; None without matching
    # (T, K) float32, the scores that `reranked` is sorted by; None without matching.
    scores: torch.Tensor | None


@torch.no_grad()
def evaluate_retrieval(
    model: ImageTextModel,
    images: Iterable[torch.Tensor],
    texts: TokenBatch,
    *,
    image_persons: Int64Array,
    text_persons: Int64Array,
    config: RetrievalConfig | None = None,
    processes: Processes | None = None,
    progress: bool = False,
) -> Retrieval:
    """Let every text find its person among the images.

    Each image and each text is encoded once. The result does not depend on batches.

    Args:
        model: Put into evaluation mode meanwhile.
        images: Batches (B, 3, height, width) of I normalised images, in order;
            `maskery.data.images.views.view_batches` makes them.
        texts: T captions.
        image_persons: (I,) int64, the person that each image shows.
        text_persons: (T,) int64, the person that each caption describes.
        processes: They share the matching out, as in `match_logits`.

    Raises:
        ModelError: The model predicts values that are not numbers.
        DataError: There is nothing to find or to be found, a text's person is in no image, or all
            images show the same person.
    """
    config = config or RetrievalConfig()
    num_images, num_texts = len(image_persons), len(text_persons)
    if not num_images or not num_texts:
        raise DataError(
            f"there are {num_texts} texts and {num_images} images; at least one of each is needed"
        )
    if len(texts.lengths) != num_texts:
        raise DataError(f"{len(texts.lengths)} texts come with {num_texts} persons; name one each")
    _require_persons(image_persons, text_persons)
    count = min(config.rerank, num_images)
    if config.rerank > num_images:
        log.info(
            "rerank is %d and there are %d images: all of them are ranked anew",
            config.rerank,
            num_images,
        )
    if count:
        require_fusion(model)
    was_training = model.training
    model.eval()
    try:
        read = read_images(
            model, images, num_images, tokens=count > 0, memory_bytes=config.memory_bytes
        )
        encoded = read_texts(model, texts, states=count > 0, batch_tokens=config.batch_tokens)
        persons = Persons(
            *(torch.from_numpy(p).to(model.device) for p in (text_persons, image_persons))
        )
        return _rank_all(model, read, encoded, persons, count, config, processes, progress)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Persons:
    """Persons that are described and shown: (T,) and (I,) int64."""

    texts: torch.Tensor
    images: torch.Tensor


def _rank_all(
    model: ImageTextModel,
    images: ReadImages,
    texts: ReadTexts,
    persons: Persons,
    count: int,
    config: RetrievalConfig,
    processes: Processes | None,
    progress: bool,
) -> Retrieval:
    for features in (images.features, texts.features):
        require_numbers(features)
    kept = min(max(count, KEPT), len(images.features))
    order, similar, matches = _contrast(texts, images, persons, kept, config.memory_bytes)
    text_persons = persons.texts.cpu().numpy()
    num_texts, num_images = len(text_persons), len(persons.images)
    contrastive = summarise_texts(text_figures(matches), text_persons)
    reranked = chosen = scores = None
    if count:
        if processes is not None:  # another's last digits may differ, and so its candidates
            order, similar = processes.agree(order), processes.agree(similar)
        logits = match_logits(
            model,
            texts,
            images,
            order[:, :count],
            config=config,
            processes=processes,
            progress=progress,
        )
        require_numbers(logits)
        scores = combine(logits, similar[:, :count], float(model.temp), config)
        sorting = rank(scores)
        chosen = order[:, :count].gather(1, sorting)
        scores = scores.gather(1, sorting)
        matches[:, :count] = matches[:, :count].gather(1, sorting.to(matches.device))
        reranked = summarise_texts(text_figures(matches), text_persons)
    # A ranking at random starts with one of a text's right images: their share of the gallery.
    right = (persons.images[:, None] == persons.texts.unique()[None]).sum(dim=0)
    per_text = dict(zip(persons.texts.unique().tolist(), right.tolist(), strict=True))
    figures = RetrievalFigures(
        contrastive=contrastive,
        reranked=reranked,
        image_to_text=_image_to_text(images, texts, persons),
        chance=sum(per_text[p] for p in text_persons.tolist()) / num_texts / num_images,
        rerank=count,
        num_texts=num_texts,
        num_images=num_images,
        num_persons=len(per_text),
    )
    return Retrieval(figures=figures, contrastive=order, reranked=chosen, scores=scores)


def combine(
    logits: torch.Tensor, similarities: torch.Tensor, temperature: float, config: RetrievalConfig
) -> torch.Tensor:
    """Compute the scores that candidates are sorted by.

    Takes logits (T, K, 2) of mismatch and match, and the similarities (T, K) of the features.
    """
    if config.score == "matching":
        return logits[..., 1]
    odds = logits[..., 1] - logits[..., 0]
    if config.score == "odds":
        return odds
    return config.odds_weight * odds + similarities / temperature


def _contrast(
    texts: ReadTexts, images: ReadImages, persons: Persons, kept: int, memory_bytes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best images (T, kept), their similarities, and matches by rank (T, I)."""
    # About 32 bytes a similarity at the peak: scores, sorting and its indices, matches.
    rows = max(1, memory_bytes // (32 * len(images.features)))
    best, similar, matches = [], [], []
    for first in range(0, len(texts.features), rows):
        block = slice(first, first + rows)
        similarities = texts.features[block] @ images.features.T
        order = rank(similarities)
        matches.append(matches_of(order, persons.texts[block], persons.images))
        best.append(order[:, :kept].cpu())
        similar.append(similarities.gather(1, order[:, :kept]).cpu())
    return torch.cat(best), torch.cat(similar), torch.cat(matches)


def _image_to_text(images: ReadImages, texts: ReadTexts, persons: Persons) -> RankingFigures | None:
    if not bool(torch.isin(persons.images, persons.texts).all()):
        return None
    parts = [
        text_figures(matches_of(rank(features @ texts.features.T), shown, persons.texts))
        for features, shown in zip(
            images.features.split(1024), persons.images.split(1024), strict=True
        )
    ]
    return summarise_texts(np.concatenate(parts), persons.images.cpu().numpy())


def _require_persons(image_persons: Int64Array, text_persons: Int64Array) -> None:
    """Refuse texts without a right image, and images among which none is wrong."""
    lost = ~np.isin(text_persons, image_persons)
    if lost.any():
        raise DataError(
            f"{int(lost.sum())} of {len(text_persons)} texts describe persons that no image shows "
            f"(the first: person {int(text_persons[lost][0])}); leave these texts out, or bring "
            f"the images"
        )
    if len(np.unique(image_persons)) < 2:
        raise DataError(
            f"the {len(image_persons)} images show one person alone, so every ranking is right; "
            f"bring images of at least 2 persons"
        )
