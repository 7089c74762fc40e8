"""From a checkpoint file of ALBEF, RaSa, BERT or a ViT to a Hugging Face folder.

ALBEF's and RaSa's text encoder, projections and heads carry the same names here; the vision
encoder is timm's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
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
    fit_positions,
    layer_numbers,
    rename_vit,
    shape_of,
    vit_config,
)
from maskery.models.image_text.config import ImageTextConfig
from maskery.models.image_text.model import ImageTextModel

VISION, TEXT = "visual_encoder.", "text_encoder.bert."
HEADS = ("vision_proj.", "text_proj.", "itm_head.", "prd_head.", "mrtd_head.")
HEAD = "cls.predictions."  # BERT's, for masked language modelling
# Tensors of the head that repeat another one.
SAME_AS = {"decoder.weight": "the word embeddings", "decoder.bias": "cls.predictions.bias"}
# Modules that have a momentum twin, under their names with `_m`; its tensors begin with TWIN here.
MODULES = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
TWIN = "twin."
QUEUES = ("image_queue", "text_queue")
# Names of layer normalisation's parameters in files converted from TensorFlow.
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
REPORT = "import_report.txt"
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint as Maskery's objects."""

    model: Any  # With the checkpoint's weights, in evaluation mode
    report: ImportReport  # What became of every key
    # What `ImageTextTask.load_extra_state` reads: the momentum twin as `twin.*` and the queues as
    # `image_queue.*`, `text_queue.*`; empty where the checkpoint has none.
    extra_state: State = field(default_factory=dict)


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
    vision: Any = {"num_vision_heads": num_vision_heads, "image_size": image_size}
    if all(any(name.startswith(part) for name in state) for part in (VISION, TEXT)):
        imported = import_albef(state, num_text_heads=num_text_heads, **vision)
    elif any(n.removeprefix("bert.") == "embeddings.word_embeddings.weight" for n in state):
        imported = import_bert(state, num_text_heads=num_text_heads)
    elif "patch_embed.proj.weight" in state:
        imported = import_vit(state, **vision)
    else:
        raise ModelError(
            f"'{path}' is of no known model (its first tensor is '{min(state)}'): ALBEF, RaSa, "
            f"BERT and timm or DeiT vision transformers can be read"
        )
    imported.model.save_pretrained(out)
    if imported.extra_state:
        extra = {n: t.contiguous().clone() for n, t in imported.extra_state.items()}
        save_file(extra, out / EXTRA_STATE)
    (out / REPORT).write_text("\n".join(imported.report.lines()) + "\n", "utf-8")
    return imported.report


def import_vit(
    state: State, *, num_vision_heads: int | None = None, image_size: tuple[int, int] | None = None
) -> Imported:
    """Make a timm or DeiT vision transformer a Hugging Face `ViTModel` without pooler."""
    state = dict(state)
    config = vit_config(state, num_heads=num_vision_heads, image_size=image_size)
    resized = fit_positions(state, config)
    model = ViTModel(config, add_pooling_layer=False).eval()
    placed = {name: rename_vit(name, tensor) for name, tensor in state.items()}
    return Imported(model=model, report=_fill(model, "vit", placed, resized=resized))


def import_bert(state: State, *, num_text_heads: int | None = None) -> Imported:
    """Build the masked language model that a state dict belongs to and fill it."""
    renamed = {name: _modern(name) for name in state}
    config = text_config({renamed[n]: t for n, t in state.items()}, "bert.", num_text_heads)
    model = BertForMaskedLM(config).eval()
    own = model.state_dict()
    placed = {n: {renamed[n]: t} if renamed[n] in own else {} for n, t in state.items()}
    # The projection is the word embeddings; its bias has two names.
    tied = {f"{HEAD}decoder.weight"}
    if f"{HEAD}bias" in renamed.values():
        tied |= {f"{HEAD}bias", f"{HEAD}decoder.bias"}
    return Imported(model=model, report=_fill(model, "bert", placed, repeated=tied))


def _modern(name: str) -> str:
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def import_albef(
    state: State,
    *,
    image_size: tuple[int, int] | None = None,
    num_text_heads: int | None = None,
    num_vision_heads: int | None = None,
) -> Imported:
    """Build the `ImageTextModel` that a state dict belongs to and fill it, its twin and queues."""
    state = dict(state)
    vision = {n.removeprefix(VISION): t for n, t in state.items() if n.startswith(VISION)}
    layers = f"{TEXT}encoder.layer."
    fusing = layer_numbers([name for name in state if ".crossattention." in name], layers)
    config = ImageTextConfig(
        text_config=text_config(state, TEXT, num_text_heads, attention_probs_dropout_prob=0.0),
        vision_config=vit_config(vision, num_heads=num_vision_heads, image_size=image_size),
        fusion_layer=min(fusing or {len(layer_numbers(state, layers))}),
        embed_dim=shape_of(state, "text_proj.weight", 2)[0],
    )
    resized: tuple[str, ...] = ()
    for name in ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"):
        if name in state:
            resized += fit_positions(state, config.vision_config, name=name)
    model = ImageTextModel(config).eval()
    placed = {name: _albef_places(name, tensor) for name, tensor in state.items()}
    report = _fill(model, "albef", placed, told=_told(state), resized=resized)
    twin = {n: t for places in placed.values() for n, t in places.items() if n.startswith(TWIN)}
    extra: State = {}
    if twin:
        # The heads have no twin in the file; they are never read from it.
        extra = {TWIN + n: twin.get(TWIN + n, t) for n, t in model.state_dict().items()}
    return Imported(model=model, extra_state=extra | _queues(state), report=report)


