"""Compute only the fused class token of many texts that look at one image.

Matching reads the class token alone (ALBEF, NeurIPS 2021, section 3.2), which allows four savings
that change no result: the self-attention of the first fusion layer has not seen the image yet and
is run once for each text; the tokens of all texts lie end to end, so that padding takes part in no
product of matrices; they look at the image as one long row of queries, so that no key or value is
copied; and the last layer is computed for the class tokens only.

Shapes: R texts, L tokens of the longest, S tokens of all, D text width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskery.models.image_text.text_encoder import ImageKeys, Layer, PackedRows, TextFusionEncoder


@dataclass(frozen=True, kw_only=True)
class Rows(PackedRows):
    """The places of S tokens in R rows of L, and of the class tokens among them."""

    firsts: Tensor  # (R,) int64, the class token of each row among the S
    mask: Tensor | None  # (R, 1, 1, L) bool; None where all rows are as long

    @classmethod
    def of_lengths(cls, lengths: npt.NDArray[np.int64], device: torch.device) -> Rows:
        """Lay out rows of these lengths, (R,)."""
        longest = int(lengths.max())
        real = np.arange(longest) < lengths[:, None]
        return cls(
            count=len(lengths),
            length=longest,
            places=torch.from_numpy(np.flatnonzero(real)).to(device),
            firsts=torch.from_numpy(np.cumsum(lengths) - lengths).to(device),
            mask=None if real.all() else torch.from_numpy(real)[:, None, None].to(device),
        )


def before_looking(encoder: TextFusionEncoder, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Run the self-attention of the first fusion layer, which no image has a part in.

    From (R, L, D) of `encode_text`, and (R, L) bool, to (R, L, D) for `fuse_class_tokens`.
    """
    first = encoder.fusion_layers[0]
    if not isinstance(first, Layer):  # a fusion encoder of another kind begins by looking
        return hidden
    attended: Tensor = first.attention(hidden, attention_mask[:, None, None, :])
    return attended


def fuse_class_tokens(
    encoder: TextFusionEncoder, tokens: Tensor, rows: Rows, image: Sequence[ImageKeys]
) -> Tensor:
    """Let all texts look at one image: (S, D) of `before_looking` to (R, D) fused class tokens."""
    layers = encoder.fusion_layers
    if not isinstance(layers[0], Layer):
        fused: Tensor = layers[0](rows.spread(tokens), rows.mask, *image)
        return fused[:, 0]
    hidden = tokens
    for number, (layer, keys) in enumerate(zip(layers, image, strict=True)):
        last = number + 1 == len(layers)
        if number and last:  # only class tokens ask, and all tokens of their rows are asked
            core, asking = layer.attention.self, hidden.index_select(0, rows.firsts)
            query = core.split_heads(core.query(asking)[:, None])
            context = core.attend(query, core.project(hidden, rows), rows.mask)
            hidden = layer.attention.finish(context, asking[:, None], None)[:, 0]
        elif number:
            hidden = layer.attention(hidden, rows.mask, rows)
        elif last:  # the only layer: its self-attention has been run, by `before_looking`
            hidden = hidden[rows.firsts]
        hidden = layer.crossattention(hidden[None], images=keys)[0]
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden
