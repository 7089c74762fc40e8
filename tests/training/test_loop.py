from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskery.core.errors import CheckpointError, ConfigError, DataError, TrainingError
from maskery.core.errors import StoppedError as StoppedBySignal
from maskery.core.system import METRICS, SIGNALS, read_metrics
from maskery.training.config import TrainingConfig
from maskery.training.journal import SPEEDS, Callback
from maskery.training.loop import Step, Summary, TrainingLoop
from maskery.training.optimiser import build_optimiser

Make = Callable[..., Any]
CONFIG = TrainingConfig(
    epochs=2,
    learning_rate=1e-2,
    log_every=2,
    checkpoint_every=3,
    eval_every=4,
    best_metric="none",
    precision="fp32",
)


def loop_of(
    task: Any, source: Any, folder: Path, config: TrainingConfig = CONFIG, **more: Any
) -> TrainingLoop:
    return TrainingLoop(
        task,
        source,
        build_optimiser(task.model, config, {"1.bias"}),
        config,
        folder,
        identity="run",
        progress=False,
        **more,
    )


def weights(task: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in task.model.state_dict().items()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / METRICS)
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


def test_a_run_calls_the_task_in_order(tmp_path: Path, make_task: Make, make_source: Make) -> None:
    task = make_task()
    summary = loop_of(task, make_source(micro=2), tmp_path).train()
    assert isinstance(summary, Summary)
    assert (summary.steps, summary.tokens, summary.resumed_from) == (10, 100, 0)
    assert task.calls.count(("before_step",)) == 10
    prepared = [call for call in task.calls if call[0] == "prepare"]
    # The share that is done, for schedules: the same for all micro-batches of a step.
    assert [call[1] for call in prepared] == sorted(call[1] for call in prepared)
    assert sorted({call[2] for call in prepared}) == [step / 10 for step in range(10)]
    assert {call[1] for call in prepared} == {0, 1}


