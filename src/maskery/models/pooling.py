"""One vector of a text: pooled as the model's own sentence-transformers modules say, else the mean.

A sentence encoder's folder lists its modules in `modules.json` (sentence-transformers, since 0.4):
a Transformer, a Pooling, often a Normalize. Both formats of the pooling's settings are read, the
`pooling_mode_*` flags of old and the one `pooling_mode` of today.

Shapes: B sequences, T tokens of all of them end to end, D width.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F

from maskery.core.errors import ModelError
from maskery.models.loading import MODULES

# Old settings: one flag a mode.
FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = tuple(FLAGS.values())
# Beside the modules' own folders; prompts and the maximum length stand in these.
SETTINGS = (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json")


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Makes one vector of each sequence."""

    modes: tuple[str, ...] = ("mean",)  # Some of `MODES`; the vectors of several are joined
    normalise: bool = False  # Scale the vector to length 1
    max_length: int | None = None  # The most tokens that are read, special ones included
    own: bool = False  # True if the model's folder says so, False for the default

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the pooling of a model folder; the mean where it has no `modules.json`."""
        if not (folder / MODULES).is_file():
            return cls()
        try:
            modules = _read_json(folder / MODULES)
            settings: dict[str, Any] = {"own": True}
            for module in modules:
                kind = str(module["type"]).rsplit(".", 1)[-1]
                if kind == "Pooling":
                    settings["modes"] = _modes(_read_json(folder / module["path"] / "config.json"))
                elif kind == "Normalize":
                    settings["normalise"] = True
                elif kind != "Transformer":
                    problem = f"the sentence encoder in '{folder}' has a module of kind {kind}"
                    known = "Maskery knows Transformer, Pooling and Normalize"
                    fix = f"remove {MODULES} to use the mean of its hidden states"
                    raise ModelError(f"{problem}; {known}; {fix}")
            limits = folder / "sentence_bert_config.json"
            if limits.is_file():
                settings["max_length"] = _read_json(limits).get("max_seq_length")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"the sentence-transformers modules in '{folder}' cannot be read"
            reason = f"{type(error).__name__}: {error}"
            raise ModelError(f"{problem} ({reason}); mend or remove its {MODULES}") from error
        return cls(**settings)

    def pool(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Pool (T, D), with (B,) lengths above 0, to (B, D * number of modes) float32."""
        # The number of tokens is known, and lengths are sound: a GPU is not asked, and waited for.
        hidden = hidden.float()
        ends, parts = lengths.cumsum(0), []
        for mode in self.modes:
            if mode == "cls":
                parts.append(hidden[ends - lengths])
            elif mode == "lasttoken":
                parts.append(hidden[ends - 1])
            elif mode == "max":
                parts.append(torch.segment_reduce(hidden, "max", lengths=lengths, unsafe=True))
            else:
                rows = torch.repeat_interleave(lengths, output_size=len(hidden))
                sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, rows, hidden)
                counts = lengths[:, None].to(hidden.dtype)
                parts.append(sums / (counts if mode == "mean" else counts.sqrt()))
        pooled = torch.cat(parts, dim=1)
        return F.normalize(pooled, dim=1) if self.normalise else pooled


def _modes(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if isinstance(named, str):
        found = tuple(named.split("+"))
    else:
        found = tuple(mode for flag, mode in FLAGS.items() if config.get(flag))
        unknown = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        found += tuple(key for key in unknown if key not in FLAGS)
    strange = [mode for mode in found if mode not in MODES]
    if strange or not found:
        mode = strange[0] if strange else "missing"
        raise ValueError(f"pooling mode {mode}; known are {', '.join(MODES)}")
    return found


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def copy_modules(source: Path, target: Path) -> None:
    """Copy a sentence encoder's modules beside a trained model, so that it stays one."""
    if not (source / MODULES).is_file():
        return
    for name in SETTINGS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for module in _read_json(source / MODULES):
        part = str(module.get("path") or "")
        # Only folders directly inside: the list comes with the model and may name any place.
        if part and Path(part).name == part and (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True, symlinks=True)
