"""A good start for a new masked-language-modelling head on an encoder that has none."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def start_new_head(
    model: PreTrainedModel, new: Collection[str], token_counts: npt.NDArray[np.int64]
) -> None:
    """Set the output bias to log frequencies and square transforms to the identity, in place.

    With both, the untrained head already predicts the corpus' unigram distribution sharpened by
    the encoder's similarity to its own input embeddings, and no layer starts from noise.

    Args:
        model: A masked language model.
        new: Names of its parameters that no checkpoint had.
        token_counts: (V,) int64: how often each token stands in the corpus.
    """
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        fresh = f"{name}.weight" in new and module is not output
        if fresh and isinstance(module, nn.Linear) and module.in_features == module.out_features:
            nn.init.eye_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    bias = getattr(output, "bias", None)
    if bias is not None:
        counts = np.zeros(len(bias), np.float64)
        counts[: len(token_counts)] = token_counts[: len(bias)]
        # One added to each count: a word not seen yet stays possible.
        frequencies = (counts + 1.0) / (counts.sum() + len(counts))
        bias.copy_(torch.from_numpy(np.log(frequencies)).to(bias))
