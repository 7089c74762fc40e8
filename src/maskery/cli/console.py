"""What commands share: logging to the terminal, flags from dataclasses, tables and JSON."""

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
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import tyro

from maskery.core.errors import ConfigError
from maskery.core.startup import is_main_process
from maskery.runs.frame.run_folder import without_nan

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


def one_line(report: str) -> str:
    """The flag parser's boxed report as one line."""
    # Where its stream has no encoding, as here, the parser draws in ASCII.
    boxes = re.compile(r"^╭─* *(.*?) *─*╮$|^╰.*╯$|[─-]{3,}|│", re.MULTILINE)
    words = " ".join(boxes.sub(" ", report).split())
    return words.replace("For full helptext, see", "see").replace("For full helptext, run", "see")


def go_offline_without_a_network() -> None:
    """Spare people the hub's retries, half a minute of them, where no network answers at all."""
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
    """Maskery's messages as plain lines on standard error; other libraries' chatter off."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("maskery")
    logger.handlers[:] = [handler]
    logger.propagate = False
    # Warnings are those of all processes, and said by one of them.
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not is_main_process():
        logger.setLevel(logging.ERROR)
    go_offline_without_a_network()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|accelerate|datasets)\b")


def print_json(data: Any) -> None:
    """One JSON document on standard output; numbers JSON lacks become null."""
    print(json.dumps(without_nan(data), indent=1, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
