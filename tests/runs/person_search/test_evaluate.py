from __future__ import annotations

import csv
import json
import runpy
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from tiny_image_text import new_image_text, save_tiny_image_text
from tiny_pairs import save_tiny_pairs
from tiny_persons import save_cuhk

from maskery.cli.main import main
from maskery.core.errors import ConfigError, ModelError
from maskery.evaluation.intervals import Interval
from maskery.evaluation.retrieval.config import (
    FILE,
    ModelRetrieval,
    read_model_retrieval,
    save_model_retrieval,
)
from maskery.runs.frame.config_file import load_config, run_kind
from maskery.runs.frame.run_folder import without_nan
from maskery.runs.image_text.config import PersonSearchRunConfig
from maskery.runs.person_search.evaluate import (
    Overrides,
    evaluate_retrieval_models,
    known_retrieval,
    open_for_retrieval,
    spread_of,
)

FEW = ["--max-steps", "2", "--batch-pairs", "4", "--height", "16", "--width", "16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("persons")
    root = save_cuhk(folder / "cuhk")
    made = []
    for seed in ("0", "1"):
        output = str(folder / f"run-{seed}")
        arguments = ["--dataset", "cuhk-pedes", "--root", str(root), "--output", output]
        arguments += [*FEW, "--itm-weight", "0.5", "--rerank", "4", "--seed", seed, "--json"]
        assert main(["train", "person-search", *arguments]) == 0
        made.append(output)
    return made


def plain(data: Any) -> Any:
    """Data as it comes back from a file, which has null for numbers that JSON lacks."""
    return json.loads(json.dumps(without_nan(data)))


def test_a_run_gives_what_training_found(runs: list[str]) -> None:
    assert run_kind(runs[0]) == "person-search"
    found = evaluate_retrieval_models(runs[:1])
    written = json.loads((Path(runs[0]) / "evaluation.json").read_text())
    again = plain(asdict(found))["figures"][runs[0]]
    assert again == written["test"]
    assert found.spread is None
    val = evaluate_retrieval_models(runs[:1], split="val").figures[runs[0]]
    assert val.reranked is not None
    assert plain(asdict(val.reranked)) == written["val"]["reranked"]


def test_mean_and_spread_of_several(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate_retrieval_models(runs, overrides=Overrides(rerank=3))
    values = [figures.contrastive.map.value for figures in found.figures.values()]
    assert found.spread is not None
    spread = found.spread["contrastive"]["map"]
    assert spread.mean == pytest.approx(statistics.fmean(values))
    assert spread.deviation == pytest.approx(statistics.stdev(values))
    assert {figures.rerank for figures in found.figures.values()} == {3}
    assert main(["evaluate", *runs]) == 0
    printed = capsys.readouterr().out
    assert "mean of 2 runs" in printed
    assert f"{runs[1]} (seed 1)" in printed
    assert "their seeds: 0, 1" in printed
    assert asdict(found)["seeds"] == {runs[0]: 0, runs[1]: 1}
    assert printed.count("mINP") == 3
    without = evaluate_retrieval_models(runs[:1], overrides=Overrides(rerank=0)).figures[runs[0]]
    assert without.reranked is None
    mixed = spread_of([*found.figures.values(), without])
    assert mixed is not None
    assert list(mixed) == ["contrastive"]


def test_the_memory_is_that_which_is_asked_for(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noted(shape: tuple[int, ...], memory_bytes: int) -> np.ndarray:
        asked.append(memory_bytes)
        return np.empty(shape, np.float32)

    monkeypatch.setattr("maskery.evaluation.retrieval.rerank.large_array", noted)
    assert main(["evaluate", runs[0], "--memory-mb", "3"]) == 0
    assert main(["evaluate", runs[0]]) == 0
    assert asked == [3_000_000, 1_024_000_000]


def asked_like(run: str, folder: Path, **settings: Any) -> str:
    """A copy of a run whose model is asked in another way."""
    shutil.copytree(run, folder)
    own = read_model_retrieval(run)
    assert own is not None
    save_model_retrieval(folder / "model", replace(own, **settings))
    return str(folder)


def changed(run: str, folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """A copy of a run whose configuration says something else."""
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    return str(folder)


def moved(root: Path, splits: dict[str, int] | None = None) -> Callable[[dict[str, Any]], None]:
    """The run's dataset becomes another."""
    save_cuhk(root, splits)
    return lambda config: config["data"].update(root=str(root))


def other_words(root: Path) -> Callable[[dict[str, Any]], None]:
    """The run's dataset has the same picture names with another caption."""
    change = moved(root)
    rows = json.loads((root / "reid_raw.json").read_text("utf-8"))
    rows[-1]["captions"][0] = "A person in white."
    (root / "reid_raw.json").write_text(json.dumps(rows), "utf-8")
    return change


def test_runs_that_are_not_measured_alike_have_no_mean(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, drawn = runs[1], lambda c: c["data"].update(dataset="drawn-people")
    more = moved(tmp_path / "more", {"train": 6, "val": 3, "test": 4})
    words = other_words(tmp_path / "words")
    with monkeypatch.context() as nothing:
        name = "maskery.evaluation.retrieval.retrieval_set.RetrievalSet.evaluate"
        nothing.setattr(name, lambda *_, **__: pytest.fail("measured before the runs are compared"))
        for other, difference in (
            (changed(run, tmp_path / "a", drawn), "dataset: CUHK-PEDES and drawn people"),
            (changed(run, tmp_path / "b", more), "pictures: 6 and 8"),
            (changed(run, tmp_path / "c", words), "the fingerprint of pictures, captions"),
            (asked_like(run, tmp_path / "d", clean_captions=False), "the fingerprint of"),
            (asked_like(run, tmp_path / "e", rerank=2), r"\(--rerank\): 4 and 2"),
            (asked_like(run, tmp_path / "f", trained=("itc",)), r"\(--rerank\): 4 and 0"),
            (asked_like(run, tmp_path / "g", score="odds"), "by: sum with odds .* and odds"),
            (asked_like(run, tmp_path / "h", odds_weight=0.9), "odds at 0.2 and .* at 0.9"),
        ):
            with pytest.raises(ConfigError, match=f"not measured alike .*{difference}") as caught:
                evaluate_retrieval_models([runs[0], other])
            assert "\n" not in str(caught.value)
    faster = changed(run, tmp_path / "i", lambda c: c["training"].update(learning_rate=0.5))
    with pytest.raises(ConfigError, match=r"not trained alike \(training.learning_rate: 0.001 and"):
        evaluate_retrieval_models([runs[0], faster])
    same = changed(runs[1], tmp_path / "same", moved(tmp_path / "copy"))
    assert evaluate_retrieval_models([runs[0], same]).spread is not None
    fewer = asked_like(run, tmp_path / "fewer", rerank=2)
    assert (
        evaluate_retrieval_models([runs[0], fewer], overrides=Overrides(rerank=3)).spread
        is not None
    )


def test_a_run_is_measured_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    save_cuhk(tmp_path / "work" / "cuhk")
    (tmp_path / "work" / "cuhk" / "imgs").rename(tmp_path / "work" / "pictures")
    monkeypatch.chdir(tmp_path / "work")
    arguments = ["--dataset", "cuhk-pedes", "--root", "cuhk", "--images", "pictures"]
    arguments += ["--output", "run", *FEW, "--rerank", "0", "--json"]
    assert main(["train", "person-search", *arguments]) == 0
    run = str(tmp_path / "work" / "run")
    expected = evaluate_retrieval_models([run]).figures[run]
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_retrieval_models([run]).figures[run] == expected

    # Runs of before had what was typed in their file: they work where they were trained.
    old = changed(run, tmp_path / "old", lambda c: c["data"].update(root="cuhk", images="pictures"))
    assert main(["evaluate", old]) == 2
    assert "there is no folder 'cuhk'" in capsys.readouterr().err
    (tmp_path / "work" / "cuhk").rename(tmp_path / "moved")
    moved = ["--root", "../moved", "--images", str(tmp_path / "work" / "pictures")]
    assert main(["evaluate", old, *moved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"][old] == plain(asdict(expected))
    (tmp_path / "moved").rename(tmp_path / "work" / "cuhk")
    monkeypatch.chdir(tmp_path / "work")
    assert evaluate_retrieval_models([old]).figures[old] == expected


def test_one_run_under_two_names_is_one(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(runs[0]).parent)
    (tmp_path / "link").symlink_to(runs[0])
    for again in (f"{runs[0]}/", "run-0", "./run-1/../run-0", str(tmp_path / "link")):
        with pytest.raises(ConfigError, match="is named twice, also as"):
            evaluate_retrieval_models([runs[0], again])


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
    for asked in (
        Overrides(score="matching"),
        Overrides(clean_captions="no"),
        Overrides(rerank=0),
    ):
        found = evaluate_retrieval_models([names[2]], data=data, overrides=asked)
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


def test_pictures_that_cannot_be_read_are_skipped_and_counted_or_end_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_tiny_image_text(tmp_path / "model"))
    data = save_tiny_pairs(tmp_path / "data", 12, persons=True)
    (data.parent / "003.png").write_bytes(b"GIF89a")
    command = ["evaluate", model, "--data", str(data), "--rerank", "5", "--json"]
    assert main([*command, "--pairs.on-bad-image", "skip"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)["figures"][model]
    assert (figures["num_texts"], figures["num_images"]) == (22, 11)
    assert "1 image skipped; the first: image" in printed.err
    assert main([*command, "--pairs.on-bad-image", "fail"]) == 2
    assert "003.png" in capsys.readouterr().err


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
        ([runs[0], "--mask-rate", "0.5"], "--mask-rate is for text models"),
        ([runs[0], "--data", data, data], "names 2 sources"),
        ([model, "--data", data, "--rerank", "-1"], "rerank is -1"),
        ([runs[0], "--memory-mb", "0"], "memory_mb is 0"),
        ([runs[0], "--data", data, "--root", "x"], "--data and --root exclude each other"),
        ([runs[0], "--data", data, "--held-out", "val"], "--data and --held-out exclude"),
        ([*runs, "--ranks", "x.csv"], "--more and --ranks exclude each other"),
        ([runs[0], "--features", "x.npz"], "end it with .safetensors"),
        ([runs[0], "--ranks", f"{data}/x.csv"], "no file can be written there"),
        (["minilm", "--data", data, "--root", "x"], "--root is for person search"),
        ([model, "--data", data, "--memory-mb", "9"], "--memory-mb is for person search"),
        ([model, "--data", data, "--odds-weight", "-1"], "odds_weight is -1"),
        ([model, "--data", data, "--odds-weight", "2"], "add --score sum"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert line in capsys.readouterr().err


def test_transfer_is_a_matrix_of_what_each_run_gives_there(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = load_config(Path(runs[0]) / "config.yaml", PersonSearchRunConfig).data.root
    lines, on = as_pairs(Path(runs[0])), [f"cuhk-pedes:{own}", f"drawn-people:{own}/../other"]
    save_cuhk(own.parent / "other", {"train": 2, "val": 2, "test": 4})
    assert main(["evaluate", *runs, "--on", *on, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for run in runs:
        assert found["figures"][run][on[0]] == plain(
            asdict(evaluate_retrieval_models([run]).figures[run])
        )
        assert found["figures"][run][on[1]]["num_images"] == 8
    # A model folder learnt from nothing that is known; a file without splits has no test split.
    model = f"{runs[0]}/model"
    assert main(["evaluate", model, "--on", f"jsonl:{lines}", on[0]]) == 0
    printed = capsys.readouterr().out
    assert "jsonl R@1" in printed
    assert "cuhk-pedes, test split: 12 captions of 3 persons against 6 pictures" in printed
    assert "jsonl, validation: " in printed
    (tmp_path / "link").symlink_to(own)
    for arguments, line in (
        (["--on", on[0], on[0]], "is named twice; name each dataset once"),
        (["--on", on[0], f"drawn-people:{tmp_path}/link"], "is named twice, also as"),
        (["--on", "cuhk-pedes"], "name each as KIND:DIR"),
        (["--on", "cuhk:x"], "did you mean cuhk-pedes"),
        (["--on", on[0], "--root", "x"], "--on and --root exclude each other"),
        (["--on", on[0], "--data", lines], "--data and --on exclude each other"),
    ):
        assert main(["evaluate", runs[0], *arguments]) == 2
        assert line in capsys.readouterr().err


def test_ranks_and_features_are_those_that_the_figures_come_from(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, table, features = (tmp_path / name for name in ("r.jsonl", "r.csv", "f.safetensors"))
    out = ["--ranks", str(lines), "--features", str(features), "--json"]
    assert main(["evaluate", runs[0], *out]) == 0
    found = json.loads(capsys.readouterr().out)["figures"][runs[0]]
    rows = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
    assert lines.read_text("utf-8") == (Path(runs[0]) / "ranks.jsonl").read_text("utf-8")
    assert main(["evaluate", runs[0], "--ranks", str(table), "--rerank", "0"]) == 0
    assert "the epoch was chosen by R@1 on validation" in capsys.readouterr().out
    plain = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    assert [int(row["rank"]) for row in plain] == [row["rank_by_similarity"] for row in rows]
    for name, ranking in (("rank", "reranked"), ("rank_by_similarity", "contrastive")):
        share = np.mean([row[name] == 1 for row in rows])
        assert share == pytest.approx(found[ranking]["r1"][0])
    precision = np.mean([row["average_precision"] for row in rows])
    assert precision == pytest.approx(found["reranked"]["map"][0])
    # The same by a plain loop over the features and their names.
    with safe_open(features, "np") as file:
        images, texts = file.get_tensor("images"), file.get_tensor("texts")
        shown, described = file.get_tensor("image_persons"), file.get_tensor("text_persons")
        names, captions = (json.loads(file.metadata()[name]) for name in ("images", "captions"))
    assert captions == [row["caption"] for row in rows]
    for row, feature, person in zip(rows, texts, described, strict=True):
        order = np.argsort(-(images @ feature), kind="stable")
        assert row["rank_by_similarity"] == 1 + int(np.argmax(shown[order] == person))
        assert row["picture"] in np.array(names)[shown == person]
        assert row["first"] in names


def test_a_choice_by_validation_is_saved_with_the_model(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[3] / "examples" / "choose_ranking.py"
    names = runpy.run_path(str(path))
    run = shutil.copytree(runs[0], tmp_path / "run")
    rows, best = names["choose_ranking"](str(run))
    # Of three persons, no gain has an interval.
    assert best == {"rerank": 0}
    assert known_retrieval(str(run)) == replace(known_retrieval(runs[0]), rerank=0)  # type: ignore[type-var]
    for row in rows:
        asked = Overrides(rerank=row["rerank"], score="sum", odds_weight=row["odds_weight"])
        found = evaluate_retrieval_models(runs[:1], split="val", overrides=asked).figures[runs[0]]
        assert found.reranked is not None
        assert found.reranked.r1.value == row["r1"].value
        assert found.reranked.map.value == pytest.approx(row["map"].value, rel=1e-12)
    sure, unsure = Interval(0.02, 0.01, 0.03), Interval(0.05, -0.01, 0.1)
    tried = [
        {"rerank": k, "odds_weight": 0.2, "gain": gain, "r1": r1, "map": 0.5}
        for k, gain, r1 in ((16, sure, 0.9), (64, sure, 0.9), (128, unsure, 0.95))
    ]
    assert names["chosen"](tried) == {"rerank": 16, "score": "sum", "odds_weight": 0.2}
