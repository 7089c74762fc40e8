"""The text tower of a CLIP or SigLIP, alone or under IRRA's cross-modal interaction encoder.

CLIP (Radford et al., ICML 2021) and SigLIP (Zhai et al., ICCV 2023) as Transformers has them. The
interaction encoder is that of IRRA (Jiang & Ye, CVPR 2023, section 3.2): one cross-attention, from
the words to the image tokens, then layers that read what it gives. Normalisation, heads, initial
weights and the untied head over the vocabulary follow its release (`model/build.py`); other than
there, it reads the towers' states before their projection, and padding takes no part.

Shapes: R texts, L tokens, D text width, I images, N image tokens, W image width, V vocabulary, M
selected tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, SiglipTextModel
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from maskery.core.errors import ModelError
from maskery.models.image_text import text_encoder
from maskery.models.image_text.text_encoder import ImageKeys, PackedRows, TextFusionEncoder


class CrossAttention(text_encoder.Attention):
    """Words attend to image tokens, and keep nothing of what they were."""

    def __init__(self, config: Any, image_width: int):
        nn.Module.__init__(self)
        self.self = text_encoder.SelfAttention(config, image_width)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def finish(self, context: Tensor, *_: Any) -> Tensor:
        """Join the heads (R, H, L, d)."""
        joined: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return joined


class InteractionEncoder(nn.Module):
    """IRRA's encoder: a cross-attention, then `config.num_hidden_layers` layers."""

    FORWARD_METHODS = ("project_image",)

    def __init__(self, config: Any, image_width: int):
        super().__init__()
        self.ln_pre_t = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ln_pre_i = nn.LayerNorm(image_width, eps=config.layer_norm_eps)
        self.crossattention = CrossAttention(config, image_width)
        self.encoder = CLIPEncoder(config)
        self.ln_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def project_image(self, image_tokens: Tensor) -> ImageKeys:
        """Project (I, N, W) image tokens to the cross-attention's keys and values."""
        return self.crossattention.self.project(self.ln_pre_i(image_tokens))

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        images: ImageKeys | None = None,
        others: ImageKeys | None = None,
        rows: PackedRows | None = None,
    ) -> Tensor:
        """(R, L, D) to such; mask (R, 1, 1, L) bool. Without images nothing is looked at."""
        seen = self.ln_pre_t(hidden)
        if images is not None:
            seen = self.crossattention(seen, None, rows, images, others)
        read = self.encoder(inputs_embeds=seen, attention_mask=mask).last_hidden_state
        fused: Tensor = self.ln_post(read)
        return fused

    @torch.no_grad()
    def start(self, head: nn.Module) -> None:
        """Draw the initial weights of IRRA's release, and those of the head over the words."""
        width, depth = self.ln_post.weight.numel(), len(self.encoder.layers)
        across, wide = width**-0.5, (2 * width) ** -0.5
        narrow = across * (2 * max(depth, 1)) ** -0.5
        stds = dict.fromkeys(("out_proj", "fc2", "output", "decoder"), narrow)
        stds |= dict.fromkeys(("fc1", "dense"), wide)
        for part in (self, head):
            for name, weight in part.named_parameters():
                if weight.dim() == 2:
                    nn.init.normal_(weight, std=stds.get(name.split(".")[-2], across))


class TextTower(TextFusionEncoder):
    """Text alone by a tower of Hugging Face, and with an image where there is a fusion encoder."""

    def __init__(self, config: Any, num_layers: int, image_width: int):
        nn.Module.__init__(self)
        self.computes_padding = True  # rows stay as they are
        # SigLIP was trained on captions filled up to its limit, and reads the padding.
        self.fills_up = config.model_type == "siglip_text_model"
        self.tower: Any = (SiglipTextModel if self.fills_up else CLIPTextModel)(config)
        if self.fills_up:
            self.tower.head = nn.Identity()  # it is the model's `text_proj`
        if num_layers:
            own: Any = CLIPTextConfig(  # for its `quick_gelu` and layers that norm first
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=4 * config.hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=config.num_attention_heads,
                attention_probs_dropout_prob=0.0,
                attn_implementation="sdpa",
                **dict.fromkeys(("bos_token_id", "eos_token_id")),
            )
            self.fusion = InteractionEncoder(own, image_width)
            # A table, as that of the words that are read: no matrix between states, for Muon.
            decoder = nn.Embedding(own.vocab_size, own.hidden_size)
            predictions = text_encoder.Predictions(own)
            self.cls = nn.ModuleDict({"predictions": predictions, "decoder": decoder})

    @property
    def fusion_layers(self) -> list[Any]:
        """The fusion encoder, which looks at the image once; empty for a dual encoder."""
        return [self.fusion] if hasattr(self, "fusion") else []

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Run the tower: (R, L) int64 to (R, L, D); SigLIP's last state is put at a text's end."""
        if not self.fills_up:  # causal: what follows a text does not change it
            states: Tensor = self.tower(input_ids).last_hidden_state
            return states
        length, config = input_ids.shape[1], self.tower.config
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(~attention_mask.bool(), config.pad_token_id)
        missing = config.max_position_embeddings - length
        states = self.tower(F.pad(input_ids, (0, missing), value=config.pad_token_id))[0]
        return states[:, :length].index_put(ends(input_ids, attention_mask), states[:, -1])

    def summarise(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """(R, L, D) of `encode_text` to (R, D): the state of the end-of-text token."""
        return hidden[ends(hidden, mask)]

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary at selected tokens: (M, D) to (M, V)."""
        if not self.fusion_layers:
            fix = "use a model with a fusion encoder (--fusion-layers)"
            raise ModelError(f"a dual encoder fills no words: {fix}")
        logits: Tensor = self.cls["predictions"](hidden, self.cls["decoder"].weight)
        return logits


def ends(rows: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the indices of the last real token of each row of (R, L, ...)."""
    numbers = torch.arange(len(rows), device=rows.device)
    if attention_mask is None:
        return numbers, torch.full_like(numbers, rows.shape[1] - 1)
    return numbers, attention_mask.sum(dim=1).long() - 1


def projections(config: Any) -> tuple[nn.Module, nn.Module]:
    """Return what makes features of an image and of a text; SigLIP's pool the image tokens."""
    text, vision, width = config.text_config, config.vision_config, config.embed_dim
    if text.model_type == "siglip_text_model":
        return SiglipMultiheadAttentionPoolingHead(vision), nn.Linear(text.hidden_size, width)
    image, words = (nn.Linear(side.hidden_size, width, bias=False) for side in (vision, text))
    return image, words
