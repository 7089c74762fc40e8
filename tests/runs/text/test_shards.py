"""A whole text run over token shards: it learns, resumes, and refuses what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.torch import load_file
from shard_folders import contents
from tiny_text import lines, save_tiny_model

from maskery.cli.corpus import Tokenize
from maskery.core.errors import CheckpointError, ConfigError, DataError, ModelError
from maskery.core.system import read_metrics
from maskery.data.corpus.config import ShardingConfig, StreamingConfig
from maskery.data.shards.source import ShardSource
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.evaluate import evaluate_run
from maskery.runs.text.prepare import TextRun
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shards(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("shards")
    (work / "a.txt").write_text("\n".join(lines(300)), "utf-8")
    sharding = ShardingConfig(shard_mb=0.003, held_out_share=0.1, workers=1)
    paths = (str(work / "a.txt"), str(work / "shards"))
    made = Tokenize(paths=paths, model=str(model), sharding=sharding).make(progress=False)
    assert made.manifest is not None
    assert len(made.manifest.shards) > 4
    return made.folder


def config_of(
    shards: Path | str, model: Path | str, output: Path, **training: object
) -> TextRunConfig:
    settings = {"epochs": 2, "batch_tokens": 256, "learning_rate": 3e-3, "log_every": 1, **training}
    return TextRunConfig(
        corpus=(str(shards),),
        model=str(model),
        output=output,
        streaming=StreamingConfig(shuffle_shards=2),
        training=TrainingConfig(**settings),  # type: ignore[arg-type]
    )


def losses(folder: Path) -> list[float]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_a_run_learns_and_is_evaluated_on_what_was_set_aside(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    result = train_text(config_of(shards, model, tmp_path / "run", epochs=8), progress=False)
    assert result.after.loss.value < result.before.loss.value - 0.2
    again = evaluate_run(result.folder)
    assert again.scores["after"].loss.value == pytest.approx(result.after.loss.value, abs=1e-5)


def test_a_run_goes_on_from_its_middle_bit_for_bit(
    shards: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_text(config_of(shards, model, tmp_path / "whole"), progress=False)
    stop = whole.summary.steps // 2 + 1
    config = config_of(shards, model, tmp_path / "part", checkpoint_every=stop)

    class StoppedError(Exception):
        pass

    real = ShardSource.micro_batches

    def stopping(self: ShardSource, epoch: int, step: int, **others: int) -> object:
        if sum(self.num_steps(e) for e in range(epoch)) + step == stop + 2:
            raise StoppedError
        return real(self, epoch, step, **others)

    monkeypatch.setattr(ShardSource, "micro_batches", stopping)
    with pytest.raises(StoppedError):
        train_text(config, progress=False)
    monkeypatch.setattr(ShardSource, "micro_batches", real)
    resumed = train_text(TextRunConfig(**{**vars(config), "resume": "auto"}), progress=False)
    # What could not be read cost no step.
    assert resumed.summary.resumed_from == stop + 2
    assert losses(resumed.folder) == losses(whole.folder)
    one, other = (
        load_file(result.folder / "model" / "model.safetensors") for result in (whole, resumed)
    )
    assert all((one[name] == other[name]).all() for name in one)


def test_the_order_of_shards_and_what_is_measured_may_not_change(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    config = config_of(shards, model, tmp_path / "run", max_steps=1)
    train_text(config, progress=False)
    own = tmp_path / "own.txt"
    own.write_text("\n".join(lines(9, seed=8)), "utf-8")
    for change, told in (
        ({"shuffle_shards": 5}, "shuffle_shards is 5 here and 2 in the run"),
        ({"held_out_tokens": 50}, "held_out_tokens is 50 here and 250000 in the run"),
        ({"eval_data": (str(own),)}, "eval_data_fingerprint is '.*' here and not set in the run"),
    ):
        data = {n: v for n, v in change.items() if n == "eval_data"}
        streaming = {n: v for n, v in change.items() if n != "eval_data"}
        other = replace(
            config,
            resume="auto",
            streaming=replace(config.streaming, **streaming),  # type: ignore[arg-type]
            **data,  # type: ignore[arg-type]
        )
        with pytest.raises(CheckpointError, match=told):
            train_text(other, progress=False)
    kept = replace(config, resume="auto", streaming=replace(config.streaming, cache_shards=1))
    assert train_text(kept, progress=False).summary.resumed_from == 1


def test_an_address_trains_as_the_folder_does(shards: Path, model: Path, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for name, data in contents(shards).items():
        system.pipe(f"/corpus/{name}", data)
    here = train_text(config_of(shards, model, tmp_path / "here", max_steps=4), progress=False)
    there = train_text(
        config_of("memory://corpus", model, tmp_path / "there", max_steps=4), progress=False
    )
    assert losses(there.folder) == losses(here.folder)
    system.rm("/corpus", recursive=True)


def test_a_model_from_scratch_takes_the_tokenizer_of_the_shards(
    shards: Path, tmp_path: Path
) -> None:
    run = TextRun(config_of(shards, "scratch:tiny", tmp_path / "run"), progress=False)
    assert run.loaded.tokenizer.tokenize("river stone 1") == ["river", "stone", "1"]
    assert isinstance(run.train, ShardSource)


def test_another_tokenizer_is_refused(shards: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    other = save_tiny_model(tmp_path / "other")
    vocabulary = BertTokenizer.from_pretrained(other).get_vocab()
    vocabulary["and"], vocabulary["the"] = vocabulary["the"], vocabulary["and"]
    BertTokenizer(vocab=vocabulary).save_pretrained(other)
    with pytest.raises(ModelError, match=r"were made with the tokenizer of .* is another"):
        TextRun(config_of(shards, other, tmp_path / "run"), progress=False)


def test_held_out_text_of_its_own_is_not_trained_on(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_text("\n".join([*lines(300)[:20], *lines(30, seed=9)]), "utf-8")
    config = config_of(shards, model, tmp_path / "run")
    config = TextRunConfig(**{**vars(config), "eval_data": (str(tmp_path / "own.txt"),)})
    run = TextRun(config, progress=False)
    held = np.concatenate([batch.example_ids for batch in run.held_out.in_order()])
    assert len(np.unique(held)) == 50
    read = np.concatenate(
        [
            batch.example_ids  # type: ignore[union-attr]
            for step in range(run.train.num_steps(0))
            for batch in run.train.micro_batches(0, step)
        ]
    )
    assert not np.isin(read, held).any()
    assert len(np.unique(read)) > 200


def test_other_shards_can_be_held_out(shards: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\n".join(lines(60, seed=5)), "utf-8")
    sharding = ShardingConfig(shard_mb=0.001, held_out_share=0.1, workers=1)
    paths = (str(tmp_path / "b.txt"), str(tmp_path / "held"))
    Tokenize(paths=paths, model=str(model), sharding=sharding).make(progress=False)
    config = config_of(shards, model, tmp_path / "run")
    named = {**vars(config), "eval_data": (str(tmp_path / "held"),)}
    run = TextRun(TextRunConfig(**named), progress=False)
    everything = sum(len(batch.example_ids) for batch in run.held_out.in_order())
    assert 40 < everything <= 60
    bounded = TextRunConfig(**named | {"streaming": StreamingConfig(held_out_tokens=1)})
    run = TextRun(bounded, progress=False)
    assert 0 < sum(len(batch.example_ids) for batch in run.held_out.in_order()) < everything


def test_shards_are_named_alone_and_must_be_complete(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    config = config_of(shards, model, tmp_path / "run")
    with pytest.raises(ConfigError, match="is a folder or address of shards, which is named alone"):
        TextRun(TextRunConfig(**{**vars(config), "corpus": (str(shards), "b.txt")}))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="are not complete"):
        train_text(config_of(tmp_path / "begun", model, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_corpus_and_a_folder_must_be_named() -> None:
    with pytest.raises(ConfigError, match="1 path is named: give the files"):
        Tokenize(paths=("a.txt",))
