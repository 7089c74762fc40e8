"""ALBEF and RaSa state dicts to an `ImageTextModel`, its momentum twin and its queues.

Their text encoder, projections and heads carry the same names here; the vision encoder is timm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import BertConfig

from maskery.core.errors import ModelError
from maskery.models.checkpoint_import.state_dict import ImportReport
from maskery.models.checkpoint_import.timm_vit import (
    HEAD_WIDTH,
    count_layers,
    fit_positions,
    rename_vit,
    shape_of,
    vit_config,
)
from maskery.models.image_text.config import ImageTextConfig
from maskery.models.image_text.model import ImageTextModel

VISION = "visual_encoder."
VISION_HERE = "visual_encoder.backbone."
TEXT = "text_encoder.bert."
MODULES = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
"""What has a momentum twin, under its name with `_m`."""
SAME_AS = {"decoder.weight": "the word embeddings", "decoder.bias": "cls.predictions.bias"}
"""Tensors of the head that repeat another one."""
QUEUES = {"image_queue": "image", "text_queue": "text"}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint as Maskery's objects."""

    model: ImageTextModel  # With the checkpoint's weights, in evaluation mode
    # What `PersonSearch.load_extra_state` reads: the momentum twin as `twin.*` and the queues as
    # `image_queue.*`, `text_queue.*`; empty where the checkpoint has none.
    extra_state: dict[str, torch.Tensor]
    report: ImportReport  # What became of every key


def is_albef(state: dict[str, torch.Tensor]) -> bool:
    """Return True if the names are those of ALBEF or RaSa."""
    return any(n.startswith(VISION) for n in state) and any(n.startswith(TEXT) for n in state)


def import_albef(
    state: dict[str, torch.Tensor],
    *,
    image_size: tuple[int, int] | None = None,
    num_text_heads: int | None = None,
    num_vision_heads: int | None = None,
) -> Imported:
    """Build the model that a state dict belongs to and fill it; arguments as `import_checkpoint`'s.

    Raises:
        ModelError: A tensor has a shape that does not fit the others.
    """
    state = dict(state)
    vision = {n.removeprefix(VISION): t for n, t in state.items() if n.startswith(VISION)}
    config = ImageTextConfig(
        text_config=text_config(state, TEXT, num_text_heads, attention_probs_dropout_prob=0.0),
        vision_config=vit_config(vision, num_heads=num_vision_heads, image_size=image_size),
        fusion_layer=_fusion_layer(state),
        embed_dim=shape_of(state, "text_proj.weight", 2)[0],
    )
    resized: tuple[str, ...] = ()
    for name in ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"):
        if name in state:
            resized += fit_positions(state, config.vision_config, name=name)
    model = ImageTextModel(config).eval()
    own = model.state_dict()
    online, used = _collect(state, momentum=False)
    missing = _check(own, online, state)
    model.load_state_dict(online, strict=False)
    twin, used_twin = _collect(state, momentum=True)
    extra: dict[str, torch.Tensor] = {}
    if twin:
        _check(own, twin, state)
        # The heads have no twin in the file; they are never read from it.
        extra = {f"twin.{n}": twin.get(n, t) for n, t in model.state_dict().items()}
    extra |= _queues(state)
    used |= used_twin | {n: "the queue" for n in (*QUEUES, "idx_queue", "queue_ptr") if n in state}
    report = ImportReport(
        kind="albef",
        used={n: place for n, place in used.items() if n in state},
        missing=missing,
        left_over=tuple(sorted(set(state) - set(used))),
        resized=resized,
    )
    return Imported(model=model, extra_state=extra, report=report)


