"""Text-to-image retrieval: contrastive ranking, then matching on the best of each text.

As ALBEF (NeurIPS 2021, section 3.2) and RaSa (IJCAI 2023, section 4.1) do. Here images beyond the
best keep their contrastive order; the released code leaves them in no particular order.

Shapes: T texts, I images, K = min(rerank, I) candidates, G right images of a text.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from maskery.core.batch import Ints, TokenBatch
from maskery.core.errors import DataError
from maskery.core.processes import Processes, evaluating
from maskery.evaluation.retrieval import metrics, rerank
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.text.masked import require_numbers
from maskery.models.image_text.model import ImageTextModel

log = logging.getLogger(__name__)

KEPT = 10  # images of each text, when there is no re-ranking


@dataclass(frozen=True, kw_only=True)
class RetrievalFigures:
    """Figures of texts that look for their images."""

    contrastive: metrics.RankingFigures  # by similarity alone
    reranked: metrics.RankingFigures | None  # with the best K ranked anew by matching; None without
    image_to_text: metrics.RankingFigures | None  # by similarity; None where a person has no text
    chance: float  # R@1 of a ranking at random
    rerank: int  # K
    num_texts: int  # T
    num_images: int  # I
    num_persons: int  # persons that the texts describe


class Ranking(NamedTuple):
    """The best k images of each text, best first."""

    order: torch.Tensor  # (T, k) int64
    scores: torch.Tensor  # (T, k) float32, that they are sorted by
    ranks: torch.Tensor  # (T, G) int64, of the right images; see `right_ranks`


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Figures, and the rankings that they come from."""

    figures: RetrievalFigures  # of all texts
    contrastive: Ranking  # by similarity, of max(K, 10) images, or of all I
    reranked: Ranking | None  # of the first K of these by matching; None without
    logits: torch.Tensor | None  # (T, K, 2) of the first K of `contrastive`; None likewise
    images: torch.Tensor  # (I, E), features of unit length
    texts: torch.Tensor  # (T, E)

    @property
    def last(self) -> Ranking:
        """The last ranking that there is."""
        return self.reranked or self.contrastive


@torch.no_grad()
def evaluate_retrieval(
    model: ImageTextModel,
    images: Iterable[torch.Tensor],  # batches (B, 3, height, width), normalised, I in all
    texts: TokenBatch,  # T captions
    *,
    image_persons: Ints,  # (I,) int64, the person that each image shows
    text_persons: Ints,  # (T,) int64, the person that each caption describes
    config: RetrievalConfig | None = None,
    processes: Processes | None = None,  # they share the matching out, as in `Matcher`
    progress: bool = False,
) -> Retrieval:
    """Let every text find its person among the images; the result does not depend on batches.

    A DataError if there are no texts or no images, if a text's person is in no image, or if all
    images show one person.
    """
    config = config or RetrievalConfig()
    _require_persons(image_persons, text_persons, len(texts.lengths))
    described, shown = torch.from_numpy(text_persons), torch.from_numpy(image_persons)
    num_images, right = len(shown), metrics.right_columns(described, shown)
    if config.rerank > num_images:
        told = "rerank is %d and there are %d images: all of them are ranked anew"
        log.info(told, config.rerank, num_images)
        config = replace(config, rerank=num_images)
    matched = config.rerank > 0
    if matched and not model.text_encoder.fusion_layers:
        problem = "the model has no fusion layers, so it cannot match a text with an image"
        raise DataError(f"{problem}; turn the re-ranking off (0)")
    with evaluating(model):
        most, at_once = config.memory_bytes, config.batch_tokens
        read = rerank.read_images(model, images, num_images, tokens=matched, memory_bytes=most)
        encoded = rerank.read_texts(model, texts, states=matched, batch_tokens=at_once)
        for features in (read.features, encoded.features):
            require_numbers(features)
        # About 16 bytes a similarity at the peak: scores, sorted, and what chooses among them.
        rows = max(1, most // (16 * num_images))
        kept = min(max(config.rerank, KEPT), num_images)
        contrast = _ranking(encoded.features, read.features, right, kept=kept, rows=rows)
        reranked, logits = None, None
        if matched:
            matcher = rerank.Matcher(model, encoded, read, config)
            reranked, logits = _rerank(matcher, contrast, processes or Processes(), progress)
        image_to_text = None
        if np.isin(image_persons, text_persons).all():  # an image of anyone else finds nothing
            own = metrics.right_columns(shown, described)
            found = _ranking(read.features, encoded.features, own, kept=1, rows=1024)
            image_to_text = _figures(found, image_persons)
    return Retrieval(
        figures=RetrievalFigures(
            contrastive=_figures(contrast, text_persons),
            reranked=_figures(reranked, text_persons) if reranked else None,
            image_to_text=image_to_text,
            # At random, the first image is right as often as right ones are in the gallery.
            chance=float((right >= 0).sum(dim=1).double().mean() / num_images),
            rerank=config.rerank,
            num_texts=len(text_persons),
            num_images=num_images,
            num_persons=len(np.unique(text_persons)),
        ),
        contrastive=contrast,
        reranked=reranked,
        logits=logits,
        images=read.features,
        texts=encoded.features,
    )


def _ranking(
    queries: torch.Tensor, gallery: torch.Tensor, right: torch.Tensor, *, kept: int, rows: int
) -> Ranking:
    """Rank features by their similarity to others, for as many `rows` at a time as fit memory."""
    parts = []
    for features, own in zip(queries.split(rows), right.split(rows), strict=True):
        similarities = features @ gallery.T
        order, ranks = metrics.best(similarities, kept), metrics.right_ranks(similarities, own)
        parts.append((order.cpu(), similarities.gather(1, order).cpu(), ranks.cpu()))
    return Ranking(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rerank(
    matcher: rerank.Matcher, contrast: Ranking, processes: Processes, progress: bool
) -> tuple[Ranking, torch.Tensor]:
    """Rank the best of each text anew by matching, the others stay; returns the logits, too."""
    # Another process's last digits may differ, and so its candidates.
    order, similar = (processes.agree(part[:, : matcher.config.rerank]) for part in contrast[:2])
    scores, logits = matcher.scores(order, similar, processes, progress)
    sorting = metrics.rank(scores)
    ranks = moved(contrast.ranks, sorting)
    return Ranking(order.gather(1, sorting), scores.gather(1, sorting), ranks), logits


def moved(ranks: torch.Tensor, sorting: torch.Tensor) -> torch.Tensor:
    """Return the ranks (T, G) after the first K were sorted anew, by the columns (T, K)."""
    places, last = sorting.argsort(dim=1), sorting.shape[1]
    anew = places.gather(1, ranks.clamp(max=last) - 1) + 1
    return anew.where(ranks <= last, ranks).sort(dim=1).values


def _figures(ranking: Ranking, persons: Ints) -> metrics.RankingFigures:
    return metrics.summarise_texts(metrics.text_figures(ranking.ranks), persons)


def _require_persons(image_persons: Ints, text_persons: Ints, num_texts: int) -> None:
    texts, images = len(text_persons), len(image_persons)
    if not images or not texts:
        problem = f"there are {texts} texts and {images} images"
        raise DataError(f"{problem}; at least one of each is needed")
    if num_texts != texts:
        raise DataError(f"{num_texts} texts come with {texts} persons; name one each")
    if len(np.unique(image_persons)) < 2:
        problem = f"the {images} images show one person alone, so every ranking is right"
        raise DataError(f"{problem}; bring images of at least 2 persons")
