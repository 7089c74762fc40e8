"""Texts and images read once each: features to compare, and states that matching goes on from.

Shapes: T texts, S tokens of all texts, L tokens of the longest, D text width, I images, N image
tokens, W image width, E features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.evaluation.image_text.sight import side_by_side
from maskery.evaluation.retrieval.room import room
from maskery.models.image_text.class_token import before_looking, fusion_layers
from maskery.models.image_text.model import ImageTextModel


@dataclass(frozen=True, kw_only=True)
class ReadTexts:
    """Texts after the layers that see no image.

    Attributes:
        features: (T, E), unit length.
        states: (S, D), end to end, after the self-attention of the first fusion layer; None where
            only the features were wanted.
        boundaries: (T + 1,) int64; text t is `states[boundaries[t]:boundaries[t + 1]]`.
    """

    features: torch.Tensor
    states: torch.Tensor | None
    boundaries: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(T,) int64, in tokens."""
        return np.diff(self.boundaries)


@dataclass(frozen=True, kw_only=True)
class ReadImages:
    """Images after the vision encoder.

    Attributes:
        features: (I, E), unit length.
        tokens: (I, N, W) float32, in memory or in a temporary file; None where only the features
            were wanted.
    """

    features: torch.Tensor
    tokens: npt.NDArray[np.float32] | None


@torch.no_grad()
def read_texts(
    model: ImageTextModel, texts: TokenBatch, *, states: bool, batch_tokens: int = 4096
) -> ReadTexts:
    """Encode each text once, those of similar length together.

    Args:
        model: In evaluation mode.
        texts: T of them.
        states: Whether matching will follow.
        batch_tokens: Tokens computed at once, padding included.
    """
    device, num = model.device, len(texts.lengths)
    features = torch.empty(num, model.config.embed_dim, device=device)
    width = model.config.text_config.hidden_size
    kept = torch.empty(texts.num_tokens, width, device=device) if states else None
    for chosen in by_length(texts.lengths, batch_tokens):
        part = some_texts(texts, chosen)
        ids, real, _ = side_by_side(part, part.input_ids)
        mask = torch.from_numpy(real).to(device)
        hidden = model.text_encoder.encode_text(torch.from_numpy(ids).to(device), mask)
        features[torch.from_numpy(chosen)] = model.text_feature(hidden).float()
        if kept is not None:
            begun = before_looking(model.text_encoder, hidden, mask)[mask]
            kept[tokens_of(texts.boundaries, chosen).to(device)] = begun.float()
    return ReadTexts(features=features, states=kept, boundaries=texts.boundaries)


@torch.no_grad()
def read_images(
    model: ImageTextModel,
    batches: Iterable[torch.Tensor],
    count: int,
    *,
    tokens: bool,
    memory_bytes: int = 1_000_000_000,
) -> ReadImages:
    """Encode each image once.

    Args:
        model: In evaluation mode.
        batches: (B, 3, height, width) each, normalised.
        count: I, how many there are in all.
        tokens: Whether matching will follow.
        memory_bytes: Tokens that would take more go to a temporary file, which is gone as soon as
            nothing refers to it.

    Raises:
        DataError: There are more or fewer images than said, or too little space for the file.
    """
    features = torch.empty(count, model.config.embed_dim, device=model.device)
    kept: npt.NDArray[np.float32] | None = None
    done = 0
    for pixels in batches:
        end = done + len(pixels)
        if end > count:
            raise DataError(f"more than {count} images came; name as many persons as images")
        read = model.encode_image(pixels.to(model.device))
        features[done:end] = model.image_feature(read).float()
        if tokens:
            if kept is None:
                kept = room((count, *read.shape[1:]), memory_bytes)
            kept[done:end] = read.float().cpu().numpy()
        done = end
    if done != count:
        raise DataError(f"{done} images came, and {count} persons are named; they must be as many")
    return ReadImages(features=features, tokens=kept)


def require_fusion(model: ImageTextModel) -> None:
    """Refuse a model in which text cannot look at an image.

    Raises:
        DataError: It has no fusion layers.
    """
    if not fusion_layers(model.text_encoder):
        raise DataError(
            "the model has no fusion layers, so it cannot match a text with an image; turn the "
            "re-ranking off (0)"
        )


def by_length(lengths: npt.NDArray[np.int64], batch_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Indices in groups of similar length, each at most `batch_tokens` once padded."""
    order = np.argsort(lengths, kind="stable")
    groups: list[npt.NDArray[np.int64]] = []
    first = 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - first) * int(lengths[order[end]]) > batch_tokens
        if full:
            groups.append(order[first:end])
            first = end
    return groups


def tokens_of(boundaries: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]) -> torch.Tensor:
    """Indices of all tokens of the chosen texts, in that order."""
    lengths = boundaries[chosen + 1] - boundaries[chosen]
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
    return torch.from_numpy(np.repeat(boundaries[chosen], lengths) + within)


def some_texts(texts: TokenBatch, chosen: npt.NDArray[np.int64]) -> TokenBatch:
    """The chosen texts, in that order."""
    picked = tokens_of(texts.boundaries, chosen).numpy()
    lengths = texts.lengths[chosen]
    return TokenBatch(
        input_ids=texts.input_ids[picked],
        boundaries=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        example_ids=texts.example_ids[chosen],
        starts=texts.starts[chosen],
        word_starts=texts.word_starts[picked],
    )
