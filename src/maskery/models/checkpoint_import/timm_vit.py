"""Vision transformers as timm, DeiT and ALBEF name them, to Hugging Face's `ViTModel`.

Shapes: P patches, S leading tokens (class, distillation), W width.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from transformers import ViTConfig

from maskery.core.errors import ModelError
from maskery.models.checkpoint_import.state_dict import Given, State, heads_of
from maskery.models.image_text.model import pair

TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def rename_vit(name: str, tensor: torch.Tensor) -> State:
    """Map a timm parameter to its places in `ViTModel`; empty if it has none."""
    if name in TOP:
        return {TOP[name]: tensor}
    match = BLOCK_NAME.fullmatch(name)
    if match is None:
        return {}
    number, part, kind = match.groups()
    if part == "attn.qkv":  # one matrix there, three here
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"layers.{number}.attention.{c}_proj.{kind}": t for c, t in parts}
    return {f"layers.{number}.{BLOCK[part]}.{kind}": tensor} if part in BLOCK else {}


def vit_config(state: State, described: Mapping[str, Any], given: Given) -> Any:
    """Read a timm transformer's `ViTConfig` off its tensors, with its image size if square."""
    width, _, patch_height, patch_width = shape_of(state, "patch_embed.proj.weight", 4)
    _, num_positions, _ = shape_of(state, "pos_embed", 3)
    hidden, _ = shape_of(state, "blocks.0.mlp.fc1.weight", 2)
    image_size = given.image_size
    if image_size is None:
        rows, columns = square_grid(num_positions - 1)
        image_size = rows * patch_height, columns * patch_width
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=len(layer_numbers(state, "blocks.")),
        num_attention_heads=heads_of("vision", width, given.vision_heads, described),
        intermediate_size=hidden,
        layer_norm_eps=1e-6,  # timm's; Hugging Face's default is another
        image_size=list(image_size),
        patch_size=[patch_height, patch_width],
    )


def fit_positions(state: State, config: Any, *names: str) -> list[str]:
    """Resize the position tables in `state`, in place; returns what was resized, for the report."""
    resized, new = [], grid_of(config)
    for name in names:
        if name in state and (old := square_grid(state[name].shape[1] - 1)) != new:
            state[name] = resize_positions(state[name], old, new)
            resized.append(f"{name}: {old[0]} x {old[1]} to {new[0]} x {new[1]} patches")
    return resized


def grid_of(config: Any) -> tuple[int, int]:
    """Return the rows and columns of patches in the images of a vision encoder."""
    (height, width), (down, across) = pair(config.image_size), pair(config.patch_size)
    return height // down, width // across


def shape_of(state: State, name: str, num_dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor that gives a size; refuse another number of dimensions."""
    if name not in state:
        problem = f"the checkpoint has no '{name}', which tells its sizes"
        fix = "of another encoder, put its config.json beside the file"
        raise ModelError(f"{problem}: it is no ALBEF, RaSa, BERT or ViT; {fix}")
    shape = tuple(state[name].shape)
    if len(shape) != num_dimensions:
        problem = f"'{name}' in the checkpoint has shape {list(shape)}"
        rule = f"it must have {num_dimensions} dimensions"
        raise ModelError(f"{problem}: {rule}; the checkpoint is not of a supported model")
    return shape


def layer_numbers(names: Iterable[str], prefix: str) -> set[int]:
    """Return the numbers that follow `prefix` in names."""
    follow = {n.removeprefix(prefix).partition(".")[0] for n in names if n.startswith(prefix)}
    return {int(number) for number in follow if number.isdigit()}


def square_grid(num_patches: int) -> tuple[int, int]:
    """Return the grid of a square image with that many patches; raises a ModelError if none has."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        problem = f"the checkpoint has {num_patches} patch positions, which is no square"
        raise ModelError(f"{problem}: give the image size it was trained with")
    return side, side


def resize_positions(
    table: torch.Tensor, old: tuple[int, int], new: tuple[int, int], num_leading: int = 1
) -> torch.Tensor:
    """Interpolate a position table (1, S + P, W) to another grid, bicubically, as ALBEF does.

    The S = `num_leading` first positions stay as they are; grids are rows and columns of patches.
    """
    leading, patches = table[:, :num_leading], table[:, num_leading:]
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False)
    return torch.cat((leading, resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)
