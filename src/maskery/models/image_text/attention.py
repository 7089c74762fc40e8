"""BERT's attention blocks, with image keys and values that are projected once and reused.

Parameters carry BERT's names (`self.query`, `output.dense`, `output.LayerNorm`).

Text comes as R rows of L tokens, padding and all, or as the T real tokens of those rows laid end to
end (`PackedRows`). In the second form everything but attention itself, whose queries, keys and
values are spread over the rows for it, is computed for real tokens alone.

Shapes: R text rows, L tokens a row, T real tokens, I images, N image tokens, H heads, d head width,
D = H * d text width, W image width. Hidden states are (R, L, D), or (T, D) where they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.bert.modeling_bert import BertSelfOutput


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """The places of T real tokens in R rows of L."""

    count: int  # R
    length: int  # L
    places: torch.Tensor  # (T,) int64, ascending indices into R * L

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> PackedRows:
        """Read them off (R, L), 0 at padding."""
        count, length = attention_mask.shape
        places = attention_mask.bool().flatten().nonzero().squeeze(-1)
        return cls(count=count, length=length, places=places)

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """(R, L, D) to (T, D)."""
        packed: torch.Tensor = _Gather.apply(padded.flatten(0, 1), self.places)  # type: ignore[no-untyped-call]
        return packed

    def spread(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, D) to (R, L, D), with zeros at padding."""
        flat = hidden.new_zeros(self.count * self.length, *hidden.shape[1:])
        return flat.index_copy_(0, self.places, hidden).view(self.count, self.length, -1)


class _Gather(torch.autograd.Function):
    """Take rows of a matrix, each at most once, so the backward pass copies and adds nothing."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(values)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, places, grad), None


@dataclass(frozen=True, kw_only=True)
class ImageKeys:
    """The keys and values of I images in one fusion layer."""

    keys: torch.Tensor  # (I, H, N, d)
    values: torch.Tensor  # (I, H, N, d)

    def select(self, rows: torch.Tensor) -> ImageKeys:
        """Take the images `rows` (S,), in that order."""
        return ImageKeys(keys=self.keys[rows], values=self.values[rows])


class SelfAttention(nn.Module):
    """Multi-head attention without its output projection (BERT's `attention.self`)."""

    def __init__(self, config: Any, key_width: int | None = None):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width or width, width)
        self.value = nn.Linear(key_width or width, width)

    def split_heads(
        self, projected: torch.Tensor, packed: PackedRows | None = None
    ) -> torch.Tensor:
        """(R, L, D), or (T, D) that are packed, to (R, H, L, d)."""
        spread = projected if packed is None else packed.spread(projected)
        return spread.view(*spread.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def project(self, tokens: torch.Tensor, packed: PackedRows | None = None) -> ImageKeys:
        """Project (I, N, W) tokens, or packed ones, to keys and values."""
        return ImageKeys(
            keys=self.split_heads(self.key(tokens), packed),
            values=self.split_heads(self.value(tokens), packed),
        )

    def attend(
        self, query: torch.Tensor, to: ImageKeys, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(R, H, L, d) queries to (R, H, L, d) contexts; mask (R, 1, 1, N) bool or None."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, to.keys, to.values, attn_mask=mask, dropout_p=dropout
        )


class Attention(nn.Module):
    """Attention of text tokens with its output block.

    Without `key_width` to tokens of their own row, otherwise to those of an image.
    """

    def __init__(self, config: Any, key_width: int | None = None):
        super().__init__()
        self.self = SelfAttention(config, key_width)
        self.output = BertSelfOutput(config)

    def finish(
        self, context: torch.Tensor, hidden: torch.Tensor, rows: PackedRows | None
    ) -> torch.Tensor:
        """Join the heads (R, H, L, d) and add what was there before."""
        merged = context.transpose(1, 2).flatten(2)
        attended: torch.Tensor = self.output(
            merged if rows is None else rows.gather(merged), hidden
        )
        return attended


class TextAttention(Attention):
    """Text tokens attend to the text tokens of their own row (BERT's `attention`)."""

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, rows: PackedRows | None = None
    ) -> torch.Tensor:
        """(R, L, D), or (T, D) with `rows`, to such; mask (R, 1, 1, L) bool or None."""
        query = self.self.split_heads(self.self.query(hidden), rows)
        context = self.self.attend(query, self.self.project(hidden, rows), mask)
        return self.finish(context, hidden, rows)


class ImageAttention(Attention):
    """Text tokens attend to the tokens of an image (ALBEF's `crossattention`)."""

    def forward(
        self,
        hidden: torch.Tensor,
        images: ImageKeys,
        others: ImageKeys | None = None,
        rows: PackedRows | None = None,
    ) -> torch.Tensor:
        """Attend from each text row to its image: (R, L, D), or (T, D) with `rows`, to such.

        Row r looks at image r modulo I, but the last S rows look at the S images `others`, if
        given.
        """
        query = self.self.split_heads(self.self.query(hidden), rows)
        num_others = 0 if others is None else len(others.keys)
        context = self._in_blocks(query[: len(query) - num_others], images)
        if others is not None:
            apart = self.self.attend(query[len(query) - num_others :], others)
            context = torch.cat((context, apart))
        return self.finish(context, hidden, rows)

    def _in_blocks(self, query: torch.Tensor, images: ImageKeys) -> torch.Tensor:
        """Attend from whole blocks of I rows: rows of one image become one long row of queries."""
        # So no key or value is copied, however many texts look at an image.
        num_images = len(images.keys)
        if len(query) == num_images:
            return self.self.attend(query, images)
        _, heads, length, width = query.shape
        folded = query.view(-1, num_images, heads, length, width).permute(1, 2, 0, 3, 4)
        context = self.self.attend(folded.flatten(2, 3), images)
        unfolded = context.view(num_images, heads, -1, length, width)
        return unfolded.permute(2, 0, 1, 3, 4).flatten(0, 1)
