"""The report of real runs, and of runs whose every word tries to break out of the page."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from maskery.cli.main import main
from maskery.core.errors import CheckpointError, MissingExtraError
from maskery.evaluation.tables import figure, run_tables
from maskery.report.page import percent, write_report
from maskery.runs import shortcuts

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """What a page consists of: its tags with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []  # What is loaded
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [
            v or "" for name, v in attributes if name in ("src", "href") and tag != "a"
        ]
        self.links += [v or "" for name, v in attributes if name == "href" and tag == "a"]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_every_run_ends_with_a_report(text_run: Path) -> None:
    page = Page(text_run / "report.html")
    evaluation = json.loads((text_run / "evaluation.json").read_text())
    assert f"{evaluation['before']['loss'][0]:.3f}" in page.text
    assert f"{evaluation['difference']['loss'][0]:+.3f}" in page.text
    samples = json.loads((text_run / "samples.json").read_text())
    for fill in samples["fills"]:
        assert fill["word"] in page.text
    for word in samples["improved"]:
        assert f"{word['after']:.2f}" in page.text
    assert "batch_tokens: 256" in page.text
    assert samples["environment"]["torch"] in page.text
    assert page.tags.count("svg") >= 4


def test_the_page_asks_for_nothing_outside_itself(text_run: Path) -> None:
    page = Page(text_run / "report.html")
    assert page.sources == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    text = (text_run / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert page.links == ["figures.csv", "curves.png", "words.csv"]
    assert all((text_run / name).is_file() for name in page.links)


def test_the_verdict_stands_first_and_then_what_was_trained_on_what(
    text_run: Path, pairs_run: Path, person_run: Path
) -> None:
    verdict = json.loads((text_run / "evaluation.json").read_text())["verdict"]
    opening = f"run Verdict. {verdict[0].upper()}{verdict[1:]} model model corpus corpus.txt"
    assert f"{opening} policy token rate 15.0%" in Page(text_run / "report.html").text
    pairs = Page(pairs_run / "report.html").text
    change = json.loads((pairs_run / "evaluation.json").read_text())["difference"]["wrong"]["loss"]
    assert re.search(rf"run Verdict\. [^.]*changes by {re.escape(f'{change[0]:+.3f}')} nats", pairs)
    found = json.loads((person_run / "evaluation.json").read_text())["test"]["reranked"]["r1"][0]
    text = Page(person_run / "report.html").text
    assert (
        f"run Verdict. The picture found first shows the right person for {100 * found:.1f}%"
        in text
    )
    assert "corpus cuhk policy word rate" in text


def test_every_figure_is_explained_where_it_stands(text_run: Path, person_run: Path) -> None:
    page = Page(text_run / "report.html")
    evaluation = json.loads((text_run / "evaluation.json").read_text())
    assert f"A perplexity of {evaluation['after']['perplexity'][0]:.3f}" in page.text
    for term in ("Loss, in nats", "Top-1 and top-5", "The small numbers", "Difference"):
        assert term in page.text
    assert "R@1, R@5, R@10" not in page.text
    text = Page(person_run / "report.html").text
    for term in ("R@1, R@5, R@10", "Mean average precision", "Mean inverse negative penalty"):
        assert term in text
    assert "Loss, in nats" not in text


def test_the_tables_and_the_words_lie_beside_the_page_as_csv(tmp_path: Path) -> None:
    def scores(loss: float, perplexity: float, top1: float) -> dict[str, object]:
        found = {"loss": loss, "perplexity": perplexity, "top1": top1, "top5": 0.5}
        known = {name: [value, 0.9 * value, 1.1 * value] for name, value in found.items()}
        return {**known, "masked_tokens": 900, "examples": 40}

    evaluation = {
        "before": scores(7.2958, 1474.15, 0.125),
        "after": scores(6.0, 403.43, 0.25),
        "difference": {"loss": [-1.2958, -1.5, -1.0], "top1": [0.125, None, None]},
    }
    words = [
        {"word": 'a "b", c', "count": 9, "before": -3, "after": -1.5, "change": [1.5, 1.25, 1.75]},
        {"word": "few", "count": 5, "before": -2, "after": -1, "change": [1, None, None]},
        {"word": "of an older run", "count": 5, "before": -2, "after": -3},
    ]
    samples = {"improved": words[:2], "worsened": words[2:], "masked_words": 19}
    (tmp_path / "config.yaml").write_text("model: minilm\n")
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    page = Page(write_report(tmp_path))
    assert page.links == ["figures.csv", "words.csv"]
    with (tmp_path / "figures.csv").open(newline="") as file:
        rows = {(one["figure"], one["column"]): one for one in csv.DictReader(file)}
    ends = ("value", "low", "high")
    assert [rows["loss (nats)", "difference"][end] for end in ends] == [
        "-1.296",
        "-1.500",
        "-1.000",
    ]
    assert [rows["perplexity", "before"][end] for end in ends] == ["1474.2", "1326.7", "1621.6"]
    found = rows["top-1", "difference"]
    assert [found[name] for name in (*ends, "unit")] == ["+12.5", "", "", "%"]
    with (tmp_path / "words.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [one["word"] for one in written] == [one["word"] for one in words]
    changes = [(one["masked"], one["change"], one["low"], one["high"]) for one in written]
    assert changes == [("9", "1.5", "1.25", "1.75"), ("5", "1", "", ""), ("5", "-1", "", "")]
    assert "+1.500 +1.250 to +1.750" in page.text


def test_a_single_point_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: minilm\n")
    lines = [
        {"kind": "held_out", "step": 0, "top1": 0.125},
        {"kind": "train", "step": 10, "loss": 5.5, "learning_rate": 1e-4},
        {"kind": "train", "step": 20, "loss": 5.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = write_report(tmp_path).read_text()
    assert text.count("<svg") == 1
    page = Page(tmp_path / "report.html")
    assert "Held-out accuracy: top-1 12.5% at step 0" in page.text
    assert "Learning rate: training 0.0001 at step 10" in page.text
    # Under the mouse, and for who hears the page.
    assert "training: 5.25 at step 20" in page.text
    assert 'aria-label="Loss (nats): training 5.5 at step 10, 5.25 at step 20"' in text


def test_the_curves_are_also_a_picture(text_run: Path) -> None:
    with Image.open(text_run / "curves.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors(256) or []) > 10


def test_the_report_can_be_drawn_again(text_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (text_run / "report.html").read_text()
    (text_run / "report.html").unlink()
    assert main(["report", str(text_run)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (text_run / "report.html").read_text() == before


def test_a_run_whose_corpus_is_gone_has_a_report_without_samples(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(text_run, tmp_path / "run")
    (run / "samples.json").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "corpus": ["gone.txt"]}))
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "the report has no samples: gone.txt does not exist" in capsys.readouterr().err
    assert "held out" in Page(run / "report.html").text
    assert main(["report", str(run), "--resample"]) == 2


def test_an_image_text_run_shows_its_pictures(pairs_run: Path) -> None:
    page = Page(pairs_run / "report.html")
    samples = json.loads((pairs_run / "samples.json").read_text())
    assert len(samples["pictures"]) >= 2
    assert len(page.sources) == 2 * len(samples["pictures"])
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for fill in samples["pictures"]:
        assert fill["word"] in page.text
    assert "right picture" in page.text


def test_a_person_search_run_shows_its_retrieval_figures(person_run: Path) -> None:
    run = person_run
    page = Page(run / "report.html")
    found = json.loads((run / "evaluation.json").read_text())
    for split, heading in (("test", "test split"), ("val", "validation")):
        assert heading in page.text
        for ranking in ("contrastive", "reranked", "image_to_text"):
            for value in found[split][ranking].values():
                assert f"{100 * value[0]:.1f}%" in page.text
    assert f"after step {found['best_step']}, the best" in page.text
    assert "Other held-out figures" not in page.text
    for title in ("Held-out R@1", "Held-out mINP", "Matching loss (ITM)"):
        assert title in page.text
    assert "Masked-word loss" not in page.text  # the preset leaves it out
    assert "weak_pair_probability" in page.text
    samples = json.loads((run / "samples.json").read_text())
    worst = [search["rank"] for search in samples["worst"]]
    lines = (run / "ranks.jsonl").read_text("utf-8").splitlines()
    known = sorted((json.loads(line)["rank"] for line in lines), reverse=True)
    assert worst == [rank for rank in known[:5] if rank > 1]
    assert all(f"first right picture: number {rank}" in page.text for rank in worst)
    searches = samples["searches"] + samples["worst"]
    pictures = [found["picture"] for search in searches for found in search["found"]]
    assert page.sources == pictures
    assert all(search["caption"] in page.text for search in searches)
    assert any(found["right"] for search in searches for found in search["found"])


def test_nothing_that_comes_from_data_becomes_markup(tmp_path: Path) -> None:
    run = tmp_path / "run <script>alert(0)<"
    run.mkdir()
    (run / "config.yaml").write_text(f"corpus: {HOSTILE}")
    guess = {"token": HOSTILE, "probability": 0.5}
    fill = {
        "left": HOSTILE,
        "word": HOSTILE,
        "right": HOSTILE,
        "before": [guess],
        "after": [guess],
        "probability_before": 0.1,
        "probability_after": 0.2,
    }
    change = {"word": HOSTILE, "count": 1, "before": -1.0, "after": -2.0}
    samples = {
        "fills": [fill],
        "improved": [change],
        "worsened": [],
        "masked_words": 1,
        "environment": {HOSTILE: HOSTILE},
        "searches": [{"caption": HOSTILE, "found": []}],
    }
    (run / "samples.json").write_text(json.dumps(samples))
    metrics = {"kind": "train", "step": 1, "loss": 1.0, HOSTILE: 2.0}
    (run / "metrics.jsonl").write_text(json.dumps(metrics))
    (run / "evaluation.json").write_text(json.dumps({"skipped": [HOSTILE], "x": {HOSTILE: 1.5}}))
    page = Page(write_report(run))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.handlers == []
    assert page.text.count("onerror=alert(2)") >= 8


def test_a_run_that_is_still_going_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: minilm\n")
    assert "not finished" in Page(write_report(tmp_path)).text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no run folder"),
        ({"config.yaml": "a: 1", "evaluation.json": "{"}, "is no JSON"),
        ({"config.yaml": "a: 1", "samples.json": "[]"}, "is no JSON object; .* it is made again"),
        ({"config.yaml": "a: 1", "evaluation.json": "[]"}, "object; .*config.yaml --resume auto"),
        ({"config.yaml": "a: 1", "evaluation.json": '{"before": 5, "after": 6}'}, "not hold what"),
        ({"config.yaml": "a: [1"}, "is no YAML"),
    ],
)
def test_folders_without_a_report(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        write_report(tmp_path)


def test_without_the_extra_a_run_says_so_and_ends_well(
    text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, *, extra: str, purpose: str) -> object:
        raise MissingExtraError(f"{module} is needed to {purpose}; pip install 'maskery[{extra}]'")

    said: list[str] = []
    monkeypatch.setattr(shortcuts.log, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr("maskery.report.page.require", missing)
    shortcuts.finish_report(text_run)
    assert len(said) == 1
    assert "maskery[report]" in said[0]
    assert f"maskery report {text_run}" in said[0]


def test_differences_are_good_or_bad_only_where_their_interval_leaves_out_0() -> None:
    assert figure([-1.0, -2.0, -0.5], share=False, signed=True, lower_is_better=True).better
    assert figure([0.1, 0.05, 0.2], share=True, signed=True).better
    assert figure([-0.1, -0.2, -0.05], share=True, signed=True).better is False
    assert figure([0.1, -0.1, 0.2], share=True, signed=True).better is None
    assert figure([0.5, 0.4, 0.6], share=True).interval == "40.0% to 60.0%".replace("%", "")
    assert run_tables({}) == []


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "50.0%"), (0.0001234, "0.01%"), (1e-6, "<0.01%")]
)
def test_percent(value: float, shown: str) -> None:
    assert percent(value) == shown
