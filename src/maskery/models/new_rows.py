"""Rows for words that a model's vocabulary did not have.

Shapes: V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def add_rows(hf: PreTrainedModel, pieces: Mapping[int, Sequence[int]], vocab_size: int) -> None:
    """Grow the embeddings and the head, in place; each new word starts as the mean of its pieces.

    Args:
        hf: A masked language model.
        pieces: By the id of each new word, the ids it was cut into before; where there are none,
            the mean over the whole vocabulary is taken.
        vocab_size: What the tokenizer now needs; the model gets at least so many rows.
    """
    old = int(hf.config.vocab_size)
    if vocab_size > old:
        hf.resize_token_embeddings(vocab_size, mean_resizing=False)
    tables = [hf.get_input_embeddings().weight]
    head = hf.get_output_embeddings()
    if head is not None:
        if head.weight is not tables[0]:
            tables.append(head.weight)
        if getattr(head, "bias", None) is not None:
            tables.append(head.bias)
    for table in tables:
        mean = table[:old].mean(dim=0)
        for new, parts in pieces.items():
            table[new] = table[list(parts)].mean(dim=0) if parts else mean
