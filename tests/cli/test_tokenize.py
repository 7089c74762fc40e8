from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main


def test_a_corpus_becomes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_tiny_model(tmp_path / "model"))
    (tmp_path / "a.txt").write_text("\n".join(lines(100)), "utf-8")
    command = ["tokenize", str(tmp_path / "a.txt"), str(tmp_path / "shards"), "--model", model]
    command += ["--shard-mb", "0.001", "--held-out-share", "0.1", "--workers", "1"]
    assert main(command) == 0
    assert "train on them:\n  maskery train text" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["complete"]
    assert (report["tokens_made"], report["sent"]) == (0, None)
    assert report["shards"] > 4
    assert report["documents"] + report["held_out_documents"] == 100


def test_one_path_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "a.txt"]) == 2
    assert "1 path is named" in capsys.readouterr().err
