"""Benchmarks follow the code: the one that writes a batch and a step out by itself still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_image_text_step_agrees_with_the_released_arithmetic(tmp_path: Path) -> None:
    figures = tmp_path / "step.json"
    command = [sys.executable, str(BENCHMARKS / "image_text_step.py"), "--small", "--steps", "1"]
    done = subprocess.run([*command, "--json", str(figures)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(figures.read_text("utf-8"))["loss_difference"] < 1e-5
