"""A run of the loop's kind under the Hugging Face Trainer: the same steps, the same run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from maskery.core.task import BatchSource, Task
from maskery.hf.arguments import training_arguments
from maskery.hf.trainer import MaskedLMTrainer
from maskery.training.config import TrainingConfig
from maskery.training.journal import Tracker
from maskery.training.loop import Summary

TRAIN_VALUES = ("grad_norm", "tokens_per_second", "learning_rate")


def train_under_trainer(
    task: Task[Any, Any],
    source: BatchSource[Any],
    config: TrainingConfig,
    folder: Path,
    *,
    new_parameters: Collection[str] = (),
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    progress: bool = True,
) -> Summary:
    """Train a task and write `metrics.jsonl`; no checkpoints.

    `grad_norm` is that of the last step before a line; everything else is a mean, as in the loop.

    Args:
        task: What is trained.
        source: Where its batches come from.
        config: Length, optimiser and schedule.
        folder: The run folder.
        new_parameters: Names of parameters that start from nothing.
        evaluate: From the steps done to held-out figures; called at the start, every `eval_every`
            steps and at the end.
        progress: Whether to draw the Trainer's progress bar.

    Raises:
        ConfigError: The Trainer cannot do what the config says.
    """
    evaluated: set[int] = set()

    def evaluate_once(step: int) -> Mapping[str, float]:
        assert evaluate is not None
        evaluated.add(step)
        return evaluate(step)

    others: dict[str, Any] = {"save_strategy": "no", "disable_tqdm": not progress}
    if evaluate is None:
        others["eval_strategy"] = "no"
    tracker = Tracker(folder, trackers=config.all_trackers, settings=config.course())
    trainer = MaskedLMTrainer(
        task,
        source,
        # The tracker writes the TensorBoard events, under the names that the loop gives them.
        training_arguments(config, task.model, source, folder, **others, report_to="none"),
        new_parameters=new_parameters,
        head_learning_rate=config.head_learning_rate,
        evaluate=evaluate_once if evaluate else None,
        callbacks=[_RunFolder(tracker, set(task.loss_weights))],
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the command
    if evaluate is not None:
        trainer.evaluate()
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    steps = int(trainer.state.global_step)
    if evaluate is not None and steps not in evaluated:
        trainer.evaluate()
    tracker.close()
    return Summary(steps=steps, tokens=trainer.num_tokens, seconds=seconds, resumed_from=0)


class _RunFolder(TrainerCallback):  # type: ignore[misc]  # Transformers is not typed
    """Writes what the Trainer logs into `metrics.jsonl`, as the loop would."""

    def __init__(self, tracker: Tracker, terms: Collection[str]) -> None:
        self.tracker = tracker
        self.terms = terms

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The last step is logged, whatever its number."""
        del args, kwargs
        control.should_log = control.should_log or state.global_step == state.max_steps
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """One line for steps, one for held-out figures."""
        del args, control, kwargs
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            names = ("loss", *sorted(self.terms), *TRAIN_VALUES)
            values = {name: float(logs[name]) for name in names if name in logs}
            # A whole number means that an epoch has just ended; the loop counts it from 0.
            values["epoch"] = -int(-state.epoch // 1) - 1
            self.tracker.log("train", state.global_step, values)
        figures = {n.removeprefix("eval_"): v for n, v in logs.items() if n.startswith("eval_")}
        if figures:
            self.tracker.log("held_out", state.global_step, figures)
