"""The text-and-fusion encoder: BERT whose later layers also look at an image.

Li et al., "Align before Fuse" (ALBEF, NeurIPS 2021), section 3.1: the first `fusion_layer` layers
read text alone; the others cross-attend to the image tokens between self-attention and
feed-forward. Parameters carry BERT's and ALBEF's names, so their checkpoints load as they are. The
keys and values of an image are projected once and reused.

Text comes as R rows of L tokens, padding and all, or as the T real tokens of those rows laid end to
end (`PackedRows`); then everything but attention itself is computed for real tokens alone.

Shapes: R text rows, L tokens a row, T real tokens, I images, N image tokens, H heads, d head width,
D = H * d text width, W image width, V vocabulary, M selected tokens. Hidden states are (R, L, D),
or (T, D) where they are packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert import modeling_bert

from maskery.models.attention import in_float32, stays_on_device


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """The places of T real tokens in R rows of L."""

    count: int  # R
    length: int  # L
    places: Tensor  # (T,) int64, ascending indices into R * L

    @classmethod
    def of(cls, attention_mask: Tensor) -> Self:
        """Read them off (R, L), 0 at padding."""
        count, length = attention_mask.shape
        places = attention_mask.bool().flatten().nonzero().squeeze(-1)
        return cls(count=count, length=length, places=places)

    def gather(self, padded: Tensor) -> Tensor:
        """(R, L, D) to (T, D)."""
        # Each row at most once: its gradient is added to zeros alone, in whatever order.
        return padded.flatten(0, 1).index_select(0, self.places)

    def spread(self, hidden: Tensor) -> Tensor:
        """(T, D) to (R, L, D), with zeros at padding."""
        flat = hidden.new_zeros(self.count * self.length, *hidden.shape[1:])
        return flat.index_copy_(0, self.places, hidden).view(self.count, self.length, -1)


@dataclass(frozen=True, kw_only=True)
class ImageKeys:
    """The keys and values of I images in one fusion layer."""

    keys: Tensor  # (I, H, N, d)
    values: Tensor  # (I, H, N, d)

    def select(self, rows: Tensor) -> "ImageKeys":
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

    def split_heads(self, projected: Tensor, packed: PackedRows | None = None) -> Tensor:
        """(R, L, D), or (T, D) that are packed, to (R, H, L, d)."""
        spread = projected if packed is None else packed.spread(projected)
        return spread.view(*spread.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def project(self, tokens: Tensor, packed: PackedRows | None = None) -> ImageKeys:
        """Project (I, N, W) tokens, or packed ones, to keys and values."""
        keys, values = (self.split_heads(of(tokens), packed) for of in (self.key, self.value))
        return ImageKeys(keys=keys, values=values)

    def attend(self, query: Tensor, to: ImageKeys, mask: Tensor | None = None) -> Tensor:
        """(R, H, L, d) queries to (R, H, L, d) contexts; mask (R, 1, 1, N) bool or None."""
        dropout = self.dropout if self.training else 0.0
        with in_float32(query, to.keys, to.values) as (q, k, v):
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return context.to(query.dtype)


class Attention(nn.Module):
    """Attends to the own row (BERT's `attention`) or, of width `key_width`, an image (ALBEF's)."""

    def __init__(self, config: Any, key_width: int | None = None):
        super().__init__()
        self.self = SelfAttention(config, key_width)
        self.output = modeling_bert.BertSelfOutput(config)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        rows: PackedRows | None = None,
        images: ImageKeys | None = None,
        others: ImageKeys | None = None,
    ) -> Tensor:
        """(R, L, D), or (T, D) with `rows`, to such; mask (R, 1, 1, L) bool or None.

        Row r looks at image r modulo I, but the last S rows at the S images `others`, if given.
        """
        query = self.self.split_heads(self.self.query(hidden), rows)
        if images is None:
            context = self.self.attend(query, self.self.project(hidden, rows), mask)
        else:
            first = len(query) - (0 if others is None else len(others.keys))
            context = self._in_blocks(query[:first], images)
            if others is not None:
                context = torch.cat((context, self.self.attend(query[first:], others)))
        return self.finish(context, hidden, rows)

    def finish(self, context: Tensor, hidden: Tensor, rows: PackedRows | None) -> Tensor:
        """Join the heads (R, H, L, d) and add what was there before."""
        merged = context.transpose(1, 2).flatten(2)
        attended: Tensor = self.output(merged if rows is None else rows.gather(merged), hidden)
        return attended

    def _in_blocks(self, query: Tensor, images: ImageKeys) -> Tensor:
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


class Embeddings(nn.Module):
    """BERT's word, position and segment embeddings; every token is of segment 0."""

    def __init__(self, config: Any):
        super().__init__()
        words, width = config.vocab_size, config.hidden_size
        # The padding's embedding takes no gradient from being read, as in BERT.
        self.word_embeddings = nn.Embedding(words, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, rows: PackedRows | None = None) -> Tensor:
        """(R, L) int64 to (R, L, D), or to the (T, D) of the real tokens."""
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        if rows is not None:
            input_ids = input_ids.flatten()[rows.places]
            positions = F.embedding(rows.places % rows.length, positions)
        segment = self.token_type_embeddings.weight[0]
        embedded = self.word_embeddings(input_ids) + positions + segment
        result: Tensor = self.dropout(self.LayerNorm(embedded))
        return result


