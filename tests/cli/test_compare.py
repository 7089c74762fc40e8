"""`maskery compare`: figures against NumPy, refusals, files, and old runs without kept sums."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_text import lines, save_tiny_model, spoil

from maskery.cli.main import main
from maskery.core.errors import DataError
from maskery.evaluation.text.comparison import ScoredRun, compare_runs
from maskery.evaluation.text.masked import ExampleSums

SETTINGS = {"a": ("0.15", "0"), "b": ("0.3", "0"), "c": ("0.3", "1")}


def train(folder: Path, name: str, rate: str, seed: str, *more: str) -> Path:
    arguments = [folder / "corpus.txt", "--model", folder / "model", "--output", folder / name]
    arguments += ["--epochs", "2", "--batch-tokens", "256", "--eval-data", folder / "held.txt"]
    arguments += ["--mask-rate", rate, "--seed", seed, "--cache-dir", folder / "cache", *more]
    assert main(["train", "text", *map(str, arguments)]) == 0
    return folder / name


def fill(folder: Path, seed: int) -> None:
    everything = lines(160, seed=seed)
    (folder / "corpus.txt").write_text("\n".join(everything[:120]), "utf-8")
    (folder / "held.txt").write_text("\n".join(everything[120:]), "utf-8")
    save_tiny_model(folder / "model")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    fill(folder, seed=0)
    return {name: train(folder, name, *one) for name, one in SETTINGS.items()}


def compared(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def figures_of(folder: Path) -> np.ndarray:
    """Loss, top-1 and top-5, straight from the file."""
    total = load_file(folder / "held_out.safetensors")["sums"].sum(axis=0)
    return np.asarray(total[1:] / total[0])


def test_the_figures_are_those_of_numpy_over_the_kept_sums(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "new" / "rows.csv"
    arguments = (*runs.values(), "--against", runs["a"], "--csv", file)
    found = json.loads(compared(capsys, *arguments, "--json"))
    assert found["against"] == str(runs["a"])
    alone, seeds = found["rows"]
    assert alone["difference"] == alone["deviation"] == {}
    assert alone["settings"] == {"mask_rate": 0.15}
    assert seeds["settings"] == {"mask_rate": 0.3}
    assert (seeds["runs"], seeds["seeds"]) == ([str(runs["b"]), str(runs["c"])], [0, 1])
    a, b, c = (figures_of(runs[name]) for name in "abc")
    names = ("loss", "top1", "top5")
    mean, spread = np.mean([b, c], axis=0), np.std([b, c], axis=0, ddof=1)
    for column, name in enumerate(names):
        assert alone["scores"][name][0] == pytest.approx(a[column])
        assert seeds["scores"][name][0] == pytest.approx(mean[column])
        assert seeds["deviation"][name] == pytest.approx(spread[column])
        value, low, high = seeds["difference"][name]
        assert value == pytest.approx((mean - a)[column], abs=1e-12)
        assert low <= value <= high
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["seed"] for row in rows] == ["0", "0 1"]
    assert float(rows[1]["difference_loss_low"]) == pytest.approx(seeds["difference"]["loss"][1])
    assert float(rows[1]["loss_deviation"]) == pytest.approx(spread[0])
    assert rows[0]["difference_loss"] == ""


def test_the_table_says_what_is_subtracted_and_takes_the_lowest_loss(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = compared(capsys, runs["a"], runs["b"], runs["a"])
    best = min("ab", key=lambda name: figures_of(runs[name])[0])
    assert f"difference: each row minus {runs[best]}, paired by example" in text
    heading, *rows = text.splitlines()[:3]
    assert "mask_rate" in heading
    assert len([row for row in rows if row.startswith(str(runs["a"].parent))]) == 2
    assert "±" not in text


def test_the_page_draws_every_run_and_asks_for_nothing(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "compared.html"
    compared(capsys, *runs.values(), "--page", page)
    text = page.read_text("utf-8")
    assert text.count("<svg") == 2
    assert "3 runs compared" in text
    assert all(f'">{run}</span>' in text for run in runs.values())
    assert not re.search(r"<script|not finished", text)
    # The figures as CSV are within the page.
    assert re.findall(r'(?:src|href)="(?!#)([^,"]*)', text) == ["data:text/csv;charset=utf-8"]


def test_a_model_that_was_changed_changes_no_figure_that_is_kept(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changed = shutil.copytree(runs["b"], tmp_path / "changed")
    spoil(changed / "model", lambda weight: weight.zero_())
    capsys.readouterr()
    assert main(["compare", str(changed), str(runs["a"])]) == 0
    assert "figures are those that the run has kept" in capsys.readouterr().err


def test_a_run_without_kept_sums_is_scored_and_they_are_kept(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = shutil.copytree(runs["b"], tmp_path / "old")
    kept = load_file(old / "held_out.safetensors")
    (old / "held_out.safetensors").unlink()
    compared(capsys, old, runs["a"])
    again = load_file(old / "held_out.safetensors")
    np.testing.assert_array_equal(again["ids"], kept["ids"])
    np.testing.assert_allclose(again["sums"], kept["sums"], atol=1e-4)


def test_what_cannot_be_compared_is_one_line(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    fill(other, seed=1)
    run = train(other, "run", "0.15", "0")
    ids, own = (load_file(x / "held_out.safetensors")["ids"] for x in (runs["a"], run))
    message = refused(capsys, runs["a"], run)
    assert f"{len(np.setdiff1d(own, ids))} of its {len(own)} examples are not in that" in message
    assert "at least two" in refused(capsys, run, run)
    assert "no run folder" in refused(capsys, run, tmp_path)
    (tmp_path / "config.yaml").write_text("kind: pairs\npairs: x.jsonl\n")
    assert "kind pairs, and one of kind text" in refused(capsys, run, tmp_path)
    assert "--csv" in refused(capsys, runs["a"], runs["b"], "--csv", tmp_path)
    broken = shutil.copytree(runs["b"], tmp_path / "broken")
    (broken / "held_out.safetensors").write_bytes(b"no")
    assert "remove the file" in refused(capsys, runs["a"], broken)
    shutil.rmtree(broken / "model")
    assert "no model yet" in refused(capsys, runs["a"], broken)


def scored(name: str, seed: int, counts: list[int], tokenizer: str = "t") -> ScoredRun:
    sums = np.array([[n, n * (1.0 + seed), n / 2, n / 2] for n in counts])
    return ScoredRun(
        name=name,
        settings={"training.seed": seed},
        tokenizer=tokenizer,
        sums=ExampleSums(ids=np.arange(len(counts), dtype=np.uint64), sums=sums),
    )


def test_other_masks_are_counted_and_other_tokenizers_named() -> None:
    a, b = scored("a", 0, [3, 4, 5]), scored("b", 0, [3, 1, 2])
    with pytest.raises(DataError, match=r"'b' was measured on other masks than 'a': 2 of 3"):
        compare_runs([a, b])
    with pytest.raises(DataError, match=r"their tokenizers differ, and 0 of 3"):
        compare_runs([a, replace(a, name="c", tokenizer="other")])


def test_a_run_repeated_with_its_seed_is_no_spread() -> None:
    runs = [scored(name, seed, [3] * 9) for name, seed in (("a", 0), ("b", 0), ("c", 2))]
    rows = compare_runs(runs)
    assert [row.runs for row in rows] == [("a", "c"), ("b",)]
    assert rows[0].deviation["loss"] == pytest.approx(np.std([1.0, 3.0], ddof=1))
    assert rows[1].deviation == {}
