"""The text-and-fusion encoder: BERT whose later layers also look at an image.

Li et al., "Align before Fuse" (ALBEF, NeurIPS 2021), section 3.1: the first `fusion_layer` layers
read text alone; the others cross-attend to the image tokens between self-attention and
feed-forward. Parameters carry BERT's and ALBEF's names, so their checkpoints load as they are.

Shapes: R text rows, L tokens a row, I images, N image tokens, D text width, W image width,
V vocabulary, M selected tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from maskery.models.image_text.attention import (
    AttentionOutput,
    ImageAttention,
    ImageKeys,
    PackedRows,
    TextAttention,
)

OtherImages: TypeAlias = torch.Tensor | Sequence[ImageKeys]


class Embeddings(nn.Module):
    """BERT's word, position and segment embeddings; every token is of segment 0."""

    def __init__(self, config: Any):
        super().__init__()
        width = config.hidden_size
        # The padding's embedding takes no gradient from being read, as in BERT.
        self.word_embeddings = nn.Embedding(
            config.vocab_size, width, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, rows: PackedRows | None = None) -> torch.Tensor:
        """(R, L) int64 to (R, L, D), or to the (T, D) of the real tokens."""
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        if rows is not None:
            input_ids = input_ids.flatten()[rows.places]
            positions = F.embedding(rows.places % rows.length, positions)
        segment = self.token_type_embeddings.weight[0]
        embedded = self.word_embeddings(input_ids) + positions + segment
        result: torch.Tensor = self.dropout(self.LayerNorm(embedded))
        return result


class Intermediate(nn.Module):
    """The widening half of BERT's feed-forward block."""

    def __init__(self, config: Any):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., intermediate)."""
        widened: torch.Tensor = self.activation(self.dense(hidden))
        return widened


class Layer(nn.Module):
    """One BERT layer; with `image_width` it has cross-attention."""

    # What is computed with the layer's weights outside `forward`: sharding must know.
    FORWARD_METHODS = ("project_image",)

    def __init__(self, config: Any, image_width: int | None = None):
        super().__init__()
        width, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        options: Any = {
            "attention_dropout": config.attention_probs_dropout_prob,
            "dropout": config.hidden_dropout_prob,
            "eps": eps,
        }
        self.attention = TextAttention(width, heads, **options)
        if image_width is not None:
            self.crossattention = ImageAttention(width, heads, image_width, **options)
        self.intermediate = Intermediate(config)
        self.output = AttentionOutput(
            config.intermediate_size, width, config.hidden_dropout_prob, eps
        )

    def project_image(self, image_tokens: torch.Tensor) -> ImageKeys:
        """The cross-attention's keys and values of (I, N, W) image tokens."""
        return self.crossattention.project(image_tokens)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        images: ImageKeys | None = None,
        others: ImageKeys | None = None,
        rows: PackedRows | None = None,
    ) -> torch.Tensor:
        """(R, L, D) to such, or (T, D); without images the cross-attention is skipped."""
        hidden = self.attention(hidden, mask, rows)
        if images is not None:
            hidden = self.crossattention(hidden, images, others, rows)
        result: torch.Tensor = self.output(self.intermediate(hidden), hidden)
        return result


class Named(nn.Module):
    """Modules under BERT's names, so that its checkpoints load as they are."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class Transform(nn.Module):
    """The part of the masked language modelling head before its vocabulary projection."""

    def __init__(self, config: Any):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(M, D) to (M, D)."""
        transformed: torch.Tensor = self.LayerNorm(self.activation(self.dense(hidden)))
        return transformed


class Predictions(nn.Module):
    """BERT's `cls.predictions`; its projection is the word embedding matrix, handed in."""

    def __init__(self, config: Any):
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """(M, D) to (M, V)."""
        return F.linear(self.transform(hidden), word_embeddings, self.bias)


