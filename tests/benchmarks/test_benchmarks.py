"""Benchmarks follow the code: the one that writes a batch and a step out by itself still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fork_server import ForkServer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_image_text_step_agrees_with_the_released_arithmetic(
    server: ForkServer, tmp_path: Path
) -> None:
    figures = tmp_path / "step.json"
    script = BENCHMARKS / "image_text_step.py"
    done = server.python(script, "--small", "--steps", "1", "--json", figures)
    assert done.returncode == 0, done.stderr
    assert json.loads(figures.read_text("utf-8"))["loss_difference"] < 1e-5


# What a machine with a GPU and without a network may lack.
WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(("datasets", "pyarrow", "tyro"))
del sys.argv[0]  # "-c"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SECTIONS = ["machine", "packed", "resumed", "golden", "compiled", "bert", "person_search"]
SECTIONS += ["trainer", "feeding", "waits"]


def test_the_checks_of_a_gpu_run_on_a_cpu(tmp_path: Path) -> None:
    figures = tmp_path / "gpu.json"
    command = [sys.executable, "-c", WITHOUT, str(BENCHMARKS / "gpu"), "--tiny"]
    command += ["--out", str(figures), "--only", *SECTIONS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text("utf-8"))
    assert found["failures"] == {}
    resumed = [value for name, value in found["table"].items() if name.startswith("weights after")]
    assert resumed == ["{'again': 'equal bits', 'resumed': 'equal bits'}"] * 2
