"""Any task under the Hugging Face `Trainer`: the same steps as in `training/loop.py`.

The Trainer owns callbacks, logging, reporting and saving; the source owns the batches and the task
the loss. One "batch" of the Trainer's is a whole optimiser step with all its micro-batches, so the
loss is divided by the counts of the step and not by Trainer's mean of means, and `before_step` runs
once. Everything about a step follows from its number: its batches, masks, dropout and learning
rate. So a run also resumes exactly, from the Trainer's own checkpoints.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from maskery.core.errors import CheckpointError, ConfigError
from maskery.core.task import EXTRA_STATE, BatchSource, Task, loss_sums_of, prepare_all
from maskery.hf.arguments import FLOOR, check_arguments, first_steps, schedule_of
from maskery.training.config import TrainingConfig
from maskery.training.loop import Step
from maskery.training.optimiser import build_optimiser, learning_rate_factor
from maskery.training.precision import exact_sums
from maskery.training.prefetch import Prefetch
from maskery.training.snapshot import named_tensors
from maskery.training.stepper import step_seed

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"


class MaskedLMTrainer(Trainer):  # type: ignore[misc]  # Transformers is not typed
    """Trains a task under the Hugging Face `Trainer`.

    Callbacks, logging, reporting, saving and `train(resume_from_checkpoint=...)` are the Trainer's.
    A saved model is a Hugging Face folder where the task trains one Hugging Face model.

    Args:
        task: What is trained.
        source: Where its batches come from.
        args: The Trainer's settings; `training_arguments` makes them from a `TrainingConfig`. The
            warm-up's first step has a learning rate above 0, as in Maskery's loop.
        new_parameters: Names of parameters that start from nothing.
        head_learning_rate: Their peak learning rate. Default: ten times the other, at most 1e-3.
        evaluate: From the steps done to held-out figures by name, logged as `eval_NAME`.
        processing_class: The tokenizer, saved beside the model.
        callbacks: The Trainer's callbacks.
        optimizers: An optimiser and a schedule of your own.

    Attributes:
        num_tokens: Real tokens that this process has trained on.

    Raises:
        ConfigError: An argument would have no effect, or there is nothing to train on.
    """

    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(
        self,
        task: Task[Any, Any],
        source: BatchSource[Any],
        args: TrainingArguments,
        *,
        new_parameters: Collection[str] = (),
        head_learning_rate: float | None = None,
        evaluate: Callable[[int], Mapping[str, float]] | None = None,
        processing_class: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        check_arguments(args, can_evaluate=evaluate is not None)
        self.task, self.source = task, source
        self.new_parameters, self.head_learning_rate = new_parameters, head_learning_rate
        self.held_out_figures = evaluate
        self.num_tokens = 0
        self._first_steps = first_steps(source, args)
        self._window: dict[str, torch.Tensor] = {}
        self._window_steps, self._window_tokens, self._window_began = 0, 0, 0.0
        self._learning_rate = 0.0
        args = copy.copy(args)
        args.max_steps = self._first_steps[-1]
        # Batches follow from the step's number, so none has to be read again to reach it.
        args.ignore_data_skip = True
        if args.n_gpu > 1:
            log.warning("one of %d GPUs is used; start with torchrun to use all", args.n_gpu)
            args._n_gpu = 1
        super().__init__(
            model=task.model,
            args=args,
            # Never read: `evaluate` is ours; the Trainer only asks whether there is one.
            eval_dataset=None if evaluate is None else [],
            processing_class=processing_class,
            callbacks=[_EpochEnds(self), *callbacks],
            optimizers=optimizers,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with gradients that repeat bit for bit on a CPU."""
        with exact_sums(self.args.device):
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """The steps of the current epoch, each as one batch; prepared one ahead, in a thread."""
        return _StepLoader(self)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Step], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Gradients of one whole optimiser step; returns its loss, detached."""
        del num_items_in_batch  # counted by the task, for each of its loss terms
        step = inputs["step"]
        if self._window_steps == 0:
            self._window_began = time.perf_counter()
        self.task.model = model  # wrapped, where there are several processes
        model.train()
        torch.manual_seed(step_seed(self.args.seed, step.number, self.args.process_index))
        self._learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        self.task.before_step()
        counts = self._global_counts(step)
        loss = torch.zeros((), device=self.args.device)
        for index, prepared in enumerate(step.micro):
            last = index + 1 == len(step.micro)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                sums = loss_sums_of(self.task, prepared.to(self.args.device))
                terms = {name: value / max(counts[name], 1) for name, value in sums.items()}
                total = sum(
                    (self.task.loss_weights[name] * term for name, term in terms.items()),
                    start=torch.zeros((), device=self.args.device),
                )
                # Processes' gradients and logged losses are averaged; ours are shares of a sum.
                self.accelerator.backward(total * self.accelerator.num_processes)
            loss += total.detach() * self.accelerator.num_processes
            for name, term in terms.items():
                self._window[name] = self._window.get(name, 0.0) + term.detach()
        tokens = sum(micro.num_tokens for micro in step.micro)
        self.num_tokens += tokens
        self._window_tokens += tokens
        self._window_steps += 1
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The optimiser named by `args.optim`, with Maskery's parameter groups.

        Raises:
            ConfigError: That optimiser takes no parameter groups.
        """
        if self.optimizer is None:
            model = model or self.model
            rates = TrainingConfig(
                learning_rate=self.args.learning_rate,
                head_learning_rate=self.head_learning_rate,
                weight_decay=self.args.weight_decay,
            )
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            if not isinstance(kind, type) or settings.keys() & {"params", "model"}:
                raise ConfigError(
                    f"optim is '{self.args.optim}', which groups parameters itself; use "
                    f"adamw_torch_fused, or pass your own optimiser in optimizers=(optimiser, None)"
                )
            groups = build_optimiser(model, rates, self.new_parameters).param_groups
            named = [
                {"params": g["params"], "lr": g["peak_lr"], "weight_decay": g["weight_decay"]}
                for g in groups
            ]
            self.optimizer = kind(named, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Maskery's schedule where it has the one that is asked for, else the Trainer's."""
        shape = schedule_of(self.args)
        if self.lr_scheduler is not None or shape is None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.warmup_steps
        share = warmup / num_training_steps if warmup >= 1 else warmup
        floor = float((self.args.lr_scheduler_kwargs or {}).get(FLOOR, 0.0))
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: learning_rate_factor(
                step, num_training_steps, warmup_share=share, shape=shape, floor=floor
            ),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The held-out figures, logged."""
        if self.held_out_figures is None or eval_dataset is not None:
            result: dict[str, float] = super().evaluate(
                eval_dataset, ignore_keys, metric_key_prefix
            )
            return result
        self.task.model.eval()
        figures = self.held_out_figures(self.state.global_step)
        named = {f"{metric_key_prefix}_{name}": float(value) for name, value in figures.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the loss terms and the speed since the last line."""
        if "loss" in logs and self._window_steps:
            seconds = time.perf_counter() - self._window_began
            for name, value in self._window.items():
                logs[name] = float(value) / self._window_steps
            logs["learning_rate"] = self._learning_rate
            logs["tokens_per_second"] = self._window_tokens / seconds
            self._window, self._window_steps, self._window_tokens = {}, 0, 0
        # The Trainer takes a step for `per_device_train_batch_size` examples.
        logs.pop("train_samples_per_second", None)
        super().log(logs, start_time)

    def position(self, number: int) -> tuple[int, int, int]:
        """Of a step of the run: its epoch, its number there and the steps of that epoch."""
        epoch = bisect_right(self._first_steps, number) - 1
        first = self._first_steps[epoch]
        return epoch, number - first, self.source.num_steps(epoch)

    def steps(self) -> Iterator[Step]:
        """The steps from the current one to the end of its epoch, prepared."""
        number, total = self.state.global_step, self._first_steps[-1]
        if number >= total:
            return
        epoch, start, num_steps = self.position(number)
        for index in range(start, min(num_steps, start + total - number)):
            batches = self.source.micro_batches(
                epoch, index, rank=self.args.process_index, world_size=self.args.world_size
            )
            progress = (number + index - start) / total
            micro = prepare_all(self.task, batches, epoch=epoch, progress=progress)
            yield Step(number=number + index - start, epoch=epoch, epoch_step=index, micro=micro)

    def _global_counts(self, step: Step) -> dict[str, float]:
        names = sorted(self.task.loss_weights)
        counts = [float(sum(m.counts.get(name, 0) for m in step.micro)) for name in names]
        if self.accelerator.num_processes > 1:
            local = torch.tensor(counts, device=self.args.device, dtype=torch.float64)
            counts = self.accelerator.reduce(local, reduction="sum").tolist()
        return dict(zip(names, counts, strict=True))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The Trainer would pickle its arguments into the folder, and trip over tied weights.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        inner = only_pretrained(self.model)
        if inner is not None:
            inner.save_pretrained(folder)
        else:
            tensors = state_dict or named_tensors(self.model)
            save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / WEIGHTS)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        extra = {n: t.cpu().contiguous() for n, t in self.task.extra_state().items()}
        if extra:
            save_file(extra, folder / EXTRA_STATE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        load_weights(model or only_pretrained(self.model) or self.model, folder)
        if (folder / EXTRA_STATE).is_file():
            self.task.load_extra_state(load_file(folder / EXTRA_STATE))


class _StepLoader:
    """What the Trainer iterates over in each epoch; without a length, which differs by epoch."""

    def __init__(self, trainer: MaskedLMTrainer) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[dict[str, Step]]:
        with Prefetch(self.trainer.steps()) as steps:
            for step in steps:
                yield {"step": step}  # the Trainer looks for labels in a batch, by name


class _EpochEnds(TrainerCallback):  # type: ignore[misc]
    """Tells the Trainer, which knows no lengths, where it stands and when an epoch is over."""

    def __init__(self, trainer: MaskedLMTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Set the epoch, with its done share, and end it after its last step."""
        del args, kwargs
        epoch, index, num_steps = self.trainer.position(state.global_step - 1)
        state.epoch = epoch + (index + 1) / num_steps
        control.should_epoch_stop = control.should_epoch_stop or index + 1 == num_steps
        return control


def only_pretrained(model: nn.Module) -> PreTrainedModel | None:
    """The Hugging Face model that holds every parameter of a module, if there is one."""
    if isinstance(model, PreTrainedModel):
        return model
    inside = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(inside) != 1 or len(list(model.parameters())) != len(list(inside[0].parameters())):
        return None
    return inside[0]


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load what `_save` wrote, all of it.

    Raises:
        CheckpointError: The folder holds no weights, or those of another model.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"the checkpoint '{folder}' has no {WEIGHTS}; resume from another")
    saved, own = load_file(path), model.state_dict()
    tied = {own[name].data_ptr() for name in saved.keys() & own.keys()}
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in tied]
    shapes = all(own[name].shape == saved[name].shape for name in saved.keys() & own.keys())
    if missing or not shapes or not saved.keys() <= own.keys():
        raise CheckpointError(
            f"the checkpoint '{folder}' is of another model; resume with the model it was made from"
        )
    model.load_state_dict(saved, strict=False)
