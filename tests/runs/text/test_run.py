"""A whole text run, small: what it writes, that it learns, that it resumes and repeats."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model
from transformers import AutoModelForMaskedLM, pipeline

from maskery.core.errors import CheckpointError, ConfigError, DataError, MaskeryError, ModelError
from maskery.core.system import read_metrics
from maskery.data.corpus.config import CorpusConfig
from maskery.evaluation.text.masked import ExampleSums
from maskery.models.loading import load_masked_lm
from maskery.runs.frame.config_file import load_config
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.evaluate import evaluate_run
from maskery.runs.text.held_out import HELD_OUT
from maskery.runs.text.prepare import TextRun, choose_layout
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines(150)), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("encoder"), head=False)


def config_of(corpus: Path, model: Path | str, output: Path, **training: object) -> TextRunConfig:
    settings = {"epochs": 2, "batch_tokens": 256, "learning_rate": 3e-3, "log_every": 1}
    return TextRunConfig(
        corpus=(str(corpus),),
        model=str(model),
        output=output,
        training=TrainingConfig(**{**settings, **training}),  # type: ignore[arg-type]
    )


def test_a_run_learns_and_leaves_everything_it_promises(
    corpus: Path, encoder: Path, tmp_path: Path
) -> None:
    config = config_of(corpus, encoder, tmp_path / "run", epochs=15)
    config = TextRunConfig(**{**vars(config), "held_out_share": 0.25})
    result = train_text(config, progress=False)
    assert result.after.loss.value < result.before.loss.value - 0.2
    assert result.difference["loss"].high < 0.0
    folder = result.folder
    assert load_config(folder / "config.yaml", TextRunConfig) == config
    sums, _ = ExampleSums.read(folder / HELD_OUT)
    count, loss, *_ = sums.sums.sum(axis=0)
    assert (count, loss / count) == (result.after.masked_tokens, result.after.loss.value)
    kinds = [line["kind"] for line in read_metrics(folder / "metrics.jsonl")]
    assert kinds[0] == kinds[-1] == "held_out"
    assert kinds.count("train") == result.summary.steps
    assert json.loads((folder / "evaluation.json").read_text())["after"]["masked_tokens"] > 0

    text = "river stone [MASK] ember forest."
    predictions = pipeline("fill-mask", model=str(folder / "model"))(text)
    assert len(predictions) == 5
    saved = AutoModelForMaskedLM.from_pretrained(folder / "model")
    assert saved.config.attention_probs_dropout_prob == 0.1  # the encoder's own, not ours

    again = evaluate_run(folder)
    for name, expected in (("before", result.before), ("after", result.after)):
        assert again.scores[name].loss.value == pytest.approx(expected.loss.value, abs=1e-5)


def losses(folder: Path) -> list[float]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("attention_dropout", [False, True])
def test_a_run_in_bfloat16_is_the_same_run_but_for_rounding(
    corpus: Path, model: Path, tmp_path: Path, attention_dropout: bool
) -> None:
    runs = [
        train_text(
            TextRunConfig(
                **{
                    **vars(config_of(corpus, model, tmp_path / precision, precision=precision)),
                    "attention_dropout": attention_dropout,
                }
            ),
            progress=False,
        )
        for precision in ("fp32", "bf16")
    ]
    exact, rounded = (np.array(losses(run.folder)) for run in runs)
    assert 1e-5 < np.abs(rounded - exact).max() < 0.05
    assert runs[1].after.loss.value == pytest.approx(runs[0].after.loss.value, abs=0.05)
    weights = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_the_engine_that_is_gone_is_named_with_what_to_use(corpus: Path, model: Path) -> None:
    config = replace(config_of(corpus, model, Path("nowhere")), engine="trainer")
    with pytest.raises(ConfigError, match=r"--engine trainer is gone: use --engine loop.*MaskColl"):
        train_text(config, progress=False)


def test_a_run_stopped_and_resumed_equals_one_never_stopped(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    whole = train_text(
        config_of(corpus, model, tmp_path / "whole", checkpoint_every=3), progress=False
    )
    cut = config_of(corpus, model, tmp_path / "cut", checkpoint_every=3)
    die_before(7, train_text, cut, monkeypatch)
    with pytest.raises(CheckpointError, match="in use"):
        train_text(cut, progress=False)
    resumed = train_text(
        TextRunConfig(**{**vars(cut), "resume": "auto"}),
        progress=False,
    )
    assert resumed.summary.resumed_from == 6
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert resumed.before == whole.before
    assert resumed.after == whole.after

    told = (tmp_path / "cut" / "evaluation.json").read_bytes()
    done = train_text(TextRunConfig(**{**vars(cut), "resume": "auto"}), progress=False)
    assert done.summary.resumed_from == done.summary.steps
    assert done.after == whole.after
    assert (tmp_path / "cut" / "evaluation.json").read_bytes() == told


def test_a_refused_continuation_names_the_settings_and_keeps_the_right_ones(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train_text(config_of(corpus, model, folder, max_steps=2), progress=False)
    other = config_of(corpus, model, folder, max_steps=2, seed=1, learning_rate=0.5)
    told = "setting: learning_rate is 0.5 here and 0.003 in the run, seed is 1 here and 0 in the"
    with pytest.raises(CheckpointError, match=told) as caught:
        train_text(replace(other, resume="auto"), progress=False)
    assert "\n" not in str(caught.value)
    kept = load_config(folder / "config.yaml", TextRunConfig)
    assert kept.training.learning_rate == 0.003
    assert train_text(replace(kept, resume="auto"), progress=False).summary.resumed_from == 2


def begun(corpus: Path, model: Path, folder: Path, **settings: object) -> TextRunConfig:
    """The configuration that goes on with a run that has a checkpoint of its first step."""
    config = TextRunConfig(**{**vars(config_of(corpus, model, folder, max_steps=1)), **settings})
    train_text(config, progress=False)
    return replace(config, resume="auto")


def test_what_changes_the_plan_or_the_measure_may_not_change(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    own, longer = tmp_path / "own.txt", tmp_path / "longer.txt"
    own.write_text("\n".join(lines(9, seed=8)), "utf-8")
    longer.write_text("\n".join(lines(12, seed=8)), "utf-8")
    plain = begun(corpus, model, tmp_path / "plain")
    judged = begun(corpus, model, tmp_path / "judged", eval_data=(str(own),))
    for config, change, told in (
        (plain, {"layout": "padded"}, "layout is 'padded' here and 'packed' in the run"),
        (plain, {"held_out_share": 0.2}, "held_out_share is 0.2 here and 0.05 in the run"),
        (plain, {"max_length": 16}, "max_length is 16 here and 32 in the run"),
        (plain, {"hidden_dropout": 0.3}, "hidden_dropout is 0.3 here and not set in the run"),
        (plain, {"corpus": (str(longer),)}, "corpus_fingerprint is '"),
        (plain, {"eval_data": (str(own),)}, "eval_data_fingerprint is '.*' here and not set in"),
        (judged, {"eval_data": (str(longer),)}, "eval_data_fingerprint is '.*' here and '.*' in"),
        (judged, {"eval_data": ()}, "eval_data_fingerprint is not set here and '"),
    ):
        with pytest.raises(CheckpointError, match=told):
            train_text(replace(config, **change), progress=False)  # type: ignore[arg-type]


def test_what_comes_to_the_same_is_the_same_run(corpus: Path, model: Path, tmp_path: Path) -> None:
    config = begun(corpus, model, tmp_path / "run")
    copy = tmp_path / "copy.txt"
    copy.write_bytes(corpus.read_bytes())
    same = replace(config, layout="packed", max_length=32, corpus=(str(copy),), vocab_size=500)
    assert train_text(same, progress=False).summary.resumed_from == 1


def test_a_model_is_the_same_however_its_folder_is_spelt(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = begun(corpus, model, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "as-a-run").mkdir()
    (tmp_path / "as-a-run" / "model").symlink_to(model)
    for name in (os.path.relpath(model, tmp_path), f"{model}/../{model.name}", "link", "as-a-run"):
        same = replace(config, model=name)
        assert train_text(same, progress=False).summary.resumed_from == 1
    other = save_tiny_model(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"model is '.*/other' here and '.*' in the run"):
        train_text(replace(config, model=str(other)), progress=False)


def test_a_run_is_measured_from_any_folder(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [os.path.relpath(path, tmp_path) for path in (corpus, model)]
    config = config_of(Path(typed[0]), Path(typed[1]), tmp_path / "run", max_steps=1)
    result = train_text(config, progress=False)
    written = load_config(result.folder / "config.yaml", TextRunConfig)
    assert (written.corpus, written.model) == ((str(corpus),), str(model))
    card = (result.folder / "model" / "README.md").read_text()
    assert f"`{corpus.name}`" in card
    assert str(corpus.parent) not in card
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_run(result.folder).scores["after"] == result.after


def test_settings_of_how_may_change_and_are_written(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train_text(config_of(corpus, model, folder, max_steps=2), progress=False)
    other = config_of(corpus, model, folder, max_steps=2, log_every=7, micro_batch_tokens=64)
    assert train_text(replace(other, resume="auto"), progress=False).summary.resumed_from == 2
    assert load_config(folder / "config.yaml", TextRunConfig).training.log_every == 7


def test_micro_batches_do_not_change_the_course(corpus: Path, model: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 6}
    plain = config_of(corpus, model, tmp_path / "plain", **settings)
    cut = config_of(corpus, model, tmp_path / "micro", micro_batch_tokens=64, **settings)
    for config in (plain, cut):
        train_text(
            TextRunConfig(**{**vars(config), "hidden_dropout": 0.0}),
            progress=False,
        )
    np.testing.assert_allclose(losses(tmp_path / "plain"), losses(tmp_path / "micro"), atol=1e-4)


def test_packed_and_padded_take_the_same_first_step(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    firsts = []
    for layout in ("packed", "padded"):
        config = config_of(corpus, model, tmp_path / layout, max_steps=1, batch_tokens=100_000)
        config = TextRunConfig(**{**vars(config), "layout": layout, "hidden_dropout": 0.0})
        train_text(config, progress=False)
        firsts.append(losses(tmp_path / layout)[0])
    assert firsts[0] == pytest.approx(firsts[1], abs=1e-5)


def test_from_scratch_trains_a_tokenizer_and_a_model(corpus: Path, tmp_path: Path) -> None:
    config = config_of(corpus, "scratch:tiny", tmp_path / "run", max_steps=2)
    result = train_text(TextRunConfig(**{**vars(config), "vocab_size": 120}), progress=False)
    assert pipeline("fill-mask", model=str(result.folder / "model"))("river [MASK] cloud")
    assert evaluate_run(result.folder).difference is not None


def test_paragraphs_and_an_own_held_out_file(corpus: Path, model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("\n\n".join(lines(9, seed=8)), "utf-8")
    config = config_of(corpus, model, tmp_path / "run", max_steps=1)
    config = TextRunConfig(
        **{
            **vars(config),
            "eval_data": (str(own),),
            "reading": CorpusConfig(unit="paragraph"),
        }
    )
    result = train_text(config, progress=False)
    assert result.after.examples == 9


def test_what_is_held_out_is_not_trained_on(corpus: Path, model: Path, tmp_path: Path) -> None:
    # Words in any order: lines of a pattern would be near-copies of each other.
    generator = np.random.default_rng(0)
    words = sorted({word for line in lines(150) for word in line.split()})
    texts = [" ".join(generator.choice(words, 12)) for _ in range(150)]
    corpus.write_text("\n".join(texts), "utf-8")
    own = tmp_path / "own.txt"
    own.write_text("\n".join(text.upper() for text in texts[:20]), "utf-8")
    settings = vars(config_of(corpus, model, tmp_path / "run"))
    run = TextRun(TextRunConfig(**{**settings, "eval_data": (str(own),)}), progress=False)
    held = set(run.held_out.store.ids.tolist())
    trained = {i for b in run.train.in_order() for i in b.example_ids.tolist()}
    assert len(held) == 20
    assert len(trained) == 130
    assert not held & trained
    with pytest.raises(DataError, match="nothing is left"):
        TextRun(TextRunConfig(**{**settings, "eval_data": (str(corpus),)}), progress=False)


def bad(corpus: Path, model: Path, tmp_path: Path) -> dict[str, tuple[TextRunConfig, type, str]]:
    good = vars(config_of(corpus, model, tmp_path / "run"))
    one = tmp_path / "one.txt"
    one.write_text("only one example", "utf-8")
    no_mask = tmp_path / "no-mask"
    no_mask.mkdir()
    (no_mask / "x").write_text("")
    return {
        "positions": (TextRunConfig(**{**good, "max_length": 33}), ConfigError, "32 positions"),
        "budget": (
            TextRunConfig(**{**good, "training": TrainingConfig(batch_tokens=4)}),
            ConfigError,
            "batch-tokens",
        ),
        "one example": (
            TextRunConfig(**{**good, "corpus": (str(one),)}),
            DataError,
            "held out",
        ),
        "folder without a model": (
            TextRunConfig(**{**good, "model": str(no_mask)}),
            ModelError,
            "no config.json",
        ),
        "size": (TextRunConfig(**{**good, "model": "scratch:giant"}), ModelError, "no size"),
        "hub": (TextRunConfig(**{**good, "model": "a/b"}), ModelError, "model hub"),
    }


@pytest.mark.parametrize(
    "case", ["positions", "budget", "one example", "folder without a model", "size", "hub"]
)
def test_bad_settings_say_what_to_do_and_leave_no_folder(
    case: str, corpus: Path, model: Path, tmp_path: Path
) -> None:
    config, kind, message = bad(corpus, model, tmp_path)[case]
    with pytest.raises(MaskeryError, match=message) as caught:
        train_text(config, progress=False)
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_forced_packing_of_a_family_that_cannot(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskery.models.layout.PACKABLE", frozenset())
    config = config_of(corpus, model, tmp_path / "run", max_steps=1)
    with pytest.raises(ModelError, match="--layout padded"):
        train_text(TextRunConfig(**{**vars(config), "layout": "packed"}), progress=False)
    assert train_text(config, progress=False).summary.steps == 1  # auto falls back


def test_attention_dropout_on_a_gpu_is_padded_or_refused(
    corpus: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = load_masked_lm(str(model))
    settings = vars(config_of(corpus, model, tmp_path / "run"))
    wanted = TextRunConfig(**{**settings, "attention_dropout": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_layout(wanted, loaded) == "padded"
    forced = TextRunConfig(**{**vars(wanted), "layout": "packed"})
    with pytest.raises(ConfigError, match="do not go together"):
        choose_layout(forced, loaded)
    assert choose_layout(TextRunConfig(**settings), loaded) == "packed"


def test_rows_of_a_group_are_held_out_together(model: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "by": {"author": n % 12}} for n, text in enumerate(lines(150))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    config = config_of(path, model, tmp_path / "run", max_steps=1)
    grouped = replace(config, group_column="by.author", held_out_share=0.3)
    run = TextRun(grouped, progress=False)
    sides = [
        {int(n) % 12 for n in source.windows.documents}  # type: ignore[union-attr]
        for source in (run.train, run.held_out)
    ]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert json.loads(run.identity)["group_column"] == "by.author"
    assert "group_column" not in json.loads(TextRun(config, progress=False).identity)
    for wrong, told in (
        ({"group_column": ""}, "--group-column is empty"),
        ({"group_column": "a", "eval_data": (str(path),)}, "and --eval-data do not go together"),
    ):
        with pytest.raises(ConfigError, match=told):
            replace(config, **wrong)  # type: ignore[arg-type]
