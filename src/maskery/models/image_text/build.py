"""Image-text models from nothing, from a BERT and a vision encoder, or from a CLIP or SigLIP."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig, BertForMaskedLM, ViTConfig

from maskery.core.batch import require_mask, vocabulary_size
from maskery.core.errors import ModelError
from maskery.models.checkpoint_import.timm_vit import grid_of, resize_positions
from maskery.models.image_text.model import ImageTextConfig, ImageTextModel, sized, vision_family
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.models.loading import add_rows, load_tokenizer, load_weights, read_config

ALIGNED = ("clip", "siglip")  # Families of two towers, which their configurations hold
MASK = "<|mask|>"  # Added to a tokenizer without a mask token, as IRRA does
# ViT's and DINOv2's, then CLIP's and SigLIP's.
POSITION_TABLES = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")


def build_from_scratch(
    sizes: ImageTextSizes, *, vocabulary_size: int, pad_token_id: int = 0
) -> ImageTextModel:
    """Make a freshly initialised model; seed torch before, for the same one twice."""
    both = {
        "hidden_size": sizes.width,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": 4 * sizes.width,
        # BERT's 0.02 leaves narrow layers almost silent; this keeps the size of what passes through
        # them, and small models learn to look some times sooner.
        "initializer_range": sizes.width**-0.5,
    }
    config = ImageTextConfig(
        text_config=BertConfig(
            **both,
            vocab_size=vocabulary_size,
            num_hidden_layers=sizes.text_layers + sizes.fusion_layers,
            max_position_embeddings=sizes.max_length,
            hidden_dropout_prob=sizes.dropout,
            attention_probs_dropout_prob=0.0,  # with dropout, attention takes twice the time
            pad_token_id=pad_token_id,
        ),
        vision_config=ViTConfig(
            **both,
            num_hidden_layers=sizes.image_layers,
            layer_norm_eps=1e-6,  # as in the released vision transformers
            image_size=list(sizes.image_size),
            patch_size=sizes.patch_size,
        ),
        fusion_layer=sizes.text_layers,
        embed_dim=sizes.embed_dim,
    )
    return ImageTextModel(config)


def build_from_encoders(
    text: str | Path,  # folder or hub name of a BERT checkpoint
    vision: str | Path,  # of a ViT, DeiT, CLIP, SigLIP or DINOv2 checkpoint
    *,
    fusion_layer: int | None = None,  # the first with cross-attention; by default the middle one
    # Height and width; positions are interpolated once. By default the vision encoder's own
    image_size: tuple[int, int] | None = None,
) -> tuple[ImageTextModel, frozenset[str]]:
    """Make a model whose text side is a BERT and whose vision side is a vision encoder.

    Cross-attention, projections and heads are freshly initialised; everything else is theirs.
    Returns the model, and the names of its parameters that neither checkpoint had.
    """
    text_config = read_config(str(text))
    if text_config.model_type != "bert":
        problem = f"'{text}' is a {text_config.model_type} model: the text side must be a BERT"
        raise ModelError(f"{problem}; choose a checkpoint of that architecture")
    # Dropout inside attention costs half the speed and is not what trains the model.
    text_config.attention_probs_dropout_prob = 0.0
    bert, info = load_weights(BertForMaskedLM, str(text), config=text_config, dtype="float32")
    eyes = _load_vision(str(vision))
    vision_config, size = sized(eyes.config, image_size, str(vision))
    config = ImageTextConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_size=size,
        fusion_layer=text_config.num_hidden_layers // 2 if fusion_layer is None else fusion_layer,
    )
    model = ImageTextModel(config)
    # What the model does not have belongs to heads that it does without.
    model.text_encoder.load_state_dict(bert.state_dict(), strict=False)
    eyes_state = fit_vision_positions(eyes, config.vision_config)
    model.visual_encoder.backbone.load_state_dict(eyes_state, strict=False)
    missing = info["missing_keys"]
    theirs = {f"text_encoder.{name}" for name in bert.state_dict() if name not in missing}
    theirs |= {f"visual_encoder.backbone.{name}" for name in eyes_state}
    new = frozenset(name for name, _ in model.named_parameters() if name not in theirs)
    if any(name.startswith("cls.") for name in missing):
        # A new head lets the encoder's states pass through instead of mixing them.
        dense = model.text_encoder.cls.predictions.transform.dense
        torch.nn.init.eye_(dense.weight)
        torch.nn.init.zeros_(dense.bias)
    return model, new


def is_aligned(name: str) -> bool:
    """Return True for the name of a CLIP or SigLIP, or of one tower, which is refused later."""
    return read_config(name).model_type.split("_")[0] in (*ALIGNED, "siglip2")


def build_from_towers(
    name: str,  # folder or hub name of a CLIP, SigLIP or SigLIP 2 of fixed resolution
    *,
    fusion_layers: int = 0,  # of IRRA's fusion encoder; 0: a dual encoder
    image_size: tuple[int, int] | None = None,  # as in `build_from_encoders`
) -> tuple[ImageTextModel, Any, frozenset[str]]:
    """Make a model of both towers, their projections and their temperature.

    A tokenizer without a mask token is given one, which starts as the mean of all words. Returns
    the model, its tokenizer, and the names of its parameters that the checkpoint did not have.
    """
    towers, tokenizer = _load_towers(name)
    text = towers.text_model.config
    vision, size = sized(towers.vision_model.config, image_size, name)
    config = ImageTextConfig(
        text_config=text,
        vision_config=vision,
        image_size=size,
        embed_dim=getattr(text, "projection_size", None) or towers.config.projection_dim,
        interaction_layers=fusion_layers,
    )
    model = ImageTextModel(config)
    words: Any = model.text_encoder
    if model.logit_bias is None:
        heads = towers.visual_projection, towers.text_projection
    else:
        heads = towers.vision_model.head, towers.text_model.head
        model.logit_bias.data.copy_(towers.logit_bias.detach()[0])
    eyes = fit_vision_positions(towers.vision_model, config.vision_config)
    # The heads are the projections; nothing else is left out.
    model.visual_encoder.backbone.load_state_dict(eyes, strict=False)
    words.tower.load_state_dict(towers.text_model.state_dict(), strict=False)
    for projection, head in zip((model.vision_proj, model.text_proj), heads, strict=True):
        projection.load_state_dict(head.state_dict())
    model.temp.data.copy_((-towers.logit_scale.detach()).exp().squeeze())
    if fusion_layers:
        words.fusion.start(words.cls)
    begun = ("text_encoder.fusion.", "text_encoder.cls.", "itm_head.", "prd_head.", "mrtd_head.")
    new = (name for name, _ in model.named_parameters() if name.startswith(begun))
    return model.eval(), tokenizer, frozenset(new)


def _load_towers(name: str) -> tuple[Any, Any]:
    found, fault = read_config(name).model_type, ""
    if found.startswith("siglip2"):
        fault = "takes pictures of any shape (NaFlex): use a SigLIP 2 of fixed resolution"
    elif "vision" in found:
        fault = "has the vision tower alone: use the whole model, or --vision-model beside a BERT"
    elif found not in ALIGNED:
        fault = "has the text tower alone: use the whole model"
    if fault:
        raise ModelError(f"'{name}' ({found}) {fault}")
    tokenizer = load_tokenizer(name, mask=False)
    towers, info = load_weights(AutoModel, name, dtype="float32")
    refuse_missing(name, "the model of two towers", info)
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
        add_rows(towers.text_model, {require_mask(tokenizer): ()}, vocabulary_size(tokenizer))
    require_mask(tokenizer)
    for role in ("pad_token_id", "bos_token_id", "eos_token_id"):  # configurations name others
        setattr(towers.text_model.config, role, getattr(tokenizer, role))
    return towers, tokenizer


def fit_vision_positions(encoder: Any, config: Any) -> dict[str, torch.Tensor]:
    """Return an encoder's weights with positions interpolated to the image size of `config`."""
    state = dict(encoder.state_dict())
    old, new = grid_of(encoder.config), grid_of(config)
    for name in POSITION_TABLES:
        if name in state and old != new:
            table = state[name]
            flat = table.view(1, -1, table.shape[-1])
            resized = resize_positions(flat, old, new, flat.shape[1] - old[0] * old[1])
            state[name] = resized if table.dim() == 3 else resized[0]
    return state


def _load_vision(name: str) -> Any:
    """Load the vision encoder of a checkpoint, without its pooler."""
    config = read_config(name)
    if config.model_type in ALIGNED:
        config = config.vision_config
    family = vision_family(config.model_type)
    for setting, value in family.unused_settings.items():
        setattr(config, setting, value)
    model, info = load_weights(AutoModel, name, config=config, dtype="float32", **family.arguments)
    refuse_missing(name, "the vision encoder", info)
    return model


def refuse_missing(name: str, part: str, info: dict[str, Any]) -> None:
    """Refuse weights that leave a part of the model at random."""
    if missing := sorted(info["missing_keys"]):
        problem = f"{part} in '{name}' lacks weights ({missing[0]} and {len(missing) - 1} others)"
        raise ModelError(f"{problem}; restore its model.safetensors, or use a whole checkpoint")
