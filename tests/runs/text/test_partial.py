"""Runs that train less than the whole model: frozen layers, decayed rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.core.errors import ConfigError
from maskery.runs.text import run as text_run
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import TextResult, train_text
from maskery.training import loop
from maskery.training.config import TrainingConfig
from maskery.training.optimiser import PEAK, STARTS_AT


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("partial")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "encoder", head=False)
    (folder / "corpus.txt").write_text("\n".join(lines(120)), "utf-8")
    return {name: folder / name for name in ("model", "encoder", "corpus.txt")}


def config_of(places: dict[str, Path], output: Path, **settings: object) -> TextRunConfig:
    training = TrainingConfig(
        epochs=9, max_steps=6, batch_tokens=256, learning_rate=3e-3, checkpoint_every=1,
        log_every=1, keep_checkpoints=99,
    )  # fmt: skip
    corpus, model = str(places["corpus.txt"]), str(settings.pop("model", places["model"]))
    made = {"corpus": (corpus,), "model": model, "output": output, "training": training}
    return TextRunConfig(**{**made, "held_out_share": 0.2, **settings})  # type: ignore[arg-type]


def saved(folder: Path, step: int, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors")


def cut_and_resumed(
    config: TextRunConfig, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> TextResult:
    step = loop.TrainingLoop.step

    def die(self: loop.TrainingLoop, prepared: loop.Step) -> dict[str, torch.Tensor]:
        if prepared.number == dies_at:
            raise KeyboardInterrupt
        return step(self, prepared)

    monkeypatch.setattr(loop.TrainingLoop, "step", die)
    with pytest.raises(KeyboardInterrupt):
        train_text(config, progress=False)
    monkeypatch.setattr(loop.TrainingLoop, "step", step)
    return train_text(replace(config, resume="auto"), progress=False)


def is_frozen(name: str) -> bool:
    return ".embeddings." in name or ".layer.0." in name


def test_frozen_weights_stay_with_a_head_that_comes_first(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": places["encoder"], "head_first": "0.5", "freeze": "1"}
    whole = train_text(config_of(places, tmp_path / "a", **settings), progress=False)
    start = load_file(places["encoder"] / "model.safetensors")
    end, moments = saved(whole.folder, 6), saved(whole.folder, 6, "optimiser")
    for name, tensor in start.items():
        if f"hf.bert.{name}" in end:  # not its pooler
            same = torch.equal(tensor, end[f"hf.bert.{name}"])
            assert same == is_frozen(f"bert.{name}"), name
    moved = {name.partition(".")[2] for name in moments}
    assert moved == {name for name in end if not is_frozen(name)}
    alone = saved(whole.folder, 3, "optimiser")
    assert all(".cls." in name for name in alone)
    resumed = cut_and_resumed(config_of(places, tmp_path / "b", **settings), 4, monkeypatch)
    again = saved(resumed.folder, 6)
    assert all(torch.equal(again[name], tensor) for name, tensor in end.items())
    assert resumed.after == whole.after


def test_where_only_the_new_head_is_trained_nothing_comes_first(
    places: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(places, tmp_path / "a", model=places["encoder"], freeze="2")
    result = train_text(config, progress=False)
    assert result.as_loaded is None
    assert all(".cls." in name for name in saved(result.folder, 6, "optimiser"))


def test_layer_decay_gives_each_layer_its_rate(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    build = text_run.build_optimiser

    def kept(model: torch.nn.Module, *args: object, **more: object) -> torch.optim.AdamW:
        made["optimiser"] = build(model, *args, **more)  # type: ignore[arg-type]
        made["names"] = {p: name for name, p in model.named_parameters()}
        return made["optimiser"]

    monkeypatch.setattr(text_run, "build_optimiser", kept)
    settings = {"model": places["encoder"], "head_first": "0.5", "layer_decay": 0.8}
    train_text(config_of(places, tmp_path / "a", **settings), progress=False)
    factors = {".embeddings.": 0.8**2, ".layer.0.": 0.8, ".layer.1.": 1.0}
    for group in made["optimiser"].param_groups:
        for name in map(made["names"].__getitem__, group["params"]):
            # The new head: ten times the rate, 1e-3 at most, and not below the rate.
            factor = next((f for part, f in factors.items() if part in name), 1.0)
            assert group[PEAK] == pytest.approx(3e-3 * factor), name
            assert group[STARTS_AT] == (0 if ".cls." in name else 3), name


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"freeze": "x"}, "freeze is 'x': it must be off, embeddings or a number 0 or more"),
        ({"freeze": "1.5"}, "whole number"),
        ({"freeze": "1", "model": "scratch:tiny"}, "--freeze 1 and --model scratch:tiny"),
        ({"freeze": "1", "add_words": "words.txt"}, "--add-words words.txt do not go together"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0: it must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
    ],
)
def test_bad_settings(
    places: dict[str, Path], tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        config_of(places, tmp_path, **settings)


def test_more_frozen_layers_than_there_are(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--freeze 7: the model has 2 layers"):
        train_text(config_of(places, tmp_path / "a", freeze="7"), progress=False)
    assert not (tmp_path / "a").exists()
