"""A run that begins at a checkpoint of another: the run that went there itself, bit for bit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError, MaskeryError
from maskery.core.system import read_metrics, sha256_of
from maskery.runs.frame.config_file import load_config
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.evaluate import evaluate_run
from maskery.runs.text.run import TextResult, train_text
from maskery.training.config import TrainingConfig

WSD = {"lr_schedule": "wsd", "decay_share": 0.3, "warmup_share": 0.2, "max_steps": 10}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines(60)), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose head is new."""
    return save_tiny_model(tmp_path_factory.mktemp("encoder"), head=False)


def config_of(corpus: Path, model: Path | str, output: Path, **settings: Any) -> TextRunConfig:
    """Ten steps over several epochs of a few steps, unless settings say otherwise."""
    known = TrainingConfig.__dataclass_fields__
    training = {
        **{"epochs": 9, "max_steps": 10, "batch_tokens": 256, "learning_rate": 3e-3},
        **{"log_every": 1, "checkpoint_every": 100, "precision": "fp32"},
        **{name: value for name, value in settings.items() if name in known},
    }
    return TextRunConfig(
        corpus=(str(corpus),),
        model=str(model),
        output=output,
        training=TrainingConfig(**training),
        **{name: value for name, value in settings.items() if name not in known},
    )


