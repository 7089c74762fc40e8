"""A benchmark of two contenders, small: processes, ratios, table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_text import lines, save_tiny_model
from transformers import BertForMaskedLM

from bench.__main__ import main
from bench.config import BenchConfig
from bench.contenders import Turn, build
from bench.peak import matrix_peak
from bench.run import summarise
from bench.worker import Worker, module_path
from maskery.core.errors import MaskeryError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def turn(speed: float, computed: int = 200) -> Turn:
    return Turn(real_tokens=100, computed_tokens=computed, seconds=100 / speed)


def test_ratios_are_within_rounds() -> None:
    """A slow round slows everybody, so its ratio is as good as another's."""
    first = [turn(100.0), turn(20.0), turn(110.0)]
    other = [turn(50.0), turn(8.0), turn(50.0)]
    row = summarise("other", other, first, memory=None, flops_per_token=3.0, peak=600.0)
    assert row.ratio == pytest.approx(2.2)
    assert (row.ratio_low, row.ratio_high) == pytest.approx((2.0, 2.5))
    assert (row.tokens_per_second, row.slowest, row.fastest) == pytest.approx((50.0, 8.0, 50.0))
    assert row.padding_efficiency == 0.5
    assert row.peak_share == pytest.approx(0.25)


def test_two_contenders_take_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(lines(40)), "utf-8")
    monkeypatch.setattr("bench.run.matrix_peak", lambda: 1e12)
    flags = ["--model", str(model), "--contenders", "maskery", "hf-lines", "--rounds", "2"]
    flags += ["--tokens", "50", "--batch-tokens", "512", "--json"]
    assert main([str(corpus), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    ours, theirs = result["rows"]
    assert (ours["name"], theirs["name"]) == ("maskery", "hf-lines")
    assert ours["ratio"] == 1.0
    assert theirs["ratio"] == pytest.approx(
        (theirs["ratio_low"] + theirs["ratio_high"]) / 2
    )  # of two rounds
    assert ours["padding_efficiency"] == 1.0
    assert theirs["padding_efficiency"] < 1.0
    for row in result["rows"]:
        assert row["tokens_per_second"] > 0
        assert row["peak_memory_mb"] > 10
        assert 0 < row["peak_share"] < 1
    # The masked rows' projection alone makes a token cheaper, and there is no padding.
    cost = [row["peak_share"] / row["tokens_per_second"] for row in result["rows"]]
    assert cost[0] < cost[1]


def test_a_batch_that_the_trainer_fetches_and_leaves_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(lines(40)), "utf-8")
    seen: list[int] = []
    forward = BertForMaskedLM.forward

    def counting(self: Any, input_ids: Any, attention_mask: Any, **others: Any) -> Any:
        seen.append(int(attention_mask.sum()))
        return forward(self, input_ids, attention_mask, **others)

    monkeypatch.setattr(BertForMaskedLM, "forward", counting)
    take = build("hf-lines", BenchConfig(corpus=corpus, model=str(model)))
    for tokens in (1, 200):
        seen.clear()
        assert take(tokens).real_tokens == sum(seen) >= tokens


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    config = BenchConfig(corpus=tmp_path / "none.txt", model=str(tmp_path))
    failed = pytest.raises(MaskeryError, match=r"the contender maskery failed: .*config\.json")
    with failed, Worker("maskery", config):
        pass


def test_the_peak_is_positive() -> None:
    assert matrix_peak() > 1e8


@pytest.mark.parametrize(
    "start", [[str(BENCHMARKS / "bench")], ["-m", "bench"]], ids=["by path", "as a module"]
)
def test_it_starts_by_its_path_and_as_a_module(start: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *start, "missing.txt"],
        env=os.environ | {"PYTHONPATH": module_path()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "bench: there is no file 'missing.txt'; name a text file to train on\n"


def test_its_help_names_the_command_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "usage: python -m bench" in capsys.readouterr().out


@pytest.mark.parametrize("compiled", [False, True])
def test_a_worker_finds_a_corpus_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("\n".join(lines(20)), "utf-8")
    monkeypatch.chdir(tmp_path)
    corpus = Path("corpus.txt")
    config = BenchConfig(corpus=corpus, model="model", batch_tokens=512, compile=compiled)
    with Worker("maskery", config) as worker:
        assert worker.take(10).real_tokens >= 10
