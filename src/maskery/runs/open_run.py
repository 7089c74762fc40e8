"""The kinds of run, each named by where its parts lie, so that only the one at hand is imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from maskery.core.errors import ConfigError
from maskery.runs.frame.config_file import CONFIG, kind_of, load_config, read_settings
from maskery.runs.frame.run_folder import has_model, write_json

ConfigT = TypeVar("ConfigT")
SAMPLES = "samples.json"
PACKAGES = ("maskery", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


class RunKind(NamedTuple):
    """A kind of run, as `package.module:attribute` that are imported when they are asked for."""

    config: str
    """Its configuration, a dataclass with the `kind`."""
    train: str
    """From a configuration to a result."""
    samples: str
    """From a finished run's folder to what its report shows besides figures."""

    preset: str = ""
    """From the name of a preset to its configuration, where the kind has presets."""

    def load(self, part: str) -> Any:
        """Import one of the parts."""
        module, _, attribute = getattr(self, part).partition(":")
        return getattr(importlib.import_module(module), attribute)


KINDS = {
    "text": RunKind(
        config="maskery.runs.text.config:TextRunConfig",
        train="maskery.runs.text.run:train_text",
        samples="maskery.runs.text.evaluate:run_samples",
    ),
    "pairs": RunKind(
        config="maskery.runs.pairs.config:PairsRunConfig",
        train="maskery.runs.pairs.run:train_pairs",
        samples="maskery.runs.pairs.measure:run_samples",
    ),
    "person-search": RunKind(
        config="maskery.runs.person_search.config:PersonSearchRunConfig",
        train="maskery.runs.person_search.run:train_person_search",
        samples="maskery.runs.person_search.evaluate:run_samples",
        preset="maskery.runs.person_search.config:preset_without_data",
    ),
}


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run folder that was read.

    Attributes:
        folder: The run folder.
        kind: `text`, `pairs` or `person-search`.
        config: The run's configuration, of the class that belongs to the kind.
    """

    folder: Path
    kind: str
    config: Any

    def finished(self, config: type[ConfigT]) -> ConfigT:
        """Return the configuration of a run that has saved its model.

        Args:
            config: Its class.

        Raises:
            ConfigError: The run has no model yet, or is of another kind.
        """
        if not isinstance(self.config, config):
            raise ConfigError(
                f"'{self.folder}' is a run of kind {self.kind}, and one of kind "
                f"{getattr(config, 'kind', config.__name__)} is needed"
            )
        if not has_model(self.folder):
            raise ConfigError(
                f"the run '{self.folder}' has no model yet; finish it with: maskery train --config "
                f"{self.folder / CONFIG} --resume auto"
            )
        return self.config

    def save_samples(self) -> None:
        """Write `samples.json`: fills, changed words or searches of the model, and the environment.

        Raises:
            MaskeryError: The run's data or its model is no longer there.
        """
        self.finished(type(self.config))
        samples = KINDS[self.kind].load("samples")(self.folder)
        write_json(self.folder / SAMPLES, {"environment": environment(), **samples})


def open_run(folder: str | Path) -> OpenRun:
    """Read the configuration of a run folder of any kind.

    Raises:
        ConfigError: It is no run folder, or its `config.yaml` is damaged or of an unknown kind.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"'{folder}' has no {CONFIG}, so it is no run folder; name one that maskery train has "
            f"written"
        )
    config = read_config(path)
    return OpenRun(folder=Path(folder), kind=config.kind, config=config)


def read_config(path: str | Path) -> Any:
    """Read a `config.yaml` of any kind as the configuration of its kind.

    Raises:
        ConfigError: It cannot be read, is of an unknown kind, or does not fit its kind.
    """
    kind = KINDS[kind_of(read_settings(path), path)]
    return load_config(path, kind.load("config"))


def environment() -> dict[str, str]:
    """Return versions and machine, in words."""
    import torch

    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # Of the processors of a machine, a container may have only some.
    allowed = getattr(os, "sched_getaffinity", None)
    return {
        **found,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "processors": str(len(allowed(0)) if allowed else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
