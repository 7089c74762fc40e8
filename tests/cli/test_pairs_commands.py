"""`train pairs`, `data draw-people`, `fill --image` and `evaluate` of such a run, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from tiny_pairs import save_tiny_pairs
from tiny_text import save_tiny_model

from maskery.cli.main import main

FEW = ["--max-steps", "2", "--batch-pairs", "4", "--height", "16", "--width", "16"]
WORDS = ["--score-words", "red", "green", "blue", "white"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    pairs = save_tiny_pairs(folder / "data", 24)
    output = folder / "run"
    arguments = ["train", "pairs", str(pairs), "--output", str(output), *FEW, *WORDS, "--json"]
    assert main(arguments) == 0
    return output


def test_training_prints_the_three_sights(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(folder / "again")
    # The same run from its own file.
    assert main(["train", "--config", str(run / "config.yaml"), "--output", output]) == 0
    printed = capsys.readouterr().out
    for heading in ("right picture", "wrong picture", "no picture", "chosen words", "AUC"):
        assert heading in printed
    assert f"maskery fill {output}" in printed


def test_evaluate_repeats_what_training_found(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    written = json.loads((run / "evaluation.json").read_text())
    assert found["words"] == written["words"]
    right = found["scores"]["right"]
    assert right["loss"][0] == pytest.approx(written["scores"]["right"]["loss"][0], abs=1e-5)


def test_fill_looks_at_the_picture(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, answers = "a [MASK] square of paper", []
    for picture in (["--image", str(folder / "data" / f"00{n}.png")] for n in (0, 2)):
        assert main(["fill", str(run), text, *picture, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["masks"])
    assert main(["fill", str(run), text, "--json"]) == 0
    answers.append(json.loads(capsys.readouterr().out)[0]["masks"])
    assert answers[0] != answers[1] != answers[2]


def test_a_run_is_repeated_into_the_next_free_folder(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    assert main(["train", f"--config={config}", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["run"] == f"{run}-2"
    written = json.loads((run / "evaluation.json").read_text())
    assert again["scores"] == written["scores"]
    assert main(["train", "--config", str(config), "--resume", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(run)
    assert not run.with_name("run-3").exists()
    said = refused(["train", "text", "--config", str(config)], capsys)
    assert "this is a run of kind pairs, and one of kind text is needed" in said


def test_evaluate_has_the_flags_of_the_model_at_hand(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for name in (str(run), "minilm"):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", "--json", name, "--help"])
        assert stopped.value.code == 0
        shown[name] = capsys.readouterr().out
    assert "--score-words" in shown[str(run)]
    assert "--mask-rate" not in shown[str(run)]
    assert "--mask-rate" in shown["minilm"]
    assert "--score-words" not in shown["minilm"]
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "maskery evaluate RUN_OR_MODEL --help" in capsys.readouterr().out
    assert "no run or model is named" in refused(["evaluate", "--rerank", "3"], capsys)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    # In this process transformers was imported before its progress bars were turned off.
    said = [line for line in capsys.readouterr().err.splitlines() if "maskery " in line]
    assert len(said) == 1
    assert said[0].split("maskery ", 1)[1].count(":") >= 1
    return said[0]


def test_mistakes_are_one_line_each(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    fill = ["fill", str(run), "a [MASK]", "--image"]
    assert "is empty" in refused([*fill, str(empty)], capsys)
    assert "cannot be read" in refused([*fill, str(tmp_path / "no.png")], capsys)
    text_model = save_tiny_model(tmp_path / "text")
    arguments = ["fill", str(text_model), "a [MASK]", "--image", str(empty)]
    assert "reads text alone" in refused(arguments, capsys)
    said = refused(["evaluate", str(run), "--mask-rate", "0.5"], capsys)
    assert "--mask-rate is for text models and image-text models with --data" in said
    assert "evaluated as runs of train pairs" in said
    assert "--memory-mb is for person search" in refused(
        ["evaluate", str(text_model), "--data", "a.txt", "--memory-mb", "9"], capsys
    )
    arguments = ["evaluate", str(run), "--score-words", "antidisestablishment"]
    assert "none of the words to score is one token" in refused(arguments, capsys)
    pairs = str(folder / "data" / "pairs.jsonl")
    assert "in use" in refused(["train", "pairs", pairs, "--output", str(run)], capsys)
    assert "there is no flag --batch-tokens" in refused(
        ["train", "pairs", pairs, "--batch-tokens", "8"], capsys
    )
    assert "patch" in refused(
        ["train", "pairs", pairs, "--output", str(tmp_path / "x"), "--height", "9", "--width", "9"],
        capsys,
    )


def test_drawing_people_leaves_pairs_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "people"
    arguments = ["data", "draw-people", str(out), "--people", "10", "--images-per-person", "1"]
    assert main(arguments) == 0
    assert "train: 8 people, 8 pictures, 16 captions" in capsys.readouterr().out
    assert (out / "pairs_train.jsonl").is_file()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_drawn"] == 0
    assert "other settings" in refused([*arguments, "--seed", "1"], capsys)


def test_help_of_these_commands_imports_no_torch() -> None:
    import subprocess

    for command in ("['train', 'pairs', '--help']", "['data', 'draw-people', '--help']"):
        program = (
            "import sys, maskery.cli.main as m\n"
            f"try: m.main({command})\n"
            "except SystemExit as end: assert not end.code\n"
            "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_kind_of_pieces_stands_in_config_card_and_tokenizer(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    assert "with new pieces (--tokenizer wordpiece)" in (run / "model" / "README.md").read_text()
    monkeypatch.setattr("maskery.cli.train.finish_report", lambda folder: None)
    output = folder / "pieces"
    command = ["train", "pairs", str(folder / "data" / "pairs.jsonl"), "--output", str(output)]
    command += [*FEW, "--tokenizer", "bpe", "--lowercase"]
    assert main(command) == 0
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert (config["tokenizer"], config["lowercase"], config["strip_accents"]) == (
        "bpe",
        True,
        False,
    )
    card = (output / "model" / "README.md").read_text()
    assert "with new pieces (--tokenizer bpe --lowercase)" in card
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    ids = tokenizer("Ein ROTES Café", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == "ein rotes café"
    capsys.readouterr()
    assert main([*command, "--strip-accents", "--resume", "auto"]) == 2
    assert "vocabulary" in capsys.readouterr().err
