"""Shared by all commands: flags from dataclasses, logging to the terminal, tables and JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import socket
import sys
import threading
import types
import typing
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlparse

import tyro

from maskery.core.errors import ConfigError
from maskery.core.system import is_main_process
from maskery.runs.frame.run_folder import without_nan

# Seconds to wait for a name server; one that is there answers in far less.
LOOKUP_SECONDS = 3.0
ConfigT = TypeVar("ConfigT")


def parse(
    kind: type[ConfigT],
    command: str,
    arguments: Sequence[str],
    default: ConfigT | None = None,
    *,
    program: str = "maskery",
) -> ConfigT:
    """Turn flags into a config; `--help` prints and ends the program.

    Raises:
        ConfigError: A flag is unknown or missing, or its value is wrong.
    """
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            parsed: ConfigT = tyro.cli(  # type: ignore[assignment]
                kind, prog=f"{program} {command}", args=list(arguments), default=default
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(one_line(report.getvalue())) from end
    return parsed


def take_config(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take `--config FILE` or `--config=FILE` out of the arguments, wherever it stands.

    Raises:
        ConfigError: No file is named.
    """
    rest: list[str] = []
    path = None
    words = iter(arguments)
    for word in words:
        flag, _, file = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        file = file or next(words, "")
        if not file:
            raise ConfigError("--config names no file; give the config.yaml of a run")
        path = Path(file)
    return rest, path


def split_arguments(
    arguments: Sequence[str], commands: Iterable[type[Any]]
) -> tuple[list[str], set[str]]:
    """Tell positional arguments from flags, before it is known which of some commands is meant.

    Returns:
        The positional arguments, and the flags without their values.
    """
    sizes: dict[str, int | None] = {}
    for command in commands:
        sizes |= flags_of(command)
    positional: list[str] = []
    flags: set[str] = set()
    skip: int | None = 0
    for word in arguments:
        if word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            flag = name.replace("_", "-")
            flags.add(flag)
            skip = 0 if equals else sizes.get(flag, 0)
        elif skip == 0:
            positional.append(word)
        elif skip is not None:
            skip -= 1
    return positional, flags


def flags_of(kind: type[Any], prefix: str = "--") -> dict[str, int | None]:
    """Return the flags of a dataclass and how many words each takes; None for any number."""
    found: dict[str, int | None] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        hint, marks = hints[one.name], ()
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)  # type: ignore[assignment]
        name = one.name.replace("_", "-")
        if is_dataclass(hint):
            inner = prefix if tyro.conf.OmitArgPrefixes in marks else f"{prefix}{name}."
            found |= flags_of(hint, inner)  # type: ignore[arg-type]
        elif tyro.conf.Positional not in marks:
            found[prefix + name] = words_of(hint)
            if hint is bool:
                found[f"{prefix}no-{name}"] = 0
    return found


def words_of(hint: Any) -> int | None:
    """Return how many words a value of a type is; None for any number."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    tuples = [option for option in options if typing.get_origin(option) is tuple]
    if not tuples:
        return 0 if hint is bool else 1
    parts = typing.get_args(tuples[0])
    return None if Ellipsis in parts else len(parts)


def one_line(report: str) -> str:
    """Return the flag parser's boxed report as one line."""
    # Where its stream has no encoding, as here, the parser draws in ASCII.
    boxes = re.compile(r"^╭─* *(.*?) *─*╮$|^╰.*╯$|[─-]{3,}|│", re.MULTILINE)
    words = " ".join(boxes.sub(" ", report).split())
    return words.replace("For full helptext, see", "see").replace("For full helptext, run", "see")


def go_offline_without_a_network() -> None:
    """Tell the hub's library that there is no network, where none answers.

    It would go on trying for half a minute otherwise.
    """
    if "HF_HUB_OFFLINE" in os.environ:
        return
    endpoint = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    found = threading.Event()

    def look_up() -> None:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(endpoint.hostname, endpoint.port or 443)
            found.set()

    # A name server that never answers would keep everyone waiting, local folders or not.
    asking = threading.Thread(target=look_up, daemon=True)
    asking.start()
    asking.join(LOOKUP_SECONDS)
    if not found.is_set():
        os.environ["HF_HUB_OFFLINE"] = "1"


def set_up_logging(*, quiet: bool = False) -> None:
    """Write Maskery's messages as plain lines to standard error, and silence other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("maskery")
    logger.handlers[:] = [handler]
    logger.propagate = False
    # Every process warns of the same things; one of them says so.
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not is_main_process():
        logger.setLevel(logging.ERROR)
    go_offline_without_a_network()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|accelerate|datasets)\b")


def print_json(data: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    print(json.dumps(without_nan(data), indent=1, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def prepare_output(path: Path, flag: str) -> None:
    """Make the folder of a file, and check that the file can be written.

    Args:
        path: The file; its content stays.
        flag: The flag that named it, for messages.

    Raises:
        ConfigError: It is a folder, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{flag} is '{path}', and no file can be written there ({error.strerror}); name another"
        ) from error


def shown(path: Path) -> str:
    """Return a path for print and JSON, with bytes that are no UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
