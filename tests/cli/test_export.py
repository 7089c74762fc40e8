"""`maskery export` as typed: what ONNX computes, and what leaves nothing behind."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text import save_tiny_model
from transformers import AutoModelForMaskedLM, AutoTokenizer

from maskery.cli.main import main


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exported")
    model = save_tiny_model(folder / "model")
    assert main(["export", str(model), "--onnx", str(folder / "onnx")]) == 0
    return model, folder / "onnx"


def test_onnx_computes_what_transformers_does(exported: tuple[Path, Path]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)  # the folder is whole
    texts = ["the [MASK] stone", "a lantern and the [MASK] of the harbour number 12."]
    hf = AutoModelForMaskedLM.from_pretrained(model).eval()
    session = runtime.InferenceSession(str(folder / "model.onnx"))
    for batch in (texts[:1], texts[1:], texts):
        encoded = tokenizer(batch, padding=True, return_tensors="np")
        feed = {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = hf(**{name: torch.tensor(one) for name, one in feed.items()}).logits.numpy()
        seen = feed["attention_mask"].astype(bool)
        np.testing.assert_allclose(session.run(None, feed)[0][seen], logits[seen], atol=1e-4)


def failing(*_: Any, **__: Any) -> None:
    try:
        raise ValueError("a graph\nthat breaks")
    except ValueError as error:
        raise RuntimeError("step 1/3 of many lines") from error


@pytest.mark.parametrize("name", ["out", "out/model.onnx"])
def test_what_onnx_cannot_take_is_one_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.onnx, "export", failing)
    model = save_tiny_model(tmp_path / "model")
    assert main(["export", str(model), "--onnx", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert "ONNX cannot take this model of the family bert (a graph that breaks)" in error
    assert not (tmp_path / "out").exists()


def test_a_file_that_computes_something_else_is_not_kept(
    exported: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = exported[1] / "model.onnx"
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **_: shutil.copy(other, given[2]))
    model = save_tiny_model(tmp_path / "model", seed=1)
    assert main(["export", str(model), "--onnx", str(tmp_path / "x.onnx")]) == 2
    assert "logits differ by" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_a_missing_extra_and_a_taken_folder_are_one_line(
    exported: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, folder = map(str, exported)
    assert main(["export", model, "--onnx", folder]) == 2
    assert "is not empty" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", model, "--onnx", str(tmp_path / "x.onnx")]) == 2
    assert "pip install 'maskery[onnx]'" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
