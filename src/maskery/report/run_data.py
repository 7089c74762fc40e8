"""What a run folder holds, as its report needs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskery.core.errors import CheckpointError
from maskery.core.files import METRICS, read_metrics

EVALUATION, SAMPLES, CONFIG = "evaluation.json", "samples.json", "config.yaml"


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run as read from its folder.

    Attributes:
        name: Of the folder.
        metrics: The lines of `metrics.jsonl`.
        evaluation: Held-out figures; empty before the run is finished.
        samples: Sample fills and environment; empty where they were not computed.
        config: `config.yaml` as text.
    """

    name: str
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    samples: dict[str, Any]
    config: str


def read_run(folder: Path) -> RunData:
    """Read what is there.

    Raises:
        CheckpointError: It is no run folder, or a file of it is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"'{folder}' has no {CONFIG}, so it is no run folder; name one that maskery train "
            f"has written"
        )
    return RunData(
        name=folder.resolve().name,
        metrics=_metrics(folder / METRICS),
        evaluation=_object(folder / EVALUATION),
        samples=_object(folder / SAMPLES),
        config=_text(folder / CONFIG),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); restore it") from error


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(path, tell=True) if path.is_file() else []
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); restore it") from error


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"'{path}' is no JSON ({error.msg}, line {error.lineno}); remove it and evaluate again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is no JSON object; remove it and evaluate again")
    return value
