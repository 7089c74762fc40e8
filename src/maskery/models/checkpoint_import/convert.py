"""From a checkpoint of ALBEF, RaSa, a vision transformer or a text encoder to a model folder.

ALBEF's and RaSa's text encoder, projections and heads carry the same names here; the vision
encoder is timm's. What Hugging Face has a family for is loaded by its own code.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, BertConfig, ViTModel
from transformers.models.auto import modeling_auto

from maskery.core.errors import ModelError, explained
from maskery.core.system import require_empty
from maskery.core.task import EXTRA_STATE
from maskery.models.checkpoint_import import state_dict, timm_vit
from maskery.models.checkpoint_import.state_dict import Given, ImportReport, State
from maskery.models.checkpoint_import.timm_vit import layer_numbers, shape_of
from maskery.models.image_text.model import VISION_FAMILIES, ImageTextConfig, ImageTextModel
from maskery.models.loading import quiet_transformers, refuse_random_layers

VISION, TEXT = "visual_encoder.", "text_encoder.bert."
# Heads with the same names in the file and here.
HEADS = ("vision_proj.", "text_proj.", "itm_head.", "prd_head.", "mrtd_head.")
HEAD = "cls.predictions."  # BERT's, for masked language modelling
# Tensors of the head that repeat another one.
SAME_AS = {"decoder.weight": "the word embeddings", "decoder.bias": "cls.predictions.bias"}
# Modules that have a momentum twin, under their names with `_m`; its tensors begin with TWIN here.
MODULES = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
TWIN = "twin."
QUEUES = ("image_queue", "text_queue")
# What a BERT may have beside its encoder: heads, a pooler, the buffer 0, 1, 2, ... of old ones.
BESIDE_BERT = re.compile(r"(?!(bert\.)?(embeddings|encoder)\.).*|.*\.position_ids")
# Settings of a BERT that change what it computes and leave no trace in its tensors.
TOLD_OF_BERT = ("hidden_act", "layer_norm_eps", "pad_token_id", "position_embedding_type")
REPORT = "import_report.txt"


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
    tokenizer: str | None = None,
) -> ImportReport:
    """Read a checkpoint of a text or image encoder, of ALBEF or RaSa, and write a model folder.

    The folder holds the model as `save_pretrained` writes it, its tokenizer, `import_report.txt`,
    and for ALBEF and RaSa `extra_state.safetensors`: the momentum twin and the queues, which
    `ImageTextTask.load_extra_state` reads to go on training.

    Args:
        path: A `.pth` or `.safetensors` file, with or without its `config.json` beside it, or a
            Hugging Face folder.
        out: The folder to write; must be empty or not exist.
        image_size: Height and width to resize image positions to; by default they stay.
        num_text_heads: Attention heads, which no tensor tells; by default those of `config.json`.
        num_vision_heads: Likewise.
        tokenizer: A folder, a list of words or a hub name; by default what lies beside the file.

    Raises:
        ModelError: The file cannot be read or is of no known model, or the tokenizer is missing or
            of another vocabulary.
        ConfigError: `out` holds something already, or the attention heads are not known.
    """
    require_empty(out)
    state, notes = state_dict.read_state_dict(path)
    folder = path if path.is_dir() else path.parent
    given = Given(image_size, num_text_heads, num_vision_heads)
    imported = import_state(state, state_dict.read_described(folder), given)
    config: Any = imported.model.config
    saved: list[Any] = [imported.model]
    rows = getattr(getattr(config, "text_config", config), "vocab_size", None)
    if rows is not None:  # else the model reads no text
        saved.append(state_dict.read_tokenizer(tokenizer, folder, rows))
    sides = (getattr(config, f"{side}_config", None) for side in ("text", "vision"))
    found = [side for side in sides if side is not None] or [config]
    # They are told, since no tensor could contradict.
    heads = (f"{getattr(c, 'num_attention_heads', None)} in the {c.model_type}" for c in found)
    notes.append(f"attention heads: {', '.join(heads)}")
    report = replace(imported.report, notes=tuple(notes))
    for part in saved:
        part.save_pretrained(out)
    if imported.extra_state:
        extra = {n: t.contiguous().clone() for n, t in imported.extra_state.items()}
        save_file(extra, out / EXTRA_STATE)
    (out / REPORT).write_text("\n".join(report.lines()) + "\n", "utf-8")
    return report


def import_state(state: State, described: Mapping[str, Any], given: Given) -> Imported:
    """Recognise the model of a state dict by its names, or by what its `config.json` says."""
    kind = described.get("model_type")
    if all(any(name.startswith(part) for name in state) for part in (VISION, TEXT)):
        return import_albef(state, described, given)
    if "patch_embed.proj.weight" in state:  # a vision transformer of timm or DeiT
        state = dict(state)
        config = timm_vit.vit_config(state, described, given)
        resized = timm_vit.fit_positions(state, config, "pos_embed")
        model = ViTModel(config, add_pooling_layer=False).eval()
        placed = {name: timm_vit.rename_vit(name, tensor) for name, tensor in state.items()}
        return Imported(model=model, report=_fill(model, "vit", placed, {}, resized))
    if kind == ImageTextConfig.model_type:
        raise ModelError("this is a model folder of Maskery already; use it as it is")
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in VISION_FAMILIES:
        return import_described(state, described)
    if any(n.removeprefix("bert.") == "embeddings.word_embeddings.weight" for n in state):
        return import_bert(state, described, given)
    parts = Counter(name.partition(".")[0] for name in state).most_common(state_dict.SHOWN)
    begin = ", ".join(f"'{part}' ({count})" for part, count in parts)
    problem = f"the checkpoint is of no known model: its names begin with {begin}"
    known = "ALBEF, RaSa, BERT and timm or DeiT vision transformers are known by their names"
    others = "what Hugging Face has an encoder for, by its config.json beside the file"
    raise ModelError(f"{problem}. {known}; {others}")


def import_bert(state: State, described: Mapping[str, Any], given: Given) -> Imported:
    """Load a BERT that no `config.json` tells the family of; refused where it may be another."""
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in state else ""
    config = text_config(state, prefix, described, given)
    if config.type_vocab_size < 2:
        problem = "the checkpoint has one kind of segment, as RoBERTa has and some BERTs"
        fix = "put its config.json beside the file"
        raise ModelError(f"{problem}, and they count positions differently: {fix}")
    imported = import_described(state, config.to_dict())
    if foreign := [n for n in imported.report.left_over if not BESIDE_BERT.fullmatch(n)]:
        problem = f"the checkpoint resembles BERT, but no BERT has '{foreign[0]}'"
        fix = "put its config.json beside the file"
        raise ModelError(f"{problem} (and {len(foreign) - 1} others): {fix}")
    return imported


def import_described(state: State, described: Mapping[str, Any]) -> Imported:
    """Load a state dict into the encoder of Hugging Face that a `config.json` describes."""
    family = VISION_FAMILIES.get(str(described["model_type"]))
    cause = "it is damaged, or the config.json is of another model"
    problem = f"the checkpoint does not load as a {described['model_type']}: {cause}"
    # Whatever a damaged config.json makes a model's code do.
    with explained(problem, "", Exception, kind=ModelError, most=120), quiet_transformers():
        config = AutoConfig.for_model(**described)
        heads = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
        kind = (modeling_auto.MODEL_MAPPING if family else heads)[type(config)]
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **(family.arguments if family else {}),
        )
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        problem = f"'{name}' in the checkpoint has shape {list(found)}"
        raise ModelError(f"{problem} and its configuration describes {list(wanted)}: {cause}")
    refuse_random_layers("the checkpoint", model, info)
    own = model.state_dict()
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    passed_over = {n for n in state if n not in own and any(re.search(p, n) for p in patterns)}
    left_over = passed_over | (set(info["unexpected_keys"]) & state.keys())
    report = ImportReport(
        kind=config.model_type,
        used={n: n if n in own else "renamed" for n in state if n not in left_over},
        missing=tuple(sorted(info["missing_keys"])),
        left_over=tuple(sorted(left_over)),
    )
    return Imported(model=model.eval(), report=report)


def import_albef(state: State, described: Mapping[str, Any], given: Given) -> Imported:
    """Build the `ImageTextModel` that a state dict belongs to and fill it, its twin and queues."""
    state = dict(state)
    vision = {n.removeprefix(VISION): t for n, t in state.items() if n.startswith(VISION)}
    layers = f"{TEXT}encoder.layer."
    fusing = layer_numbers([name for name in state if ".crossattention." in name], layers)
    text, pictures = (state_dict.part_of(described, side) for side in ("text", "vision"))
    config = ImageTextConfig(
        text_config=text_config(state, TEXT, text, given),
        vision_config=timm_vit.vit_config(vision, pictures, given),
        fusion_layer=min(fusing or {len(layer_numbers(state, layers))}),
        embed_dim=shape_of(state, "text_proj.weight", 2)[0],
    )
    tables = "visual_encoder.pos_embed", "visual_encoder_m.pos_embed"
    resized = timm_vit.fit_positions(state, config.vision_config, *tables)
    # With dropout, attention takes twice the time.
    config.text_config.attention_probs_dropout_prob = 0.0
    model = ImageTextModel(config).eval()
    placed = {name: _albef_places(name, tensor) for name, tensor in state.items()}
    report = _fill(model, "albef", placed, _told(state), resized)
    twin = {n: t for places in placed.values() for n, t in places.items() if n.startswith(TWIN)}
    extra = _queues(state)
    if twin:  # the heads have none in the file; theirs are never read
        extra |= {TWIN + n: twin.get(TWIN + n, t) for n, t in model.state_dict().items()}
    return Imported(model=model, extra_state=extra, report=report)


def _albef_places(name: str, tensor: torch.Tensor) -> State:
    """Map a tensor of the file to its names here; empty if it has none."""
    module, _, rest = name.partition(".")
    if module.removesuffix("_m") in MODULES and module.endswith("_m"):
        places = _albef_places(f"{module.removesuffix('_m')}.{rest}", tensor)
        return {f"{TWIN}{place}": t for place, t in places.items()}
    if name.startswith(VISION):
        renamed = timm_vit.rename_vit(name.removeprefix(VISION), tensor)
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


def text_config(
    state: State, prefix: str, described: Mapping[str, Any], given: Given
) -> BertConfig:
    """Read a BERT's sizes off its tensors below `prefix`, and the rest from what is `described`."""
    embeddings, layers = f"{prefix}embeddings.", f"{prefix}encoder.layer."
    vocab_size, width = shape_of(state, f"{embeddings}word_embeddings.weight", 2)
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": len(layer_numbers(state, layers)),
        "intermediate_size": shape_of(state, f"{layers}0.intermediate.dense.weight", 2)[0],
        "max_position_embeddings": shape_of(state, f"{embeddings}position_embeddings.weight", 2)[0],
        "type_vocab_size": shape_of(state, f"{embeddings}token_type_embeddings.weight", 2)[0],
    }
    for name, size in sizes.items():
        if described.get(name, size) != size:
            problem = f"the config.json beside the checkpoint says {name} {described[name]}"
            cause = f"its tensors say {size}: it is of another model"
            raise ModelError(f"{problem}, and {cause}; take it away or bring the right one")
    told = {n: described[n] for n in TOLD_OF_BERT if described.get(n) is not None}
    heads = state_dict.heads_of("text", width, given.text_heads, described)
    return BertConfig(**told, **sizes, num_attention_heads=heads)


def _fill(
    model: Any, kind: str, placed: Mapping[str, State], told: dict[str, str], resized: Sequence[str]
) -> ImportReport:
    """Load `placed`, by name in the file its tensors here; `told` has where others went."""
    own = model.state_dict()
    found = {new: tensor for places in placed.values() for new, tensor in places.items()}
    for name, tensor in found.items():
        there = own.get(name.removeprefix(TWIN))
        if there is None or there.shape != tensor.shape:
            wanted = "no such tensor" if there is None else list(there.shape)
            problem = f"'{name}' in the checkpoint has shape {list(tensor.shape)}"
            contrast = f"the model that its other tensors describe has {wanted}"
            cause = "the checkpoint is damaged or of another model"
            raise ModelError(f"{problem} and {contrast}; {cause}")
    model.load_state_dict(found, strict=False)
    names = {name: [new.removeprefix(TWIN) for new in places] for name, places in placed.items()}
    used = {name: ", ".join(new) for name, new in names.items() if new} | told
    return ImportReport(
        kind=kind,
        used=used,
        missing=tuple(sorted(set(own) - set(found))),
        left_over=tuple(sorted(set(placed) - set(used))),
        resized=tuple(resized),
    )
