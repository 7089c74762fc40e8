"""The task of a text run, compiled where that is asked for and possible."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from maskery.data.text_source import TextSource
from maskery.masking.masker import Masker
from maskery.models.compiling import compile_obstacle
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.momentum import TextTask, momentum_task
from maskery.tasks.static_shapes import static_shapes
from maskery.tasks.text_mlm import TextMLM
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
) -> TextTask:
    """Wire the task that a configuration describes.

    With `--compile`, batches are filled up to constant shapes and the step is compiled; where that
    cannot be or does not pay, one line says why and the run goes on as without it.
    """
    training = config.training
    if config.objectives.has_twin:
        return momentum_task(config, model, tokenizer)
    masker = Masker.of(tokenizer, config.masking, seed=training.seed)
    pin_memory = torch.cuda.is_available()
    if not training.compile:
        return TextMLM(model, masker, pin_memory=pin_memory)
    state = PartialState()
    obstacle = compile_obstacle(
        device=state.device,
        packed=model.packed,
        half_precision=resolve_precision(training, model) == "bf16",
    )
    if obstacle is None and not isinstance(source, TextSource):
        obstacle = "batches of token shards have no constant shapes yet"
    if obstacle is not None or not isinstance(source, TextSource):
        log.warning("the step is not compiled: %s", obstacle)
        return TextMLM(model, masker, pin_memory=pin_memory)
    shapes = static_shapes(
        source,
        masker,
        epochs=training.epochs,
        num_processes=state.num_processes,
        masked_capacity=config.masked_capacity,
    )
    log.info(
        "steps are compiled for %s tokens, %s of them masked; the first takes a minute or so",
        f"{shapes.num_tokens:,}",
        f"{shapes.num_masked:,}",
    )
    return TextMLM(
        model, masker, shapes=shapes, compile_backend=COMPILE_BACKEND, pin_memory=pin_memory
    )


def report_left_out(task: TextTask) -> None:
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