def _collect(
    state: dict[str, torch.Tensor], *, momentum: bool
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of the online or the momentum model by Maskery's names, and where each went."""
    collected: dict[str, torch.Tensor] = {}
    used: dict[str, str] = {}
    for name, tensor in state.items():
        module, _, rest = name.partition(".")
        if (module.endswith("_m") and module[:-2] in MODULES) != momentum:
            continue
        plain = f"{module.removesuffix('_m')}.{rest}" if rest else name
        places = _places(plain, tensor)
        collected.update(places)
        if places:
            used[name] = ", ".join(places)
        elif (repeated := plain.removeprefix("text_encoder.cls.predictions.")) in SAME_AS:
            used[name] = f"same as {SAME_AS[repeated]}"
    return collected, used


def _places(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if name.startswith(VISION):
        renamed = rename_vit(name.removeprefix(VISION), tensor)
        return {f"{VISION_HERE}{n}": t for n, t in renamed.items()}
    heads = ("vision_proj.", "text_proj.", "itm_head.", "prd_head.", "mrtd_head.")
    head = "text_encoder.cls.predictions."
    if name.startswith(heads) or name == "temp":
        return {name: tensor}
    if name.startswith((TEXT, head)) and name.removeprefix(head) not in SAME_AS:
        # A buffer of 0, 1, 2, ... that old BERTs saved; nothing is learnt in it.
        return {} if name.endswith(".position_ids") else {name: tensor}
    return {}


def require_shapes(own: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Refuse tensors of other shapes than the model's own."""
    for name, tensor in found.items():
        if name in own and own[name].shape != tensor.shape:
            raise ModelError(
                f"'{name}' in the checkpoint has shape {list(tensor.shape)} and the model that its "
                f"other tensors describe has {list(own[name].shape)}; the checkpoint is damaged or "
                f"of another model"
            )


def _check(
    own: dict[str, torch.Tensor], found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> tuple[str, ...]:
    """Refuse wrong shapes; return what is missing."""
    require_shapes(own, found)
    unknown = sorted(set(found) - set(own))
    if unknown:
        raise ModelError(
            f"the checkpoint's '{unknown[0]}' has no place in the model that its other tensors "
            f"describe ({len(state)} tensors in all); the checkpoint is of another model"
        )
    return tuple(sorted(set(own) - set(found)))


def text_config(
    state: dict[str, torch.Tensor], prefix: str, num_heads: int | None, **others: Any
) -> BertConfig:
    """Read the sizes of a BERT off its tensors, whose names begin with `prefix`."""
    vocab_size, width = shape_of(state, f"{prefix}embeddings.word_embeddings.weight", 2)
    positions, _ = shape_of(state, f"{prefix}embeddings.position_embeddings.weight", 2)
    segments, _ = shape_of(state, f"{prefix}embeddings.token_type_embeddings.weight", 2)
    intermediate, _ = shape_of(state, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=count_layers(state, f"{prefix}encoder.layer."),
        # No tensor tells the heads; all published sizes have one for each 64 of width.
        num_attention_heads=num_heads or max(1, width // HEAD_WIDTH),
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        type_vocab_size=segments,
        **others,
    )


def _fusion_layer(state: dict[str, torch.Tensor]) -> int:
    prefix = f"{TEXT}encoder.layer."
    numbers = [
        int(name.removeprefix(prefix).partition(".")[0])
        for name in state
        if name.startswith(prefix) and ".crossattention." in name
    ]
    return min(numbers, default=count_layers(state, prefix))


def _queues(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The queues as `FeatureQueue` keeps them; the file has them transposed."""
    if not {*QUEUES, "queue_ptr"} <= set(state):
        return {}
    size = state["image_queue"].shape[1]
    # ALBEF's pre-training has no identities: each picture is its own, so no one is matched.
    ids = state.get("idx_queue", torch.full((1, size), -100)).flatten().long()
    extra: dict[str, torch.Tensor] = {}
    for name in QUEUES:
        extra[f"{name}.features"] = state[name].T.contiguous()
        extra[f"{name}.ids"] = ids.clone()
        extra[f"{name}.pointer"] = state["queue_ptr"].flatten()[0].clone()
    return extra
