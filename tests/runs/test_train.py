"""`maskery.train`: paths, texts and objects, settings as keywords, runs repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from tiny_text import lines, save_tiny_model

import maskery
from maskery.core.errors import ConfigError, MaskeryError
from maskery.runs.frame.config_file import open_run
from maskery.runs.text.config import TextRunConfig

FEW: dict[str, Any] = {
    "max_steps": 2,
    "batch_tokens": 128,
    "unit": "line",
    "progress": False,
    "report": False,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_tiny_model(tmp_path / "model"))


def test_paths_and_texts_give_the_same_run(tmp_path: Path, model: str) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(40)))
    by_path = maskery.train("corpus.txt", model, output="by-path", mask_rate=0.3, **FEW)
    config = open_run("by-path").config
    assert (config.masking.mask_rate, config.training.max_steps) == (0.3, 2)
    assert config.reading.unit == "line"
    texts = lines(40)
    for data in (texts, Dataset.from_dict({"text": texts}), [tmp_path / "corpus.txt"]):
        result = maskery.train(data, Path(model), mask_rate=0.3, **FEW)
        assert result.after == by_path.after
        assert result.folder != by_path.folder


def test_a_run_from_python_ends_with_its_report(tmp_path: Path, model: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    (tmp_path / "corpus.txt").write_text("\n".join(lines(40)))
    wanted = {**FEW, "report": True}
    read = maskery.train("corpus.txt", model, **wanted).folder
    assert "One word hidden".lower() in (read / "report.html").read_text().lower()
    # Texts of a program are not there again.
    given = maskery.train(lines(40), model, **wanted).folder
    assert "Did it get better?" in (given / "report.html").read_text()
    assert not (given / "samples.json").exists()
    assert not (maskery.train("corpus.txt", model, **FEW).folder / "report.html").exists()


def test_a_run_is_repeated_from_its_file_and_from_its_configuration(
    tmp_path: Path, model: str
) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(40)))
    first = maskery.train(TextRunConfig(corpus=("corpus.txt",), model=model), **FEW)
    again = maskery.train(str(first.folder / "config.yaml"), progress=False, report=False)
    assert again.folder == first.folder.with_name(f"{first.folder.name}-2")
    assert again.after == first.after
    other = maskery.train(first.folder / "config.yaml", max_steps=1, progress=False, report=False)
    assert other.summary.steps == 1


def test_objects_of_ones_own_take_part(tmp_path: Path, model: str) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    class Every:
        def select(self, batch: Any, maskable: Any, rate: float, draws: Any) -> maskery.Selection:
            return maskery.Selection(selected=maskable)

    class Steps(maskery.Callback):
        seen: ClassVar[list[int]] = []

        def on_step(self, step: int, figures: Any) -> None:
            self.seen.append(step)

    loaded = AutoModelForMaskedLM.from_pretrained(model)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    result = maskery.train(
        lines(40),
        loaded,
        tokenizer=AutoTokenizer.from_pretrained(model),
        policy=Every(),
        eval_data=lines(50)[40:],
        callbacks=[Steps()],
        **FEW,
    )
    assert Steps.seen == [1, 2]
    assert any(not torch.equal(before[n], t) for n, t in loaded.state_dict().items())
    assert result.folder == Path("runs") / f"texts-{type(loaded).__name__}"
    written = (result.folder / "config.yaml").read_text()
    assert "<texts>" in written
    assert "<Every>" in written
    assert json.loads((result.folder / "evaluation.json").read_text())["training"]["steps"] == 2
    with pytest.raises(MaskeryError) as caught:
        maskery.train(result.folder / "config.yaml", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "a.txt", "mask_rat": 0.3}, "no setting 'mask_rat' in TextRunConfig"),
        ({"data": 3}, "no text in int"),
        ({"data": ["a"], "eval_data": {"b": ["a river " * 99]}}, "eval_data by name takes paths"),
        ({"data": ["a"], "model": torch.nn.Linear(1, 1)}, "comes without a tokenizer"),
        ({"data": ["a"], "mask_rate": 2.0}, "mask_rate"),
    ],
)
def test_mistakes_are_one_line_each(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        maskery.train(**arguments, progress=False)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()
