"""The kinds of run, and `config.yaml`: a run's settings with its kind, read back with care.

A file is not trusted: it cannot load code, and neither its size nor its nesting stalls a command.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import platform
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from maskery.core.errors import ConfigError, meant, reason_of
from maskery.core.registry import anchored_choice, from_file
from maskery.runs.frame import run_folder

CONFIG = "config.yaml"
SAMPLES = "samples.json"
PACKAGES = ("maskery", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")
KIND = "kind"
# Files of before `kind` are told by a setting that no other kind has.
MARKS = {"corpus": "text", "pairs": "pairs", "data": "person-search"}
# As long as Linux lets a command line be by default, which may have named every file of a corpus.
MOST_BYTES = 2 * 2**20
MOST_DIGITS = 25  # no setting has more; Python takes minutes over a number of a megabyte
# Of a run whose model was exchanged, for the warning.
FIGURES_NOW = "figures are of what is there now"
FIGURES_KEPT = "figures are those that the run has kept"
ConfigT = TypeVar("ConfigT")


class RunKind(NamedTuple):
    """A kind of run, as `package.module:attribute` that are imported when they are asked for."""

    config: str  # Its configuration, a dataclass with the `kind`
    train: str  # From a configuration to a result
    samples: str  # From a finished run's folder to what its report shows besides figures
    preset: str = ""  # From a preset's name to its configuration, where the kind has presets

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
        config="maskery.runs.image_text.config:PairsRunConfig",
        train="maskery.runs.pairs.run:train_pairs",
        samples="maskery.runs.pairs.run:run_samples",
    ),
    "person-search": RunKind(
        config="maskery.runs.image_text.config:PersonSearchRunConfig",
        train="maskery.runs.person_search.run:train_person_search",
        samples="maskery.runs.person_search.evaluate:run_samples",
        preset="maskery.runs.image_text.config:preset_without_data",
    ),
}


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, by which a few lines can stand for billions, and huge numbers."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise ValueError(f"line {line} has an alias (*name); write its value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []  # else it is refused below
        seen: set[str] = set()  # of two settings of one name, one would be lost
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"line {line} has '{key.value}' again; leave one of them")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:
            raise ValueError(f"a number of {len(node.value):,} digits is more than any setting has")
        return int(self.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def save_config(folder: Path, config: Any) -> None:
    """Write `config.yaml`, with the kind of the run and absolute paths of plug-ins."""
    kind = {KIND: config.kind} if hasattr(config, KIND) else {}
    data = kind | run_folder.each_text(to_plain(config), anchored_choice)
    run_folder.write_text(folder / CONFIG, yaml.safe_dump(data, sort_keys=False))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read a `config.yaml` as it is; what names a plug-in in it will not be loaded."""
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        # The steps of `yaml.safe_load`, whose loader `_Loader` makes stricter.
        loader = _Loader(data.decode("utf-8"))
        try:
            settings = loader.get_single_data()
        finally:
            loader.dispose()
    # Of its own, the parser lets through dates that are none, and deep nesting.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem = f"the configuration '{path}' cannot be read"
        raise ConfigError(f"{problem}: {reason_of(error)}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected named settings, found {type(settings).__name__}")
    return {str(key): run_folder.each_text(value, from_file) for key, value in settings.items()}


def kind_of(settings: Mapping[str, Any], path: str | Path) -> str:
    """Return the kind of run that a file describes; files of before `kind` are told by marks."""
    kind = settings.get(KIND)
    if kind is None:
        kind = next((MARKS[name] for name in MARKS if name in settings), None)
    if kind is None:
        raise ConfigError(f"{path}: no kind of run is named; add kind: {' or '.join(KINDS)}")
    if not isinstance(kind, str) or kind not in KINDS:
        problem = f"{path}: kind is {reprlib.repr(kind)}"
        raise ConfigError(f"{problem}: it must be one of {', '.join(KINDS)}")
    return kind


def run_kind(folder: str | Path) -> str | None:
    """Return the kind of the run that a folder is; None of folders that are no run's."""
    path = Path(folder) / CONFIG
    # A model folder of another library may hold a config.yaml of its own.
    if not path.is_file() or (path.parent / "config.json").is_file():
        return None
    return kind_of(read_settings(path), path)


