"""A model folder with Python of its own: no command runs it, whatever standard input says."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main

CODE = """
from pathlib import Path
Path({ran!r}).write_text("ran")
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
class Own(BertConfig):
    model_type = "own"
class OwnModel(BertForMaskedLM):
    config_class = Own
class OwnTokenizer(BertTokenizer):
    pass
"""
NAMES = {
    "AutoConfig": "own.Own",
    "AutoModel": "own.OwnModel",
    "AutoModelForMaskedLM": "own.OwnModel",
    "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
}
COMMANDS = {
    "fill": ["fill", "{model}", "the [MASK]"],
    "score": ["score", "{model}", "the river"],
    "evaluate": ["evaluate", "{model}", "--data", "{text}", "--cache-dir", "{cache}"],
    "probe": ["probe", "{labels}", "--model", "{model}"],
    "train": ["train", "text", "{text}", "--model", "{model}", "--output", "{cache}/run"],
    "explain": ["explain", "{model}", "{text}", "the river", "--out", "{cache}/a.png"],
    "tokenize": ["tokenize", "{text}", "--model", "{model}", "--output", "{cache}/shards"],
}


@pytest.fixture(scope="module", params=["own family", "own class of a known family"])
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder, a corpus, labelled lines, and the file that the folder's code would write."""
    home = tmp_path_factory.mktemp("own")
    model = save_tiny_model(home / "model")
    (model / "own.py").write_text(CODE.format(ran=str(home / "ran")))
    known = request.param != "own family"
    for file, kept in (("config.json", known), ("tokenizer_config.json", known)):
        settings = json.loads((model / file).read_text()) | {"auto_map": NAMES}
        if not kept:
            settings |= {"model_type": "own", "tokenizer_class": "OwnTokenizer"}
        (model / file).write_text(json.dumps(settings))
    rows = [json.dumps({"text": line, "label": n % 2}) for n, line in enumerate(lines(40))]
    (home / "labels.jsonl").write_text("\n".join(rows))
    (home / "text.txt").write_text("\n".join(lines(40)))
    return {
        "model": model,
        "text": home / "text.txt",
        "labels": home / "labels.jsonl",
        "cache": home / "cache",
        "ran": home / "ran",
    }


@pytest.fixture(params=["y", "1", "a terminal", "closed"])
def standard_input(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    if request.param == "closed":
        monkeypatch.setattr(sys, "stdin", None)
        yield
    elif request.param == "a terminal":
        ours, theirs = pty.openpty()
        os.write(ours, b"y\n" * 9)
        with os.fdopen(theirs, "r") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            yield
        os.close(ours)
    else:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{request.param}\n" * 9))
        yield


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_a_model_folder_runs(
    places: dict[str, Path], standard_input: Any, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([word.format(**places) for word in COMMANDS[command]])
    told = capsys.readouterr().err
    assert not places["ran"].exists()
    assert "own" not in sys.modules
    assert code in (0, 2)
    assert "[y/N]" not in told
    if json.loads((places["model"] / "config.json").read_text())["model_type"] == "own":
        assert code == 2
        assert len(told.strip().splitlines()) == 1, told
