"""Runs that train less than the whole model: frozen layers, decayed rates, adapters."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_runs import die_before
from families import PAD, tiny
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model
from transformers.models.bert.modeling_bert import BertIntermediate

from maskery.core.errors import ConfigError, MaskeryError, MissingExtraError, ModelError
from maskery.models.depth import checkpoint
from maskery.models.layout import PACKABLE, packing_error, pad
from maskery.models.loading import Loaded
from maskery.models.lora import Lora, add_lora, targets_of
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text import run as text_run
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import TextResult, train_text
from maskery.tasks.text_mlm_config import TextMLMConfig
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
    die_before(dies_at, train_text, config, monkeypatch)
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


def test_a_branch_freezes_more_or_less(places: dict[str, Path], tmp_path: Path) -> None:
    first = train_text(config_of(places, tmp_path / "a", freeze="embeddings"), progress=False)
    branch = {"from_run": f"{first.folder}@3"}
    more = train_text(config_of(places, tmp_path / "b", freeze="1", **branch), progress=False)
    less = train_text(config_of(places, tmp_path / "c", **branch), progress=False)
    start = saved(first.folder, 3)
    for folder, frozen in ((more.folder, is_frozen), (less.folder, lambda _: False)):
        end, moments = saved(folder, 6), saved(folder, 6, "optimiser")
        for name, tensor in end.items():
            assert torch.equal(tensor, start[name]) == frozen(name), name
        moved = {name.partition(".")[2] for name in moments}
        assert moved == {name for name in end if not frozen(name)}


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


@pytest.mark.parametrize("more", [{}, {"lora": ("r=4", "dropout=0.1")}])
def test_recomputed_activations_change_no_bit(
    places: dict[str, Path], tmp_path: Path, more: dict[str, object]
) -> None:
    """With dropout, whose draws are made again; and the layers are computed twice indeed."""
    settings = {"model": places["encoder"], "hidden_dropout": 0.2, "head_first": "0.5", **more}
    runs, passes = [], []

    def count(module: torch.nn.Module, _: object) -> None:
        # Within a layer: the layer's own call is not made again, what it calls is.
        passes[-1] += isinstance(module, BertIntermediate)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    for name, again in (("a", False), ("b", True)):
        passes.append(0)
        config = config_of(places, tmp_path / name, **settings, checkpoint_activations=again)
        runs.append(train_text(config, progress=False))
    hook.remove()
    kept, recomputed = (saved(run.folder, 6) for run in runs)
    assert all(torch.equal(recomputed[name], tensor) for name, tensor in kept.items())
    moments = [saved(run.folder, 6, "optimiser") for run in runs]
    assert all(torch.equal(moments[1][name], tensor) for name, tensor in moments[0].items())
    assert passes[1] > passes[0]


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


def test_a_family_that_cannot_recompute() -> None:
    with pytest.raises(ModelError, match="leave out --checkpoint-activations"):
        checkpoint(tiny("mpnet"))


def test_more_frozen_layers_than_there_are(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--freeze 7: the model has 2 layers"):
        train_text(config_of(places, tmp_path / "a", freeze="7"), progress=False)
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def adapted(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> TextResult:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapted") / "run"
    config = config_of(places, folder, lora=("r=4", "dropout=0.1"), model=places["encoder"])
    return train_text(config, progress=False)


def test_checkpoints_hold_the_adapter_and_the_new_head(adapted: TextResult) -> None:
    first, end = saved(adapted.folder, 1), saved(adapted.folder, 6)
    assert all("lora_" in name or ".cls." in name for name in end)
    moved = {name for name, tensor in end.items() if not torch.equal(tensor, first[name])}
    assert moved == set(end)
    # Six linear layers in each of two, with two narrow matrices; bias, dense and norm of the head.
    assert len(end) == 2 * 6 * 2 + 5
    moments = {name.partition(".")[2] for name in saved(adapted.folder, 6, "optimiser")}
    assert moments == set(end)


def test_a_branch_has_the_adapters_and_the_start_of_its_origin(
    adapted: TextResult, places: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"from_run": f"{adapted.folder}@3", "lora": ("r=4", "dropout=0.1")}
    config = config_of(places, tmp_path / "a", model=places["encoder"], **settings)
    again = saved(train_text(config, progress=False).folder, 6)
    assert all(torch.equal(again[n], t) for n, t in saved(adapted.folder, 6).items())
    for changed in ({"model": places["model"]}, {"lora": ("r=2",)}):
        changed = {"model": places["encoder"], **settings, **changed}
        with pytest.raises(ConfigError, match="no adapters like these on this start"):
            train_text(config_of(places, tmp_path / "b", **changed), progress=False)
    whole = {"model": places["encoder"], "from_run": settings["from_run"]}
    with pytest.raises(MaskeryError, match="of another model"):
        train_text(config_of(places, tmp_path / "c", **whole), progress=False)


def test_an_adapted_run_goes_on_exactly(
    adapted: TextResult, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(places, tmp_path / "b", lora=("r=4", "dropout=0.1"), model=places["encoder"])
    resumed = cut_and_resumed(config, 4, monkeypatch)
    end, again = saved(adapted.folder, 6), saved(resumed.folder, 6)
    assert all(torch.equal(again[name], tensor) for name, tensor in end.items())
    merged = [load_file(run.folder / "model" / "model.safetensors") for run in (adapted, resumed)]
    assert all(torch.equal(merged[1][name], tensor) for name, tensor in merged[0].items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_saved_model_is_the_trained_one(adapted: TextResult, places: dict[str, Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForMaskedLM

    folder = adapted.folder / "model"
    merged = AutoModelForMaskedLM.from_pretrained(folder).eval()
    base = AutoModelForMaskedLM.from_pretrained(places["encoder"]).eval()
    base.load_state_dict(load_file(folder / "adapter" / "head.safetensors"), strict=False)
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    start = base(input_ids=ids).logits
    adapter = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        found, expected = (model(input_ids=ids).logits for model in (merged, adapter))
    assert (found - expected).abs().max() < 1e-6
    assert (start - expected).abs().max() > 1e-3
    # The formula: W + alpha / r * B A, with alpha twice r.
    name, weights = "bert.encoder.layer.1.intermediate.dense", saved(adapted.folder, 6)
    one, other = (weights[f"hf.{name}.lora_{x}.default.weight"] for x in "BA")
    own = load_file(places["encoder"] / "model.safetensors")[f"{name[5:]}.weight"] + 2 * one @ other
    assert torch.allclose(merged.state_dict()[f"{name}.weight"], own, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert", "deberta-v2"])
def test_adapters_start_as_nothing_and_pack_alike(family: str) -> None:
    pytest.importorskip("peft")
    model = tiny(family)
    inputs = pad(np.arange(5, 25), np.array([0, 8, 20]), np.arange(20), pad_token_id=PAD)
    rows = {"packed": False, "pad_token_id": PAD}
    before = MaskedLanguageModel(model, **rows)(inputs)  # type: ignore[arg-type]
    loaded = Loaded(model=model, tokenizer=None)  # type: ignore[arg-type]
    add_lora(loaded, Lora.of(["r=4"]), start="x", seed=0)
    wrapped = MaskedLanguageModel(model, **rows)  # type: ignore[arg-type]
    assert torch.equal(wrapped(inputs), before)
    assert {"lora_" in n for n, p in model.named_parameters() if p.requires_grad} == {True}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert (wrapped(inputs) - before).abs().max() > 1e-3
    if family in PACKABLE:
        assert packing_error(model, PAD) < 1e-5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rank=4"], "--lora rank=4: it must be r=, alpha=, dropout= and targets="),
        (["r=x"], "--lora r=x: it must be r="),
        (["16"], "--lora 16: it must be r="),
        (["r=0"], "r is 0: it must be at least 1"),
        (["r=4", "dropout=1"], "dropout is 1.0: it must be from 0 to below 1"),
        (["r=4", "alpha=-1"], "alpha is -1.0: it must be above 0"),
    ],
)
def test_bad_words_of_lora(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        Lora.of(words)


def test_targets_by_name() -> None:
    model = tiny("bert")
    found = targets_of(model, ["query", "attention.output.dense"])
    layers = [f"bert.encoder.layer.{n}.attention" for n in (0, 1)]
    assert found == [f"{one}.{x}" for one in layers for x in ("self.query", "output.dense")]
    told = "have no linear layer 'q_proj'; they have dense, key, query, value"
    with pytest.raises(ConfigError, match=told):
        targets_of(model, ["query", "q_proj"])


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze": "1"},
        {"model": "scratch:tiny"},
        {"add_words": "words.txt"},
        {"objectives": TextMLMConfig(momentum=0.99)},
    ],
)
def test_what_lora_does_not_go_with(
    places: dict[str, Path], tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"do not go together"):
        config_of(places, tmp_path, lora=("r=4",), **settings)


def test_without_peft_one_line_says_how_to_install_it(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'maskery\[lora\]'"):
        train_text(config_of(places, tmp_path / "a", lora=("r=4",)), progress=False)
    assert not (tmp_path / "a").exists()
