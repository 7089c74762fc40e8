"""What commands share: logging to the terminal, flags from dataclasses, tables and JSON."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

ConfigT = TypeVar("ConfigT")


def parse(
    kind: type[ConfigT], command: str, arguments: Sequence[str], default: ConfigT | None = None
) -> ConfigT:
    """Flags become a config; a mistake ends the program with exit code 2."""
    # tyro also answers --help, and ends the program with code 2 on a mistake.
    parsed: ConfigT = tyro.cli(
        kind, prog=f"maskery {command}", args=list(arguments), default=default
    )  # type: ignore[assignment]
    return parsed


def set_up_logging(*, quiet: bool = False) -> None:
    """Maskery's messages as plain lines on standard error; other libraries' chatter off."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("maskery")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|accelerate|datasets)\b")


def print_json(data: Any) -> None:
    """One JSON document on standard output; numbers JSON lacks become null."""
    print(json.dumps(_plain(data), indent=1, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
