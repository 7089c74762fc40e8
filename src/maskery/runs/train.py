"""`maskery.train`: one call for a run of any kind, with settings as keywords."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from maskery.core.errors import ConfigError
from maskery.runs.frame.config_file import KINDS, given_name, read_config, with_settings
from maskery.runs.frame.run_folder import repeated_folder


def train(
    data: Any,
    model: Any = None,
    *,
    tokenizer: Any = None,
    eval_data: Any = None,
    policy: Any = None,
    objective: str | Callable[[Any], Any] | None = None,
    callbacks: Sequence[Any] = (),
    output: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Any:
    """Train a run: `train("notes/*.txt", "minilm", epochs=3)`.

    Args:
        data: The corpus: a file, folder, glob or hub id; a sequence of `Path`s; or the texts
            themselves, as a dataset of the `datasets` library or an iterable of strings that can be
            read several times. Or a whole configuration, of any kind: a `TextRunConfig`,
            `PairsRunConfig` or `PersonSearchRunConfig`, or the path of a run's `config.yaml`, which
            is repeated in the next free folder.
        model: A name as `--model` takes it, or a model object with its `tokenizer`; see
            `maskery.models.own_model`. Default: minilm, or the configuration's.
        tokenizer: A Hugging Face tokenizer, for a model object; or, as `--tokenizer`, the kind that
            `scratch:...` learns.
        eval_data: Held-out text, like `data`. Default: a share of the corpus. A dictionary of paths
            by name is of other texts that are measured beside it.
        policy: A masking policy by name, or an object.
        objective: A training objective by name, or a callable that makes a `Task` from `TextParts`.
        callbacks: Called while the run trains; see `Callback`.
        output: The run folder. Default: runs/DATA-MODEL, numbered if taken.
        progress: Draw progress bars.
        **settings: Any flag of `maskery train`, by its name with underscores.

    Returns:
        The result of that kind of run, with the run folder as `folder`.

    Raises:
        ConfigError: A setting is unknown or does not fit.
        MaskeryError: Something else that the user can mend.
    """
    objects: dict[str, Any] = {"progress": progress}
    objects["callbacks"] = callbacks or None
    named: dict[str, Any] = {"policy": policy, "output": None if output is None else Path(output)}
    if isinstance(model, str | Path):
        named["model"] = str(model)
    elif model is not None:
        named["model"], objects["model"] = given_name(type(model)), model
    for name, choice in (("objective", objective), ("tokenizer", tokenizer)):
        (named if isinstance(choice, str) else objects)[name] = choice
    config: Any = None
    if is_dataclass(data) and getattr(data, "kind", None) in KINDS:
        config = data
    elif isinstance(data, str | Path) and Path(data).suffix in (".yaml", ".yml"):
        saved = read_config(data)
        config = replace(saved, output=None)
        objects["beside"] = None if saved.output is None else repeated_folder(saved.output)
    else:
        named["corpus"], objects["texts"] = sources_or_texts(data)
        config = KINDS["text"].load("config")(corpus=named["corpus"])
    if isinstance(eval_data, Mapping):
        named["eval_data"] = tuple(f"{name}={path}" for name, path in eval_data.items())
    elif eval_data is not None:
        named["eval_data"], objects["eval_texts"] = sources_or_texts(eval_data)
    given = {name: value for name, value in named.items() if value is not None}
    objects = {name: value for name, value in objects.items() if value is not None}
    return KINDS[config.kind].load("train")(with_settings(config, {**settings, **given}), **objects)


def sources_or_texts(data: Any) -> tuple[tuple[str, ...], Any]:
    """Return the sources that a configuration names, and texts that are passed themselves."""
    if isinstance(data, str | Path):
        return (str(data),), None
    if isinstance(data, list | tuple) and data and all(isinstance(one, Path) for one in data):
        return tuple(str(one) for one in data), None
    if not isinstance(data, Iterable):
        raise ConfigError(
            f"there is no text in {type(data).__name__}: pass a path, a dataset, or strings"
        )
    return ("<texts>",), data
