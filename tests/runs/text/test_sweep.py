"""A sweep: its combinations, what it refuses, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.core.registry import FromFile
from maskery.core.system import read_metrics
from maskery.runs.frame.config_file import save_config
from maskery.runs.text import evaluate as sweep
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.evaluate import plan_sweep
from maskery.training.config import TrainingConfig
from maskery.training.journal import Callback


@pytest.fixture
def config(tmp_path: Path) -> Path:
    everything = lines(100)
    for name, part in (("corpus", everything[:70]), ("held", everything[70:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(part), "utf-8")
    training = TrainingConfig(max_steps=6, batch_tokens=256, checkpoint_every=2, epochs=9)
    made = TextRunConfig(
        corpus=(str(tmp_path / "corpus.txt"),),
        eval_data=(str(tmp_path / "held.txt"),),
        model=str(save_tiny_model(tmp_path / "model")),
        cache_dir=tmp_path / "cache",
        output=tmp_path / "run",
        training=training,
    )
    save_config(tmp_path, made)
    return tmp_path / "config.yaml"


def test_every_combination_is_a_run_of_its_own_settings(config: Path) -> None:
    runs = plan_sweep(config, ["learning_rate=1e-4,3e-4", "mask-rate=0.15,0.3", "layout=padded"])
    found = [(one.config.training.learning_rate, one.config.masking.mask_rate) for one in runs]
    assert found == [(1e-4, 0.15), (1e-4, 0.3), (3e-4, 0.15), (3e-4, 0.3)]
    first = config.parent / "run-sweep" / "learning_rate-1e-4-mask_rate-0.15-layout-padded"
    assert runs[0].config.output == first
    assert {one.config.layout for one in runs} == {"padded"}
    assert not any(one.finished for one in runs)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["colour=1,2"], "no setting 'colour'"),
        (["training=1,2"], "no setting 'training'"),
        (["output=a,b"], "no setting 'output'"),
        (["mask_rate"], "needs a setting with its values"),
        (["mask_rate=0.1,0.10"], "all different"),
        (["mask_rate=0.1,"], "needs a setting with its values"),
        (["mask_rate=2"], "mask_rate"),
        (["epochs=many"], "epochs is 'many'"),
        (["model=a/b,a-b"], "folders of one name"),
        (["mask_rate=[0.1"], "mask_rate is '\\[0.1'"),
        (["seed=0", "seed=1"], "each setting once"),
        (["seed=0", "mask_rate=0.3"], "two runs or more: give --over several values"),
        ([], "each setting once"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_trained(
    config: Path, over: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_sweep(config, over)


def test_a_plug_in_in_the_file_stays_one_that_may_not_load_code(config: Path) -> None:
    text = config.read_text("utf-8").replace("policy: token", "policy: mine.py:policy")
    config.write_text(text, "utf-8")
    run, _ = plan_sweep(config, ["seed=1,2"])
    assert isinstance(run.config.masking.policy, FromFile)


def test_an_interrupted_sweep_goes_on(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", str(config), "--over", "mask_rate=0.15,0.3", "--over", "seed=0,1"]
    train, folder = sweep.train_text, config.parent / "run-sweep"
    trained: list[str] = []

    class StopAtStepThree(Callback):
        def on_step(self, step: int, figures: object) -> None:
            if step == 3:
                raise KeyboardInterrupt

    def stopping(one: TextRunConfig, **options: object) -> object:
        assert one.output is not None
        trained.append(one.output.name)
        callbacks = [StopAtStepThree()] if len(trained) == 2 else []
        return train(one, callbacks=callbacks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "train_text", stopping)
    assert main(arguments) == 130
    names = [f"mask_rate-{rate}-seed-{seed}" for rate in ("0.15", "0.3") for seed in (0, 1)]
    assert trained == names[:2]
    kept = (folder / names[0] / "evaluation.json").read_bytes()

    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    assert trained == [*names[:2], *names[1:]]
    assert (folder / names[0] / "evaluation.json").read_bytes() == kept
    training = json.loads((folder / names[1] / "evaluation.json").read_text())["training"]
    assert training["resumed_from"] == 3  # stopped in good order, a run saves its last step
    steps = [x["step"] for x in read_metrics(folder / names[1] / "metrics.jsonl")]
    assert steps == sorted(steps)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["settings"] for row in rows] == [{"mask_rate": 0.15}, {"mask_rate": 0.3}]
    assert [row["seeds"] for row in rows] == [[0, 1], [0, 1]]

    config.write_text(config.read_text("utf-8").replace("epochs: 9", "epochs: 8"), "utf-8")
    with pytest.raises(ConfigError, match=r"another training\.epochs \(9, not 8\)"):
        plan_sweep(config, ["mask_rate=0.15,0.3", "seed=0,1"])
