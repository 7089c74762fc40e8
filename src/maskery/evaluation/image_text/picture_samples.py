"""Held-out captions with one word hidden, filled with the right picture, a wrong one and none.

Shapes: M hidden words, V vocabulary, H x W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.optional import require
from maskery.core.vocabulary import Vocabulary
from maskery.data.images.config import ViewConfig
from maskery.evaluation.image_text.sight import JudgedBatch, answers_by_sight
from maskery.evaluation.text.fill import Candidate, candidates
from maskery.evaluation.text.pseudo_likelihood import Copy
from maskery.evaluation.text.samples import context, whole_words
from maskery.models.image_text.model import ImageTextModel

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class PictureFill:
    """One hidden word of a held-out caption.

    Attributes:
        left: The text before it.
        word: The word.
        right: The text after it.
        picture: The caption's picture, a PNG as a data URI.
        wrong_picture: The wrong one.
        guesses: By sight (right, wrong, none), the likeliest words.
        probabilities: By sight, of the word itself.
    """

    left: str
    word: str
    right: str
    picture: str
    wrong_picture: str
    guesses: dict[str, tuple[Candidate, ...]]
    probabilities: dict[str, float]


@torch.no_grad()
def sample_pictures(
    model: ImageTextModel,
    batches: Iterable[JudgedBatch],
    tokenizer: PreTrainedTokenizerBase,
    view: ViewConfig,
    *,
    count: int = 8,
    top_k: int = 3,
) -> tuple[PictureFill, ...]:
    """Fill one word of a few captions, chosen by a fixed seed, under each sight.

    Args:
        model: In evaluation mode.
        batches: Held-out captions; the first is read.
        tokenizer: Of the model.
        view: How the pictures were prepared, to show them again.
        count: Captions to show.
        top_k: Predictions to show of each.
    """
    batch = next(iter(batches))
    positions = _hidden_words(batch, Vocabulary.of(tokenizer), count)
    ids = batch.text.input_ids.copy()
    ids[positions] = int(tokenizer.mask_token_id)
    logs = {
        sight: logits.log_softmax(dim=-1).cpu()
        for sight, logits in answers_by_sight(model, batch, ids, positions).items()
    }
    rows = []
    sequences = np.searchsorted(batch.text.boundaries, positions, side="right") - 1
    for row, (position, sequence) in enumerate(zip(positions, sequences.tolist(), strict=True)):
        first, last = batch.text.boundaries[sequence], batch.text.boundaries[sequence + 1]
        target = int(batch.text.input_ids[position])
        copy = Copy(text=row, position=int(position - first), ids=ids[first:last], target=target)
        left, right = context(copy, tokenizer)
        rows.append(
            PictureFill(
                left=left,
                word=tokenizer.decode([target]).strip(),
                right=right,
                picture=data_uri(batch.images[batch.right[sequence]], view),
                wrong_picture=data_uri(batch.images[batch.wrong[sequence]], view),
                guesses={
                    sight: candidates(log[row], tokenizer, top_k) for sight, log in logs.items()
                },
                probabilities={sight: float(log[row, target].exp()) for sight, log in logs.items()},
            )
        )
    return tuple(rows)


def _hidden_words(batch: JudgedBatch, vocabulary: Vocabulary, count: int) -> Any:
    """One position in each of a few captions: a random whole word, the same every time."""
    whole = whole_words(batch.text, vocabulary)
    generator = np.random.default_rng(0)
    found, groups = [], set()
    for sequence in range(len(batch.text.lengths)):
        group = int(batch.groups[sequence])
        first, last = batch.text.boundaries[sequence], batch.text.boundaries[sequence + 1]
        places = np.flatnonzero(whole[first:last])
        if group in groups or len(places) < 3:
            continue
        groups.add(group)
        found.append(int(first + generator.choice(places)))
        if len(found) == count:
            break
    return np.array(found, np.int64)


def data_uri(pixels: torch.Tensor, view: ViewConfig) -> str:
    """A prepared picture (3, H, W) as it looked, as a PNG in a data URI."""
    pillow = require("PIL.Image", extra="vision", purpose="draw pictures into the report")
    mean, std = (np.array(c, np.float32)[:, None, None] for c in view.normalisation)
    shown = (pixels.float().cpu().numpy() * std + mean).clip(0, 1)
    array = (shown.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return png_uri(pillow.fromarray(array))


def png_uri(image: Image, *, height: int = 240) -> str:
    """A picture as a PNG in a data URI, made smaller where it is higher than `height` pixels."""
    shown = image.copy()
    shown.thumbnail((4 * height, height))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
