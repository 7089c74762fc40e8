"""A whole image-text run, small: that it learns to look, what it writes, that it resumes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_pairs import save_tiny_pairs

import maskery
from maskery.core.errors import CheckpointError, ConfigError, MaskeryError, PluginError
from maskery.data.images.config import ViewConfig
from maskery.data.pairs.config import PairsConfig
from maskery.evaluation.image_text.image_fill import ImageFiller
from maskery.evaluation.image_text.opening import open_image_text
from maskery.masking.config import MaskingConfig
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.runs.frame.config_file import load_config
from maskery.runs.image_text import config as pairs_config
from maskery.runs.image_text.config import PairsTrainingConfig
from maskery.runs.pairs.run import PairsRun, PairsRunConfig, evaluate_pairs_run, train_pairs
from maskery.tasks.image_text_config import ImageTextMLMConfig

WORDS = ("red", "green", "blue", "white")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ImageTextSizes(
        image_size=(16, 16),
        patch_size=8,
        image_layers=1,
        fusion_layers=1,
        width=32,
        num_heads=2,
        embed_dim=8,
        max_length=24,
    )
    monkeypatch.setitem(pairs_config.SIZES, "tiny", sizes)


def config_of(pairs: Path, output: Path, **training: object) -> PairsRunConfig:
    settings = {"epochs": 2, "batch_pairs": 8, "learning_rate": 3e-3, "log_every": 1}
    return PairsRunConfig(
        pairs=str(pairs),
        output=output,
        held_out_share=0.2,
        score_words=WORDS,
        vocab_size=200,
        masking=MaskingConfig(policy="word", mask_rate=0.3),
        objectives=ImageTextMLMConfig(itc_weight=0.1, momentum=0.9),
        training=PairsTrainingConfig(**{**settings, **training}),  # type: ignore[arg-type]
    )


def test_a_run_learns_to_look_and_leaves_everything_it_promises(tmp_path: Path) -> None:
    pairs = save_tiny_pairs(tmp_path / "data", 96)
    config = config_of(pairs, tmp_path / "run", epochs=30, learning_rate=1e-3)
    result = train_pairs(config, progress=False)
    words = result.evaluation.words
    assert words is not None
    assert words.accuracy["right"].value > 0.9
    assert words.difference["wrong"].low > 0.1
    assert words.accuracy["none"].value < 0.6
    assert result.evaluation.difference["wrong"]["loss"].high < 0
    assert result.skipped == ()

    folder = result.folder
    assert load_config(folder / "config.yaml", PairsRunConfig) == config
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["words"]["words"] > 0
    # A twin that has learnt these few words may replace none, and then there is nothing to judge.
    assert written["mrtd_auc"] is None or 0.8 < written["mrtd_auc"] <= 1.0
    kinds = [
        json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert kinds[0] == kinds[-1] == "held_out"
    assert kinds.count("train") == result.summary.steps
    if written["mrtd_auc"] is not None:
        assert "AUC" in (folder / "model" / "README.md").read_text()

    again = evaluate_pairs_run(folder)
    assert again.words == words
    for sight, scores in result.evaluation.scores.items():
        assert again.scores[sight].loss.value == pytest.approx(scores.loss.value, abs=1e-5)
    assert again.mrtd_auc == pytest.approx(result.evaluation.mrtd_auc, abs=1e-6)

    opened = open_image_text(str(folder))
    for number, colour in enumerate(WORDS):
        filler = ImageFiller(opened, tmp_path / "data" / f"{number:03d}.png")
        filling = filler.fill("this is a [MASK] square of paper", words=(colour,))
        assert filling.masks[0][0].token == colour
        assert filling.words[0].probability == pytest.approx(filling.masks[0][0].probability)
    blind = ImageFiller(opened, None).fill("a [MASK] square and a [MASK] sheet")
    assert len(blind.masks) == 2
    assert blind.completions


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_a_run_stopped_and_resumed_equals_one_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    pairs = save_tiny_pairs(tmp_path / "data", 24, persons=True)
    cut = config_of(pairs, tmp_path / "cut", checkpoint_every=2)
    die_before(3, train_pairs, cut, monkeypatch)
    with pytest.raises(CheckpointError, match="in use"):
        train_pairs(cut, progress=False)
    resumed = train_pairs(replace(cut, resume="auto"), progress=False)
    assert resumed.summary.resumed_from == 2

    # The other run reads its captions with the same tokenizer; another one would number pieces
    # differently.
    other = tmp_path / "whole"
    (tmp_path / "cut" / "tokenizer").rename(tmp_path / "tokenizer")
    other.mkdir()
    (tmp_path / "tokenizer").rename(other / "tokenizer")
    whole = train_pairs(replace(cut, output=other, resume="auto"), progress=False)
    assert whole.summary.resumed_from == 0
    assert losses(tmp_path / "cut") == losses(other)
    one, two = (
        load_file(folder / "model" / name)
        for name in ("model.safetensors",)
        for folder in (tmp_path / "cut", other)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert resumed.evaluation == whole.evaluation


def test_a_run_goes_on_with_the_same_pairs_and_settings_alone(tmp_path: Path) -> None:
    pairs = save_tiny_pairs(tmp_path / "data", 24)
    named = save_tiny_pairs(tmp_path / "named", 24, persons=True)
    others = save_tiny_pairs(tmp_path / "others", 8, first=100)
    plain = config_of(pairs, tmp_path / "plain", max_steps=1)
    judged = replace(plain, output=tmp_path / "judged", eval_pairs=str(others))
    for config in (plain, judged):
        train_pairs(config, progress=False)
    others.write_text("\n".join(others.read_text("utf-8").splitlines()[2:]), "utf-8")
    for config, change, told in (
        (plain, {"eval_pairs": str(others)}, "eval_pairs_fingerprint is '.*' here and not set"),
        (judged, {}, "eval_pairs_fingerprint is '.*' here and '.*' in the run"),
        (judged, {"eval_pairs": None}, "held_out_share is 0.2 here and not set in the run"),
        (plain, {"held_out_share": 0.3}, "held_out_share is 0.3 here and 0.2 in the run"),
        (plain, {"pairs": str(named)}, "pairs_fingerprint is"),  # the same, but for persons
        (plain, {"reading": PairsConfig(max_pixels=999)}, "max_pixels is 999 here"),
        (plain, {"view": ViewConfig(flip_probability=0.1)}, "flip_probability is 0.1 here"),
    ):
        other = replace(config, resume="auto", **change)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=told):
            train_pairs(other, progress=False)
    same = replace(plain, resume="auto", image_cache_mb=1, max_length=24, score_words=("red",))
    assert train_pairs(same, progress=False).summary.resumed_from == 1


def test_a_run_goes_on_from_the_model_and_twin_of_another(tmp_path: Path) -> None:
    pairs = save_tiny_pairs(tmp_path / "data", 24)
    others = save_tiny_pairs(tmp_path / "others", 8, first=100)
    first = train_pairs(config_of(pairs, tmp_path / "first", max_steps=3), progress=False)
    config = replace(
        config_of(pairs, tmp_path / "second", max_steps=1),
        model=str(first.folder),
        eval_pairs=str(others),
    )
    second = train_pairs(config, progress=False)
    rows = [json.loads(line) for line in (second.folder / "metrics.jsonl").read_text().splitlines()]
    again = evaluate_pairs_run(first.folder, eval_pairs=str(others))
    assert rows[0]["right_loss"] == pytest.approx(again.scores["right"].loss.value, abs=1e-5)
    respelt = replace(config, model=os.path.relpath(first.folder / "model"), resume="auto")
    assert train_pairs(respelt, progress=False).summary.resumed_from == 1


def test_broken_pictures_are_told_of_at_the_end_or_end_the_run(tmp_path: Path) -> None:
    pairs = save_tiny_pairs(tmp_path / "data", 48)
    for number in (1, 9, 17, 25):
        (tmp_path / "data" / f"{number:03d}.png").write_bytes(b"GIF89a")
    result = train_pairs(config_of(pairs, tmp_path / "run", max_steps=4), progress=False)
    assert result.skipped
    assert "skipped; the first: image" in result.skipped[0]
    strict = config_of(pairs, tmp_path / "strict")
    strict = replace(strict, reading=replace(strict.reading, on_bad_image="fail"))
    with pytest.raises(MaskeryError, match=r"is damaged|is not a picture"):
        train_pairs(strict, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_model": "bert"}, "belong together"),
        ({"fusion_layer": 2}, "needs --text-model"),
        ({"model": "scratch:vast"}, "scratch:vast is no size"),
        ({"held_out_share": 0.0}, "between 0 and 1"),
        ({"mrtd_mask_rate": 1.0}, "mrtd_mask_rate"),
        ({"view": ViewConfig(height=16)}, "belong together"),
        ({"objectives": ImageTextMLMConfig(mlm_weight=0, mrtd_weight=0)}, "all weights are 0"),
        ({"pairs": ""}, "no pairs are named"),
    ],
)
def test_settings_that_cannot_be_are_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PairsRunConfig(**{"pairs": "pairs.jsonl", **change})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_errors_before_the_first_step_leave_no_folder(tmp_path: Path) -> None:
    pairs = save_tiny_pairs(tmp_path / "data", 24)
    for change, message in (
        ({"model": str(tmp_path / "none")}, "there is no model folder"),
        ({"view": ViewConfig(height=20, width=20)}, "patch size must divide"),
        ({"pairs": str(tmp_path / "none.jsonl")}, "does not exist"),
        ({"training": PairsTrainingConfig(patience=2)}, "patience counts evaluations; say how"),
    ):
        config = replace(config_of(pairs, tmp_path / "run"), **change)  # type: ignore[arg-type]
        with pytest.raises(MaskeryError, match=message):
            train_pairs(config, progress=False)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["policy", "term", "reader"])
@pytest.mark.parametrize("text", [None, "Mine = 3"])
def test_plug_ins_that_do_not_fit_are_told_before_the_pairs_are_read(
    tmp_path: Path, flag: str, text: str | None
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    choice, config = f"{file}:Mine", config_of(tmp_path / "none.jsonl", tmp_path / "run")
    changed = {
        "policy": {"masking": MaskingConfig(policy=choice)},
        "term": {"objectives": ImageTextMLMConfig(term=(choice,))},
        "reader": {"reading": PairsConfig(reader=choice)},
    }
    with pytest.raises(PluginError, match=rf"--{flag} .*: (there is no file|.* int)"):
        train_pairs(replace(config, **changed[flag]), progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_callbacks_are_told_of_steps_evaluations_and_the_end(tmp_path: Path) -> None:
    told: list[str] = []

    class Recorder(maskery.Callback):
        def on_step(self, step: int, figures: Any) -> None:
            told.append(f"step {step}, {'mlm' in figures}")

        def on_evaluation(self, step: int, figures: Any) -> None:
            told.append(f"evaluation {step}, {'right_loss' in figures}")

        def on_end(self) -> None:
            told.append("end")

    config = config_of(save_tiny_pairs(tmp_path), tmp_path / "run", max_steps=1)
    maskery.train(config, callbacks=[Recorder()], progress=False, report=False)
    assert told == ["evaluation 0, True", "step 1, True", "evaluation 1, True", "end"]
    with pytest.raises(ConfigError, match="the callback Recorder is a class"):
        train_pairs(config_of(tmp_path / "none", tmp_path / "r"), callbacks=[Recorder])  # type: ignore[list-item]


def test_a_run_is_the_same_however_its_paths_are_typed_and_wherever_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_pairs(tmp_path / "data", 12)
    save_tiny_pairs(tmp_path / "held", 6, first=100)
    monkeypatch.chdir(tmp_path)
    typed = config_of(Path("data/pairs.jsonl"), tmp_path / "run", epochs=1)
    typed = replace(typed, eval_pairs="held/pairs.jsonl", reading=PairsConfig(images=Path("data")))
    result = train_pairs(typed, progress=False)
    whole = load_config(result.folder / "config.yaml", PairsRunConfig)
    assert whole.pairs == str(tmp_path / "data" / "pairs.jsonl")
    assert whole.reading.images == tmp_path / "data"
    # A file with absolute paths goes on from what relative ones began.
    assert train_pairs(replace(whole, resume="auto"), progress=False).summary.resumed_from > 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_pairs_run(result.folder).scores == result.evaluation.scores


def test_a_reader_of_the_users_own_and_records_in_python_give_the_same_run(tmp_path: Path) -> None:
    pairs = save_tiny_pairs(tmp_path / "data", 12)
    reader = tmp_path / "mine.py"
    reader.write_text(
        "import json\n\n"
        "def read(path):\n    return map(json.loads, path.read_text().splitlines())\n"
    )
    config = config_of(pairs, tmp_path / "own", max_steps=2)
    mine = replace(config, reading=PairsConfig(reader=f"{reader}:read"))
    train_pairs(mine, progress=False)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    there = PairsConfig(images=pairs.parent)
    given = replace(config, output=tmp_path / "given", reading=there)
    train_pairs(given, source=rows, progress=False)
    plain = replace(config, output=tmp_path / "plain")
    train_pairs(plain, progress=False)
    assert losses(tmp_path / "own") == losses(tmp_path / "given") == losses(tmp_path / "plain")
    evaluate_pairs_run(tmp_path / "own", reader=f"{reader}:read")


def test_splits_in_file_names_are_trained_on_and_measured(tmp_path: Path) -> None:
    for split, count in (("train", 9), ("test", 6)):
        folder = tmp_path / "data" / split
        save_tiny_pairs(folder, count, first=count * 100).rename(folder / "metadata.jsonl")
    config = config_of(tmp_path / "data", tmp_path / "run", max_steps=1)
    run = PairsRun(config, progress=False)
    assert len(run.train.ids) == 9
    assert sum(len(batch.text.lengths) for batch in run.held_out) == 2 * 6
