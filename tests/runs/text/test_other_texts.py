"""Other held-out texts by name: a row and a curve each, beside the one that decides."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_text import WORDS, lines, save_tiny_model

from maskery.cli import train as command
from maskery.cli.main import gathered, parse
from maskery.core.errors import CheckpointError, ConfigError
from maskery.core.system import read_metrics
from maskery.data.corpus.config import StreamingConfig
from maskery.evaluation.intervals import Interval, judge
from maskery.evaluation.text import masked
from maskery.evaluation.text.masked import ExampleSums, compare
from maskery.report.page import write_report
from maskery.runs.shortcuts import train
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
from maskery.runs.text.run import TextResult, train_text
from maskery.training.config import TrainingConfig


def write(folder: Path, name: str, seed: int, num: int = 80) -> Path:
    generator = np.random.default_rng(seed)
    path = folder / f"{name}.txt"
    path.write_text("\n".join(" ".join(generator.choice(WORDS, 12)) for _ in range(num)), "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    save_tiny_model(folder / "model")
    for seed, name in enumerate(("corpus", "general", "news")):
        write(folder, name, seed)
    return folder


def config_of(folder: Path, run: str, *eval_data: str) -> TextRunConfig:
    return TextRunConfig(
        corpus=(str(folder / "corpus.txt"),),
        model=str(folder / "model"),
        output=folder / run,
        held_out_share=0.3,
        eval_data=eval_data,
        training=TrainingConfig(epochs=3, max_steps=6, batch_tokens=256, eval_every=2),
    )


@pytest.fixture(scope="module")
def result(folder: Path) -> TextResult:
    named = (f"general={folder / 'general.txt'}", f"news={folder / 'news.txt'}")
    return train_text(config_of(folder, "run", *named), progress=False)


def test_each_has_its_own_figures_and_the_split_decides(result: TextResult, folder: Path) -> None:
    alone = train_text(config_of(folder, "alone"), progress=False)
    assert (alone.before, alone.after) == (result.before, result.after)
    assert alone.others == {}
    assert list(result.others) == ["general", "news"]
    for name, measured in result.others.items():
        sums = [
            ExampleSums.read(result.folder / f"{when}-{name}.safetensors")[0]
            for when in ("before", "held_out")
        ]
        assert measured.difference == compare(sums[1], sums[0])
        assert measured.after.examples == 80
    lines_of = [r for r in read_metrics(result.folder / "metrics.jsonl") if r["kind"] == "held_out"]
    assert [row["step"] for row in lines_of] == [0, 2, 4, 6]
    assert next(iter(lines_of[0].keys() - {"kind", "step"} & {"loss"}))
    assert lines_of[-1]["news_loss"] == pytest.approx(result.others["news"].after.loss.value)
    saved = json.loads((result.folder / "evaluation.json").read_text("utf-8"))
    assert saved["others"]["general"]["after"]["examples"] == 80


def test_terminal_card_and_report_have_a_row_and_a_curve_each(result: TextResult) -> None:
    printed = command.describe("text", result)
    for name in ("general", "news"):
        assert re.search(rf"^{name}: loss \(nats\) +\d", printed, re.MULTILINE)
        assert re.search(rf"^{name}: [\d,]+ masked tokens of 80 examples", printed, re.MULTILINE)
        assert f"of {name}: " in str(result.verdict)
    card = (result.folder / "model" / "README.md").read_text("utf-8")
    assert "| general: loss (nats) | " in card
    page = write_report(result.folder).read_text("utf-8")
    assert "Was other text forgotten?" in page
    # Once in the legend of the losses, once in that of the accuracies.
    assert len(re.findall(r">\s*news\s*<", page)) >= 2


def test_a_resumed_run_has_the_same(result: TextResult, folder: Path) -> None:
    named = (f"general={folder / 'general.txt'}", f"news={folder / 'news.txt'}")
    again = train_text(replace(config_of(folder, "run", *named), resume="auto"), progress=False)
    assert again.summary.resumed_from == again.summary.steps
    assert again.others == result.others


def test_text_without_a_name_decides_and_copies_of_any_are_not_trained_on(folder: Path) -> None:
    texts = (folder / "corpus.txt").read_text("utf-8").split("\n")
    general, own = folder / "copied.txt", folder / "own.txt"
    general.write_text("\n".join([*(t.upper() for t in texts[:5]), *lines(9)]), "utf-8")
    own.write_text("\n".join([*texts[5:8], *lines(9, seed=3)]), "utf-8")
    run = TextRun(config_of(folder, "x", str(own), f"copied={general}"), progress=False)
    assert run.held_out.store.num_documents == 12
    assert set(np.unique(run.train.windows.documents)) == set(range(8, 80))  # type: ignore[union-attr]
    split = TextRun(config_of(folder, "x", f"copied={general}"), progress=False)
    documents = (source.windows.documents for source in (split.train, split.held_out))  # type: ignore[union-attr]
    trained, held = map(set, documents)
    assert trained | held | set(range(5)) == set(range(80))
    assert not trained & set(range(5))


def test_python_takes_them_by_name(folder: Path) -> None:
    found = train(
        folder / "corpus.txt",
        model=folder / "model",
        eval_data={"general": folder / "general.txt"},
        output=folder / "python",
        max_steps=1,
        progress=False,
    )
    assert list(found.others) == ["general"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("a=x.txt", "a=y.txt"), "--eval-data gives the name 'a' twice"),
        (("a=x.txt", "b=x.txt"), "--eval-data gives the path 'x.txt' twice"),
        (("a=",), "--eval-data NAME= names no file"),
        (("x.txt", "a=x.txt"), "--eval-data gives the path 'x.txt' twice"),
    ],
)
def test_a_name_or_a_path_given_twice_is_one_line(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        TextRunConfig(corpus=("corpus.txt",), eval_data=given)
    assert "\n" not in str(caught.value)


def test_the_flag_may_be_given_several_times(tmp_path: Path) -> None:
    words = [
        "corpus.txt",
        "--eval-data",
        "a=1",
        "b.txt",
        "--epochs",
        "2",
        "--eval-data",
        "c=3",
        "--eval-data=d=4",
    ]
    config = parse(TextRunConfig, "train text", words)
    assert config.eval_data == ("a=1", "b.txt", "c=3", "d=4")
    assert config.epochs == 2 if hasattr(config, "epochs") else config.training.epochs == 2
    assert config.deciding_data == ("b.txt",)
    assert gathered(["x", "--eval-data", "a", "y"]) == ["x", "--eval-data", "a", "y"]
    # So may columns, after the corpus
    words = ["x.jsonl", "--text-column", "title", "note.body", "--join", r"\t"]
    assert parse(TextRunConfig, "train text", words).reading.text_column == "title,note.body"
    words = ["--text-column", "body", "x.jsonl"]
    config = parse(TextRunConfig, "train text", words)
    assert (config.reading.text_column, config.corpus) == ("body", ("x.jsonl",))
    # A folder may be called so.
    (tmp_path / "year=2020").mkdir()
    there = TextRunConfig(corpus=("c.txt",), eval_data=(str(tmp_path / "year=2020"),))
    assert there.other_data == {}


def test_forgetting_is_said(folder: Path) -> None:
    better, worse = Interval(-0.5, -0.6, -0.4), Interval(0.5, 0.4, 0.6)
    said = str(judge(better, None, others={"general": worse, "news": better}))
    assert said.startswith("filling words: better; of general: worse; of news: better. ")
    assert said.endswith("It forgets general: lower --learning-rate, or train on such text, too.")
    assert "forgets" not in str(judge(better, None, others={"news": better}))


def test_no_more_is_scored_than_asked_for(folder: Path) -> None:
    config = config_of(folder, "capped", f"general={folder / 'general.txt'}")
    capped = replace(config, streaming=StreamingConfig(held_out_tokens=100))
    run = TextRun(capped, progress=False)
    for source in (run.held_out, *run.others.values()):
        assert 50 < source.store.lengths()[source.windows.documents].sum() <= 100
    assert "held-out examples (a sample: --held-out-tokens)" in run.about
    assert json.loads(run.identity)["held_out_tokens"] == 100
    whole = TextRun(config, progress=False)
    assert "held_out_tokens" not in json.loads(whole.identity)
    # What is not scored is not trained on either.
    assert run.train.lengths.tolist() == whole.train.lengths.tolist()
    result = train_text(capped, progress=False)
    assert result.after.examples == len(run.held_out.windows.documents)
    resumed = train_text(replace(capped, resume="auto"), progress=False)
    assert (resumed.before, resumed.others) == (result.before, result.others)
    with pytest.raises(CheckpointError, match="held_out_tokens is not set here and 100 in the run"):
        train_text(replace(config, resume="auto"), progress=False)


def test_scoring_that_takes_long_shows_how_far_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(masked, "BAR_AFTER", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run = TextRun(config_of(folder, "x"), progress=True)
    run.score()
    assert re.search(r"scoring: .*tok/s", capsys.readouterr().err)