@pytest.fixture(scope="module")
def stable(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> TextResult:
    """Steps that `WSD` begins with: two of ten warm up, as one of five does."""
    folder = tmp_path_factory.mktemp("stable") / "run"
    config = config_of(
        *(corpus, model, folder), lr_schedule="constant", warmup_share=0.4, max_steps=5,
        keep_at=("1", "4"), keep_checkpoints=1,
    )  # fmt: skip
    return train_text(config, progress=False)


@pytest.fixture(scope="module")
def whole(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> TextResult:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train_text(config_of(corpus, model, folder, **WSD), progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = max((folder / "checkpoints").glob("step-*"))
    return {
        f"{file} {name}": tensor
        for file in ("model", "optimiser", "extra")
        for name, tensor in load_file(last / f"{file}.safetensors").items()
    }


def require_equal(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def trained(folder: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    return [{n: v for n, v in row.items() if "second" not in n and "time" not in n} for row in rows]


@pytest.mark.parametrize("at", ["@4", ""])
def test_a_branch_is_the_run_that_went_there_itself(
    corpus: Path, model: Path, stable: TextResult, whole: TextResult, tmp_path: Path, at: str
) -> None:
    before = contents(stable.folder)
    start = f"{stable.folder}{at}"
    config = config_of(corpus, model, tmp_path / "branch", from_run=start, **WSD)
    result = train_text(config, progress=False)
    assert (result.summary.resumed_from, result.summary.steps) == (4 if at else 5, 10)
    require_equal(result.folder, whole.folder)
    assert result.after == whole.after
    assert trained(result.folder) == trained(whole.folder)[4 if at else 5 :]
    assert contents(stable.folder) == before
    if not at:  # the start is what the other run ended with
        assert result.before == stable.after
        assert list(result.heads.values()) == ["its own", "trained on"]


def test_a_branch_goes_on_without_the_other_run(
    corpus: Path,
    model: Path,
    stable: TextResult,
    whole: TextResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = shutil.copytree(stable.folder, tmp_path / "run")
    settings = {"from_run": f"{copied}@4", "checkpoint_every": 3, **WSD}
    cut = config_of(corpus, model, tmp_path / "branch", **settings)
    die_before(7, train_text, cut, monkeypatch)
    shutil.rmtree(copied)
    resumed = train_text(replace(cut, resume="auto"), progress=False)
    assert resumed.summary.resumed_from == 6
    require_equal(resumed.folder, whole.folder)
    again = evaluate_run(resumed.folder)
    assert again.scores["before"].loss.value == pytest.approx(resumed.before.loss.value, abs=1e-5)
    other = replace(cut, resume="auto", from_run=f"{copied}@1")
    with pytest.raises(MaskeryError, match="has no config"):
        train_text(other, progress=False)


@pytest.mark.parametrize("more", ["max_steps", "epochs"])
def test_a_finished_run_is_extended(
    corpus: Path, model: Path, tmp_path: Path, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, where its settings are the defaults."""
    kept = {"lr_schedule": "constant", "warmup_share": 0.0, "max_steps": None}
    short = train_text(
        config_of(corpus, model, tmp_path / "a", **kept | {"epochs": 1}), progress=False
    )
    steps = short.summary.steps
    longer = kept | {"epochs": 2} | ({"max_steps": steps + 1} if more == "max_steps" else {})
    expected = train_text(config_of(corpus, model, tmp_path / "b", **longer), progress=False)
    if more == "max_steps":
        assert main(["train", "text", f"--from={short.folder}", f"--max-steps={steps + 1}"]) == 0
        assert f"the model is in {tmp_path / 'a-2' / 'model'}" in capsys.readouterr().out
    else:
        branch = config_of(corpus, model, tmp_path / "a-2", **longer, from_run=str(short.folder))
        train_text(branch, progress=False)
    require_equal(tmp_path / "a-2", expected.folder)
    saved = load_config(tmp_path / "a-2" / "config.yaml", TextRunConfig)
    assert saved.from_run == f"{short.folder}@{steps}"


def test_another_corpus_is_read_from_its_start(
    corpus: Path, model: Path, stable: TextResult, tmp_path: Path, caplog: Any
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(lines(60, seed=1)), "utf-8")
    config = config_of(
        *(other, model, tmp_path / "branch"), from_run=f"{stable.folder}@4", epochs=1,
        max_steps=None, log_every=1, seed=5, lr_schedule="linear", lr_restart=True,
    )  # fmt: skip
    with caplog.at_level("INFO"):
        result = train_text(config, progress=False)
    assert "the data starts anew, for corpus_fingerprint is" in caplog.text
    steps = train_text(
        replace(config, from_run=None, lr_restart=False, output=tmp_path / "x"), progress=False
    )
    length = steps.summary.steps
    assert result.summary.steps == 4 + length
    rows = trained(result.folder)
    assert [row["step"] for row in rows] == list(range(5, 5 + length))
    # The schedule begins at the branch, and so does the data's epoch.
    fresh = trained(steps.folder)
    for name in ("learning_rate", "epoch"):
        assert [row[name] for row in rows] == [row[name] for row in fresh]


def test_a_branch_within_the_steps_of_the_head_alone(
    corpus: Path, encoder: Path, tmp_path: Path
) -> None:
    """The head goes on alone as long as in the run that went there; a trained encoder does not."""
    settings = {"head_first": "0.4", "keep_at": ("2", "6")}
    straight = train_text(config_of(corpus, encoder, tmp_path / "a", **settings), progress=False)
    for step in (2, 6):
        start, output = f"{straight.folder}@{step}", tmp_path / f"from-{step}"
        config = config_of(corpus, encoder, output, from_run=start, **settings)
        require_equal(train_text(config, progress=False).folder, straight.folder)
    longer = config_of(
        *(corpus, encoder, tmp_path / "longer"), from_run=f"{straight.folder}@6",
        **settings | {"max_steps": 30, "keep_at": ("7",)},
    )  # fmt: skip
    train_text(longer, progress=False)
    folders = [tmp_path / "longer" / "checkpoints" / f"step-{n:08d}" for n in (6, 7)]
    six, seven = (load_file(folder / "model.safetensors") for folder in folders)
    assert not any(torch.equal(six[n], seven[n]) for n in six if "encoder.layer.0" in n)


def test_from_scratch_the_tokenizer_is_the_other_runs(corpus: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 2, "vocab_size": 100}
    first = train_text(
        config_of(corpus, "scratch:tiny", tmp_path / "a", **settings), progress=False
    )
    other = tmp_path / "other.txt"
    other.write_text("\n".join(line.upper() for line in lines(60)), "utf-8")
    longer = settings | {"max_steps": 3, "from_run": str(first.folder)}
    second = train_text(config_of(other, "scratch:tiny", tmp_path / "b", **longer), progress=False)
    assert contents(second.folder / "tokenizer") == contents(first.folder / "tokenizer")


@pytest.mark.parametrize(
    ("start", "more", "message"),
    [
        ("{run}@3", {}, r"kept no checkpoint of step 3: it has steps 1, 4, 5; --keep-at keeps"),
        ("{run}@x", {}, r"a step follows the @, as in .*@500"),
        ("{run}@5", {"max_steps": 5}, r"the run ends at step 5, so nothing is left to train"),
        ("{run}@4", {"optimiser": "muon"}, r"moments of adamw, and not of muon"),
        ("{run}", {"model": "scratch:tiny", "head_first": "off"}, "its tokenizer is another"),
        ("{run}/nothing", {}, "has no config.yaml, so it is no run folder"),
        ("{pairs}", {}, "a run of kind pairs has no text"),
        (None, {"lr_restart": True}, "--lr-restart needs --from"),
    ],
)
def test_what_cannot_be_begun_at_is_one_line(
    corpus: Path,
    model: Path,
    stable: TextResult,
    tmp_path: Path,
    start: str | None,
    more: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "config.yaml").write_text("kind: pairs\npairs: x.csv\n", "utf-8")
    named = start and start.format(run=stable.folder, pairs=tmp_path / "pairs")
    settings = {"model": model, "from_run": named, **more}
    with pytest.raises(MaskeryError, match=message) as caught:
        train_text(config_of(corpus, output=tmp_path / "branch", **settings), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "branch").exists()


def test_a_branch_never_has_the_folder_of_the_other_run(
    corpus: Path, model: Path, stable: TextResult
) -> None:
    before = contents(stable.folder)
    config = config_of(corpus, model, stable.folder, from_run=str(stable.folder), **WSD)
    for resume in ("no", "auto"):
        with pytest.raises(ConfigError, match="never changes the run that it begins at"):
            train_text(replace(config, resume=resume), progress=False)  # type: ignore[arg-type]
    assert contents(stable.folder) == before


def test_a_damaged_checkpoint_is_told(
    corpus: Path, model: Path, stable: TextResult, tmp_path: Path
) -> None:
    copied = shutil.copytree(stable.folder, tmp_path / "run")
    for step in (4, 5):
        (copied / "checkpoints" / f"step-{step:08d}" / "extra.safetensors").write_bytes(b"")
    config = config_of(corpus, model, tmp_path / "branch", from_run=f"{copied}@4", **WSD)
    with pytest.raises(ConfigError, match=r"step-00000004' is damaged \(extra"):
        train_text(config, progress=False)
    newest = train_text(replace(config, from_run=str(copied)), progress=False)
    assert newest.summary.resumed_from == 1