class Layer(nn.Module):
    """One BERT layer; with `image_width` it has cross-attention."""

    # What is computed with the layer's weights outside `forward`: sharding must know.
    FORWARD_METHODS = ("project_image",)

    def __init__(self, config: Any, image_width: int | None = None):
        super().__init__()
        self.attention = Attention(config)
        if image_width is not None:
            self.crossattention = Attention(config, image_width)
        self.intermediate = modeling_bert.BertIntermediate(config)
        self.output = modeling_bert.BertOutput(config)

    def project_image(self, image_tokens: Tensor) -> ImageKeys:
        """Project (I, N, W) image tokens to the cross-attention's keys and values."""
        return self.crossattention.self.project(image_tokens)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        images: ImageKeys | None = None,
        others: ImageKeys | None = None,
        rows: PackedRows | None = None,
    ) -> Tensor:
        """(R, L, D) to such, or (T, D); without images the cross-attention is skipped."""
        hidden = self.attention(hidden, mask, rows)
        if images is not None:
            hidden = self.crossattention(hidden, None, rows, images, others)
        result: Tensor = self.output(self.intermediate(hidden), hidden)
        return result


class Predictions(nn.Module):
    """BERT's `cls.predictions`; its projection is the word embedding matrix, handed in."""

    def __init__(self, config: Any):
        super().__init__()
        self.transform = modeling_bert.BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """(M, D) to (M, V)."""
        return F.linear(self.transform(hidden), word_embeddings, self.bias)


