"""The run folder: `config.yaml`, `metrics.jsonl`, `checkpoints/`, `model/`, `evaluation.json`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from maskery.core.errors import CheckpointError, ConfigError, reason_of
from maskery.core.files import write_whole

CONFIG = "config.yaml"
MODEL = "model"
TOKENIZER = "tokenizer"
EVALUATION = "evaluation.json"
ConfigT = TypeVar("ConfigT")


def default_folder(corpus: str, model: str) -> Path:
    """`runs/CORPUS-MODEL`."""
    stem = Path(corpus).name.partition(".")[0] or "corpus"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{stem}-{Path(model).name or model}").strip("-")
    return Path("runs") / name


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        CheckpointError: It cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise CheckpointError(
            f"'{path}' cannot be written ({error.strerror}); free some space there"
        ) from error


def save_config(folder: Path, config: Any) -> None:
    """Write `config.yaml`."""
    write_text(folder / CONFIG, yaml.safe_dump(to_plain(config), sort_keys=False))


def load_config(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a `config.yaml` back; unknown keys fail.

    Raises:
        ConfigError: It cannot be read, or does not fit `kind`.
    """
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    # Of its own, the parser lets through numbers and dates that are none, and deep nesting.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the configuration '{path}' cannot be read: {reason_of(error)}"
        ) from error
    return from_plain(data, kind, str(path))


def to_plain(value: Any) -> Any:
    """A config as dictionaries, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(data: Any, kind: type[ConfigT], where: str) -> ConfigT:
    """The reverse of `to_plain`, checking keys and types.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected named settings, found {type(data).__name__}")
    assert dataclasses.is_dataclass(kind)
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in data.keys() - known)
    if unknown:
        raise ConfigError(
            f"{where}: unknown setting '{unknown[0]}'; the settings are {', '.join(sorted(known))}"
        )
    values = {name: _convert(data[name], hints[name], f"{where}: {name}") for name in data}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition('() ')[2]}") from error


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}: it must be one of {arguments}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}: it must be a list")
        return tuple(_convert(item, arguments[0], where) for item in value)
    if dataclasses.is_dataclass(hint):
        return from_plain(value, hint, where)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError as error:
            raise ConfigError(f"{where} is {value!r}: it must be a number") from error
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}: it must be of type {hint.__name__}")
    return value


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; numbers that JSON lacks become null."""
    write_text(path, json.dumps(without_nan(data), indent=1) + "\n")


def without_nan(value: Any) -> Any:
    """Return plain data with null in place of numbers that JSON lacks (NaN, infinities)."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
