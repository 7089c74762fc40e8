"""Text-to-image retrieval: contrastive ranking, then matching on the best of each text.

ALBEF (NeurIPS 2021, section 3.2) and RaSa (IJCAI 2023, section 4.1) rank a gallery by the
similarity of contrastive features, and rank the best k anew by the matching head. What lies beyond
the k keeps its contrastive order here; the released code leaves it in no particular order.

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
from maskery.evaluation.retrieval.metrics import RankingFigures
from maskery.evaluation.retrieval.rerank import ReadImages, ReadTexts
from maskery.evaluation.text.masked import require_numbers
from maskery.models.image_text.model import ImageTextModel

log = logging.getLogger(__name__)

KEPT = 10  # images of each text, when there is no re-ranking


@dataclass(frozen=True, kw_only=True)
class RetrievalFigures:
    """Figures of texts that look for their images."""

    contrastive: RankingFigures  # by similarity alone
    reranked: RankingFigures | None  # with the best K ranked anew by matching; None without
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
    contrastive: torch.Tensor  # (T, max(K, 10) or I) int64, the images of each text, best first
    reranked: torch.Tensor | None  # (T, K) int64, likewise; None without matching
    scores: torch.Tensor | None  # (T, K) float32, that `reranked` is sorted by; None likewise
    ranks: dict[str, torch.Tensor]  # (T, G) of either ranking; see `right_ranks`
    similarities: torch.Tensor  # of `contrastive`
    logits: torch.Tensor | None  # (T, K, 2) of the first K of `contrastive`
    images: torch.Tensor  # (I, E), features of unit length
    texts: torch.Tensor  # (T, E)

    @property
    def last(self) -> torch.Tensor:
        """The best images by the last ranking that there is."""
        return self.contrastive if self.reranked is None else self.reranked

    @property
    def last_ranks(self) -> torch.Tensor:
        """Its ranks of the right images."""
        return self.ranks.get("reranked", self.ranks["contrastive"])


@torch.no_grad()
def evaluate_retrieval(
    model: ImageTextModel,
    images: Iterable[torch.Tensor],  # batches (B, 3, height, width), normalised, I in all
    texts: TokenBatch,  # T captions
    *,
    image_persons: Ints,  # (I,) int64, the person that each image shows
    text_persons: Ints,  # (T,) int64, the person that each caption describes
    config: RetrievalConfig | None = None,
    processes: Processes | None = None,  # they share the matching out, as in `match_scores`
    progress: bool = False,
) -> Retrieval:
    """Let every text find its person among the images; the result does not depend on batches.

    A DataError says that there is nothing to find or to be found, that a text's person is in no
    image, or that all images show the same person.
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
        raise DataError(
            "the model has no fusion layers, so it cannot match a text with an image; turn the "
            "re-ranking off (0)"
        )
    with evaluating(model):
        most, at_once = config.memory_bytes, config.batch_tokens
        read = rerank.read_images(model, images, num_images, tokens=matched, memory_bytes=most)
        encoded = rerank.read_texts(model, texts, states=matched, batch_tokens=at_once)
        for features in (read.features, encoded.features):
            require_numbers(features)
        contrast = _contrast(encoded, read, right, config)
        reranked, logits = None, None
        if matched:
            reranked, logits = _rerank(model, encoded, read, contrast, config, processes, progress)
        image_to_text = None
        if np.isin(image_persons, text_persons).all():  # an image of anyone else finds nothing
            own = metrics.right_columns(shown, described)
            image_to_text = _image_to_text(encoded, read, own, image_persons)
    ranks = {"contrastive": contrast.ranks} | ({"reranked": reranked.ranks} if reranked else {})
    by_text = {by: metrics.text_figures(one) for by, one in ranks.items()}
    measured = {by: metrics.summarise_texts(one, text_persons) for by, one in by_text.items()}
    # At random, the first image is right as often as right ones are in the gallery.
    hits = (right >= 0).sum(dim=1).double()
    return Retrieval(
        figures=RetrievalFigures(
            contrastive=measured["contrastive"],
            reranked=measured.get("reranked"),
            image_to_text=image_to_text,
            chance=float(hits.mean() / num_images),
            rerank=config.rerank,
            num_texts=len(text_persons),
            num_images=num_images,
            num_persons=len(np.unique(text_persons)),
        ),
        contrastive=contrast.order,
        reranked=reranked.order if reranked else None,
        scores=reranked.scores if reranked else None,
        ranks=ranks,
        similarities=contrast.scores,
        logits=logits,
        images=read.features,
        texts=encoded.features,
    )