def test_the_learning_rate_follows_the_schedule(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    task = make_task()
    config = replace(CONFIG, log_every=1, warmup_share=0.2, head_learning_rate=2e-2)
    loop_of(task, make_source(), tmp_path, config).train()
    seen = [line["learning_rate"] for line in metrics(tmp_path) if line["kind"] == "train"]
    # Logged is the highest of the groups: the head's.
    expected = 2e-2 * np.array([0.5, 1.0, *(np.arange(8, 0, -1) / 8)])
    np.testing.assert_allclose(seen, expected, rtol=1e-12)


@pytest.mark.parametrize(("max_steps", "expected"), [(1, 1), (7, 7), (99, 10)])
def test_max_steps(
    tmp_path: Path, make_task: Make, make_source: Make, max_steps: int, expected: int
) -> None:
    task = make_task()
    summary = loop_of(task, make_source(), tmp_path, replace(CONFIG, max_steps=max_steps)).train()
    assert summary.steps == expected
    assert task.calls.count(("before_step",)) == expected
    assert task.model.steps_seen == expected
    assert (tmp_path / "checkpoints" / f"step-{expected:08d}").is_dir()


def evaluations(task: Any) -> Callable[[int], Mapping[str, float]]:
    def evaluate(step: int) -> Mapping[str, float]:
        assert not task.model.training
        assert task.model.steps_seen == step
        # Draws of an evaluation must not reach the training.
        torch.rand(7)
        return {"weight": task.model[1].weight.double().sum().item()}

    return evaluate


def test_metrics_are_written_when_they_are_due(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    task = make_task()
    loop_of(task, make_source(), tmp_path, evaluate=evaluations(task)).train()
    lines = metrics(tmp_path)
    steps = {
        kind: [line["step"] for line in lines if line["kind"] == kind]
        for kind in ("train", "held_out")
    }
    # Every second step and every checkpoint; every fourth, the first and the last.
    assert steps == {"train": [2, 3, 4, 6, 8, 9, 10], "held_out": [0, 4, 8, 10]}
    train = next(line for line in lines if line["kind"] == "train")
    assert set(train) == {
        *("kind", "step", "loss", "error", "size", "grad_norm", "learning_rate", "epoch")
    }


def test_logged_losses_are_means_over_the_steps_since_the_line_before(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    for name, log_every in (("each", 1), ("pairs", 2)):
        (tmp_path / name).mkdir()
        config = replace(CONFIG, log_every=log_every, checkpoint_every=100)
        loop_of(make_task(), make_source(), tmp_path / name, config).train()
    each = [line["loss"] for line in metrics(tmp_path / "each")]
    pairs = [line["loss"] for line in metrics(tmp_path / "pairs")]
    np.testing.assert_allclose(pairs, np.array(each).reshape(-1, 2).mean(1), rtol=1e-6)


class StoppedError(Exception):
    """The process ends here."""


def stop_after(loop: TrainingLoop, steps: int) -> None:
    """Make a run stop like a killed process: after a step's update, before anything is written."""
    original = loop.step

    def step(prepared: Step) -> dict[str, torch.Tensor]:
        losses = original(prepared)
        if prepared.number + 1 == steps:
            raise StoppedError
        return losses

    loop.step = step  # type: ignore[method-assign]


@pytest.mark.parametrize("steps", range(1, 11))
def test_a_stopped_and_resumed_run_is_the_run_that_never_stopped(
    tmp_path: Path, make_task: Make, make_source: Make, steps: int
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    whole.mkdir()
    halved.mkdir()
    source = make_source(micro=2)
    unbroken = make_task(dropout=0.3)
    loop_of(unbroken, source, whole, evaluate=evaluations(unbroken)).train()

    first = make_task(dropout=0.3)
    loop = loop_of(first, source, halved, evaluate=evaluations(first))
    stop_after(loop, steps)
    with pytest.raises(StoppedError):
        loop.train()
    torch.manual_seed(12345)
    second = make_task(dropout=0.3)
    resumed = loop_of(second, source, halved, evaluate=evaluations(second)).train(resume=True)

    assert resumed.resumed_from == (steps - 1) // 3 * 3
    assert resumed.steps == 10
    for name, tensor in weights(unbroken).items():
        assert torch.equal(weights(second)[name], tensor), name
    assert torch.equal(second.twin, unbroken.twin)
    assert metrics(halved) == metrics(whole)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_an_evaluation_cut_short_is_made_up_for(
    tmp_path: Path, make_task: Make, make_source: Make, at: int
) -> None:
    config = replace(CONFIG, eval_every=3)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    whole.mkdir()
    halved.mkdir()
    unbroken = make_task()
    loop_of(unbroken, make_source(), whole, config, evaluate=evaluations(unbroken)).train()
    first = make_task()
    plain = evaluations(first)
    num_calls = 0

    def stopping(step: int) -> Mapping[str, float]:
        nonlocal num_calls
        num_calls += 1
        if num_calls == at + 1:
            raise StoppedError
        return plain(step)

    with pytest.raises(StoppedError):
        loop_of(first, make_source(), halved, config, evaluate=stopping).train()
    second = make_task()
    loop_of(second, make_source(), halved, config, evaluate=evaluations(second)).train(resume=True)
    assert metrics(halved) == metrics(whole)


def test_a_finished_run_resumed_does_nothing(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    task = make_task()
    loop_of(task, make_source(), tmp_path, evaluate=evaluations(task)).train()
    before = metrics(tmp_path)
    again = make_task()
    summary = loop_of(again, make_source(), tmp_path, evaluate=evaluations(again)).train(
        resume=True
    )
    assert (summary.resumed_from, summary.tokens) == (10, 0)
    assert metrics(tmp_path) == before
    assert all(torch.equal(weights(again)[n], t) for n, t in weights(task).items())


def test_resuming_without_a_checkpoint_starts_afresh(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    summary = loop_of(make_task(), make_source(), tmp_path).train(resume=True)
    assert (summary.resumed_from, summary.steps) == (0, 10)


def test_only_damaged_checkpoints_are_an_error(
    tmp_path: Path, make_task: Make, make_source: Make, caplog: pytest.LogCaptureFixture
) -> None:
    loop_of(make_task(), make_source(), tmp_path).train()
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged; start afresh"):
        loop_of(make_task(), make_source(), tmp_path).train(resume=True)


def test_an_error_of_the_task_reaches_the_caller(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    task = make_task()

    def broken(batch: Any, *, epoch: int, progress: float) -> Any:
        raise StoppedError

    task.prepare = broken
    with pytest.raises(StoppedError):
        loop_of(task, make_source(), tmp_path).train()


def test_a_run_learns(tmp_path: Path, make_task: Make, make_source: Make) -> None:
    config = replace(CONFIG, epochs=40, learning_rate=0.1, log_every=10, checkpoint_every=1000)
    loop_of(make_task(), make_source(), tmp_path, config).train()
    losses = [line["error"] for line in metrics(tmp_path) if line["kind"] == "train"]
    assert losses[-1] < 0.1 * losses[0]


def test_no_steps(tmp_path: Path, make_task: Make, make_source: Make) -> None:
    task = make_task()
    summary = loop_of(task, make_source(total=0), tmp_path, evaluate=evaluations(task)).train()
    assert (summary.steps, summary.tokens) == (0, 0)
    assert [line["step"] for line in metrics(tmp_path)] == [0]


def spoil(task: Any, *numbers: int) -> None:
    """Make the loss of some steps infinite, whatever process or resumption computes them."""
    original = task.loss_sums

    def loss_sums(prepared: Any) -> Mapping[str, torch.Tensor]:
        sums = original(prepared)
        if int(task.model.steps_seen) - 1 not in numbers:
            return sums
        return {name: value * float("inf") for name, value in sums.items()}

    task.loss_sums = loss_sums


@pytest.mark.parametrize("stop", [None, 4, 5, 8])
def test_steps_that_are_no_numbers_are_skipped(
    tmp_path: Path, make_task: Make, make_source: Make, stop: int | None
) -> None:
    task = make_task()
    spoil(task, 4, 7)
    loop = loop_of(task, make_source(), tmp_path)
    if stop is not None:
        stop_after(loop, stop)
        with pytest.raises(StoppedError):
            loop.train()
        task = make_task()
        spoil(task, 4, 7)
        loop = loop_of(task, make_source(), tmp_path)
    moved: list[tuple[int, bool]] = []
    last = [task.model[1].weight.detach().clone()]
    original = loop.step

    def step(prepared: Step) -> dict[str, torch.Tensor]:
        last[0] = task.model[1].weight.detach().clone()
        losses = original(prepared)
        moved.append((prepared.number, not torch.equal(last[0], task.model[1].weight)))
        return losses

    loop.step = step  # type: ignore[method-assign]
    loop.train(resume=stop is not None)
    assert moved == [(n, n not in (4, 7)) for n in range(moved[0][0], 10)]
    lines = [line for line in metrics(tmp_path) if line["kind"] == "train"]
    assert {line["step"]: line.get("skipped_steps") for line in lines} == {
        **{2: None, 3: None, 4: None, 6: 1.0, 8: 1.0, 9: None, 10: None}
    }
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_too_many_bad_steps_in_a_row_end_the_run_with_a_checkpoint(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    task = make_task()
    spoil(task, 1, 4, 5, 6, 7)
    config = replace(CONFIG, max_bad_steps=3, checkpoint_every=100)
    loop = loop_of(task, make_source(), tmp_path, config)
    with pytest.raises(TrainingError, match=r"in 3 steps in a row, up to step 7"):
        loop.train()
    assert [path.name for path in loop.checkpoints.complete()] == ["step-00000007"]
    # Counted on over the pause.
    again = make_task()
    spoil(again, 7)
    with pytest.raises(TrainingError, match=r"in 4 steps in a row, up to step 8"):
        loop_of(again, make_source(), tmp_path, config).train(resume=True)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("at", [1, 4, 6, 9, 10])
def test_a_signal_ends_the_run_after_its_step(
    tmp_path: Path, make_task: Make, make_source: Make, number: signal.Signals, at: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    # Lines, evaluations and checkpoints fall between the steps where the signal comes.
    config = replace(CONFIG, log_every=3, checkpoint_every=100, eval_every=3)
    unbroken = make_task(dropout=0.3)
    loop_of(unbroken, make_source(), whole, config, evaluate=evaluations(unbroken)).train()

    first = make_task(dropout=0.3)
    loop = loop_of(first, make_source(), cut, config, evaluate=evaluations(first))
    original = loop.step

    def step(prepared: Step) -> dict[str, torch.Tensor]:
        if prepared.number + 1 == at:
            signal.raise_signal(number)
        return original(prepared)

    loop.step = step  # type: ignore[method-assign]
    with pytest.raises(StoppedBySignal, match=f"after step {at} of 10") as caught:
        loop.train()
    assert caught.value.exit_code == 128 + number
    assert [path.name for path in loop.checkpoints.complete()] == [f"step-{at:08d}"]
    second = make_task(dropout=0.3)
    resumed = loop_of(second, make_source(), cut, config, evaluate=evaluations(second))
    assert resumed.train(resume=True).resumed_from == at
    assert metrics(cut) == metrics(whole)
    assert all(torch.equal(weights(second)[n], t) for n, t in weights(unbroken).items())


@pytest.mark.parametrize("scheduled", [5, 100])
@pytest.mark.parametrize("at", [5, 10])
def test_a_signal_ends_an_evaluation_at_once(
    tmp_path: Path, make_task: Make, make_source: Make, at: int, scheduled: int
) -> None:
    config = replace(CONFIG, checkpoint_every=scheduled, eval_every=5, best_metric=None)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    unbroken = make_task()
    expected = loop_of(unbroken, make_source(), whole, config, evaluate=evaluations(unbroken))
    expected.train()

    task = make_task()
    judge = evaluations(task)

    def evaluate(step: int) -> Mapping[str, float]:
        if step == at:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")
        return judge(step)

    loop = loop_of(task, make_source(), cut, config, evaluate=evaluate)
    with pytest.raises(StoppedBySignal, match=f"after step {at} of 10"):
        loop.train()
    assert loop.checkpoints.complete()[-1].name == f"step-{at:08d}"
    again = make_task()
    resumed = loop_of(again, make_source(), cut, config, evaluate=evaluations(again))
    assert resumed.train(resume=True).resumed_from == at
    assert metrics(cut) == metrics(whole)
    best, other = expected.checkpoints.best(), resumed.checkpoints.best()
    assert best is not None
    assert other is not None
    assert best.name == other.name


def test_a_checkpoint_that_is_due_does_not_wait_for_an_evaluation(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    there: dict[int, list[str]] = {}

    def evaluate(step: int) -> Mapping[str, float]:
        loop.checkpoints.finish()  # what was begun
        there[step] = [path.name for path in loop.checkpoints.complete()]
        return {"loss": float(step)}

    config = replace(CONFIG, checkpoint_every=4, eval_every=4)
    loop = loop_of(make_task(), make_source(), tmp_path, config, evaluate=evaluate)
    loop.train()
    assert there[4] == ["step-00000004"]
    assert there[10][-1] == "step-00000010"


def test_a_signal_while_the_data_is_waited_for_is_heard(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    waiting, released = threading.Event(), threading.Event()

    def steps(start: Any) -> Any:
        for step in TrainingLoop.steps(loop, start):
            if step.number == 4:
                waiting.wait()
                signal.raise_signal(signal.SIGTERM)
                released.wait()
            yield step

    def stops_alone() -> bool:
        waiting.set()  # asked while a step is waited for
        return TrainingLoop._stops_alone(loop)

    loop = loop_of(make_task(), make_source(), tmp_path, replace(CONFIG, checkpoint_every=100))
    loop.steps, loop._stops_alone = steps, stops_alone  # type: ignore[method-assign]
    original = loop.checkpoints.finish
    loop.checkpoints.finish = lambda: (released.set(), original())[1]  # type: ignore[method-assign]
    with pytest.raises(StoppedBySignal, match=r"after step 4 of 10") as caught:
        loop.train()
    assert caught.value.exit_code == 143
    assert [path.name for path in loop.checkpoints.complete()] == ["step-00000004"]


def test_data_that_cannot_be_read_costs_no_step(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    def steps(start: Any) -> Any:
        for step in TrainingLoop.steps(loop, start):
            if step.number == 7:
                raise DataError("the shard is gone")
            yield step

    loop = loop_of(make_task(), make_source(), tmp_path, replace(CONFIG, checkpoint_every=100))
    loop.steps = steps  # type: ignore[method-assign]
    with pytest.raises(DataError, match="the shard is gone"):
        loop.train()
    assert [path.name for path in loop.checkpoints.complete()] == ["step-00000007"]


def test_damaged_checkpoints_take_no_places(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    config = replace(CONFIG, checkpoint_every=2, keep_checkpoints=2)
    whole = replace(config, keep_checkpoints=9)
    loop_of(make_task(), make_source(), tmp_path, whole).train()
    for step in (8, 10):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "state.json").write_text("{}")
    loop = loop_of(make_task(), make_source(), tmp_path, config)
    original = loop.step

    def step(prepared: Step) -> dict[str, torch.Tensor]:
        if prepared.number == 6:
            signal.raise_signal(signal.SIGTERM)
        return original(prepared)

    loop.step = step  # type: ignore[method-assign]
    with pytest.raises(StoppedBySignal, match="after step 7"):
        loop.train(resume=True)
    kept = [path.name for path in loop.checkpoints.complete()]
    assert kept == ["step-00000006", "step-00000007"]
    assert (
        loop_of(make_task(), make_source(), tmp_path, config).train(resume=True).resumed_from == 7
    )


def test_the_best_checkpoint_stays(tmp_path: Path, make_task: Make, make_source: Make) -> None:
    figures = {0: 0.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 9.0, 10: 8.0}
    config = replace(CONFIG, eval_every=2, checkpoint_every=3, best_metric=None, keep_checkpoints=1)

    def evaluate(step: int) -> Mapping[str, float]:
        return {"loss": figures[step], "other": -figures[step]}

    loop = loop_of(make_task(), make_source(), tmp_path, config, evaluate=evaluate)
    loop.train()
    best = loop.checkpoints.best()
    assert best is not None
    assert best.name == "step-00000004"
    assert [path.name for path in loop.checkpoints.complete()] == [best.name, "step-00000010"]
    # A kill may come between a checkpoint and the line that names it the best.
    (tmp_path / "checkpoints" / "best.json").unlink()
    again = loop_of(make_task(), make_source(), tmp_path, config, evaluate=evaluate)
    again.train(resume=True)
    assert again.checkpoints.best() == best


def test_patience_ends_a_run_with_its_best_model(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    figures = {
        0: 0.0,
        1: 5.0,
        2: 3.0,
        3: 4.0,
        4: 3.5,
        5: 9.0,
        6: 1.0,
        7: 2.0,
        8: 2.0,
        9: 2.0,
        10: 0.5,
    }
    config = replace(
        CONFIG, eval_every=1, checkpoint_every=4, best_metric=None, keep_checkpoints=9, patience=3
    )

    def trained(folder: Path, config: TrainingConfig, stop: int = 0) -> tuple[Any, Any]:
        folder.mkdir(exist_ok=True)
        task, at = make_task(), {}

        def evaluate(step: int) -> Mapping[str, float]:
            at[step] = weights(task)
            return {"loss": figures[step]}

        loop = loop_of(task, make_source(), folder, config, evaluate=evaluate)
        if stop:
            stop_after(loop, stop)
            with pytest.raises(StoppedError):
                loop.train()
            return None, at
        return loop.train(resume=True), (at, weights(task), loop)

    summary, (at, last, loop) = trained(tmp_path / "whole", config)
    assert summary.steps == 5  # 4.0, 3.5 and 9.0 are no better than the 3.0 of step 2
    assert max(at) == 5
    assert [path.name[-1] for path in loop.checkpoints.complete()] == ["1", "2", "4", "5"]
    assert all(torch.equal(last[name], at[2][name]) for name in last)
    # Resumed in the middle of the wait, the count goes on; ended, the run stays as it is.
    trained(tmp_path / "cut", config, stop=5)
    for resumed_from in (4, 5):
        summary, (_, again, _) = trained(tmp_path / "cut", config)
        assert (summary.steps, summary.resumed_from) == (5, resumed_from)
        assert all(torch.equal(again[name], last[name]) for name in last)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    # More patience goes on from there; the 1.0 of step 6 is better.
    summary, _ = trained(tmp_path / "cut", replace(config, patience=4))
    assert (summary.steps, summary.resumed_from) == (10, 5)


def test_time_makes_a_checkpoint_due(
    tmp_path: Path, make_task: Make, make_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, checkpoint_every=100, checkpoint_minutes=1e6, keep_checkpoints=9)
    loop = loop_of(make_task(), make_source(), tmp_path, config)
    original = loop.step

    def step(prepared: Step) -> dict[str, torch.Tensor]:
        if prepared.number == 6:
            loop._saved_at -= 60e6 + 1
        return original(prepared)

    loop.step = step  # type: ignore[method-assign]
    loop.train()
    assert [path.name for path in loop.checkpoints.complete()] == ["step-00000007", "step-00000010"]


def test_a_failed_write_surfaces_at_the_next_step(
    tmp_path: Path, make_task: Make, make_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(make_task(), make_source(), tmp_path)
    original = loop.checkpoints.write

    def write(snapshot: Any) -> Path:
        if snapshot.position.step == 6:
            raise CheckpointError("the disk is gone")
        return original(snapshot)

    monkeypatch.setattr(loop.checkpoints, "write", write)
    with pytest.raises(CheckpointError, match="the disk is gone"):
        loop.train()
    assert [path.name for path in loop.checkpoints.complete()] == ["step-00000003"]


def test_without_room_the_run_goes_on_and_keeps_what_it_has(
    tmp_path: Path,
    make_task: Make,
    make_source: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = loop_of(make_task(), make_source(), tmp_path)
    monkeypatch.setattr(
        loop.checkpoints,
        "room_for",
        lambda snapshot: "it takes too much" if snapshot.position.step > 3 else None,
    )
    loop.train()
    # The last step is tried all the same.
    names = [path.name for path in loop.checkpoints.complete()]
    assert names == ["step-00000003", "step-00000010"]
    assert caplog.text.count("it takes too much") == 2
    assert "could be resumed from 'step-00000003'" in caplog.text


class Recorder(Callback):
    """Notes what it is told, and fails where it is asked to."""

    def __init__(self, fails_at: tuple[str, int] | None = None) -> None:
        self.fails_at = fails_at
        self.told: list[tuple[Any, ...]] = []

    def note(self, event: str, step: int, what: Any) -> None:
        self.told.append((event, step, what))
        if self.fails_at == (event, step):
            raise ZeroDivisionError

    def on_step(self, step: int, figures: Mapping[str, torch.Tensor]) -> None:
        self.note("step", step, {name: float(value) for name, value in figures.items()})

    def on_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        self.note("evaluation", step, dict(figures))

    def on_save(self, step: int, folder: Path) -> None:
        self.note("save", step, (folder.name, (folder / "manifest.json").is_file()))

    def on_end(self) -> None:
        self.told.append(("end",))


def test_callbacks_are_told_of_steps_evaluations_checkpoints_and_the_end(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    task, recorder = make_task(), Recorder()
    config = replace(CONFIG, log_every=1, keep_checkpoints=9)
    loop = loop_of(
        task,
        make_source(),
        tmp_path,
        config,
        evaluate=evaluations(task),
        callbacks=[recorder, Silent()],
    )
    loop.train()
    steps = {step: figures for event, step, figures in recorder.told[:-1] if event == "step"}
    written = {line["step"]: line for line in metrics(tmp_path) if line["kind"] == "train"}
    assert list(steps) == list(range(1, 11))
    for step, figures in steps.items():
        assert figures == {name: pytest.approx(written[step][name]) for name in figures}
        assert set(figures) == {"loss", "error", "size", "grad_norm"}
    held_out = [(line["step"], line["weight"]) for line in metrics(tmp_path) if "weight" in line]
    told = [(entry[1], entry[2]["weight"]) for entry in recorder.told if entry[0] == "evaluation"]
    assert told == held_out
    saved = [entry[1:] for entry in recorder.told if entry[0] == "save"]
    assert saved == [(step, (f"step-{step:08d}", True)) for step in (3, 6, 9, 10)]
    assert recorder.told[-1] == ("end",)
    assert recorder.told.count(("end",)) == 1


class Silent(Callback):
    """Every method is inherited."""


class OnlySteps:
    """A class of one's own that is derived from nothing."""

    def on_step(self, step: int, figures: Mapping[str, torch.Tensor]) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (OnlySteps(), "OnlySteps has no on_evaluation and no on_save and no on_end; derive"),
        (Silent, r"Silent is a class; give an object of it: Silent\(\)"),
        (print, "has no on_step"),
    ],
)
def test_what_is_no_callback_is_refused_before_the_first_step(
    tmp_path: Path, make_task: Make, make_source: Make, callback: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loop_of(make_task(), make_source(), tmp_path, callbacks=[callback])


@pytest.mark.parametrize("at", [("step", 5), ("step", 10), ("evaluation", 8), ("evaluation", 0)])
def test_a_callback_that_fails_costs_no_step(
    tmp_path: Path, make_task: Make, make_source: Make, at: tuple[str, int]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    config = replace(CONFIG, checkpoint_every=100)
    unbroken = make_task(dropout=0.3)
    loop_of(unbroken, make_source(), whole, config, evaluate=evaluations(unbroken)).train()

    first, recorder = make_task(dropout=0.3), Recorder(fails_at=at)
    loop = loop_of(
        first, make_source(), cut, config, evaluate=evaluations(first), callbacks=[recorder]
    )
    with pytest.raises(ZeroDivisionError):
        loop.train()
    assert recorder.told[-1] == ("end",)
    second = make_task(dropout=0.3)
    resumed = loop_of(second, make_source(), cut, config, evaluate=evaluations(second))
    assert resumed.train(resume=True).resumed_from == at[1]
    assert metrics(cut) == metrics(whole)
    assert all(torch.equal(weights(second)[n], t) for n, t in weights(unbroken).items())


def test_a_hang_up_that_is_ignored_stays_ignored(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    loop = loop_of(make_task(), make_source(), tmp_path)
    original = loop.step

    def step(prepared: Step) -> dict[str, torch.Tensor]:
        signal.raise_signal(signal.SIGHUP)
        return original(prepared)

    loop.step = step  # type: ignore[method-assign]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert loop.train().steps == 10
    finally:
        signal.signal(signal.SIGHUP, before)


def test_checkpoints_of_named_steps_stay(
    tmp_path: Path, make_task: Make, make_source: Make
) -> None:
    """Also where the run goes on without naming them."""
    config = replace(CONFIG, checkpoint_every=3, keep_checkpoints=1, eval_every=None)
    named = replace(config, keep_at=("1", "4", "99"))
    first = loop_of(make_task(), make_source(), tmp_path, named)
    stop_after(first, 7)
    with pytest.raises(StoppedError):
        first.train()
    kept = loop_of(make_task(), make_source(), tmp_path, config)
    assert kept.train(resume=True).resumed_from == 6
    assert [path.name[-2:] for path in kept.checkpoints.complete()] == ["01", "04", "10"]
    logged = [line["step"] for line in metrics(tmp_path) if line["kind"] == "train"]
    assert {1, 4} <= set(logged)
