"""Tiny real runs for fault tests, and what must be the same after any of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_pairs import save_tiny_pairs
from tiny_persons import save_cuhk
from tiny_text import lines, save_tiny_model

from maskery.core.system import METRICS, read_metrics
from maskery.training.journal import SPEEDS

COMMON = ("--log-every", "2", "--eval-every", "4", "--learning-rate", "1e-3", "--json")


def make_text(folder: Path) -> list[str]:
    """Arguments of a text run of 12 steps with dropout, a checkpoint every second step."""
    (folder / "corpus.txt").write_text("\n".join(lines(60)))
    model = save_tiny_model(folder / "model")
    return [
        *("train", "text", str(folder / "corpus.txt"), "--model", str(model), *COMMON),
        *("--cache-dir", str(folder / "cache"), "--epochs", "9", "--max-steps", "12"),
        *("--batch-tokens", "128", "--micro-batch-tokens", "64", "--checkpoint-every", "2"),
    ]


def make_pairs(folder: Path) -> list[str]:
    """Arguments of an image-text run of 8 steps, a checkpoint every second step."""
    data = save_tiny_pairs(folder / "data", 24)
    return [
        *("train", "pairs", str(data), *COMMON, "--vocab-size", "200", "--held-out-share", "0.2"),
        *("--height", "16", "--width", "16", "--max-steps", "8", "--batch-pairs", "8"),
        *("--checkpoint-every", "2"),
    ]


def make_persons(folder: Path) -> list[str]:
    """Arguments of a person-search run of 8 steps with all of RaSa's losses."""
    data = save_cuhk(folder / "data", {"train": 8, "val": 3, "test": 3})
    return [
        *("train", "person-search", "--dataset", "cuhk-pedes", "--root", str(data)),
        *("--preset", "rasa", "--model", "scratch:tiny", *COMMON, "--vocab-size", "200"),
        *("--height", "16", "--width", "16", "--max-steps", "8", "--batch-pairs", "8"),
        *("--micro-batch-pairs", "8", "--queue-size", "32", "--checkpoint-every", "2"),
    ]


def outcome(run: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on its interruptions."""
    metrics = [
        {name: value for name, value in line.items() if name not in SPEEDS}
        for line in read_metrics(run / METRICS)
    ]
    evaluation = json.loads((run / "evaluation.json").read_text())
    # Damaged ones are set aside under a suffix.
    newest = sorted(p for p in (run / "checkpoints").glob("step-*") if not p.suffix)[-1]
    tensors = [*(run / "model").glob("*.safetensors"), *newest.glob("*.safetensors")]
    return {
        "metrics": metrics,
        "figures": {n: v for n, v in evaluation.items() if n not in ("run", "model", "training")},
        "newest": newest.name,
        "tensors": {f"{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(tensors)},
    }


def assert_same_outcome(run: Path, expected: dict[str, Any]) -> None:
    """Bit for bit."""
    found = outcome(run)
    assert found["metrics"] == expected["metrics"]
    assert found["figures"] == expected["figures"]
    assert found["newest"] == expected["newest"]
    assert found["tensors"].keys() == expected["tensors"].keys()
    differing = [n for n, data in expected["tensors"].items() if found["tensors"][n] != data]
    assert not differing
