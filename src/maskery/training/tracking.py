"""What a run writes down while it trains: `metrics.jsonl`, and TensorBoard by flag."""

from __future__ import annotations

import json
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
        self._path.write_text(text, "utf-8")

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line."""
        line = {"kind": kind, "step": step, **values}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one that was cut short is left out."""
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
