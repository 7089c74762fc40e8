from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_image_text import new_image_text, save_tiny_image_text
from tiny_pairs import save_tiny_pairs
from tiny_persons import save_cuhk

from maskery.cli.main import main
from maskery.core.errors import ConfigError, ModelError
from maskery.evaluation.model_retrieval import FILE, ModelRetrieval, read_model_retrieval
from maskery.recipes.model_retrieval import (
    is_person_search_run,
    known_retrieval,
    open_for_retrieval,
)
from maskery.recipes.person_search_config import PersonSearchRunConfig
from maskery.recipes.retrieval_evaluate import Asked, evaluate_retrieval_models, spread_of
from maskery.recipes.run_folder import load_config

FEW = ["--max-steps", "2", "--batch-pairs", "4", "--height", "16", "--width", "16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("persons")
    root = save_cuhk(folder / "cuhk")
    made = []
    for seed in ("0", "1"):
        output = str(folder / f"run-{seed}")
        arguments = ["--dataset", "cuhk-pedes", "--root", str(root), "--output", output]
        arguments += [*FEW, "--rerank", "4", "--seed", seed, "--json"]
        assert main(["train", "person-search", *arguments]) == 0
        made.append(output)
    return made


def test_a_run_gives_what_training_found(runs: list[str]) -> None:
    assert is_person_search_run(Path(runs[0]))
    found = evaluate_retrieval_models(runs[:1])
    written = json.loads((Path(runs[0]) / "evaluation.json").read_text())
    again = json.loads(json.dumps(found.to_json()))["figures"][runs[0]]
    assert again == written["test"]
    assert found.spread is None
    val = evaluate_retrieval_models(runs[:1], split="val").figures[runs[0]]
    assert val.reranked is not None
    assert json.loads(json.dumps(asdict(val.reranked))) == written["val"]["reranked"]


def test_mean_and_spread_of_several(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate_retrieval_models(runs, asked=Asked(rerank=3))
    values = [figures.contrastive.map.value for figures in found.figures.values()]
    assert found.spread is not None
    spread = found.spread["contrastive"]["map"]
    assert spread.mean == pytest.approx(statistics.fmean(values))
    assert spread.deviation == pytest.approx(statistics.stdev(values))
    assert {figures.rerank for figures in found.figures.values()} == {3}
    assert main(["evaluate", *runs]) == 0
    printed = capsys.readouterr().out
    assert "mean of 2 runs" in printed
    assert printed.count("mINP") == 3
    without = evaluate_retrieval_models(runs[:1], asked=Asked(rerank=0)).figures[runs[0]]
    assert without.reranked is None
    mixed = spread_of([*found.figures.values(), without])
    assert mixed is not None
    assert list(mixed) == ["contrastive"]


@pytest.fixture(scope="module")
def odd(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose settings of retrieval all differ from the usual ones."""
    folder = tmp_path_factory.mktemp("odd") / "run"
    arguments = ["--config", f"{runs[0]}/config.yaml", "--output", str(folder), "--json"]
    arguments += ["--max-length", "9", "--max-words", "8", "--score", "sum", "--odds-weight", "0.3"]
    assert main(["train", *arguments]) == 0
    return folder


def as_pairs(run: Path) -> str:
    """The annotations of a run's dataset as pairs, captions as they were written."""
    root = load_config(run / "config.yaml", PersonSearchRunConfig).data.root
    path = root / "imgs" / "pairs.jsonl"
    with path.open("w") as file:
        for row in json.loads((root / "reid_raw.json").read_text()):
            pair = {
                "image": row["file_path"],
                "caption": row["captions"],
                "person": row["id"],
            }
            file.write(json.dumps(pair) + "\n")
    return str(path)


def test_a_model_is_measured_alike_wherever_it_lies(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = as_pairs(odd)
    copied = tmp_path / "copied"
    shutil.copytree(odd / "model", copied)
    names = [str(odd), str(odd / "model"), str(copied)]
    run, inside, copy = evaluate_retrieval_models(names, data=data).figures.values()
    assert run == inside == copy
    assert run.rerank == 4
    # What the run was set to makes a difference, so that equality says something.
    for asked in (Asked(score="matching"), Asked(clean_captions=False), Asked(rerank=0)):
        found = evaluate_retrieval_models([names[2]], data=data, asked=asked)
        assert found.figures[names[2]] != copy
    # It cannot fill words, so nothing else is meant.
    assert main(["evaluate", str(copied), "--data", data, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["figures"][str(copied)]
    assert printed == json.loads(json.dumps(asdict(copy)))


def test_a_model_says_how_it_is_asked(odd: Path, runs: list[str], tmp_path: Path) -> None:
    expected = ModelRetrieval(
        clean_captions=True,
        max_words=8,
        max_length=9,
        rerank=4,
        score="sum",
        odds_weight=0.3,
        trained=("itc", "itm"),
    )
    assert read_model_retrieval(str(odd)) == read_model_retrieval(str(odd / "model")) == expected
    assert open_for_retrieval(str(odd)).retrieval == expected
    # A model from before there was the file is told by the run that it lies in.
    old = tmp_path / "old"
    shutil.copytree(odd, old)
    (old / "model" / FILE).unlink()
    for name in (old, old / "model"):
        assert open_for_retrieval(str(name)).retrieval == expected
    alone = tmp_path / "alone"
    shutil.copytree(old / "model", alone)
    assert known_retrieval(str(alone)) is None
    assert open_for_retrieval(str(alone)).retrieval.prepare("A Man, in RED!") == "A Man, in RED!"


def test_a_model_of_step_0_counts_as_trained(odd: Path, tmp_path: Path) -> None:
    """No loss has moved its biases, and yet the run had the contrastive loss."""
    model = new_image_text(contrast=False, match=False)
    folder = save_tiny_image_text(tmp_path / "model", model)
    data = str(save_tiny_pairs(tmp_path / "data", 6))
    shutil.copy(odd / "model" / FILE, folder)
    found = evaluate_retrieval_models([str(folder)], data=data).figures[str(folder)]
    assert found.reranked is not None


def test_a_model_folder_on_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_tiny_image_text(tmp_path / "model"))
    data = str(save_tiny_pairs(tmp_path / "data", 12, persons=True))
    assert main(["evaluate", model, "--data", data, "--rerank", "5", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"][model]
    assert (figures["num_texts"], figures["num_images"], figures["rerank"]) == (24, 12, 5)
    untrained = save_tiny_image_text(tmp_path / "other", new_image_text(match=False))
    found = evaluate_retrieval_models([str(untrained)], data=data)
    assert found.figures[str(untrained)].reranked is None


def test_mistakes_are_one_line_each(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        evaluate_retrieval_models([runs[0], runs[0]])
    model = str(save_tiny_image_text(tmp_path / "model"))
    with pytest.raises(ConfigError, match="--data PAIRS"):
        evaluate_retrieval_models([model])
    mute = str(save_tiny_image_text(tmp_path / "mute", new_image_text(contrast=False)))
    data = str(save_tiny_pairs(tmp_path / "data", 4))
    with pytest.raises(ModelError, match="were never trained"):
        evaluate_retrieval_models([mute], data=data)
    for arguments, line in (
        ([runs[0], "--mask-rate", "0.5"], "masking is set"),
        ([runs[0], "--data", data, data], "names 2 sources"),
        ([model, "--data", data, "--rerank", "-1"], "rerank is -1"),
        ([model, "--data", data, "--odds-weight", "-1"], "odds_weight is -1"),
        ([model, "--data", data, "--odds-weight", "2"], "add --score sum"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert line in capsys.readouterr().err
