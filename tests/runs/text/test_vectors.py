"""A sentence encoder stays one: its modules, its vectors at step 0, and what a run says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_text import POOLINGS, lines, save_sentence_encoder, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError, DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.evaluation.intervals import Interval, judge
from maskery.evaluation.probe.encode import Encoder
from maskery.models.pooling import Pooling
from maskery.report.page import write_report
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm_config import TextMLMConfig
from maskery.training.config import TrainingConfig
from maskery.training.journal import read_metrics


def config_of(start: Path, folder: Path, **settings: object) -> TextRunConfig:
    corpus = folder / "corpus.txt"
    generator = np.random.default_rng(0)
    words = sorted({word for line in lines(100) for word in line.split()})
    corpus.write_text(
        "\n\n".join(" ".join(generator.choice(words, 16)) for _ in range(80)), "utf-8"
    )
    made = {
        "corpus": (str(corpus),),
        "model": str(start),
        "output": folder / "run",
        "held_out_share": 0.3,
        "reading": CorpusConfig(unit="paragraph"),
        "training": TrainingConfig(epochs=1, max_steps=2, batch_tokens=256, log_every=1),
    }
    return TextRunConfig(**{**made, **settings})


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    """The start, ours, and the model that a run of no effect leaves: one and the same."""
    start = save_sentence_encoder(tmp_path / "start", pooling)
    texts = lines(9, seed=2)
    expected = SentenceTransformer(str(start)).encode(texts)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(Encoder.open(str(start)).encode(texts), expected, atol=1e-5)
    still = TrainingConfig(epochs=1, max_steps=1, batch_tokens=256, learning_rate=1e-12)
    result = train_text(config_of(start, tmp_path, training=still), progress=False)
    left = SentenceTransformer(str(result.folder / "model")).encode(texts)
    np.testing.assert_allclose(left, expected, atol=1e-5)


def test_a_sentence_encoder_is_kept_and_judged_by_default(tmp_path: Path) -> None:
    start = save_sentence_encoder(tmp_path / "start", "mean")
    result = train_text(config_of(start, tmp_path), progress=False)
    rows = read_metrics(result.folder / "metrics.jsonl")
    assert "keep" in next(row for row in rows if row["kind"] == "train")
    assert result.vectors is not None
    assert [figure.name for figure in result.vectors.figures] == ["R@1", "MRR"]
    held_out = [row["probe"] for row in rows if row["kind"] == "held_out"]
    after = result.vectors.figures[0].models["after"].value
    assert held_out[-1] == pytest.approx(after)
    assert str(result.verdict).startswith("filling words: ")
    saved = json.loads((result.folder / "evaluation.json").read_text("utf-8"))
    assert saved["verdict"] == str(result.verdict)


def test_a_plain_encoder_is_not(tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "start", head=False)
    result = train_text(config_of(start, tmp_path), progress=False)
    assert result.vectors is None
    assert result.verdict.vectors is None
    run = TextRun(config_of(start, tmp_path), progress=False)
    assert run.config.objectives.keep_weight == 0.0


def test_labels_of_ones_own_choose_the_best(tmp_path: Path) -> None:
    start = save_sentence_encoder(tmp_path / "start", "mean")
    texts = lines(40, seed=5)
    labels = tmp_path / "labels.tsv"
    rows = [f"{text}\t{n % 2}" for n, text in enumerate(texts)]
    labels.write_text("\n".join(["text\tlabel", *rows]), "utf-8")
    training = TrainingConfig(
        epochs=1, max_steps=3, batch_tokens=256, eval_every=1, best_metric="probe"
    )
    config = config_of(start, tmp_path, probe=labels, training=training)
    result = train_text(config, progress=False)
    assert result.vectors is not None
    assert result.vectors.figures[0].name == "nearest neighbour"
    assert set(result.vectors.figures[0].models) == {"after", "before"}


@pytest.mark.parametrize("value", ["-1", "much", "nan", "inf", "0"])
def test_weights_that_are_none(value: str) -> None:
    with pytest.raises(ConfigError, match=r"must be auto, off or a number above 0"):
        TextMLMConfig(keep_embedding=value)


def test_a_twin_and_a_weight_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match=r"--objective mlm alone"):
        TextMLMConfig(keep_embedding="5", objective="mlm+mrtd")


UP, DOWN, OPEN = Interval(2.0, 1.0, 3.0), Interval(-2.0, -3.0, -1.0), Interval(1.0, -1.0, 3.0)
FEW = Interval(-2.0, float("nan"), float("nan"))


@pytest.mark.parametrize(
    ("loss", "vectors", "said"),
    [
        (DOWN, UP, "filling words: better; vectors: better. Use it."),
        (DOWN, DOWN, "filling words: better; vectors: worse. .*do not embed"),
        (DOWN, OPEN, "vectors: undecided"),
        (DOWN, None, "filling words: better. Probe its vectors"),
        (UP, None, "filling words: worse. No gain: stop"),
        (OPEN, OPEN, "filling words: undecided; vectors: undecided. No gain is shown: run longer"),
        (FEW, None, "filling words: undecided"),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    loss: Interval, vectors: Interval | None, said: str
) -> None:
    assert re.search(said, str(judge(loss, vectors)))


def test_several_modes_are_joined_and_strange_modules_refused(tmp_path: Path) -> None:
    hidden, lengths = torch.arange(12.0).reshape(6, 2), torch.tensor([2, 4])
    pooled = Pooling(modes=("mean", "max", "lasttoken")).pool(hidden, lengths)
    assert pooled[1].tolist() == [7.0, 8.0, 10.0, 11.0, 10.0, 11.0]
    root = Pooling(modes=("mean_sqrt_len_tokens",)).pool(hidden, lengths)
    assert root[1].tolist() == [14.0, 16.0]


def test_report_and_card_say_the_verdict(tmp_path: Path) -> None:
    start = save_sentence_encoder(tmp_path / "start", "mean")
    result = train_text(config_of(start, tmp_path), progress=False)
    page = write_report(result.folder).read_text("utf-8")
    assert "<strong>Verdict.</strong> Filling words: " in page
    assert "Are its vectors still good?" in page
    card = (result.folder / "model" / "README.md").read_text("utf-8")
    assert f"Verdict: {result.verdict}" in card
    assert re.search(r"## Are its vectors still good.\n\n.*\n.*\n\| R@1 \| ", card)


def test_labelled_texts_of_the_corpus_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = save_sentence_encoder(tmp_path / "start", "mean")
    config = config_of(start, tmp_path)
    result = train_text(config, progress=False)
    trained = Path(config.corpus[0]).read_text("utf-8").split("\n\n")[:3]
    texts = [*(text.upper() for text in trained), *lines(9, seed=8)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["text,label", *(f"{t},{n % 2}" for n, t in enumerate(texts))]))
    assert main(["probe", str(result.folder), "--labels", str(labels)]) == 0
    assert "3 of 12 labelled texts stand in the training corpus" in capsys.readouterr().out


def test_labels_that_judge_nothing_are_told_before_there_is_a_folder(tmp_path: Path) -> None:
    start = save_sentence_encoder(tmp_path / "start", "mean")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["text,label", *(f"{t},a" for t in lines(9))]), "utf-8")
    config = config_of(start, tmp_path, probe=labels)
    with pytest.raises(DataError, match="1 class with two texts or more, of 1 in all"):
        train_text(config, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_says_how_many_labelled_texts_it_has_trained_on(tmp_path: Path) -> None:
    start = save_sentence_encoder(tmp_path / "start", "mean")
    config = config_of(start, tmp_path)
    texts = Path(config.corpus[0]).read_text("utf-8").split("\n\n")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["text,label", *(f"{t},{n % 2}" for n, t in enumerate(texts))]))
    result = train_text(config_of(start, tmp_path, probe=labels), progress=False)
    assert result.vectors is not None
    documents = np.unique(TextRun(config, progress=False).train.windows.documents)  # type: ignore[union-attr]
    said = f"{len(documents)} of 80 labelled texts stand in the training corpus"
    assert any(note.startswith(said) for note in result.vectors.notes)
