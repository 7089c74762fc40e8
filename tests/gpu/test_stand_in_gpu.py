"""Runs on a GPU that is not there take the course of runs on the CPU, and wait for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_image_text import save_tiny_image_text
from tiny_pairs import save_tiny_pairs
from tiny_persons import save_cuhk
from tiny_text import lines, save_sentence_encoder, save_tiny_model

from maskery.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "tests/support/stand_in_gpu.py"
pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler (g++), which makes the stand-in for a GPU"
)
EXACT = ["--precision", "fp32", "--max-steps", "3"]
# Runs that are measured again, and those of their figures that are compared.
MEASURED = {"text": "after", "pairs": "right"}
# The figures that two devices must agree on.
FIGURES = ("loss", "mlm", "mrtd", "itc", "itm", "prd", "sdm", "infonce", "keep", "grad_norm")


def on_a_gpu(folder: Path, *work: str) -> dict[str, Any]:
    out = folder / "out.json"
    command = [sys.executable, str(STAND_IN), str(out), *work]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("maskery ")]
    return {"done": json.loads(out.read_text("utf-8")), "said": said}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Commands in float32 without dropout, which draws other numbers on other devices."""
    folder = tmp_path_factory.mktemp("gpu")
    corpus, model = folder / "corpus.txt", str(save_tiny_model(folder / "model"))
    corpus.write_text("\n".join(lines(200)), "utf-8")
    encoder, both = save_sentence_encoder(folder / "encoder"), save_tiny_image_text(folder / "both")
    text = ["train", "text", str(corpus), "--hidden-dropout", "0", "--batch-tokens", "512", *EXACT]
    pairs = ["--model", str(both), "--batch-pairs", "4", "--height", "16", "--width", "16", *EXACT]
    written = str(save_tiny_pairs(folder / "pairs"))
    people = ["--dataset", "cuhk-pedes", "--root", str(save_cuhk(folder / "people"))]
    contrasts = ["--term", "sdm", "--term", "infonce", "--queue-size", "8"]
    return {
        "text": [*text, "--model", model],
        "kept": [*text, "--model", str(encoder)],
        "replaced": [*text, "--model", model, "--objective", "mlm+mrtd"],
        "padded": [*text, "--model", model, "--layout", "padded"],
        "pairs": ["train", "pairs", written, "--itc-weight", "1", *pairs],
        "people": ["train", "person-search", "--preset", "rasa", *people, *contrasts, *pairs],
    }


@pytest.fixture(scope="module")
def found(
    training: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What became of the commands on the GPU, and of some that read their runs."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str) -> str:
        return str(folder / name)

    work = {"half": [*training["text"], "--precision", "auto", "--output", run("half")]}
    work |= {name: [*command, "--output", run(name)] for name, command in training.items()}
    root = training["people"][training["people"].index("--root") + 1]
    seen = ["--output", str(folder / "seen.png")]
    picture = str(sorted(Path(root).rglob("*.png"))[0])
    work |= {
        **{f"measure {name}": ["evaluate", run(name), "--json"] for name in MEASURED},
        "fill": ["fill", run("half"), "the [MASK] and the [MASK]"],
        "look": ["fill", run("pairs"), "a [MASK] square", "--image", picture],
        "search": ["search", run("people"), "a man", "--gallery", root],
        "explain": ["explain", run("pairs"), "a red square", "--image", picture, *seen],
    }
    (folder / "work.json").write_text(json.dumps(work), "utf-8")
    return {"folder": folder, **on_a_gpu(folder, str(folder / "work.json"))}


def test_every_command_ends_well(found: dict[str, Any]) -> None:
    assert {one["code"] for one in found["done"].values()} == {0}, found["said"]


def figures(run: Path) -> list[dict[str, float]]:
    logged = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [{name: line[name] for name in FIGURES if name in line} for line in logged]


# The runs before them in that process were in bfloat16, or opened a model that may be.
@pytest.mark.parametrize("name", ["text", "kept", "replaced", "padded", "pairs", "people"])
def test_a_run_takes_the_course_that_it_takes_on_the_cpu(
    name: str, training: dict[str, list[str]], found: dict[str, Any], tmp_path: Path
) -> None:
    assert main([*training[name], "--output", str(tmp_path / "run")]) == 0
    here, there = figures(tmp_path / "run"), figures(found["folder"] / name)
    assert sum(map(len, here)) > 4
    assert [line.keys() for line in here] == [line.keys() for line in there]
    for one, other in zip(here, there, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("name", "figures_of"), MEASURED.items())
def test_a_run_in_float32_is_measured_in_it(
    name: str, figures_of: str, found: dict[str, Any]
) -> None:
    measured = json.loads(found["done"][f"measure {name}"]["printed"])["scores"][figures_of]
    own = json.loads((found["folder"] / name / "evaluation.json").read_text("utf-8"))
    loss = own.get("scores", own)[figures_of]["loss"][0]
    assert measured["loss"][0] == pytest.approx(loss, rel=1e-6)


def test_bfloat16_is_near(found: dict[str, Any]) -> None:
    half, exact = (figures(found["folder"] / name) for name in ("half", "text"))
    for one, other in zip(half, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
    assert half != exact


def test_no_step_waits_for_the_gpu(found: dict[str, Any]) -> None:
    waits = {
        name: [place for place in one["waits"] if "training/stepper.py:step " in f"{place} "]
        for name, one in found["done"].items()
    }
    # Transformers asks if the mask of padded texts hides something.
    assert all("attention_mask" in place for place in waits.pop("padded"))
    assert {name: places for name, places in waits.items() if places} == {}
    # Elsewhere they are seen.
    assert any("_local_scalar_dense" in place for place in found["done"]["text"]["waits"])


def test_the_checks_of_a_gpu_pass_on_the_stand_in(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    sections = ["machine", "packed", "pictures", "waits"]
    script = [str(ROOT / "benchmarks/gpu"), "--tiny", "--out", str(out), "--only", *sections]
    on_a_gpu(tmp_path, *script)
    told = json.loads(out.read_text("utf-8"))
    assert told["failures"] == {}
    assert told["table"]["host waits, text"] == told["table"]["host waits, pairs"] == "[]"
    assert float(told["table"]["pictures as bytes: values off"]) < 1e-6
    packed = [value for name, value in told["table"].items() if "off" in name and "packed" in value]
    assert len(packed) == 6
    # Relative errors of logits and of gradients in float32, packed and padded.
    errors = [pair for line in packed for pair in re.findall(r"fp32 (\S+)/(\S+?),", line)]
    assert len(errors) == 12
    assert max(float(error) for pair in errors for error in pair) < 1e-5