def _albef_places(name: str, tensor: torch.Tensor) -> State:
    """Map a tensor of the file to its names here; empty if it has none."""
    module, _, rest = name.partition(".")
    if module.removesuffix("_m") in MODULES and module.endswith("_m"):
        places = _albef_places(f"{module.removesuffix('_m')}.{rest}", tensor)
        return {f"{TWIN}{place}": t for place, t in places.items()}
    if name.startswith(VISION):
        renamed = rename_vit(name.removeprefix(VISION), tensor)
        return {f"{VISION}backbone.{n}": t for n, t in renamed.items()}
    head = f"text_encoder.{HEAD}"
    is_text = name.startswith((TEXT, head)) and name.removeprefix(head) not in SAME_AS
    # `position_ids` is a buffer of 0, 1, 2, ... that old BERTs saved; nothing is learnt in it.
    if name.startswith(HEADS) or name == "temp" or (is_text and not name.endswith(".position_ids")):
        return {name: tensor}
    return {}


def _told(state: State) -> dict[str, str]:
    """Return, by name in the file, where tensors went that are no parameters of the model."""
    told = {n: "the queue" for n in (*QUEUES, "idx_queue", "queue_ptr") if n in state}
    for name in state:
        repeated = name.replace("text_encoder_m.", "text_encoder.").removeprefix("text_encoder.")
        if (original := SAME_AS.get(repeated.removeprefix(HEAD))) is not None:
            told[name] = f"same as {original}"
    return told


def _queues(state: State) -> State:
    """Return the queues as `FeatureQueue` keeps them; the file has them transposed."""
    if not {*QUEUES, "queue_ptr"} <= set(state):
        return {}
    size = state["image_queue"].shape[1]
    # ALBEF's pre-training has no identities: each picture is its own, so no one is matched.
    ids = state.get("idx_queue", torch.full((1, size), -100)).flatten().long()
    extra: State = {}
    for name in QUEUES:
        extra[f"{name}.features"] = state[name].T.contiguous()
        extra[f"{name}.ids"] = ids.clone()
        extra[f"{name}.pointer"] = state["queue_ptr"].flatten()[0].clone()
    return extra


def text_config(state: State, prefix: str, num_heads: int | None, **others: Any) -> BertConfig:
    """Read the sizes of a BERT off its tensors, whose names begin with `prefix`."""
    embeddings = f"{prefix}embeddings."
    vocab_size, width = shape_of(state, f"{embeddings}word_embeddings.weight", 2)
    positions, _ = shape_of(state, f"{embeddings}position_embeddings.weight", 2)
    segments, _ = shape_of(state, f"{embeddings}token_type_embeddings.weight", 2)
    intermediate, _ = shape_of(state, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=len(layer_numbers(state, f"{prefix}encoder.layer.")),
        # No tensor tells the heads; all published sizes have one for each 64 of width.
        num_attention_heads=num_heads or max(1, width // HEAD_WIDTH),
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        type_vocab_size=segments,
        **others,
    )


def _fill(
    model: Any,
    kind: str,
    placed: Mapping[str, State],
    *,
    told: dict[str, str] | None = None,
    repeated: Collection[str] = (),
    resized: tuple[str, ...] = (),
) -> ImportReport:
    """Load `placed`, by name in the file the tensors by the model's names; returns the report.

    `told` has where other tensors of the file went, `repeated` the names that need no tensor.
    """
    own, told = model.state_dict(), told or {}
    found = {new: tensor for places in placed.values() for new, tensor in places.items()}
    for name, tensor in found.items():
        there = own.get(name.removeprefix(TWIN))
        if there is None or there.shape != tensor.shape:
            wanted = "no such tensor" if there is None else list(there.shape)
            raise ModelError(
                f"'{name}' in the checkpoint has shape {list(tensor.shape)} and the model that its "
                f"other tensors describe has {wanted}; the checkpoint is damaged or of another "
                f"model"
            )
    model.load_state_dict(found, strict=False)
    names = {name: [new.removeprefix(TWIN) for new in places] for name, places in placed.items()}
    used = {name: ", ".join(new) for name, new in names.items() if new} | told
    return ImportReport(
        kind=kind,
        used=used,
        missing=tuple(sorted(set(own) - set(found) - set(repeated))),
        left_over=tuple(sorted(set(placed) - set(used))),
        resized=resized,
    )
