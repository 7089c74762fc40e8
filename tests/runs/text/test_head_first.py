"""A new head is trained alone first, and that is what a run is compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.cli import train as command
from maskery.core.errors import ConfigError
from maskery.core.system import read_metrics
from maskery.evaluation.text.masked import ExampleSums, compare, summarise
from maskery.report.page import write_report
from maskery.runs.frame.config_file import load_config
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.evaluate import evaluate_run
from maskery.runs.text.held_out import BEFORE, HELD_OUT, WITH_HEAD
from maskery.runs.text.prepare import TextRun
from maskery.runs.text.run import TextResult, train_text
from maskery.training.config import TrainingConfig
from maskery.training.journal import SPEEDS


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("encoder"), head=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines(200)), "utf-8")
    return path


def config_of(corpus: Path, encoder: Path | str, output: Path, **settings: object) -> TextRunConfig:
    training = TrainingConfig(
        epochs=9, max_steps=10, batch_tokens=256, learning_rate=3e-3, head_learning_rate=0.03,
        log_every=1, checkpoint_every=1, keep_checkpoints=99,
    )  # fmt: skip
    made = {"corpus": (str(corpus),), "model": str(encoder), "output": output, "training": training}
    return TextRunConfig(**{**made, "held_out_share": 0.2, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(corpus: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> TextResult:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train_text(config_of(corpus, encoder, folder, head_first="0.4"), progress=False)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_only_the_head_moves_first(whole: TextResult) -> None:
    one, fourth, fifth = (weights(whole.folder, step) for step in (1, 4, 5))
    for name, tensor in one.items():
        head = "cls." in name
        assert torch.equal(tensor, fourth[name]) != head, name
    moved = [name for name, tensor in fourth.items() if not torch.equal(tensor, fifth[name])]
    assert any("encoder.layer.0" in name for name in moved)
    state = whole.folder / "checkpoints" / "step-00000004" / "optimiser.safetensors"
    assert all("cls." in name for name in load_file(state))


def test_before_is_with_the_trained_head(whole: TextResult) -> None:
    sums = {
        name: ExampleSums.read(whole.folder / name)[0] for name in (BEFORE, WITH_HEAD, HELD_OUT)
    }
    assert whole.as_loaded == summarise(sums[BEFORE])
    assert whole.before == summarise(sums[WITH_HEAD])
    assert whole.before.loss != whole.as_loaded.loss
    assert whole.difference == compare(sums[HELD_OUT], sums[WITH_HEAD])
    held_out = [r for r in read_metrics(whole.folder / "metrics.jsonl") if r["kind"] == "held_out"]
    assert [row["step"] for row in held_out] == [0, 4, 10]
    assert held_out[1]["loss"] == pytest.approx(whole.before.loss.value)
    assert list(whole.heads.values()) == [
        *("new, untrained", "trained alone, 4 steps", "trained with the encoder"),
    ]


def test_every_table_says_which_head(whole: TextResult) -> None:
    printed = command.describe("text", whole).splitlines()
    heading, heads = (line.split("  ") for line in printed[1:3])
    assert [cell.strip() for cell in heading if cell.strip()] == [
        *("held out", "as loaded", "before", "after", "difference"),
    ]
    assert [cell.strip() for cell in heads if cell.strip()][1:] == list(whole.heads.values())
    saved = json.loads((whole.folder / "evaluation.json").read_text("utf-8"))
    assert saved["as_loaded"]["loss"][0] == whole.as_loaded.loss.value  # type: ignore[union-attr]
    assert saved["heads"] == whole.heads
    card = (whole.folder / "model" / "README.md").read_text("utf-8")
    assert "| held out | as loaded | before | after | difference |" in card
    assert "| head | new, untrained | trained alone, 4 steps | trained with the encoder |" in card
    page = write_report(whole.folder).read_text("utf-8")
    assert "<td>trained alone, 4 steps</td>" in page
    again = evaluate_run(whole.folder, batch_tokens=64)
    assert list(again.scores) == ["as loaded", "before", "after"]
    assert again.scores["before"] == whole.before
    assert again.scores["as loaded"].loss.value == pytest.approx(
        whole.as_loaded.loss.value,  # type: ignore[union-attr]
        abs=1e-5,
    )


@pytest.mark.parametrize("dies_at", [2, 4, 7])
def test_a_run_stopped_in_or_after_the_phase_goes_on_alike(
    corpus: Path,
    encoder: Path,
    whole: TextResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: int,
) -> None:
    cut = config_of(corpus, encoder, tmp_path / "cut", head_first="0.4")
    die_before(dies_at, train_text, cut, monkeypatch)
    resumed = train_text(replace(cut, resume="auto"), progress=False)
    assert resumed.summary.resumed_from == dies_at
    for one in ("as_loaded", "before", "after", "difference", "heads"):
        assert getattr(resumed, one) == getattr(whole, one)
    expected, found = (weights(folder, 10) for folder in (whole.folder, tmp_path / "cut"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    traces = [
        [{n: v for n, v in row.items() if n not in SPEEDS} for row in rows]
        for rows in (read_metrics(f / "metrics.jsonl") for f in (whole.folder, resumed.folder))
    ]
    assert traces[0] == traces[1]


def test_what_was_lost_is_said_and_the_run_goes_on(
    corpus: Path, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(corpus, encoder, tmp_path / "run", head_first="0.4")
    train_text(config, progress=False)
    (tmp_path / "run" / WITH_HEAD).write_bytes(b"damaged")
    again = train_text(replace(config, resume="auto"), progress=False)
    assert "'before' has the head as it was loaded" in caplog.text
    assert again.as_loaded is None
    assert again.heads == {"before": "new, untrained", "after": "trained"}


def test_auto_is_for_new_heads_alone(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    config = config_of(corpus, encoder, tmp_path / "run")
    assert TextRun(config, progress=False).head_steps == 2
    headed = save_tiny_model(tmp_path / "headed")
    for model in (str(headed), "scratch:tiny"):
        run = TextRun(replace(config, model=model, vocab_size=200), progress=False)
        assert run.head_steps == 0
        assert "head_first" not in json.loads(run.identity)
        with pytest.raises(ConfigError, match="leave out --head-first"):
            TextRun(replace(config, model=model, head_first="0.2"), progress=False)
    for off in ("off", "0"):
        assert TextRun(replace(config, head_first=off), progress=False).head_steps == 0
    # The encoder is left one step at least.
    assert TextRun(replace(config, head_first="0.99"), progress=False).head_steps == 9


@pytest.mark.parametrize("wrong", ["1", "-0.1", "nan", "some", ""])
def test_no_share_is_one_line(wrong: str) -> None:
    told = "must be auto, off or a number from 0 to below 1; try 0.2"
    with pytest.raises(ConfigError, match=f"head_first is '{wrong}': it {told}"):
        TextRunConfig(corpus=("corpus.txt",), head_first=wrong)


def test_a_file_may_have_it_as_a_number_or_as_a_word(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for written, expected in (("0.3", "0.3"), ("off", "off"), ("'0.3'", "0.3")):
        path.write_text(f"kind: text\ncorpus: [a.txt]\nhead_first: {written}\n", "utf-8")
        assert load_config(path, TextRunConfig).head_first == expected


def test_vectors_are_not_held_while_they_cannot_move(
    corpus: Path, encoder: Path, tmp_path: Path
) -> None:
    config = config_of(corpus, encoder, tmp_path / "run", head_first="0.4")
    kept = replace(config, objectives=replace(config.objectives, keep_embedding="20"))
    train_text(kept, progress=False)
    rows = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert ["keep" in row for row in rows] == [False] * 4 + [True] * 6
    assert np.isfinite([row["loss"] for row in rows]).all()