class TextFusionEncoder(nn.Module):
    """Text alone, text with an image, and the masked language modelling head.

    Attributes:
        fusion_layer: The first layer that looks at an image.
        computes_padding: True if padding goes through the layers too, as in ALBEF's and RaSa's
            code, whose soft-label loss over the sequence reads what comes of it. Otherwise it is
            left out, and what stands there afterwards is zero.
    """

    def __init__(self, config: Any, fusion_layer: int, image_width: int):
        super().__init__()
        self.fusion_layer, self.computes_padding = fusion_layer, False
        embeddings = Embeddings(config)
        layers = nn.ModuleList(
            Layer(config, image_width if i >= fusion_layer else None)
            for i in range(config.num_hidden_layers)
        )
        self.bert: Any = Named(embeddings=embeddings, encoder=Named(layer=layers))
        self.cls: Any = Named(predictions=Predictions(config))

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the text layers (ALBEF's mode "text"): (R, L) int64 to (R, L, D)."""
        mask, rows = _broadcast(attention_mask), self._rows(attention_mask)
        hidden: torch.Tensor = self.bert.embeddings(input_ids, rows)
        for layer in self.bert.encoder.layer[: self.fusion_layer]:
            hidden = layer(hidden, mask, rows=rows)
        return hidden if rows is None else rows.spread(hidden)

    def _rows(self, attention_mask: torch.Tensor | None) -> PackedRows | None:
        if attention_mask is None or self.computes_padding:
            return None
        return PackedRows.of(attention_mask)

    def project_images(self, image_tokens: torch.Tensor) -> list[ImageKeys]:
        """Keys and values of (I, N, W) image tokens, one entry for each fusion layer."""
        layers: Any = self.bert.encoder.layer[self.fusion_layer :]
        return [layer.project_image(image_tokens) for layer in layers]

    def fuse(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        images: Sequence[ImageKeys] | None,
        other_images: OtherImages | None = None,
    ) -> torch.Tensor:
        """Run the fusion layers from the fusion boundary on (ALBEF's mode "fusion").

        Args:
            hidden: (R, L, D), from `encode_text`.
            attention_mask: (R, L) bool, or None.
            images: From `project_images`, of I images; None to read text alone. Row r looks at
                image r modulo I.
            other_images: The images that the last S rows look at instead: (S,) int64 among
                `images`, or S images of their own, from `project_images`.

        Returns:
            (R, L, D).
        """
        num_blocked = len(hidden) - _count(other_images)
        if images and num_blocked % len(images[0].keys):
            raise ValueError(
                f"{num_blocked} text rows are not whole blocks over {len(images[0].keys)} images"
            )
        mask, rows = _broadcast(attention_mask), self._rows(attention_mask)
        if rows is not None:
            hidden = rows.gather(hidden)
        layers = self.bert.encoder.layer[self.fusion_layer :]
        for i, layer in enumerate(layers):
            keys = None if images is None else images[i]
            hidden = layer(hidden, mask, keys, _others(keys, other_images, i), rows)
        return hidden if rows is None else rows.spread(hidden)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        images: Sequence[ImageKeys] | None,
        other_images: OtherImages | None = None,
    ) -> torch.Tensor:
        """`encode_text`, then `fuse` (ALBEF's mode "multi_modal")."""
        hidden = self.encode_text(input_ids, attention_mask)
        return self.fuse(hidden, attention_mask, images, other_images)

    def mlm_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores over the vocabulary of selected tokens: (M, D) to (M, V)."""
        logits: torch.Tensor = self.cls.predictions(
            hidden, self.bert.embeddings.word_embeddings.weight
        )
        return logits


def _count(other_images: OtherImages | None) -> int:
    """S."""
    if other_images is None:
        return 0
    if isinstance(other_images, torch.Tensor):
        return len(other_images)
    return len(other_images[0].keys) if other_images else 0


def _others(
    keys: ImageKeys | None, other_images: OtherImages | None, layer: int
) -> ImageKeys | None:
    """Return the keys that the last rows attend to in one fusion layer."""
    if keys is None or other_images is None:
        return None
    if isinstance(other_images, torch.Tensor):
        return keys.select(other_images)
    return other_images[layer]


def _broadcast(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """(R, L) to (R, 1, 1, L) bool, as attention wants it."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None, :]
