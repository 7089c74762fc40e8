"""Bare image-text models on pairs: the run's own figures, paired differences, bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pairs import save_tiny_pairs
from tiny_text import save_tiny_model

from maskery.cli.main import main
from maskery.core.task import EXTRA_STATE

WORDS = ["--score-words", "red", "green", "blue", "white"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    return save_tiny_pairs(folder / "data", 24)


@pytest.fixture(scope="module")
def other_pairs(folder: Path) -> Path:
    return save_tiny_pairs(folder / "other", 9)


@pytest.fixture(scope="module")
def run(folder: Path, pairs: Path, other_pairs: Path) -> Path:
    """A short run; --mask-rate 0.3 leaves its AUC the one that bare models are given."""
    few = ["--max-steps", "3", "--batch-pairs", "4", "--height", "16", "--width", "16", "--json"]
    output = folder / "run"
    held = ["--eval-pairs", str(other_pairs), *WORDS]
    assert main(["train", "pairs", str(pairs), "--output", str(output), *few, *held]) == 0
    return output


@pytest.fixture(scope="module")
def further(folder: Path, pairs: Path, run: Path) -> Path:
    """The same model trained on."""
    few = ["--max-steps", "3", "--batch-pairs", "4", "--json", "--learning-rate", "1e-3"]
    output = folder / "further"
    start = ["--model", str(run), "--output", str(output)]
    assert main(["train", "pairs", str(pairs), *start, *few]) == 0
    return output


def found(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_bare_folder_scores_as_its_run_did(
    run: Path, other_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(run / "model")
    bare = found(["evaluate", model, "--data", str(other_pairs), *WORDS], capsys)
    written = json.loads((run / "evaluation.json").read_text("utf-8"))
    scores = bare["models"][model]
    for sight in ("right", "wrong", "none"):
        expected = written["scores"][sight]["loss"][0]
        assert scores["scores"][sight]["loss"][0] == pytest.approx(expected, abs=1e-5)
    assert scores["words"] == written["words"]
    assert scores["mrtd_auc"] == pytest.approx(written["mrtd_auc"], abs=1e-6)
    assert bare["difference"] is None


def test_two_models_are_compared_word_by_word(
    run: Path, further: Path, other_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(further), "--data", str(other_pairs), "--against", str(run)]
    both = found(arguments, capsys)
    first, last = (both["models"][str(name)]["scores"] for name in (run, further))
    for sight, over in both["difference"].items():
        expected = last[sight]["loss"][0] - first[sight]["loss"][0]
        assert over["loss"][0] == pytest.approx(expected, abs=1e-6)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{further} minus {run}, paired" in printed
    assert printed.count("right picture") == 3
    twice = found([*arguments[:-1], str(further)], capsys)
    assert twice["difference"]["right"]["loss"] == [0.0, 0.0, 0.0]


def test_a_model_without_a_twin_has_no_auc(
    run: Path, tmp_path: Path, other_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run / "model", bare)
    (bare / EXTRA_STATE).unlink()
    arguments = ["evaluate", str(bare), "--data", str(other_pairs)]
    assert found(arguments, capsys)["models"][str(bare)]["mrtd_auc"] is None
    (bare / EXTRA_STATE).write_bytes(b"no tensors")
    assert "cannot be read" in refused(arguments, capsys)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskery ")]
    assert len(said) == 1
    return said[0]


def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, other_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(run / "model"), ["--data", str(other_pairs)]
    assert "name some with --data" in refused(["evaluate", model], capsys)
    assert "2 sources" in refused(["evaluate", model, *data, str(other_pairs)], capsys)
    said = refused(["evaluate", model, *data, "--unit", "paragraph"], capsys)
    assert "--unit is for text models" in said
    nowhere = refused(["evaluate", model, "--data", str(tmp_path / "no.jsonl")], capsys)
    assert "no.jsonl" in nowhere
    text = str(save_tiny_model(tmp_path / "text"))
    against = refused(["evaluate", model, *data, "--against", text], capsys)
    assert f"'{text}' is no image-text model" in against
    swapped = refused(["evaluate", text, *data, "--against", model], capsys)
    assert "reads pictures" in swapped
    only_pairs = refused(["evaluate", text, *data, "--pairs.images", str(tmp_path)], capsys)
    assert "--pairs.images is for image-text models with --data and person search" in only_pairs
    other = tmp_path / "other"
    shutil.copytree(run / "model", other)
    from tiny_pairs import new_tokenizer

    new_tokenizer().save_pretrained(other)
    arguments = ["evaluate", model, *data, "--against", str(other)]
    assert "different tokens" in refused(arguments, capsys)


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-was-done"),))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", "cannot be loaded"),
        ("shapes", r"'itm_head.bias' has shape \[5\] and its config.json describes \[2\]"),
        ("missing", "lacks weights"),
        ("pickle", "could run code"),
    ],
)
def test_damaged_weights_are_one_line_and_run_no_code(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "shapes":
        save_file({**tensors, "itm_head.bias": torch.zeros(5)}, weights, {"format": "pt"})
    elif damage == "missing":
        del tensors["itm_head.bias"]
        save_file(tensors, weights, {"format": "pt"})
    else:
        weights.unlink()
        torch.save({"x": Harm()}, tmp_path / "model" / "pytorch_model.bin")
    said = refused(["fill", str(tmp_path / "model"), "a [MASK]"], capsys)
    assert re.search(reason, said)
    assert not (tmp_path / "harm-was-done").exists()
