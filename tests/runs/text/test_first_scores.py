"""The initial model's figures survive in the run folder, and only for the run that wrote them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskery.core.errors import CheckpointError
from maskery.evaluation.text.masked import ExampleSums
from maskery.runs.text.held_out import BEFORE, HeldOutText


class Scorer:
    """Scores that differ from call to call, counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> ExampleSums:
        self.calls += 1
        sums = np.arange(12, dtype=np.float64).reshape(3, 4) / 7 + self.calls
        return ExampleSums(ids=np.array([2, 5, 2**64 - 1], np.uint64), sums=sums)


def take(folder: Path, scorer: Scorer, *, identity: str = "a", resume: bool = True) -> ExampleSums:
    config = SimpleNamespace(resume="auto" if resume else "no")
    run: Any = SimpleNamespace(identity=identity, config=config, score=lambda name: scorer())
    return HeldOutText(run, folder).loaded


def test_a_resumed_run_reads_what_the_first_one_scored(tmp_path: Path) -> None:
    scorer = Scorer()
    first, again = take(tmp_path, scorer), take(tmp_path, scorer)
    assert scorer.calls == 1
    assert again.ids.tolist() == [2, 5, 2**64 - 1]
    np.testing.assert_array_equal(again.sums, first.sums)


def test_another_run_and_a_new_one_score_for_themselves(tmp_path: Path) -> None:
    scorer = Scorer()
    take(tmp_path, scorer)
    take(tmp_path, scorer, identity="b")
    assert scorer.calls == 2
    take(tmp_path, scorer, identity="b", resume=False)
    assert scorer.calls == 3


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None])
def test_a_damaged_file_is_scored_anew(tmp_path: Path, damage: bytes | None) -> None:
    scorer = Scorer()
    take(tmp_path, scorer)
    path = tmp_path / BEFORE
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    take(tmp_path, scorer)
    assert scorer.calls == 2


@pytest.mark.parametrize(
    "tensors",
    [
        {"sums": np.zeros((1, 4))},
        {"ids": np.zeros(1, np.int64), "sums": np.zeros((1, 4))},
        {"ids": np.zeros(2, np.uint64), "sums": np.zeros((1, 4))},
        {"ids": np.array([2, 1], np.uint64), "sums": np.ones((2, 4))},
        {"ids": np.zeros((1, 1), np.uint64), "sums": np.ones((1, 4))},
        {"ids": np.zeros(0, np.uint64), "sums": np.ones((0, 4))},
        {"ids": np.zeros(1, np.uint64), "sums": np.full((1, 4), np.nan)},
    ],
)
def test_other_tensors_are_not_taken_for_scores(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    save_file(tensors, tmp_path / BEFORE, metadata={"identity": "a"})
    scorer = Scorer()
    take(tmp_path, scorer)
    assert scorer.calls == 1


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        take(tmp_path / "missing", Scorer())


def test_a_file_of_sums_says_what_is_wrong_with_it_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "held_out.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        ExampleSums.read(path)
    path.write_bytes(Scorer()().to_bytes("mine"))
    sums, identity = ExampleSums.read(path)
    assert identity == "mine"
    assert sums.sums.shape == (3, 4)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"held_out\.safetensors.*remove the file") as raised:
        ExampleSums.read(path)
    assert "\n" not in str(raised.value)
    save_file({"ids": sums.ids, "sums": sums.sums}, path)
    with pytest.raises(CheckpointError, match="identity"):
        ExampleSums.read(path)