class _Ranking(NamedTuple):
    """The best images of each text, best first."""

    order: torch.Tensor  # (T, k) int64
    scores: torch.Tensor  # (T, k), that they are sorted by
    ranks: torch.Tensor  # (T, G) int64, of the right images; see `right_ranks`


def _contrast(
    texts: ReadTexts, images: ReadImages, right: torch.Tensor, config: RetrievalConfig
) -> _Ranking:
    """Rank by similarity, as many texts at a time as fit the memory."""
    kept = min(max(config.rerank, KEPT), len(images.features))
    # About 16 bytes a similarity at the peak: scores, sorted scores, and what chooses among them.
    rows = max(1, config.memory_bytes // (16 * len(images.features)))
    parts = []
    for features, own in zip(texts.features.split(rows), right.split(rows), strict=True):
        similarities = features @ images.features.T
        order, ranks = metrics.best(similarities, kept), metrics.right_ranks(similarities, own)
        parts.append((order.cpu(), similarities.gather(1, order).cpu(), ranks.cpu()))
    return _Ranking(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rerank(
    model: ImageTextModel,
    texts: ReadTexts,
    images: ReadImages,
    contrast: _Ranking,
    config: RetrievalConfig,
    processes: Processes | None,
    progress: bool,
) -> tuple[_Ranking, torch.Tensor]:
    """Rank the best of each text anew by matching, the others stay; returns the logits, too."""
    order, similar = (part[:, : config.rerank] for part in (contrast.order, contrast.scores))
    if processes is not None:  # another's last digits may differ, and so its candidates
        order, similar = processes.agree(order), processes.agree(similar)
    scores, logits = rerank.match_scores(
        model, texts, images, order, similar, config, processes=processes, progress=progress
    )
    sorting = metrics.rank(scores)
    ranks = moved(contrast.ranks, sorting)
    return _Ranking(order.gather(1, sorting), scores.gather(1, sorting), ranks), logits


def moved(ranks: torch.Tensor, sorting: torch.Tensor) -> torch.Tensor:
    """Return the ranks (T, G) after the first K were sorted anew, by the columns (T, K)."""
    places, last = sorting.argsort(dim=1), sorting.shape[1]
    anew = places.gather(1, ranks.clamp(max=last) - 1) + 1
    return anew.where(ranks <= last, ranks).sort(dim=1).values


def _image_to_text(
    texts: ReadTexts, images: ReadImages, right: torch.Tensor, image_persons: Ints
) -> RankingFigures:
    """Let images find their texts, a thousand at a time to bound the memory."""
    parts = zip(images.features.split(1024), right.split(1024), strict=True)
    ranks = (metrics.right_ranks(each @ texts.features.T, own) for each, own in parts)
    found = [metrics.text_figures(one) for one in ranks]
    return metrics.summarise_texts(np.concatenate(found), image_persons)


def _require_persons(image_persons: Ints, text_persons: Ints, num_texts: int) -> None:
    """Refuse texts without a right image, and images among which none is wrong."""
    if not len(image_persons) or not len(text_persons):
        raise DataError(
            f"there are {len(text_persons)} texts and {len(image_persons)} images; at least one "
            f"of each is needed"
        )
    if num_texts != len(text_persons):
        raise DataError(f"{num_texts} texts come with {len(text_persons)} persons; name one each")
    if len(np.unique(image_persons)) < 2:
        raise DataError(
            f"the {len(image_persons)} images show one person alone, so every ranking is right; "
            f"bring images of at least 2 persons"
        )
