"""Parts and sizes of an image-text model, saved as its `config.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, BertConfig, PreTrainedConfig

from maskery.core.errors import ModelError


class ImageTextConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of an `ImageTextModel`."""

    model_type = "maskery_image_text"
    sub_configs = {"text_config": BertConfig, "vision_config": AutoConfig}  # noqa: RUF012

    # BERT sizes of the text-and-fusion encoder: `num_hidden_layers` counts both kinds of layers;
    # attention is several times faster with an `attention_probs_dropout_prob` of 0.
    text_config: Any = None
    vision_config: Any = None  # Of Hugging Face: ViT, DeiT, CLIP, SigLIP or DINOv2
    # Height and width of the images in pixels; by default those of the vision encoder, which
    # interpolates its positions for others.
    image_size: Any = None
    fusion_layer: int = 6  # The first layer with cross-attention; those before read text alone
    embed_dim: int = 256  # Width of the contrastive features
    temperature: float = 0.07  # What similarities are divided by at first; learnt
    tie_word_embeddings: bool = False  # The masked-language-modelling head has no matrix to tie

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _text_config(self.text_config)
        self.vision_config = _vision_config(self.vision_config)
        num_layers: int = self.text_config.num_hidden_layers
        if not 0 <= self.fusion_layer <= num_layers:
            raise ModelError(
                f"fusion_layer is {self.fusion_layer}: it must be from 0 to the text encoder's "
                f"{num_layers} layers; half of them is usual"
            )
        self.image_size = list(self.image_size or image_size_of(self.vision_config))
        check_image_size(self.image_size, self.vision_config)
        super().__post_init__(**kwargs)


def image_size_of(vision_config: Any) -> tuple[int, int]:
    """The height and width, in pixels, that a vision encoder was made for."""
    return pair(vision_config.image_size)


def check_image_size(image_size: Sequence[int], vision_config: Any) -> None:
    """Raise a ModelError if the encoder's patch size does not divide a height and width."""
    size, patch = pair(image_size), pair(vision_config.patch_size)
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ModelError(
            f"images of {size[0]} x {size[1]} pixels cannot be cut into patches of {patch[0]} x "
            f"{patch[1]}: the patch size must divide the image size; choose "
            f"{size[0] // patch[0] * patch[0]} x {size[1] // patch[1] * patch[1]}"
        )


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width; one number stands for both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _text_config(config: Any) -> Any:
    if config is None:
        return BertConfig(attention_probs_dropout_prob=0.0)
    return BertConfig(**config) if isinstance(config, dict) else config


def _vision_config(config: Any) -> Any:
    if config is None:
        config = {"model_type": "vit"}
    return AutoConfig.for_model(**config) if isinstance(config, dict) else config
