"""What a run writes down while it trains: `metrics.jsonl`, and TensorBoard by flag."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskery.core.optional import require

METRICS = "metrics.jsonl"


class Tracker:
    """Appends one JSON object a line; each has `step` and `kind` (train, held_out)."""

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self._path = folder / METRICS
        self._board: Any = None
        if tensorboard:
            board = require(
                "torch.utils.tensorboard", extra="tensorboard", purpose="write TensorBoard events"
            )
            self._board = board.SummaryWriter(str(folder / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, and a last line that was cut short."""
        if not self._path.exists():
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text(text, "utf-8")
        partial.replace(self._path)
        self.flush()

    def flush(self) -> None:
        """Bring what was written to disk, so that no checkpoint is ahead of its lines."""
        if self._path.exists():
            with self._path.open("rb") as stream:
                os.fsync(stream.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """What is written."""
        return read_metrics(self._path) if self._path.exists() else []

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line."""
        line = {"kind": kind, "step": step, **values}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def has(self, kind: str, step: int) -> bool:
        """Whether a line of that kind and step is written."""
        return any((line["kind"], line["step"]) == (kind, step) for line in self.lines())

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one that was cut short or damaged is left out."""
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if _is_sound(line):
            lines.append(line)
    return lines


def _is_sound(line: Any) -> bool:
    """Whether it has a kind, a step, and nothing but numbers beside them."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    numbers = [value for name, value in line.items() if name != "kind"]
    return isinstance(line.get("step"), int) and all(
        isinstance(number, int | float) for number in numbers
    )
