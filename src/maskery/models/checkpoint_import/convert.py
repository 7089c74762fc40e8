"""From a checkpoint file to a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import ViTModel

from maskery.core.errors import ConfigError, ModelError
from maskery.core.task import EXTRA_STATE
from maskery.models.checkpoint_import.albef import import_albef, is_albef
from maskery.models.checkpoint_import.bert import import_bert, is_bert
from maskery.models.checkpoint_import.report import ImportReport
from maskery.models.checkpoint_import.state_dict import read_state_dict
from maskery.models.checkpoint_import.timm_vit import fit_positions, rename_vit, vit_config

REPORT = "import_report.txt"


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

    Returns:
        What became of every key.

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
