"""From a checkpoint file of ALBEF, RaSa, BERT or a ViT to a Hugging Face folder.

ALBEF's and RaSa's text encoder, projections and heads carry the same names here; the vision
encoder is timm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, ViTModel

from maskery.core.errors import ConfigError, ModelError
from maskery.core.task import EXTRA_STATE
from maskery.models.checkpoint_import.state_dict import ImportReport, read_state_dict
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
"""Modules that have a momentum twin, under their names with `_m`."""
SAME_AS = {"decoder.weight": "the word embeddings", "decoder.bias": "cls.predictions.bias"}
"""Tensors of the head that repeat another one."""
QUEUES = {"image_queue": "image", "text_queue": "text"}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint as Maskery's objects."""

    model: ImageTextModel  # With the checkpoint's weights, in evaluation mode
    # What `ImageTextTask.load_extra_state` reads: the momentum twin as `twin.*` and the queues as
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
    """Build the model that a state dict belongs to and fill it; see `import_checkpoint`."""
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


REPORT = "import_report.txt"
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""Names of layer normalisation's parameters in files converted from TensorFlow."""
BERT_HEAD = "cls.predictions."


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    image_size: tuple[int, int] | None = None,
    num_text_heads: int | None = None,
    num_vision_heads: int | None = None,
) -> ImportReport:
    """Read an ALBEF, RaSa, BERT or timm ViT state dict and write a model folder.

    The folder holds the model as `save_pretrained` writes it, `import_report.txt`, and for ALBEF
    and RaSa `extra_state.safetensors`: the momentum twin and the queues, which
    `ImageTextTask.load_extra_state` reads to go on training.

    Args:
        path: A `.pth` or `.safetensors` file.
        out: The folder to write; must be empty or not exist.
        image_size: Height and width to resize image positions to; by default they stay.
        num_text_heads: Attention heads, which no tensor tells; by default one for each 64 of width.
        num_vision_heads: Likewise.

    Raises:
        ModelError: The file cannot be read or is of no known model.
        ConfigError: `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"'{out}' exists and is not an empty folder; name another")
    state = read_state_dict(path)
    model: Any
    extra: dict[str, torch.Tensor] = {}
    if is_albef(state):
        imported = import_albef(
            state,
            image_size=image_size,
            num_text_heads=num_text_heads,
            num_vision_heads=num_vision_heads,
        )
        model, extra, report = imported.model, imported.extra_state, imported.report
    elif is_bert(state):
        model, report = import_bert(state, num_heads=num_text_heads)
    elif "patch_embed.proj.weight" in state:
        model, report = import_vit(state, num_heads=num_vision_heads, image_size=image_size)
    else:
        raise ModelError(
            f"'{path}' is of no known model (its first tensor is '{min(state)}'): ALBEF, RaSa, "
            f"BERT and timm or DeiT vision transformers can be read"
        )
    model.save_pretrained(out)
    if extra:
        save_file({n: t.contiguous().clone() for n, t in extra.items()}, out / EXTRA_STATE)
    (out / REPORT).write_text("\n".join(report.lines()) + "\n", "utf-8")
    return report


def import_vit(
    state: dict[str, torch.Tensor],
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> tuple[Any, ImportReport]:
    """Return a timm or DeiT vision transformer as a Hugging Face `ViTModel` without pooler."""
    state = dict(state)
    config = vit_config(state, num_heads=num_heads, image_size=image_size)
    resized = fit_positions(state, config)
    model = ViTModel(config, add_pooling_layer=False).eval()
    own = model.state_dict()
    placed = {name: rename_vit(name, tensor) for name, tensor in state.items()}
    found = {new: tensor for places in placed.values() for new, tensor in places.items()}
    for name, tensor in found.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ModelError(
                f"'{name}' of the checkpoint, {list(tensor.shape)}, does not fit the vision "
                f"transformer that its other tensors describe; the checkpoint is damaged or of "
                f"another model"
            )
    model.load_state_dict(found, strict=False)
    report = ImportReport(
        kind="vit",
        used={name: ", ".join(places) for name, places in placed.items() if places},
        missing=tuple(sorted(set(own) - set(found))),
        left_over=tuple(sorted(name for name, places in placed.items() if not places)),
        resized=resized,
    )
    return model, report


def is_bert(state: dict[str, torch.Tensor]) -> bool:
    """Return True if the names are BERT's, with or without the prefix `bert.`."""
    return any(n.removeprefix("bert.") == "embeddings.word_embeddings.weight" for n in state)


def import_bert(
    state: dict[str, torch.Tensor], *, num_heads: int | None = None
) -> tuple[Any, ImportReport]:
    """Build the masked language model that a state dict belongs to and fill it."""
    renamed = {name: _modern(name) for name in state}
    by_new_name = {new: state[old] for old, new in renamed.items()}
    config = text_config(by_new_name, "bert.", num_heads)
    model = BertForMaskedLM(config).eval()
    own = model.state_dict()
    found = {n: t for n, t in by_new_name.items() if n in own}
    require_shapes(own, found)
    model.load_state_dict(found, strict=False)
    # The projection is the word embeddings; its bias has two names.
    tied = {f"{BERT_HEAD}decoder.weight"}
    if f"{BERT_HEAD}bias" in found:
        tied |= {f"{BERT_HEAD}bias", f"{BERT_HEAD}decoder.bias"}
    report = ImportReport(
        kind="bert",
        used={old: new for old, new in renamed.items() if new in own},
        missing=tuple(sorted(set(own) - set(found) - tied)),
        left_over=tuple(sorted(old for old, new in renamed.items() if new not in own)),
    )
    return model, report


def _modern(name: str) -> str:
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
