"""State dicts from `.pth` and `.safetensors` files, and the report on what became of them.

Nothing in a file is run.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from maskery.core.errors import ModelError, reason_of

NESTED_UNDER = ("model", "state_dict")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint file, by name; a pickle that asks to run code is refused.

    A training checkpoint that keeps its weights under "model" or "state_dict" is entered; the
    prefix "module." of data-parallel training is dropped.
    """
    if not path.is_file():
        raise ModelError(f"checkpoint '{path}' is not a file; give a .pth or .safetensors file")
    content = _load(path)
    for key in NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise ModelError(
            f"checkpoint '{path}' holds a {type(content).__name__}: it must hold a dictionary of "
            f"tensors, plain or under 'model'; save model.state_dict()"
        )
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ModelError(
            f"checkpoint '{path}' holds no tensors at its top level or under 'model'; save "
            f"model.state_dict()"
        )
    return tensors


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # An unusual pickle protocol is warned of; what cannot be read is an error below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelError(
            f"checkpoint '{path}' is not a readable safetensors file ({error}); fetch it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint '{path}' holds more than tensors, which could run code when read "
            f"({_refused(error)}); save it anew as a plain state_dict, or as safetensors"
        ) from error
    except Exception as error:  # bytes that are no pickle can fail in any way (struct.error, ...)
        raise ModelError(
            f"checkpoint '{path}' is damaged or not a PyTorch file ({reason_of(error, most=160)}); "
            f"fetch it again"
        ) from error


def _refused(error: Exception) -> str:
    """Return the name that PyTorch refused, if its message tells it."""
    for line in str(error).splitlines():
        if "GLOBAL" in line or "Unsupported" in line:
            return line.partition("GLOBAL")[2].strip(" .")[:120] or line.strip()[:120]
    return reason_of(error, most=160)


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Lists every key of an imported checkpoint, used or not."""

    kind: str  # What the checkpoint was taken for: "albef", "bert" or "vit"
    used: dict[str, str]  # By name in the file, where in the model it went
    # Parameters of the model that the file does not have; freshly initialised.
    missing: tuple[str, ...]
    left_over: tuple[str, ...]  # Names in the file that the model has no place for
    # Position tables that were interpolated, with their old and new lengths.
    resized: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Write the report as text, one line a fact."""
        lines = [
            f"read as {self.kind}: {len(self.used)} used, {len(self.missing)} missing, "
            f"{len(self.left_over)} left over"
        ]
        lines += [f"  resized    {name}" for name in self.resized]
        lines += [f"  missing    {name} (freshly initialised)" for name in self.missing]
        lines += [f"  left over  {name}" for name in self.left_over]
        return lines
