"""The task of a text run: its objective, made from the parts of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from maskery.core.task import Task
from maskery.data.text_source import TextSource
from maskery.masking.masker import Masker
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig
from maskery.tasks.text_mlm import TextMLM, TextParts, make_text_task
from maskery.training.precision import resolve_precision

if TYPE_CHECKING:
    from maskery.data.shards.source import ShardSource

log = logging.getLogger(__name__)

COMPILE_BACKEND = "inductor"


def text_task(
    config: TextRunConfig,
    model: MaskedLanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    source: TextSource | ShardSource,
    objective: Callable[[TextParts], Task[Any, Any]] | None = None,
) -> Task[Any, Any]:
    """Make the task that a configuration names, or that an objective makes.

    Raises:
        PluginError: An objective of the user's own breaks its contract.
    """
    parts = text_parts(config, model, tokenizer)
    return make_text_task(compiled(parts, config, source), objective)


def text_parts(
    config: TextRunConfig, model: MaskedLanguageModel, tokenizer: PreTrainedTokenizerBase
) -> TextParts:
    """Return what a run's objective is made from."""
    return TextParts(
        model=model,
        tokenizer=tokenizer,
        masker=Masker.of(tokenizer, config.masking, seed=config.training.seed),
        settings=config.objectives,
        pin_memory=torch.cuda.is_available(),
    )


def compiled(
    parts: TextParts, config: TextRunConfig, source: TextSource | ShardSource
) -> TextParts:
    """Add constant shapes where `--compile` asks for them.

    Where steps cannot be compiled or that does not pay, one line says why and the run goes on as
    without it.
    """
    if not config.training.compile:
        return parts
    # Runs that compile nothing need none of this.
    from maskery.tasks.compiling import compile_obstacle, static_shapes

    state = PartialState()
    obstacle = compile_obstacle(
        device=state.device,
        packed=parts.model.packed,
        half_precision=resolve_precision(config.training, parts.model) == "bf16",
    )
    if obstacle is None and not isinstance(source, TextSource):
        obstacle = "batches of token shards have no constant shapes yet"
    if obstacle is not None or not isinstance(source, TextSource):
        log.warning("the step is not compiled: %s", obstacle)
        return parts
    shapes = static_shapes(
        source,
        parts.masker,
        epochs=config.training.epochs,
        num_processes=state.num_processes,
        masked_capacity=config.masked_capacity,
    )
    log.info(
        "steps are compiled for %s tokens, %s of them masked; the first takes a minute or so",
        f"{shapes.num_tokens:,}",
        f"{shapes.num_masked:,}",
    )
    return replace(parts, shapes=shapes, compile_backend=COMPILE_BACKEND)


def report_left_out(task: Task[Any, Any]) -> None:
    """Say how many masked tokens the loss of a run has left out, if any."""
    if isinstance(task, TextMLM) and task.num_left_out:
        assert task.shapes is not None
        everything = task.num_left_out + task.num_predicted
        log.warning(
            "%s of %s masked tokens (%.2g%%) were left out of the loss: a compiled step has %s "
            "rows for them; raise --masked-capacity to keep them all",
            f"{task.num_left_out:,}",
            f"{everything:,}",
            100.0 * task.num_left_out / everything,
            f"{task.shapes.num_masked:,}",
        )
