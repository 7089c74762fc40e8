"""Merged models: sums and TIES by their definitions, folders, curves, and what cannot be merged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import lines, save_tiny_model
from transformers import AutoConfig, AutoModelForMaskedLM

from maskery.cli.main import main
from maskery.core.errors import MaskeryError
from maskery.evaluation.text.opening import evaluate
from maskery.models.loading import load_masked_lm
from maskery.models.lora import Lora, add_lora, save_merged
from maskery.runs.text.merge import linear, merge, ties


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A start, two models that have moved from it, and one without a head."""
    folder = tmp_path_factory.mktemp("merge")
    places = {"start": save_tiny_model(folder / "start")}
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        places[name] = Path(shutil.copytree(folder / "start", folder / name))
        weights = load_file(folder / "start" / "model.safetensors")
        moved = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in weights.items()}
        save_file(moved, folder / name / "model.safetensors", metadata={"format": "pt"})
    places["headless"] = save_tiny_model(folder / "headless", head=False)
    (folder / "text.txt").write_text("\n".join(lines(40)), "utf-8")
    return {**places, "text": folder / "text.txt"}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_ties_is_as_defined() -> None:
    generator = np.random.default_rng(0)
    shapes = {"x": (5, 7), "y": (11,)}
    base, *tuned = (
        {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(4)
    )
    # Algorithm 1 of the paper, on flat vectors.
    flat = [np.concatenate([one[name].ravel() for name in shapes]) for one in (base, *tuned)]
    density, shares = 0.4, np.array([1.0, 2.0, 0.5])
    changes = np.stack(flat[1:]) - flat[0]
    for change in changes:
        rank = np.argsort(np.abs(change))
        change[rank[: len(change) - round(density * len(change))]] = 0.0
    elected = np.sign((shares[:, None] * changes).sum(0))
    expected = flat[0].copy()
    for place in range(len(expected)):
        agrees = [k for k in range(3) if changes[k, place] * elected[place] > 0]
        if agrees:
            expected[place] += np.average(changes[agrees, place], weights=shares[agrees])

    tensors = [{n: torch.from_numpy(t) for n, t in one.items()} for one in (base, *tuned)]
    made = ties(tensors[1:], shares.tolist(), tensors[0], density=density)
    found = np.concatenate([made[name].numpy().ravel() for name in shapes])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ties_of_opposite_changes_keeps_the_base() -> None:
    base = {"x": torch.tensor([1.0, 1.0])}
    tuned = [{"x": torch.tensor([2.0, 1.5])}, {"x": torch.tensor([0.0, 2.5])}]
    made = ties(tuned, (1.0, 1.0), base, density=1.0)
    assert made["x"].tolist() == [1.0, 2.0]


def test_a_head_that_the_base_lacks_is_averaged() -> None:
    tuned = [{"x": torch.zeros(1), "head": torch.tensor([float(n)])} for n in (1, 4)]
    made = ties(tuned, (1.0, 2.0), {"x": torch.zeros(1)}, density=0.1)
    assert made["head"].item() == pytest.approx(3.0)


def test_linear_is_the_sum_and_one_alone_is_itself() -> None:
    one, other = {"x": torch.tensor([-0.0, 1.0])}, {"x": torch.tensor([3.0, float("inf")])}
    alone = linear([one, other], (1.0, 0.0))["x"]
    assert alone.numpy().tobytes() == one["x"].numpy().tobytes()
    assert linear([one, one], (0.25, 0.75))["x"].tolist() == [0.0, 1.0]


def test_a_merged_folder_opens_everywhere(models: dict[str, Path], tmp_path: Path) -> None:
    names = [str(models[name]) for name in "ab"]
    assert merge(names, (0.25, 0.75), output=tmp_path / "both") == []
    one, other, both = map(weights_of, (models["a"], models["b"], tmp_path / "both"))
    for name, tensor in both.items():
        assert torch.allclose(tensor, 0.25 * one[name] + 0.75 * other[name], atol=1e-7)
    merge(names, (1.0, 0.0), output=tmp_path / "first")
    assert all(torch.equal(t, one[n]) for n, t in weights_of(tmp_path / "first").items())
    config = json.loads((tmp_path / "first" / "config.json").read_text("utf-8"))
    assert config["attention_probs_dropout_prob"] == 0.1  # as it was, not as we compute
    merge(names, base=str(models["start"]), density=1.0, output=tmp_path / "ties")
    merge(names, base=str(models["headless"]), output=tmp_path / "new")
    bias = "cls.predictions.bias"
    made = weights_of(tmp_path / "new")[bias]
    assert torch.allclose(made, (one[bias] + other[bias]) / 2)
    start, found = weights_of(models["start"]), weights_of(tmp_path / "ties")
    name = "bert.encoder.layer.0.output.dense.weight"
    agree = (one[name] - start[name]).sign() == (other[name] - start[name]).sign()
    mean = (one[name] + other[name]) / 2
    assert torch.allclose(found[name][agree], mean[agree], atol=1e-6)
    assert not torch.allclose(found[name][~agree], mean[~agree], atol=1e-3)


def test_the_curve_is_that_of_the_merged_models(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(models[name]) for name in "ab"]
    arguments = ["--eval-data", str(models["text"]), "--csv", str(tmp_path / "curve.csv")]
    assert main(["merge", *names, *arguments, "--json", "--output", str(tmp_path / "mean")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["settings"]["weight"] for row in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    merge(names, (0.25, 0.75), output=tmp_path / "both")
    merge(names, output=tmp_path / "alone")
    one, other = (weights_of(tmp_path / name) for name in ("mean", "alone"))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    for place, model in {0: models["a"], 3: tmp_path / "both", 4: models["b"]}.items():
        expected = evaluate(model, str(models["text"])).scores.loss.value
        assert rows[place]["scores"]["loss"][0] == pytest.approx(expected, abs=1e-6)
    with (tmp_path / "curve.csv").open() as file:
        assert [line["weight"] for line in csv.DictReader(file)] == [
            "0.0",
            "0.25",
            "0.5",
            "0.75",
            "1.0",
        ]


def test_an_adapter_is_folded_into_its_start(models: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    loaded = load_masked_lm(str(models["headless"]))
    loaded = add_lora(loaded, Lora.of(["r=2"]), start=str(models["headless"]), seed=0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_merged(loaded, tmp_path / "adapter")
    merge([str(tmp_path / "adapter")], output=tmp_path / "whole")
    whole = weights_of(tmp_path / "whole")
    for name, parameter in loaded.model.named_parameters():
        assert torch.allclose(whole[name], parameter, atol=1e-6), name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a", "b", "--weights", "1", "--output", "o"], "--weights 1: there must be one for each"),
        (["a", "b", "--weights", "0.5", "0.6", "--output", "o"], "their sum 1"),
        (["a", "b", "--weights", "-1", "2", "--output", "o"], "weights is"),
        (["a", "b", "--method", "ties", "--output", "o"], "--base MODEL"),
        (["a", "b", "--base", "start", "--output", "o"], "--method ties and --base"),
        (["a", "b", "--method", "ties", "--base", "start", "--weights", "0", "0", "--output", "o"],
         "one above 0"),
        (["a", "b"], "--output"),
        (["a", "b", "--output", "o", "--csv", "c.csv"], "needs --eval-data"),
        (["a", "--output", "o"], "is a whole model already"),
        (["a", "--eval-data", "text"], "a curve between 2 models, not 1"),
        (["a", "b", "--output", "a"], "is not an empty folder"),
        (["a", "headless", "--output", "o"], "has no masked-language-modelling head"),
        (["a", "wide", "--output", "o"], "cannot be merged with"),
        (["a", "words", "--output", "o"], "has another tokenizer, so it cannot be merged"),
        (["a", "adapter", "--output", "o"], "cannot be folded into its start"),
    ],
)  # fmt: skip
def test_one_line_for_what_cannot_be_merged(
    models: dict[str, Path], tmp_path: Path, arguments: list[str], told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {**models, "o": tmp_path / "o", "c.csv": tmp_path / "c.csv"}
    if "wide" in arguments:
        places["wide"] = Path(shutil.copytree(models["a"], tmp_path / "wide"))
        config = AutoConfig.from_pretrained(models["a"], intermediate_size=48)
        AutoModelForMaskedLM.from_config(config).save_pretrained(places["wide"])
    if "words" in arguments:
        places["words"] = Path(shutil.copytree(models["a"], tmp_path / "words"))
        path = places["words"] / "tokenizer.json"
        path.write_text(path.read_text("utf-8").replace('"river"', '"rivers"'), "utf-8")
    if "adapter" in arguments:
        pytest.importorskip("peft")
        places["adapter"] = tmp_path / "adapter"
        places["adapter"].mkdir()
        (places["adapter"] / "adapter_config.json").write_text("{}", "utf-8")
    before, _ = weights_of(models["a"]), capsys.readouterr()
    assert main(["merge", *(str(places.get(one, one)) for one in arguments)]) == 2
    complaint = capsys.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1
    assert not places["o"].exists()
    assert all(torch.equal(t, before[n]) for n, t in weights_of(models["a"]).items())


def test_merging_needs_models_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(MaskeryError, match="there is no model folder"):
        merge(["./nowhere", "./neither"], output=tmp_path / "o")
    with pytest.raises(MaskeryError, match=r"has no config\.json"):  # a run that is not finished
        merge([str(tmp_path)], output=tmp_path / "o")
