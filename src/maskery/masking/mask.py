"""`mask`, as both seed documents describe it: on padded torch tensors, on any device.

It is the flat engine of `masker.py`, which training uses, for image-text steps and scripts of one's
own; it computes on the CPU. Shapes: B sequences, L padded length, V vocabulary.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from maskery.core.batch import IGNORE_INDEX, TokenBatch, Vocabulary
from maskery.core.errors import ConfigError
from maskery.core.random import Stream
from maskery.masking import masker
from maskery.masking.config import MaskingConfig
from maskery.masking.policies import Draws, Selection


class Masked(NamedTuple):
    """Corrupted ids and their labels, as `mask` returns them."""

    input_ids: torch.Tensor  # (B, L) int64, corrupted
    labels: torch.Tensor  # (B, L) int64, the target where masked, -100 elsewhere


def mask(
    input_ids: torch.Tensor,
    vocab_size: int,
    targets: torch.Tensor | None = None,
    *,
    probability_matrix: float | torch.Tensor,
    vocabulary: Vocabulary,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    masked_indices: torch.Tensor | None = None,
    at_least_one: bool = True,
    seed: int = 0,
    epoch: int = 0,
    example_ids: torch.Tensor | None = None,
) -> Masked:
    """Corrupt some tokens and label them; the arguments are never written to.

    Shapes that do not agree, and a share that is out of range, are a ConfigError.

    Args:
        input_ids: (B, L) int64, special tokens and padding included.
        vocab_size: Random replacements are drawn below it; V or less.
        targets: (B, L) int64, what to predict; `input_ids` itself if None.
        probability_matrix: The chance of each token to be masked: one number, or (B, L). Special
            tokens are never masked, whatever it says.
        vocabulary: From `Vocabulary.of(tokenizer)`.
        mask_share: Share of masked tokens shown as the mask token (BERT 0.8, the text seed 1.0).
        random_share: Share of masked tokens shown as a random token; the rest keep their own.
        masked_indices: (B, L) bool; replays a selection instead of drawing one.
        at_least_one: True gives a sequence in which nothing was drawn one mask all the same.
        seed: From 0 to 2**64 - 1.
        epoch: From 0; other epochs give other masks.
        example_ids: (B,) int64, stable names of the sequences; 0 to B - 1 if None.
    """
    if input_ids.dim() != 2:
        rule = "mask takes (sequences, tokens); add a dimension with input_ids.unsqueeze(0)"
        raise ConfigError(f"input_ids has shape {tuple(input_ids.shape)}: {rule}")
    if targets is not None and targets.shape != input_ids.shape:
        shapes = f"shape {tuple(targets.shape)} and input_ids {tuple(input_ids.shape)}"
        raise ConfigError(f"targets has {shapes}: they must agree; tokenise both in one call")
    if not 0.0 <= mask_share <= mask_share + random_share <= 1.0 + 1e-9:
        rule = "both must be at least 0 and sum to at most 1"
        raise ConfigError(f"mask_share {mask_share} and random_share {random_share}: {rule}")
    check_shapes(input_ids, probability_matrix, masked_indices, example_ids)
    rows, length = input_ids.shape
    names = np.arange(rows) if example_ids is None else example_ids.cpu().numpy()
    batch = TokenBatch(
        input_ids=input_ids.flatten().cpu().numpy().astype(np.int64),
        boundaries=np.arange(rows + 1) * length,
        example_ids=names.astype(np.int64).view(np.uint64),
        starts=np.zeros(rows, np.int64),
        word_starts=np.ones(input_ids.numel(), np.bool_),
    )
    draws = Draws(seed=seed, epoch=epoch)
    if masked_indices is None:
        matrix = torch.as_tensor(probability_matrix).detach().double().cpu()
        chances = matrix.expand(rows, length).flatten().numpy()
        maskable = ~vocabulary.protected[batch.input_ids.clip(max=vocabulary.size - 1)]
        values = draws.uniforms(Stream.SELECT, batch)
        selection = Selection(selected=maskable & (values < chances), values=values)
        if at_least_one:  # but where the chance is 0: that is a wish, not bad luck
            selection = masker.at_least_one(selection, batch, maskable & (chances > 0), draws)
        masked_indices = torch.from_numpy(selection.selected).view(rows, length)
    masked_indices = masked_indices.to(input_ids.device)
    labels = torch.where(masked_indices, input_ids if targets is None else targets, IGNORE_INDEX)
    positions = np.flatnonzero(masked_indices.cpu().numpy())
    known = replace(vocabulary, size=min(vocab_size, vocabulary.size))
    shares = MaskingConfig(mask_share=min(mask_share, 1.0), random_share=min(random_share, 1.0))
    corrupted = masker.corrupt(batch, positions, None, known, draws, shares)
    return Masked(torch.from_numpy(corrupted).view(rows, length).to(input_ids.device), labels)


def check_shapes(
    input_ids: torch.Tensor,
    probability: float | torch.Tensor,
    masked_indices: torch.Tensor | None,
    example_ids: torch.Tensor | None,
) -> None:
    """Refuse what would broadcast by accident or fail deep inside."""
    named: dict[str, tuple[torch.Tensor | None, tuple[int, ...]]] = {
        "masked_indices": (masked_indices, tuple(input_ids.shape)),
        "example_ids": (example_ids, (len(input_ids),)),
    }
    if isinstance(probability, torch.Tensor) and probability.dim():
        named["probability_matrix"] = (probability, tuple(input_ids.shape))
    chances = torch.as_tensor(probability)
    wrong = chances[~((chances >= 0.0) & (chances <= 1.0))]
    if len(wrong):
        raise ConfigError(f"probability_matrix is {float(wrong[0])}: it must be from 0 to 1")
    for name, (tensor, shape) in named.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            rule = f"for input_ids of shape {tuple(input_ids.shape)} it must be {shape}"
            raise ConfigError(f"{name} has shape {tuple(tensor.shape)}: {rule}")
