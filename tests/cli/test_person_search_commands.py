"""`train person-search` and `quickstart person-search`, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_persons import save_cuhk

from maskery.cli.main import main
from maskery.data.images.drawing import RIGHT
from maskery.people.config import PeopleConfig
from maskery.runs.frame.config_file import load_config
from maskery.runs.image_text.config import PersonSearchRunConfig

RANKED = ["--itm-weight", "0.5", "--rerank", "4"]
FEW = ["--max-steps", "2", "--batch-pairs", "4", "--height", "16", "--width", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("persons")


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    return save_cuhk(folder / "cuhk")


@pytest.fixture(scope="module")
def run(folder: Path, root: Path) -> Path:
    output = folder / "run"
    arguments = ["--dataset", "cuhk-pedes", "--root", str(root), "--output", str(output)]
    assert main(["train", "person-search", *arguments, *FEW, *RANKED, "--json"]) == 0
    return output


def test_a_run_is_repeated_from_its_own_file(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(folder / "again")
    assert main(["train", "--config", str(run / "config.yaml"), "--output", output]) == 0
    printed = capsys.readouterr().out
    for heading in ("chance", "by similarity", "best 4 by matching", "R@1", "mINP", "12 captions"):
        assert heading in printed
    assert f"maskery search {output}" in printed
    one, two = (json.loads((Path(f) / "evaluation.json").read_text()) for f in (run, output))
    assert one["test"] == two["test"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "maskery " in line]
    assert len(said) == 1
    return said[0]


def test_mistakes_are_one_line_each(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "person-search"]
    data = ["--dataset", "cuhk-pedes", "--root", str(root)]
    assert "--root" in refused([*train, "--dataset", "cuhk-pedes"], capsys)
    assert "it must be one of" in refused([*train, "--dataset", "x", "--root", str(root)], capsys)
    assert "it must be one of" in refused([*train, *data, "--preset", "huge"], capsys)
    assert "ALBEF.pth" in refused([*train, *data, "--preset", "rasa"], capsys)
    assert "in use" in refused([*train, *data, "--output", str(run)], capsys)
    config = ["--config", str(run / "config.yaml")]
    assert "do not go together" in refused([*train, *config, "--preset", "rasa"], capsys)
    none = ["--dataset", "rstpreid", "--root", str(root), "--output", str(tmp_path / "x")]
    assert "--dataset cuhk-pedes" in refused([*train, *none], capsys)


def test_flags_go_before_presets() -> None:
    from maskery.cli.main import parse
    from maskery.cli.train import command_class, starting_point

    command = command_class("person-search")
    arguments = ["--dataset", "rstpreid", "--root", "r", "--preset", "rasa", "--mrtd-weight", "0"]
    default = starting_point(command, arguments, None)
    wanted = parse(command, "train person-search", arguments, default).run
    assert wanted.objectives.mrtd_weight == 0.0
    assert wanted.objectives.queue_size == 65536
    assert wanted.data.root == Path("r")


def test_the_quickstart_prints_chance_and_ranking_and_draws_searches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskery.runs.person_search import quickstart as quickstart

    drawn = PeopleConfig(
        num_people=40, images_per_person=3, width=32, height=64, splits=(0.6, 0.2, 0.2)
    )
    monkeypatch.setattr(quickstart, "people_config", lambda: drawn)
    small = quickstart.quickstart_config

    def short(people: Path, output: Path) -> PersonSearchRunConfig:
        config = small(people, output)
        training = replace(config.training, max_steps=2, batch_pairs=8)
        return replace(config, training=training)

    monkeypatch.setattr(quickstart, "quickstart_config", short)
    output = tmp_path / "quick"
    assert main(["quickstart", "person-search", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for heading in ("chance", "before, by similarity", "after, by similarity", "minutes"):
        assert heading in printed
    assert "by matching" not in printed
    assert "48 captions of 8 persons never seen" in printed
    with Image.open(output / "searches.png") as picture:
        assert picture.width > 300
        assert picture.height > 600
        # Somewhere a right picture is framed.
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
        assert RIGHT in colours
    assert (output / "run" / "report.html").is_file()
    assert load_config(output / "run" / "config.yaml", PersonSearchRunConfig).data.root.is_dir()
    assert "in use" in refused(["quickstart", "person-search", "--output", str(output)], capsys)


def test_help_imports_no_torch() -> None:
    for command in (
        "['train', 'person-search', '--help']",
        "['quickstart', 'person-search', '-h']",
    ):
        program = (
            "import sys, maskery.cli.main as m\n"
            f"try: m.main({command})\n"
            "except SystemExit as end: assert not end.code\n"
            "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
