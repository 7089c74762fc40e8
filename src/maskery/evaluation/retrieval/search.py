"""Searching a gallery with words: similarity over all pictures, then matching on the best.

The ranking is that of `evaluate_retrieval`, so that what was measured is what is found.

Shapes: K pictures that are matched, E features.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from maskery.core.errors import DataError
from maskery.data.gallery.files import PictureBytes, read_picture
from maskery.data.gallery.vectors import nearest
from maskery.data.images.loading import Skipped
from maskery.data.images.views import view_batches
from maskery.evaluation.image_text.heads import can_match
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import combine
from maskery.evaluation.retrieval.features import ReadTexts, read_images, read_texts
from maskery.evaluation.retrieval.gallery import Gallery
from maskery.evaluation.retrieval.metrics import rank
from maskery.evaluation.retrieval.queries import encode_query
from maskery.evaluation.retrieval.rerank import match_logits

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One picture that was found.

    Attributes:
        path: Relative to the gallery.
        similarity: Cosine of the contrastive features, from -1 to 1.
        match: The matching head's probability that words and picture belong together; None where
            it was not asked.
        score: What it is ranked by among those that matching looked at; None likewise.
    """

    path: str
    similarity: float
    match: float | None = None
    score: float | None = None


class Searcher:
    """Finds pictures of one gallery with one model.

    Args:
        opened: The model, in evaluation mode.
        gallery: Indexed with it.
        config: How many of the most similar pictures are ranked anew, and by what. Default: the
            model's own settings, which `evaluate_retrieval` ranks by too.
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
        """The pictures that fit a description best.

        Those that matching looked at come first, by the score of the settings; then the others by
        similarity.

        Args:
            text: The description.
            top: How many; fewer where the gallery has fewer.

        Raises:
            DataError: The description is empty, unknown or too long.
        """
        words = encode_query(self.opened, text)
        read = read_texts(self.opened.model, words, states=self.rerank > 0)
        wanted = min(max(top, self.rerank), len(self.gallery))
        rows, similar = nearest(self.gallery.matrix, read.features[0].cpu().numpy(), wanted)
        paths = self.gallery.store.paths(rows.tolist())
        hits = [
            Hit(path=path, similarity=float(value))
            for path, value in zip(paths, similar, strict=True)
        ]
        if self.rerank:
            hits = self._match(read, hits[: self.rerank]) + hits[self.rerank :]
        return hits[:top]

    def picture(self, path: str) -> Image:
        """A picture of the gallery, as RGB.

        Args:
            path: Of a `Hit`.

        Raises:
            DataError: It is gone, or can no longer be read.
        """
        return read_picture(self.gallery.folder, path).load()

    def _match(self, read: ReadTexts, hits: list[Hit]) -> list[Hit]:
        """Some hits ranked anew; pictures that cannot be read any more come last."""
        pictures: list[PictureBytes] = []
        there: list[Hit] = []
        for hit in hits:
            try:
                pictures.append(read_picture(self.gallery.folder, hit.path))
                there.append(hit)
            except DataError as error:
                log.warning("%s", error)
        if not there:
            return hits
        scores, chances, similarities = self._judge(read, pictures)
        matched = [
            Hit(
                path=there[i].path,
                similarity=float(similarities[i]),
                match=float(chances[i]),
                score=float(scores[i]),
            )
            for i in rank(scores[None])[0].tolist()
        ]
        return matched + [hit for hit in hits if hit not in there]

    def _judge(
        self, read: ReadTexts, pictures: list[PictureBytes]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(K,) each: what is ranked by, the probability of a match, the similarity."""
        model, config = self.opened.model, self.config
        batches = view_batches(
            pictures, self.opened.view, Skipped("image", "fail"), batch_images=config.batch_images
        )
        images = read_images(
            model,
            (pixels for _, pixels in batches),
            len(pictures),
            tokens=True,
            memory_bytes=config.memory_bytes,
        )
        # The index keeps features in half precision; here they are at hand as they were computed.
        similarities = (read.features @ images.features.T).cpu()
        candidates = torch.arange(len(pictures))[None]
        logits = match_logits(model, read, images, candidates, config=config)
        scores = combine(logits, similarities, float(model.temp.detach()), config)
        return scores[0], logits[0].softmax(dim=-1)[:, 1], similarities[0]
