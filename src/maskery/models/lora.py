"""Low-rank adapters (Hu et al., "LoRA: low-rank adaptation of large language models", 2022).

PEFT puts a product of two narrow matrices, B A, beside linear layers of the frozen encoder. B
starts at zero, so the model starts as it was. Only the products, and a new head, are trained,
checkpointed and held by the optimiser; the saved model has them added to its own weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from maskery.core.errors import MALFORMED, ConfigError, ModelError, explained
from maskery.core.ranges import Count, Range, Settings
from maskery.core.registry import require

if TYPE_CHECKING:
    from maskery.models.loading import Loaded

# PEFT's file in an adapter's folder, and ours: a head that the start did not have.
ADAPTER, HEAD = "adapter_config.json", "head.safetensors"


@dataclass(frozen=True, kw_only=True)
class Lora(Settings):
    """The settings of `--lora`."""

    r: Count = 16
    """Rank of the products."""
    alpha: Annotated[float | None, Range(0, above=True)] = None
    """The products are scaled by alpha / r. Default: twice r."""
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Dropout of what goes into the products."""
    targets: Sequence[str] = ()
    """Names of the linear layers that get one. Default: all in the encoder's layers."""

    @classmethod
    def of(cls, words: Sequence[str]) -> Lora:
        """Read `r=16 targets=query,value`."""
        read: dict[str, Callable[[str], Any]] = {
            "r": int, "alpha": float, "dropout": float, "targets": lambda value: value.split(","),
        }  # fmt: skip
        try:
            pairs = [word.split("=") for word in words]
            return cls(**{name: read[name](value) for name, value in pairs})
        except (ValueError, KeyError) as error:
            rule = "it must be r=, alpha=, dropout= and targets=, each with a value"
            hint = "as in --lora r=16 targets=query,value"
            raise ConfigError(f"--lora {' '.join(words)}: {rule}, {hint}") from error


def peft() -> Any:
    """Import PEFT, or say how it is installed."""
    return require("peft", extra="lora", purpose="train or merge adapters (--lora)")


def add_lora(loaded: Loaded, settings: Lora, *, start: str, seed: int) -> Loaded:
    """Put products into a model, named `start`, in place, and freeze all else but a new head."""
    import torch

    hf, library = loaded.model, peft()
    config = library.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha or 2 * settings.r,
        lora_dropout=settings.dropout,
        target_modules=targets_of(hf, settings.targets),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks Transformers by an older name
        torch.manual_seed(seed)
        adapter = library.get_peft_model(hf, config)
    config.base_model_name_or_path = start
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name in loaded.new_parameters)
    hf.start_is_kept = True  # checkpoints leave out what is frozen
    return replace(loaded, adapter=adapter)


def targets_of(hf: Any, names: Sequence[str]) -> list[str]:
    """Return the full names of the encoder's linear layers that are named, or of all."""
    from torch import nn

    from maskery.models.depth import depths_of

    depths, count = depths_of(hf)
    linear = [name for name, module in hf.named_modules() if isinstance(module, nn.Linear)]
    linear = [name for name in linear if 0 < depths.get(f"{name}.weight", 0) <= count]
    found = {name: [x for x in linear if f".{x}".endswith(f".{name}")] for name in names}
    if missing := [name for name in names if not found[name]]:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        problem = f"the model's layers have no linear layer '{missing[0]}'"
        raise ConfigError(f"--lora targets={','.join(names)}: {problem}; they have {there}")
    return [x for x in linear if not names or any(x in some for some in found.values())]


def save_merged(loaded: Loaded, folder: Path) -> None:
    """Write the adapter with a new head, and add it to the weights of the model, in place."""
    from safetensors.torch import save_file

    loaded.adapter.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
    weights = loaded.model.named_parameters()
    head = {n: p.detach().cpu() for n, p in weights if n in loaded.new_parameters}
    save_file(head, folder / HEAD)
    loaded.adapter.merge_and_unload()


def folded(folder: Path) -> Loaded:
    """Load the start that an adapter names, and add the adapter to its weights."""
    from safetensors.torch import load_file

    from maskery.models.loading import load_masked_lm, quiet_transformers

    library, head = peft(), folder / HEAD
    problem = f"the adapter '{folder}' cannot be folded into its start"
    fix, errors = "name a whole folder of a LoRA adapter", (*MALFORMED, OSError, RuntimeError)
    reading = explained(problem, fix, *errors, kind=ModelError)
    hushed = warnings.catch_warnings(action="ignore", category=FutureWarning)
    with reading, hushed, quiet_transformers():
        start = library.PeftConfig.from_pretrained(folder).base_model_name_or_path
        loaded = load_masked_lm(start, attention_dropout=True)
        new = load_file(head) if head.is_file() else {}
        loaded.model.load_state_dict(new, strict=False)
        library.PeftModel.from_pretrained(loaded.model, folder).merge_and_unload()
    # Of tied weights the file has one.
    own = {name for name, _ in loaded.model.named_parameters()}
    return replace(loaded, new_parameters=(loaded.new_parameters & own) - new.keys())
