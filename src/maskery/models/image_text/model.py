"""The image-text model: two encoders, two projections and four heads.

ALBEF (Li et al., NeurIPS 2021), section 3.1, with the relation and replaced-token heads of RaSa
(Bai et al., IJCAI 2023). Outside the vision encoder, parameters carry their released names.

Shapes: B images or texts, N image tokens, W image width, L text length, D text width, E features,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from maskery.models.image_text.attention import ImageKeys
from maskery.models.image_text.config import ImageTextConfig
from maskery.models.image_text.text_encoder import TextFusionEncoder
from maskery.models.image_text.vision import VisionEncoder

ResultT = TypeVar("ResultT")


@dataclass
class ImageTextOutput(ModelOutput):  # type: ignore[misc]
    """What a plain forward pass gives.

    Attributes:
        last_hidden_state: (B, L, D), text that has seen the image.
        logits: (B, L, V), scores over the vocabulary at every token.
    """

    last_hidden_state: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class ImageTextModel(PreTrainedModel):  # type: ignore[misc]
    """Reads an image and a text, apart and together.

    Attributes:
        visual_encoder: Images to tokens.
        text_encoder: Text alone, text with an image, and the masked language modelling head.
        vision_proj: (W to E) of the image's contrastive feature.
        text_proj: (D to E) of the text's.
        itm_head: Whether image and text belong together, from the fused class token.
        prd_head: Whether a matching pair is weak, from the fused class token.
        mrtd_head: Whether a token was replaced, from its fused state.
        temp: The contrastive temperature.
    """

    config_class = ImageTextConfig
    base_model_prefix = "image_text"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: ImageTextConfig):
        super().__init__(config)
        text: Any = config.text_config
        self.visual_encoder = VisionEncoder(config.vision_config)
        width = self.visual_encoder.width
        self.text_encoder = TextFusionEncoder(text, config.fusion_layer, width)
        self.vision_proj = nn.Linear(width, config.embed_dim)
        self.text_proj = nn.Linear(text.hidden_size, config.embed_dim)
        self.itm_head = nn.Linear(text.hidden_size, 2)
        self.prd_head = nn.Linear(text.hidden_size, 2)
        self.mrtd_head = nn.Linear(text.hidden_size, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.post_init()

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) to (B, N, W)."""
        tokens: torch.Tensor = self.visual_encoder(pixel_values)
        return tokens

    def image_feature(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, W) to (B, E), unit length."""
        return F.normalize(self.vision_proj(self.visual_encoder.summarise(image_tokens)), dim=-1)

    def text_feature(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, L, D) at the fusion boundary to (B, E), unit length; from the class token."""
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def project_images(self, image_tokens: torch.Tensor) -> list[ImageKeys]:
        """The keys and values that every text reading these images shares, layer by layer."""
        return self.text_encoder.project_images(image_tokens)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        compute: Callable[[ImageTextModel], ResultT] | None = None,
    ) -> ImageTextOutput | ResultT:
        """Read B texts, each with its image, or alone where there are no images.

        Args:
            pixel_values: (B, 3, height, width), normalised; or None.
            input_ids: (B, L) int64.
            attention_mask: (B, L), 0 at padding; or None.
            compute: A function of this model to run instead. Wrappers such as
                DistributedDataParallel reduce gradients once for each forward call, so a training
                step of several passes goes through here as one.

        Returns:
            The fused text and its vocabulary scores, or what `compute` returns.
        """
        if compute is not None:
            return compute(self)
        if input_ids is None:
            raise ValueError("input_ids is missing")
        images = None
        if pixel_values is not None:
            images = self.project_images(self.encode_image(pixel_values))
        hidden: torch.Tensor = self.text_encoder(input_ids, attention_mask, images)
        logits = self.text_encoder.mlm_logits(hidden)
        return ImageTextOutput(last_hidden_state=hidden, logits=logits)


AutoConfig.register(ImageTextConfig.model_type, ImageTextConfig, exist_ok=True)
AutoModel.register(ImageTextConfig, ImageTextModel, exist_ok=True)
