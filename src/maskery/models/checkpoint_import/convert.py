"""From a checkpoint file to a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertForMaskedLM, ViTModel

from maskery.core.errors import ConfigError, ModelError
from maskery.core.task import EXTRA_STATE
from maskery.models.checkpoint_import.albef import (
    import_albef,
    is_albef,
    require_shapes,
    text_config,
)
from maskery.models.checkpoint_import.state_dict import ImportReport, read_state_dict
from maskery.models.checkpoint_import.timm_vit import (
    fit_positions,
    rename_vit,
    vit_config,
)

REPORT = "import_report.txt"
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""What layer normalisation's parameters were called in files converted from TensorFlow."""
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
    `PersonSearch.load_extra_state` reads to go on training.

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
    """A timm or DeiT vision transformer as a Hugging Face `ViTModel` without pooler.

    Raises:
        ModelError: A tensor has a shape that does not fit the others.
    """
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
    """Build the masked language model that a state dict belongs to and fill it.

    Raises:
        ModelError: A tensor has a shape that does not fit the others.
    """
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
