"""The report of real runs, and of runs whose every word tries to break out of the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tiny_pairs import save_tiny_pairs
from tiny_persons import save_cuhk
from tiny_text import lines, save_tiny_model

from maskery.cli import train as cli_train
from maskery.cli.main import main
from maskery.core.errors import CheckpointError, MissingExtraError
from maskery.evaluation.tables import figure, run_tables
from maskery.report.page import percent, write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """What a page consists of: its tags with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for name, v in attributes if name in ("src", "href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(lines(120)))
    model, run = save_tiny_model(folder / "model"), folder / "run"
    arguments = [corpus, "--model", model, "--output", run, "--epochs", "2", "--cache-dir", folder]
    arguments += ["--batch-tokens", "256", "--log-every", "2", "--held-out-share", "0.2"]
    assert main(["train", "text", *map(str, arguments)]) == 0
    return run


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


def test_an_image_text_run_shows_its_pictures(tmp_path: Path) -> None:
    pairs, run = save_tiny_pairs(tmp_path / "pairs"), tmp_path / "run"
    arguments = ["train", "pairs", pairs, "--output", run, "--max-steps", "2", "--batch-pairs", "4"]
    arguments += ["--held-out-share", "0.3", "--height", "16", "--width", "16"]
    assert main(list(map(str, arguments))) == 0
    page = Page(run / "report.html")
    samples = json.loads((run / "samples.json").read_text())
    assert len(samples["pictures"]) >= 2
    assert len(page.sources) == 2 * len(samples["pictures"])
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for fill in samples["pictures"]:
        assert fill["word"] in page.text
    assert "right picture" in page.text


def test_a_person_search_run_shows_its_retrieval_figures(tmp_path: Path) -> None:
    root, run = save_cuhk(tmp_path / "cuhk"), tmp_path / "run"
    arguments = ["train", "person-search", "--dataset", "cuhk-pedes", "--root", root]
    arguments += ["--output", run, "--max-steps", "2", "--batch-pairs", "4", "--rerank", "4"]
    assert main([*map(str, arguments), "--height", "16", "--width", "16"]) == 0
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
    searches = json.loads((run / "samples.json").read_text())["searches"]
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
        ({"config.yaml": "a: 1", "samples.json": "[]"}, "is no JSON object"),
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
    monkeypatch.setattr(cli_train.log, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr("maskery.report.page.require", missing)
    cli_train.finish_report(text_run)
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
