"""The image-text model: two encoders, two projections and four heads.

ALBEF (Li et al., NeurIPS 2021), section 3.1, with the relation and replaced-token heads of RaSa
(Bai et al., IJCAI 2023). Outside the vision encoder, parameters carry their released names. Or both
towers of a CLIP or SigLIP, with their projections, in their place (`towers.py`).

Shapes: B images or texts, N image tokens, W image width, L text length, D text width, E features,
V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from maskery.core.errors import ModelError
from maskery.models.image_text.text_encoder import ImageKeys, TextFusionEncoder

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
# Text towers, each with the vision tower and the projections that it was trained with.
TEXT_TOWERS = ("clip_text_model", "siglip_text_model")


class ImageTextConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of an `ImageTextModel`."""

    model_type = "maskery_image_text"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012

    # A tower of `TEXT_TOWERS`, or BERT sizes of the text-and-fusion encoder: `num_hidden_layers`
    # counts both kinds of layers; attention is several times faster with an
    # `attention_probs_dropout_prob` of 0.
    text_config: Any = None
    vision_config: Any = None  # Of Hugging Face: ViT, DeiT, CLIP, SigLIP or DINOv2
    # Height and width in pixels; by default the vision encoder's, else it interpolates positions.
    image_size: Any = None
    fusion_layer: int = 6  # The first layer with cross-attention; those before read text alone
    interaction_layers: int = 0  # Of IRRA's fusion encoder over two towers; 0: a dual encoder
    embed_dim: int = 256  # Width of the contrastive features
    temperature: float = 0.07  # What similarities are divided by at first; learnt
    tie_word_embeddings: bool = False  # The masked-language-modelling head has no matrix to tie

    def __post_init__(self, **kwargs: Any) -> None:
        default = {"attention_probs_dropout_prob": 0.0}
        text = default if self.text_config is None else self.text_config
        bert = {"model_type": "bert"}
        self.text_config = AutoConfig.for_model(**bert | text) if isinstance(text, dict) else text
        vision = self.vision_config or {"model_type": "vit"}
        self.vision_config = AutoConfig.for_model(**vision) if isinstance(vision, dict) else vision
        num_layers: int = self.text_config.num_hidden_layers
        if not (self.has_towers or 0 <= self.fusion_layer <= num_layers):
            rule = f"it must be from 0 to the text encoder's {num_layers} layers"
            raise ModelError(f"fusion_layer is {self.fusion_layer}: {rule}; half of them is usual")
        self.image_size = list(self.image_size or pair(self.vision_config.image_size))
        check_image_size(self.image_size, self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def has_towers(self) -> bool:
        """True for both towers of a CLIP or SigLIP."""
        return self.text_config.model_type in TEXT_TOWERS


def check_image_size(image_size: Sequence[int], vision_config: Any) -> None:
    """Raise a ModelError if the encoder's patch size does not divide a height and width."""
    size, patch = pair(image_size), pair(vision_config.patch_size)
    if (whole := covered(image_size, vision_config)) != size:
        images, patches, fitting = (f"{rows} x {columns}" for rows, columns in (size, patch, whole))
        problem = f"images of {images} pixels cannot be cut into patches of {patches}"
        rule = "the patch size must divide the image size"
        raise ModelError(f"{problem}: {rule}; choose {fitting}")


def covered(image_size: int | Sequence[int], vision_config: Any) -> tuple[int, int]:
    """Return the largest height and width within an image that whole patches cover."""
    (height, width), (down, across) = pair(image_size), pair(vision_config.patch_size)
    return height // down * down, width // across * across


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width; one number stands for both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


@dataclass(frozen=True, kw_only=True)
class VisionFamily:
    """Differences of one architecture from a plain ViT."""

    class_token: bool = True  # Token 0 stands for the whole image; otherwise the mean of all
    token_norm: str | None = None  # It is kept for the pooled token, and put on all tokens here
    oblong: bool = False  # Positions may be of an oblong image; else interpolated in every pass
    any_size: bool = False  # It interpolates positions without being asked
    unused_settings: dict[str, Any] = field(default_factory=dict)  # Leave out what nothing reads
    arguments: dict[str, Any] = field(default_factory=dict)  # Likewise, for the constructor


VISION_FAMILIES: dict[str, VisionFamily] = {
    "vit": VisionFamily(oblong=True, arguments={"add_pooling_layer": False}),
    "deit": VisionFamily(oblong=True, arguments={"add_pooling_layer": False}),
    "dinov2": VisionFamily(any_size=True, unused_settings={"use_mask_token": False}),
    "dinov2_with_registers": VisionFamily(any_size=True),
    "clip_vision_model": VisionFamily(token_norm="post_layernorm"),
    "siglip_vision_model": VisionFamily(
        class_token=False, unused_settings={"vision_use_head": False}
    ),
}


def vision_family(model_type: str) -> VisionFamily:
    """Return the record of an architecture; raises a ModelError for others."""
    if model_type not in VISION_FAMILIES:
        problem = f"vision encoders of type '{model_type}' are not supported"
        raise ModelError(f"{problem}; choose one of {', '.join(sorted(VISION_FAMILIES))}")
    return VISION_FAMILIES[model_type]


def sized(config: Any, wanted: tuple[int, int] | None, name: str) -> tuple[Any, tuple[int, int]]:
    """Copy a vision configuration for another image size, where its kind allows one.

    Returns the size, too: as wanted, or the encoder's own, or what whole patches cover of that.
    """
    own, patch = pair(config.image_size), pair(config.patch_size)
    size = wanted or covered(own, config)
    if wanted is None and size != own:
        told = "'%s' was made for pictures of %d x %d pixels, no multiple of its patches of %d x %d"
        log.warning(f"{told}; they are read at %d x %d", name, *own, *patch, *size)
    copied = type(config).from_dict(config.to_dict())
    if size != own and size[0] == size[1]:
        copied.image_size = size[0]
    elif size != own and vision_family(config.model_type).oblong:
        copied.image_size = list(size)
    return copied, size


class VisionEncoder(nn.Module):
    """A Hugging Face vision encoder that returns its tokens after the last normalisation."""

    def __init__(self, config: Any):
        super().__init__()
        self.family = vision_family(config.model_type)
        self.image_size = pair(config.image_size)
        self.width = int(config.hidden_size)
        for name, value in self.family.unused_settings.items():
            setattr(config, name, value)
        self.backbone = AutoModel.from_config(config, **self.family.arguments)
        for name, parameter in self.backbone.named_parameters():
            # No step reads it, and a trained parameter without gradient stops data parallelism.
            if name.rpartition(".")[2] == "mask_token":
                parameter.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, height, width), normalised, to (B, N, W)."""
        # Positions are interpolated where the images are not of the encoder's own size.
        asks = not self.family.any_size and tuple(pixel_values.shape[-2:]) != self.image_size
        options = {"interpolate_pos_encoding": True} if asks else {}
        tokens: Tensor = self.backbone(pixel_values, **options).last_hidden_state
        if self.family.token_norm is not None:
            tokens = getattr(self.backbone, self.family.token_norm)(tokens)
        return tokens

    def summarise(self, tokens: Tensor) -> Tensor:
        """One vector for the whole image: (B, N, W) to (B, W)."""
        return tokens[:, 0] if self.family.class_token else tokens.mean(dim=1)


@dataclass
class ImageTextOutput(ModelOutput):  # type: ignore[misc]
    """Results of a plain forward pass."""

    last_hidden_state: Tensor | None = None  # (B, L, D), text that has seen the image
    logits: Tensor | None = None  # (B, L, V), scores over the vocabulary at every token


class ImageTextModel(PreTrainedModel):  # type: ignore[misc]
    """Reads an image and a text, apart and together."""

    config_class = ImageTextConfig
    base_model_prefix = "image_text"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: ImageTextConfig):
        super().__init__(config)
        text: Any = config.text_config
        self.visual_encoder = VisionEncoder(config.vision_config)
        width = self.visual_encoder.width
        # Contrastive features, of the image and of the text.
        self.vision_proj: Any
        self.text_proj: Any
        if config.has_towers:
            from maskery.models.image_text.towers import TextTower, projections

            self.text_encoder: TextFusionEncoder = TextTower(text, config.interaction_layers, width)
            self.vision_proj, self.text_proj = projections(config)
        else:
            self.text_encoder = TextFusionEncoder(text, config.fusion_layer, width)
            self.vision_proj = nn.Linear(width, config.embed_dim)
            self.text_proj = nn.Linear(text.hidden_size, config.embed_dim)
        # From the fused class token: do image and text belong together; is a matching pair weak.
        self.itm_head = nn.Linear(text.hidden_size, 2)
        self.prd_head = nn.Linear(text.hidden_size, 2)
        # From the fused state of a token: was it replaced.
        self.mrtd_head = nn.Linear(text.hidden_size, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))  # the contrastive temperature
        # What SigLIP adds to similarities over the temperature, for losses that read it.
        self.logit_bias: Any = None
        if text.model_type == "siglip_text_model":
            self.logit_bias = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of word embeddings."""
        towers = self.config.has_towers
        name = "tower.embeddings.token_embedding" if towers else "bert.embeddings.word_embeddings"
        return self.text_encoder.get_submodule(name)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, height, width) to (B, N, W)."""
        tokens: Tensor = self.visual_encoder(pixel_values)
        return tokens

    def image_feature(self, image_tokens: Tensor, *, unit: bool = True) -> Tensor:
        """(B, N, W) to (B, E), by default of unit length."""
        if self.logit_bias is None:  # else the projection pools them, as SigLIP does
            image_tokens = self.visual_encoder.summarise(image_tokens)
        feature: Tensor = self.vision_proj(image_tokens)
        return F.normalize(feature, dim=-1) if unit else feature

    def text_feature(
        self, hidden: Tensor, mask: Tensor | None = None, *, unit: bool = True
    ) -> Tensor:
        """(B, L, D) at the fusion boundary to (B, E); a tower reads the end by the mask (B, L)."""
        feature: Tensor = self.text_proj(self.text_encoder.summarise(hidden, mask))
        return F.normalize(feature, dim=-1) if unit else feature

    def project_images(self, image_tokens: Tensor) -> list[ImageKeys]:
        """The keys and values that every text reading these images shares, layer by layer."""
        return self.text_encoder.project_images(image_tokens)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        compute: Callable[[ImageTextModel], ResultT] | None = None,
    ) -> ImageTextOutput | ResultT:
        """Read B texts (B, L), each with its image, or alone where there are no images.

        Args:
            pixel_values: (B, 3, height, width), normalised; or None.
            input_ids: (B, L) int64.
            attention_mask: (B, L), 0 at padding; or None.
            compute: A function of this model to run instead. DistributedDataParallel reduces
                gradients once for each forward call, so a step of several passes goes through here.

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
        hidden: Tensor = self.text_encoder(input_ids, attention_mask, images)
        logits = self.text_encoder.mlm_logits(hidden)
        return ImageTextOutput(last_hidden_state=hidden, logits=logits)


AutoConfig.register(ImageTextConfig.model_type, ImageTextConfig, exist_ok=True)
AutoModel.register(ImageTextConfig, ImageTextModel, exist_ok=True)
