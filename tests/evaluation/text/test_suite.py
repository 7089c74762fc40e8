"""Minimal pairs by phenomenon: BLiMP's files, and BabyLM's without fields."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import save_tiny_model, spoil
from transformers import AutoModelForMaskedLM, AutoTokenizer

from maskery.cli.main import main
from maskery.core.errors import DataError
from maskery.evaluation.intervals import ratio_interval
from maskery.evaluation.text.suite import MinimalPair, read_suite, suite_figures

BLIMP = {"field": "syntax", "linguistics_term": "islands", "UID": "islands_1"}
PAIRS = [
    ("river stone cloud", "river cloud stone", BLIMP),
    ("the ember and forest", "the forest ember and", {**BLIMP, "UID": "islands_2"}),
    ("copper violet", "violet copper", {"field": "semantics"}),
    ("lantern meadow thunder", "thunder meadow lantern", {}),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    rows = [json.dumps({"sentence_good": g, "sentence_bad": b, **m}) for g, b, m in PAIRS]
    (folder / "a.jsonl").write_text("\n".join(rows[:3]) + "\n")
    (folder / "hypernym.json").write_text(rows[3] + "\n")  # JSON lines, as BabyLM named them
    (folder / "README.txt").write_text("not a pair\n")
    return folder


def by_hand(model: Path, sentence: str) -> float:
    """Salazar's sum with plain Transformers: each token masked in turn."""
    tokenizer, hf = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForMaskedLM.from_pretrained(model),
    )
    ids = tokenizer(sentence, return_tensors="pt").input_ids[0]
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[place] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = hf(masked[None]).logits[0, place]
        total += float(logits.log_softmax(-1)[ids[place]])
    return total


def figures(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, dict]:
    assert main(["score", *map(str, arguments), "--json", "--method", "original"]) == 0
    return {one["name"]: one for one in json.loads(capsys.readouterr().out)["figures"]}


def test_accuracies_are_those_of_plain_transformers(
    model: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=3)
    found = figures(
        capsys, model, "--suite", suite, "--against", other, "--csv", tmp_path / "f.csv"
    )
    for name, folder in (("accuracy", model), ("against", other)):
        right = [float(by_hand(folder, g) > by_hand(folder, b)) for g, b, _ in PAIRS]
        assert found["islands"][name][0] == np.mean(right[:2])
        assert found["islands_1"][name][0] == right[0]
        assert found["semantics"][name][0] == right[2]
        assert found["hypernym"][name][0] == right[3]
        assert found["all pairs"][name][0] == np.mean(right)
        macro = np.mean([np.mean(right[:2]), right[2], right[3]])
        assert found["mean of phenomena"][name][0] == pytest.approx(macro)
    total = found["all pairs"]
    assert total["difference"][0] == total["accuracy"][0] - total["against"][0]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "f.csv").read_text())))
    assert [(row["level"], row["name"]) for row in rows][:2] == [
        ("paradigm", "islands_1"),
        ("paradigm", "islands_2"),
    ]
    assert float(rows[-1]["accuracy"]) == total["accuracy"][0]
    assert rows[-1]["accuracy_low"] == ""  # too few pairs for an interval


def test_a_constant_model_scores_exactly_half(
    model: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = spoil(save_tiny_model(tmp_path / "constant"), torch.Tensor.zero_)
    assert {one["accuracy"][0] for one in figures(capsys, constant, "--suite", suite).values()} == {
        0.5
    }


def test_intervals_are_over_pairs_and_paired() -> None:
    pairs = [MinimalPair("a", "b", "one" if n < 12 else "two", "", "") for n in range(36)]
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 72))
    right, wrong = one[::2] > one[1::2], other[::2] > other[1::2]
    found = {f["name"]: f for f in suite_figures(pairs, one, other)}
    ones = np.ones(36)
    assert found["all pairs"]["accuracy"] == ratio_interval(right * ones, ones, "share")
    paired = ratio_interval((right * 1.0 - wrong)[:12], ones[:12], "difference of shares")
    assert found["one"]["difference"] == paired
    macro = found["mean of phenomena"]["accuracy"]
    assert macro.value == pytest.approx((right[:12].mean() + right[12:].mean()) / 2)
    assert macro.low < macro.value < macro.high


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"sentence_good": "river"}', "line 2 has no sentence_bad"),
        ('{"sentence_good": " ", "sentence_bad": null}', "line 2 has no sentence_good and no"),
        (
            '["river", "stone"]',
            "line 2 has no sentence_good and no sentence_bad: each line is a JSON object",
        ),
        ("river", "line 2 has no sentence_good and no sentence_bad"),
    ],
)
def test_a_bad_line_is_named(
    model: Path, tmp_path: Path, line: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"sentence_good": "river", "sentence_bad": "stone"}) + f"\n{line}\n")
    assert main(["score", str(model), "--suite", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}: {told}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "name a FILE of sentences, or a --suite"),
        (["x.txt", "--suite", "s"], "one of them"),
        (["x.txt", "--against", "minilm"], "--against needs --suite"),
        (["x.txt", "--csv", "f.csv"], "--csv needs --suite"),
        (["--suite", "s", "--words"], "--words does not go with --suite"),
        (["--suite", "nowhere"], "nowhere"),
    ],
)
def test_flags_that_do_not_go_together(
    model: Path, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(model), *flags]) == 2
    assert told in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_a_folder_without_a_suite(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("river\n")
    with pytest.raises(DataError, match=r"no \.jsonl or \.json file"):
        list(read_suite(str(tmp_path)))
