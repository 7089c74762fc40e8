"""Searching a gallery with words: similarity over all pictures, then matching on the best.

The ranking is that of `evaluate_retrieval`, so that figures hold for searches. The most similar are
found by an exact scan of a memory-mapped float16 matrix, in blocks that fit the processor's cache;
docs/search.md says why there is no approximate index.

Shapes: I vectors, E features, K pictures that are matched, or nearest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.errors import DataError
from maskery.core.random import Float32Array
from maskery.data.gallery import read_picture
from maskery.data.images.loading import ImageRef, Skipped
from maskery.data.images.views import view_batches
from maskery.evaluation.image_text.captions import encode_query
from maskery.evaluation.image_text.opening import OpenImageText, can_match
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.features import ReadTexts, read_images, read_texts
from maskery.evaluation.retrieval.gallery import Gallery, open_gallery
from maskery.evaluation.retrieval.metrics import rank
from maskery.evaluation.retrieval.rerank import match_scores

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

# Numbers of a block: 2 MiB as float32, which stays in the second-level cache.
BLOCK_NUMBERS = 1 << 19
# More than are wanted, compared again exactly: close ones may change places by rounding.
MARGIN = 16


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One picture that was found."""

    path: str  # relative to the gallery
    similarity: float  # cosine of the contrastive features, from -1 to 1
    # The matching head's probability that words and picture belong together; None where it was not
    # asked.
    match: float | None = None
    score: float | None = None  # the score that matched pictures are sorted by; None likewise


def search(
    opened: OpenImageText,
    gallery: str | Path | Gallery,
    texts: str | Sequence[str],
    *,
    top: int = 10,
    rerank: int | None = None,
    cache_dir: str | Path | None = None,
) -> list[list[Hit]]:
    """Find the best pictures for each of some descriptions, in a folder or an open gallery."""
    from maskery.data.tokenise import default_cache_dir

    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        encode_query(opened, text)  # a bad description is told before an hour of indexing
    if not isinstance(gallery, Gallery):
        cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
        gallery = open_gallery(opened, Path(gallery), cache_dir=cache)
    ranking = opened.retrieval.ranking
    if rerank is not None:
        ranking = replace(ranking, rerank=rerank)
    searcher = Searcher(opened, gallery, ranking)
    return [searcher.search(text, top=top) for text in texts]


class Searcher:
    """Finds pictures of one gallery with one model, which the gallery was indexed with.

    The settings say how many of the most similar are ranked anew, and by which score.
    """

    def __init__(
        self, opened: OpenImageText, gallery: Gallery, config: RetrievalConfig | None = None
    ) -> None:
        self.opened, self.gallery = opened, gallery
        self.config = config or opened.retrieval.ranking
        self.rerank = min(self.config.rerank, len(gallery))
        if self.rerank and not can_match(opened):
            log.warning(
                "the matching head of '%s' was never trained, so the ranking is by similarity "
                "alone",
                opened.name,
            )
            self.rerank = 0
        elif self.config.rerank > len(gallery):
            log.info("the gallery has %d pictures: all of them are ranked anew", len(gallery))

    def search(self, text: str, *, top: int = 10) -> list[Hit]:
        """Return the `top` pictures that fit a description best, fewer where the gallery has fewer.

        First those that matching looked at, by their score; then the others by similarity.
        """
        words = encode_query(self.opened, text)
        read = read_texts(self.opened.model, words, states=self.rerank > 0)
        wanted = min(max(top, self.rerank), len(self.gallery))
        rows, similar = nearest(self.gallery.matrix, read.features[0].cpu().numpy(), wanted)
        hits = [
            Hit(path=self.gallery.paths[row], similarity=float(value))
            for row, value in zip(rows.tolist(), similar, strict=True)
        ]
        if self.rerank:
            hits = self._match(read, hits[: self.rerank]) + hits[self.rerank :]
        return hits[:top]

    def picture(self, path: str) -> Image:
        """Return a picture of the gallery, as RGB; DataError if it can no longer be read."""
        return read_picture(self.gallery.folder, path).load()

    def _match(self, read: ReadTexts, hits: list[Hit]) -> list[Hit]:
        """Rank some hits anew; pictures that cannot be read any more come last."""
        pictures: dict[str, ImageRef] = {}
        for hit in hits:
            try:
                pictures[hit.path] = read_picture(self.gallery.folder, hit.path)
            except DataError as error:
                log.warning("%s", error)
        if not pictures:
            return hits
        model, config = self.opened.model, self.config
        batches = view_batches(
            list(pictures.values()),
            self.opened.view,
            Skipped("image", "fail"),
            batch_images=config.batch_images,
        )
        images = read_images(
            model,
            (pixels for _, pixels in batches),
            len(pictures),
            tokens=True,
            memory_bytes=config.memory_bytes,
        )
        # The index keeps features in half precision; here they are at hand as they were computed.
        similar = (read.features @ images.features.T).cpu()
        candidates = torch.arange(len(pictures))[None]
        scores, logits = match_scores(model, read, images, candidates, similar, config)
        chances = logits[0].softmax(dim=-1)[:, 1]
        matched = [
            Hit(
                path=list(pictures)[i],
                similarity=float(similar[0, i]),
                match=float(chances[i]),
                score=float(scores[0, i]),
            )
            for i in rank(scores)[0].tolist()
        ]
        return matched + [hit for hit in hits if hit.path not in pictures]


def nearest(
    matrix: npt.NDArray[np.float16],  # (I, E), writable, or memory-mapped copy-on-write
    query: Float32Array,
    count: int,
) -> tuple[npt.NDArray[np.int64], Float32Array]:
    """Return the rows (K,) with the largest inner products with a query (E,), and these."""
    vectors, column = torch.from_numpy(matrix), torch.from_numpy(query)
    products = torch.empty(len(vectors))
    rows = max(1, BLOCK_NUMBERS // vectors.shape[1])
    for first in range(0, len(vectors), rows):
        block = slice(first, first + rows)
        torch.mv(vectors[block].float(), column, out=products[block])
    found = products.topk(min(len(vectors), count + MARGIN)).indices.sort().values
    # Sums by block differ in their last digit by where a row lies; these do not.
    exact = (vectors[found].double() * column.double()).sum(dim=1).float()
    order = exact.argsort(descending=True, stable=True)[:count]  # ties by index
    return found[order].numpy(), exact[order].numpy()
