"""Matching (ITM) scores of each text with its best images, image by image.

The released evaluations of ALBEF and RaSa take one text at a time, repeat it for its k images, and
project the keys and values of all k images anew in every fusion layer. Here the pairs are sorted by
image: each image is projected once, and all texts that want it look at it together.

Shapes: T texts, K candidates of each, I images, R texts of one image, S tokens of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maskery.core.processes import Processes
from maskery.core.random import Int64Array
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.features import ReadImages, ReadTexts, by_length, tokens_of
from maskery.evaluation.text.masked import require_numbers
from maskery.models.image_text.attention import ImageKeys
from maskery.models.image_text.class_token import Rows, fuse_class_tokens, fusion_layers
from maskery.models.image_text.model import ImageTextModel

# More projected together gain nothing.
IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class ImageTexts:
    """One image by its number, and the texts (R,) that it is a candidate of."""

    image: int
    texts: Int64Array
    columns: Int64Array  # (R,), its number among the candidates of each text


@torch.no_grad()
def match_scores(
    model: ImageTextModel,  # in evaluation mode, with fusion layers
    texts: ReadTexts,  # with states
    images: ReadImages,  # with tokens
    candidates: torch.Tensor,  # (T, K) int64, images of each text
    similarities: torch.Tensor,  # (T, K), of their features
    config: RetrievalConfig,
    *,
    processes: Processes | None = None,
    progress: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores (T, K) that candidates are sorted by, and the logits (T, K, 2) behind them.

    `processes` share the images out, and all get the whole result; all of them must ask.
    """
    from tqdm import tqdm

    processes = processes or Processes()
    mine = by_image(candidates.cpu().numpy())[processes.rank :: processes.world_size]
    total = sum(len(one.texts) for one in mine)
    logits = torch.zeros(*candidates.shape, 2)
    with tqdm(total=total, desc="matching", leave=False, disable=not progress) as bar:
        for one, judged in match_images(model, texts, images, mine, config):
            logits[torch.from_numpy(one.texts), torch.from_numpy(one.columns)] = judged
            bar.update(len(one.texts))
    logits = processes.add(logits)  # what is another's is 0 here
    require_numbers(logits)
    if config.score == "matching":
        return logits[..., 1], logits
    odds = logits[..., 1] - logits[..., 0]
    if config.score == "odds":
        return odds, logits
    temperature = float(model.temp.detach())
    return config.odds_weight * odds + similarities / temperature, logits


@torch.no_grad()
def match_images(
    model: ImageTextModel,
    texts: ReadTexts,
    images: ReadImages,
    pairs: Sequence[ImageTexts],
    config: RetrievalConfig,
) -> Iterator[tuple[ImageTexts, torch.Tensor]]:
    """Yield each image with the matching logits (R, 2) of its texts."""
    assert images.tokens is not None
    width = model.config.text_config.hidden_size
    # Keys and values, of four bytes a number.
    each = 2 * 4 * len(fusion_layers(model.text_encoder)) * images.tokens.shape[1] * width
    # As many images at a time as fit the memory.
    size = max(1, min(config.memory_bytes // each, IMAGES_AT_ONCE))
    for first in range(0, len(pairs), size):
        block = pairs[first : first + size]
        tokens = torch.from_numpy(images.tokens[[one.image for one in block]])
        keys = model.project_images(tokens.to(model.device))
        for place, one in enumerate(block):
            only = slice(place, place + 1)  # a view: nothing is copied
            own = [ImageKeys(keys=k.keys[only], values=k.values[only]) for k in keys]
            yield one, _judge(model, texts, one, own, config.batch_tokens)


def by_image(candidates: Int64Array) -> list[ImageTexts]:
    """Sort the pairs of (T, K) candidates by image."""
    flat = candidates.ravel()
    order = np.argsort(flat, kind="stable")
    images, firsts = np.unique(flat[order], return_index=True)
    texts, columns = np.divmod(order, candidates.shape[1])
    ends = np.append(firsts[1:], len(order))
    return [
        ImageTexts(image=int(image), texts=texts[first:end], columns=columns[first:end])
        for image, first, end in zip(images, firsts, ends, strict=True)
    ]


def _judge(
    model: ImageTextModel,
    texts: ReadTexts,
    one: ImageTexts,
    keys: Sequence[ImageKeys],
    batch_tokens: int,
) -> torch.Tensor:
    """Return (R, 2) logits on the CPU, of one image with all its texts."""
    assert texts.states is not None
    lengths = texts.lengths[one.texts]
    judged = torch.empty(len(lengths), 2)
    for chosen in by_length(lengths, batch_tokens):
        places = torch.from_numpy(tokens_of(texts.boundaries, one.texts[chosen])).to(model.device)
        rows = Rows.of_lengths(lengths[chosen], model.device)
        states = texts.states.index_select(0, places)
        tokens = fuse_class_tokens(model.text_encoder, states, rows, keys)
        judged[torch.from_numpy(chosen)] = model.itm_head(tokens).float().cpu()
    return judged