class TextFusionEncoder(nn.Module):
    """Text alone, text with an image, and the masked language modelling head."""

    def __init__(self, config: Any, fusion_layer: int, image_width: int):
        super().__init__()
        self.fusion_layer = fusion_layer  # the first layer that looks at an image
        # True if padding goes through the layers too, as in ALBEF's and RaSa's code, whose loss
        # over the sequence reads it; else zeros stand there, or on a GPU what nothing may read.
        self.computes_padding = False
        # Modules under BERT's names, so that its checkpoints load as they are.
        embeddings = Embeddings(config)
        numbers = range(config.num_hidden_layers)
        layers = [Layer(config, image_width if i >= fusion_layer else None) for i in numbers]
        encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.bert: Any = nn.ModuleDict({"embeddings": embeddings, "encoder": encoder})
        self.cls: Any = nn.ModuleDict({"predictions": Predictions(config)})

    @property
    def fusion_layers(self) -> list[Any]:
        """The layers that look at the image."""
        return list(self.bert.encoder.layer[self.fusion_layer :])

    def summarise(self, hidden: Tensor, _: Tensor | None = None) -> Tensor:
        """(R, L, D) of `encode_text` to (R, D), the class token's state."""
        return hidden[:, 0]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Run the text layers (ALBEF's mode "text"): (R, L) int64 to (R, L, D)."""
        mask, rows = self._laid_out(attention_mask)
        hidden: Tensor = self.bert.embeddings(input_ids, rows)
        for layer in self.bert.encoder.layer[: self.fusion_layer]:
            hidden = layer(hidden, mask, rows=rows)
        return hidden if rows is None else rows.spread(hidden)

    def _laid_out(self, attention_mask: Tensor | None) -> tuple[Tensor | None, PackedRows | None]:
        """Return the mask (R, 1, 1, L) bool, as attention wants it, and where real tokens lie."""
        if attention_mask is None:
            return None, None
        # To find real tokens, a GPU would be waited for: there padding costs less.
        padded = self.computes_padding or stays_on_device(attention_mask)
        rows = None if padded else PackedRows.of(attention_mask)
        return attention_mask.bool()[:, None, None, :], rows

    def project_images(self, image_tokens: Tensor) -> list[ImageKeys]:
        """Project (I, N, W) image tokens to keys and values, one entry for each fusion layer."""
        return [layer.project_image(image_tokens) for layer in self.fusion_layers]

    def fuse(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        images: Sequence[ImageKeys] | None,
        others: Sequence[ImageKeys] | None = None,
    ) -> Tensor:
        """Run the fusion layers on (R, L, D) of `encode_text` (ALBEF's mode "fusion").

        Row r looks at image r modulo I of `images` (from `project_images`; None to read text
        alone), but the last S rows at the S images of `others`, one each.
        """
        count = len(hidden) - (len(others[0].keys) if others else 0)
        if images and count % (num_images := len(images[0].keys)):
            raise ValueError(f"{count} text rows are not whole blocks over {num_images} images")
        mask, rows = self._laid_out(attention_mask)
        if rows is not None:
            hidden = rows.gather(hidden)
        nothing = repeat(None)
        looks = zip(self.fusion_layers, images or nothing, others or nothing, strict=False)
        for layer, keys, apart in looks:
            hidden = layer(hidden, mask, keys, apart, rows)
        return hidden if rows is None else rows.spread(hidden)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, images: Sequence[ImageKeys] | None
    ) -> Tensor:
        """`encode_text`, then `fuse` (ALBEF's mode "multi_modal")."""
        return self.fuse(self.encode_text(input_ids, attention_mask), attention_mask, images)

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary at selected tokens: (M, D) to (M, V)."""
        logits: Tensor = self.cls.predictions(hidden, self.bert.embeddings.word_embeddings.weight)
        return logits


# Matching reads the fused class token alone (ALBEF, section 3.2). Of many texts that look at one
# image that allows four savings, which change no result: the first fusion layer's self-attention
# has not seen the image yet and is run once for each text; the tokens of all texts lie end to end,
# so that padding takes part in no product of matrices; they look at the image as one long row of
# queries, so that no key or value is copied; the last layer is computed for class tokens only.
@dataclass(frozen=True, kw_only=True)
class Rows(PackedRows):
    """The places of T tokens in R rows of L, and of the class tokens among them."""

    firsts: Tensor  # (R,) int64, the class token of each row among the T
    mask: Tensor | None  # (R, 1, 1, L) bool; None where all rows are as long

    @classmethod
    def of_lengths(cls, lengths: npt.NDArray[np.int64], device: torch.device) -> Self:
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
    first, mask = encoder.fusion_layers[0], attention_mask[:, None, None, :]
    # A fusion encoder of another kind begins by looking.
    attended: Tensor = first.attention(hidden, mask) if isinstance(first, Layer) else hidden
    return attended


def fuse_class_tokens(
    encoder: TextFusionEncoder, hidden: Tensor, rows: Rows, image: Sequence[ImageKeys]
) -> Tensor:
    """Let all texts look at one image: (T, D) of `before_looking` to (R, D) fused class tokens."""
    layers = encoder.fusion_layers
    if not isinstance(layers[0], Layer):
        fused: Tensor = layers[0](rows.spread(hidden), rows.mask, *image)
        return fused[:, 0]
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
