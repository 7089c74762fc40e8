"""Whole person-search runs, small: that they find people, keep the best, resume, and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_persons import save_cuhk

from maskery.core.errors import CheckpointError, ConfigError, MaskeryError
from maskery.data.images.config import ViewConfig
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.image_text.opening import open_image_text
from maskery.evaluation.intervals import Interval
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import Retrieval
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet
from maskery.masking.config import MaskingConfig
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.runs.frame.config_file import load_config
from maskery.runs.image_text import config as pairs_config
from maskery.runs.image_text.config import PRESETS, PairsTrainingConfig, PersonSearchRunConfig
from maskery.runs.person_search.run import (
    PersonSearchRun,
    train_person_search,
)
from maskery.tasks.image_text_config import PersonSearchConfig


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ImageTextSizes(
        image_size=(16, 16),
        patch_size=8,
        image_layers=1,
        fusion_layers=1,
        width=32,
        num_heads=2,
        embed_dim=16,
        max_length=24,
    )
    monkeypatch.setitem(pairs_config.SIZES, "tiny", sizes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Shirts and trousers in six colours make 36 persons that differ.
    return save_cuhk(tmp_path_factory.mktemp("cuhk"), {"train": 24, "val": 6, "test": 6})


def config_of(root: Path, output: Path, **training: object) -> PersonSearchRunConfig:
    settings = {"epochs": 2, "batch_pairs": 16, "learning_rate": 3e-3, "log_every": 1}
    return PersonSearchRunConfig(
        data=PersonSearchDataConfig(dataset="cuhk-pedes", root=root),
        output=output,
        vocab_size=200,
        masking=MaskingConfig(policy="word", mask_rate=0.3),
        objectives=PersonSearchConfig(momentum=0.9, queue_size=64),
        retrieval=RetrievalConfig(rerank=6),
        training=PairsTrainingConfig(**{**settings, **training}),  # type: ignore[arg-type]
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in lines(folder) if row["kind"] == "train"]


def test_a_run_learns_to_find_people_and_leaves_what_it_promises(
    root: Path, tmp_path: Path
) -> None:
    config = config_of(root, tmp_path / "run", epochs=25)
    result = train_person_search(config, progress=False)
    assert result.test is not None
    assert result.test.reranked is not None
    assert (result.test.num_texts, result.test.num_images, result.test.num_persons) == (24, 12, 6)
    # Chance is one in six; the colours of shirts are learnt first.
    assert result.test.contrastive.r1.value > 0.5
    assert result.val.contrastive.r1.value > 0.5

    folder = result.folder
    assert load_config(folder / "config.yaml", PersonSearchRunConfig) == config
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["best_step"] == result.best_step
    assert written["test"]["contrastive"]["r1"][0] == result.test.contrastive.r1.value
    card = (folder / "model" / "README.md").read_text()
    assert "by similarity" in card
    assert f"after step {result.best_step:,}" in card

    # The model that is kept is that of the best evaluation, the first of several.
    held_out = [row for row in lines(folder) if row["kind"] == "held_out"]
    assert len(held_out) == 26  # at the start and after each epoch
    best = max(row["reranked_r1"] for row in held_out)
    first = next(row["step"] for row in held_out if row["reranked_r1"] == best)
    assert result.best_step == first
    again = PersonSearchRun(replace(config, model=str(folder)), progress=False)
    figures = again.measure(again.val).figures
    assert figures.reranked is not None
    assert figures.reranked.r1.value == pytest.approx(best)
    assert open_image_text(str(folder)).view.size == (16, 16)
    # The twin goes along, for runs that start from here.
    saved = load_file(folder / "model" / "extra_state.safetensors")
    name = "text_proj.weight"
    assert torch.equal(again.task.twin.state_dict()[name], saved[f"twin.{name}"])


def test_a_run_stopped_and_resumed_equals_one_never_stopped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = config_of(root, tmp_path / "cut", checkpoint_every=3, eval_every=2)
    # Trust in pairs follows from the twin and the queues, and a term's classifier is saved, too.
    more = replace(cut.objectives, doubt=True, term=("sdm=0.5", "id=0.5"))
    cut = replace(cut, objectives=more)
    die_before(8, train_person_search, cut, monkeypatch)
    with pytest.raises(CheckpointError, match="in use"):
        train_person_search(cut, progress=False)
    resumed = train_person_search(replace(cut, resume="auto"), progress=False)
    assert resumed.summary.resumed_from in (6, 8)  # the best model's step has a checkpoint, too

    # The other run reads its captions with the same tokenizer.
    other = tmp_path / "whole"
    other.mkdir()
    (tmp_path / "cut" / "tokenizer").rename(other / "tokenizer")
    whole = train_person_search(replace(cut, output=other, resume="auto"), progress=False)
    assert whole.summary.resumed_from == 0
    assert losses(tmp_path / "cut") == losses(other)
    assert resumed.best_step == whole.best_step
    assert resumed.test == whole.test
    one, two = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "cut", other)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_model_of_the_best_epoch_is_kept_and_the_start_is_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(root, tmp_path / "run", max_steps=8, eval_every=2, keep_checkpoints=1)
    real = PersonSearchRun.measure
    shown = [1.0, 0.2, 0.5, 0.5, 0.4]

    def measure(self: PersonSearchRun, split: RetrievalSet) -> Retrieval:
        found = real(self, split)
        if not shown:  # training is over
            return found
        ranking = found.figures.reranked
        assert ranking is not None
        ranking = replace(ranking, r1=replace_value(ranking.r1, shown.pop(0)))
        return replace(found, figures=replace(found.figures, reranked=ranking))

    monkeypatch.setattr(PersonSearchRun, "measure", measure)
    result = train_person_search(config, progress=False)
    assert result.best_step == 4
    best = tmp_path / "run" / "checkpoints" / "step-00000004"
    kept = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, tensor in load_file(best / "model.safetensors").items():
        assert torch.equal(kept.get(name, tensor), tensor)
    last = load_file(best.with_name("step-00000008") / "model.safetensors")
    assert not torch.equal(kept["text_proj.weight"], last["text_proj.weight"])

    again = replace(config, resume="auto")
    assert train_person_search(again, progress=False).val == result.val
    (best / "state.json").write_text("{}")
    assert train_person_search(again, progress=False).best_step == 8
    assert "step-00000004' is damaged" in caplog.text


def replace_value(interval: Interval, value: float) -> Interval:
    return interval._replace(value=value)


def test_without_matching_the_best_is_chosen_by_similarity_and_a_line_says_so(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(root, tmp_path / "run", max_steps=2)
    objectives = replace(config.objectives, itm_weight=0.0, prd_weight=0.0)
    result = train_person_search(replace(config, objectives=objectives), progress=False)
    assert result.val.reranked is None
    assert result.test is not None
    assert result.test.reranked is None
    (said,) = [m for m in caplog.messages if "similarity alone ranks" in m]
    assert said.startswith(f"rerank is {config.retrieval.rerank}, and matching")


def test_accumulation_reaches_every_term(root: Path, tmp_path: Path) -> None:
    config = config_of(root, tmp_path / "run", max_steps=2, micro_batch_pairs=4)
    train_person_search(config, progress=False)
    row = lines(tmp_path / "run")[-2]
    assert {"itc", "itm", "mlm", "prd", "mrtd"} <= set(row)


def test_presets_are_the_released_settings(tmp_path: Path) -> None:
    data = PersonSearchDataConfig(dataset="cuhk-pedes", root=tmp_path)
    rasa, albef = PRESETS["rasa"](data), PRESETS["albef"](data)
    weights = {"itc": 0.5, "itm": 1.0, "mlm": 1.0, "prd": 0.5, "mrtd": 0.5}
    assert rasa.objectives.weights == weights
    assert (rasa.objectives.queue_size, rasa.objectives.momentum) == (65536, 0.995)
    assert rasa.objectives.alpha_at(0.0) == 0.0
    assert rasa.objectives.alpha_at(1 / 30) == rasa.objectives.alpha == 0.4
    assert (rasa.masking.mask_rate, rasa.mrtd_mask_rate) == (0.15, 0.3)
    assert rasa.training.head_learning_rate == 1e-4
    assert albef.objectives.weights == {"itc": 1.0, "itm": 1.0, "mlm": 1.0}
    assert not albef.objectives.within_modality
    irra, rde, clip = (PRESETS[name](data) for name in ("irra", "rde", "clip"))
    assert (irra.objectives.weights, irra.objectives.term) == ({"mlm": 1.0}, ("sdm", "id"))
    assert (rde.objectives.term, rde.objectives.doubt) == (("tal",), True)
    assert (clip.objectives.term, clip.objectives.weights) == (("infonce",), {})
    assert [run.fusion_layers for run in (irra, rde, clip)] == [4, 0, 0]
    assert (irra.view.height, irra.view.width, irra.training.batch_pairs) == (384, 128, 64)
    assert (irra.training.epochs, irra.training.learning_rate) == (60, 1e-5)
    for preset in (rasa, irra):
        with pytest.raises(ConfigError, match=r"convert ALBEF\.pth writes, or a CLIP"):
            train_person_search(preset, progress=False)
    assert PRESETS["small"](data).model.startswith("scratch:")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weak_pair_probability": 1.0}, "weak_pair_probability"),
        ({"mrtd_mask_rate": -0.1}, "mrtd_mask_rate"),
        ({"max_length": 2}, "max_length is 2"),
        ({"vocab_size": 5}, "vocab_size is 5"),
        ({"image_cache_mb": -1}, "image_cache_mb is -1"),
    ],
)
def test_settings_that_cannot_be_are_one_line(change: dict[str, object], message: str) -> None:
    data = PersonSearchDataConfig(dataset="cuhk-pedes", root=Path())
    with pytest.raises(ConfigError, match=message) as caught:
        PersonSearchRunConfig(data=data, **change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_errors_before_the_first_step_leave_no_folder(root: Path, tmp_path: Path) -> None:
    for change, message in (
        ({"model": str(tmp_path / "none")}, "there is no model folder"),
        ({"data": PersonSearchDataConfig(dataset="rstpreid", root=root)}, "--dataset cuhk-pedes"),
        ({"view": ViewConfig(height=20, width=20)}, "patch size must divide"),
    ):
        config = replace(config_of(root, tmp_path / "run"), **change)  # type: ignore[arg-type]
        with pytest.raises(MaskeryError, match=message):
            train_person_search(config, progress=False)
        assert not (tmp_path / "run").exists()
