"""A large corpus: cut into shards, trained on by two processes, killed, and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fork_server import ForkServer
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.system import METRICS, read_metrics

TRAINING = (
    *("--max-steps", "20", "--batch-tokens", "256", "--learning-rate", "3e-3", "--log-every", "1"),
    *("--checkpoint-every", "5", "--shuffle-shards", "2", "--resume", "auto", "--json"),
    *("--hidden-dropout", "0"),  # drawn by each process for itself
)


def losses(run: Path) -> list[float]:
    rows = read_metrics(run / METRICS)
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_a_corpus_in_shards_on_two_processes(
    tmp_path: Path,
    server: ForkServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "web").mkdir()
    for part in range(3):
        (tmp_path / "web" / f"{part}.txt").write_text("\n".join(lines(100, seed=part)), "utf-8")
    made = ["tokenize", "web", "shards", "--model", str(model), "--workers", "1"]
    made += ["--shard-mb", "0.003", "--held-out-share", "0.1"]
    assert main(made) == 0
    assert "train on them:\n  maskery train text" in capsys.readouterr().out

    train = ["train", "text", tmp_path / "shards", "--model", model, *TRAINING, "--output"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    run = server.start([*train, cut], tmp_path / "log", ranks=2)
    while not any((cut / "checkpoints").glob("step-*")):
        assert not run.ended(within=0.01), run.text
    run.kill()
    run.wait()
    assert not (cut / "model").exists()
    server.run([*train, cut], tmp_path / "log-again", ranks=2)
    server.run([*train, whole], tmp_path / "log-whole")

    # Nothing was lost by the kill, two processes did the work of one, and the model has learnt.
    np.testing.assert_allclose(losses(cut), losses(whole), rtol=1e-5)
    assert losses(whole)[-1] < losses(whole)[0] - 0.2
    one, other = (load_file(run / "model" / "model.safetensors") for run in (cut, whole))
    assert one.keys() == other.keys()
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=1e-4, atol=1e-5)
