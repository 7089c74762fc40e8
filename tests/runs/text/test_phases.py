"""Phases of a run: a chain of branches, run and resumed by one command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.core.system import read_metrics
from maskery.runs.frame.config_file import load_config
from maskery.runs.text.branch import phases_of
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text

PHASES = (
    {"until": 4, "lr_schedule": "constant", "warmup_share": 0.5},
    {"until": 7, "lr_schedule": "constant", "mask_rate": 0.4, "max_length": 12},
    {"until": 10, "lr_schedule": "linear", "policy": "word", "learning_rate": 1e-3},
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "corpus.txt").write_text("\n".join(lines(60)), "utf-8")
    training = {"batch_tokens": 256, "learning_rate": 3e-3, "log_every": 1, "precision": "fp32"}
    return {
        "kind": "text",
        "corpus": [str(folder / "corpus.txt")],
        "model": str(save_tiny_model(folder / "model")),
        "training": training,
    }


def write(path: Path, settings: dict[str, Any], *phases: Any, **more: Any) -> Path:
    path.write_text(yaml.safe_dump({**settings, **more, "phases": list(phases)}), "utf-8")
    return path


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    last = max((folder / "checkpoints").glob("step-*"))
    return load_file(last / "model.safetensors") | load_file(last / "optimiser.safetensors")


def test_phases_are_run_in_order_and_resumed_at_any_point(
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # From any folder it is the same file.
    monkeypatch.chdir(Path(settings["corpus"][0]).parent)
    phases = (*PHASES[:2], PHASES[2] | {"corpus": ["corpus.txt"]})
    path = write(tmp_path / "run.yaml", settings, *phases, output=str(tmp_path / "run"))
    assert main(["train", "--config", str(path)]) == 0
    assert f"the model is in {tmp_path / 'run' / 'phase-3' / 'model'}" in capsys.readouterr().out
    steps, rates = [], []
    for number in (1, 2, 3):
        rows = read_metrics(tmp_path / "run" / f"phase-{number}" / "metrics.jsonl")
        trained = [row for row in rows if row["kind"] == "train"]
        steps.append([row["step"] for row in trained])
        rates += [row["learning_rate"] for row in trained]
    assert steps == [[1, 2, 3, 4], [5, 6, 7], [8, 9, 10]]
    third = [1e-3, 1e-3 * 2 / 3, 1e-3 / 3]
    assert rates == pytest.approx([1.5e-3, *[3e-3] * 6, *third], rel=1e-9)
    second = load_config(tmp_path / "run" / "phase-2" / "config.yaml", TextRunConfig)
    assert (second.masking.mask_rate, second.max_length) == (0.4, 12)
    assert second.from_run == f"{tmp_path / 'run' / 'phase-1'}@4"
    saved = load_config(tmp_path / "run" / "config.yaml", TextRunConfig)
    assert saved.phases == tuple(one | {"corpus": settings["corpus"]} for one in PHASES)

    cut = write(tmp_path / "cut.yaml", settings, *PHASES, output=str(tmp_path / "cut"))
    die_before(5, train_text, load_config(cut, TextRunConfig), monkeypatch)
    again = load_config(tmp_path / "cut" / "config.yaml", TextRunConfig)
    train_text(replace(again, resume="auto"), progress=False)
    found, expected = (last_weights(tmp_path / one / "phase-3") for one in ("cut", "run"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_phases_of_the_page_are_taken(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "phases.md").read_text("utf-8")
    (tmp_path / "page.yaml").write_text(page.partition("```yaml")[2].partition("```")[0], "utf-8")
    *_, last = phases_of(load_config(tmp_path / "page.yaml", TextRunConfig))
    assert (last.training.decay_share, last.training.warmup_share) == (1.0, 0.0)
    # 0.2B tokens of 8,192 a step; then of 32,768 what is left to 2B, 2.3B and 2.5B, rounded up.
    assert last.training.max_steps == 24_415 + 54_932 + 9_155 + 6_104


def test_tokens_are_counted_over_phases(settings: dict[str, Any], tmp_path: Path) -> None:
    phases = (
        {"until": "1K"},  # 4 steps of 256: 1,024 tokens
        {"until": "2K", "batch_tokens": 100},  # 976 tokens more: 10 steps
        {"until": 20},
        {"until": "0.003M"},  # 2,024 and 6 * 256 make 3,560
    )
    planned = load_config(write(tmp_path / "x.yaml", settings, *phases[:3]), TextRunConfig)
    assert [one.training.max_steps for one in phases_of(planned)] == [4, 14, 20]
    back = load_config(write(tmp_path / "x.yaml", settings, *phases), TextRunConfig)
    with pytest.raises(ConfigError, match=r"phase 4 ends at step 18 \(until: 0.003M\), and begins"):
        phases_of(back)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            ({"until": 4}, {"until": 4}),
            r"phase 2 ends at step 4 \(until: 4\), and begins at",
        ),
        (({"mask_rate": 0.3},), "phase 1: it names no end; give until"),
        (({"until": 4, "model": "minilm"},), "phase 1: model is the whole run's"),
        (({"until": "4x"},), "phase 1: until has '4x'"),
        (({"until": 4, "mask_rat": 0.3},), "there is no setting 'mask_rat'"),
        (({"until": 4, "mask_rate": 3.0},), "mask_rate is 3.0"),
        (({"until": 4, "corpus": "x.txt"},), "phase 1: corpus is 'x.txt': it must be a list"),
        (("until",), "phases is 'until': it must be of type dict"),
    ],
)
def test_phases_that_cannot_be_are_one_line(
    settings: dict[str, Any], tmp_path: Path, phases: Any, message: str
) -> None:
    path = write(tmp_path / "run.yaml", settings, *phases, output=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=message) as caught:
        train_text(load_config(path, TextRunConfig), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