def load_config(path: str | Path, config: type[ConfigT]) -> ConfigT:
    """Read a `config.yaml` as the dataclass `config`; unknown keys and other kinds fail."""
    settings = read_settings(path)
    expected = getattr(config, KIND, None)
    if expected is not None and (KIND in settings or not settings.keys().isdisjoint(MARKS)):
        found = kind_of(settings, path)
        if found != expected:
            problem = f"{path}: this is a run of kind {found}, and one of kind {expected} is needed"
            raise ConfigError(f"{problem}; repeat it with: maskery train --config {path}")
    settings.pop(KIND, None)
    return from_plain(settings, config, str(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run folder that was read."""

    folder: Path
    kind: str  # `text`, `pairs` or `person-search`
    config: Any  # The run's configuration, of the class that belongs to the kind

    def finished(self, config: type[ConfigT], what_now: str = FIGURES_NOW) -> ConfigT:
        """Return the configuration of a run that has saved its model, of the class `config`.

        If another model lies there now, a warning says so, and what comes of it.
        """
        if not isinstance(self.config, config):
            needed = getattr(config, KIND, config.__name__)
            problem = f"'{self.folder}' is a run of kind {self.kind}"
            raise ConfigError(f"{problem}, and one of kind {needed} is needed")
        if not run_folder.has_model(self.folder):
            fix = f"finish it with: maskery train --config {self.folder / CONFIG} --resume auto"
            raise ConfigError(f"the run '{self.folder}' has no model yet; {fix}")
        run_folder.warn_of_another_model(self.folder, what_now)
        return dataclasses.replace(self.config, output=self.folder)  # type: ignore[type-var]

    def save_samples(self) -> None:
        """Write `samples.json`: what the model fills or finds, and the environment."""
        samples = KINDS[self.kind].load("samples")(self.folder)
        run_folder.write_json(self.folder / SAMPLES, {"environment": environment(), **samples})


def open_run(folder: str | Path) -> OpenRun:
    """Read the configuration of a run folder of any kind."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        problem = f"'{folder}' has no {CONFIG}, so it is no run folder"
        raise ConfigError(f"{problem}; name one that maskery train has written")
    config = read_config(path)
    return OpenRun(folder=Path(folder), kind=config.kind, config=config)


def read_config(path: str | Path) -> Any:
    """Read a `config.yaml` of any kind as the configuration of its kind."""
    return load_config(path, KINDS[kind_of(read_settings(path), path)].load("config"))


def environment() -> dict[str, str]:
    """Return versions and machine, in words."""
    import torch

    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
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


def to_plain(value: Any) -> Any:
    """Return a config as dictionaries, lists, strings and numbers."""

    def plain(leaf: Any) -> Any:
        # A string that was read from a file is written as any other.
        if isinstance(leaf, Path | str):
            return str(leaf)
        # An object that was passed in Python: a file can only say what it was.
        return leaf if leaf is None or isinstance(leaf, bool | int | float) else given_name(leaf)

    return run_folder.each_leaf(value, plain)


def given_name(value: object) -> str:
    """Return the name by which files and folders know an object that was passed in Python."""
    return f"<{getattr(value, '__name__', type(value).__name__)}>"


def from_plain(data: Any, kind: type[ConfigT], where: str) -> ConfigT:
    """Make a dataclass from what `to_plain` returned, checking keys and types."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected named settings, found {type(data).__name__}")
    assert dataclasses.is_dataclass(kind)
    hints = typing.get_type_hints(kind)
    # Settings that earlier versions wrote and that meant nothing.
    former: typing.Collection[str] = getattr(kind, "FORMER", ())
    data = {name: value for name, value in data.items() if name not in former}
    # Settings that earlier versions had in another place.
    data = getattr(kind, "upgraded", dict)(data)
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in data.keys() - known)
    if unknown:
        fix = f"the settings are {', '.join(sorted(known))}{meant(unknown[0], known)}"
        raise ConfigError(f"{where}: unknown setting '{unknown[0]}'; {fix}")
    values = {name: _convert(data[name], hints[name], f"{where}: {name}") for name in data}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition('() ')[2]}") from error


def with_settings(config: ConfigT, settings: Mapping[str, Any], *, where: str = "") -> ConfigT:
    """Return a configuration with settings changed, each wherever in it its name stands.

    With `where`, the place to name in messages, values are those of a file, checked and converted.
    """
    left = dict(settings)
    changed = _with_settings(config, left, where)
    if left:
        problem = f"there is no setting '{min(left)}' in {type(config).__name__}"
        raise ConfigError(f"{problem}; settings are the flags of maskery train, with underscores")
    return changed  # type: ignore[no-any-return]


def _with_settings(config: Any, left: dict[str, Any], where: str) -> Any:
    """Take the settings of a dataclass, and of those within it, out of `left`."""
    own, hints = dict[str, Any](), typing.get_type_hints(type(config))
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        group = dataclasses.is_dataclass(value)
        if one.name in left and not (group and where):  # in Python a group may be given whole
            given = left.pop(one.name)
            place = f"{where}: {one.name}"
            own[one.name] = _convert(given, hints[one.name], place) if where else given
        elif group:
            own[one.name] = _with_settings(value, left, where)
    return dataclasses.replace(config, **own)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Check a value of a file against the type of its setting."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    given = f"{where} is {reprlib.repr(value)}"
    if origin in (typing.Union, types.UnionType):
        choices = [a for a in arguments if typing.get_origin(a) is typing.Literal]
        words = [word for choice in choices for word in typing.get_args(choice)]
        if value in words or (value is None and type(None) in arguments):
            return value
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{given}: it must be one of {arguments}")
        return value
    if origin is dict:
        return _convert(value, dict, where)
    if origin is tuple:
        number = "" if Ellipsis in arguments else f" of {len(arguments)}"
        if not isinstance(value, list) or (number and len(value) != len(arguments)):
            raise ConfigError(f"{given}: it must be a list{number}")
        return tuple(_convert(item, arguments[0], where) for item in value)
    if dataclasses.is_dataclass(hint):
        return from_plain(value, hint, where)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return Path(value)
    # YAML reads 1e-4 as text.
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{given}: it must be a number") from error
    # YAML reads the words on and off as true and false, and 20 as a number.
    if hint is str and isinstance(value, bool | int | float):
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{given}: it must be of type {hint.__name__}")
    return value
