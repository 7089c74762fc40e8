"""Parts of an objective that lie beside a saved model: the momentum twin and heads.

`extra_state.safetensors` holds the twin's weights as `twin.*`, and heads such as `mrtd_head.*`.
Transformers does not read the file, so the model folder stays a plain masked language model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from maskery.core.batch import TokenBatch
from maskery.core.errors import CheckpointError, reason_of
from maskery.core.task import EXTRA_STATE, Task
from maskery.evaluation.text.masked import FROZEN_EPOCH, judged_auc
from maskery.models.masked_lm import MaskedLanguageModel

TWIN = "twin.hf."


def save_extra(task: Task[Any, Any], model: MaskedLanguageModel, folder: Path) -> None:
    """Write what a model folder holds beyond the masked language model, if there is anything."""
    tensors = {n: t for n, t in task.extra_state().items() if n.startswith(TWIN)}
    tensors |= own_tensors(task, model)
    if tensors:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / EXTRA_STATE)


@torch.no_grad()
def load_extra(
    task: Task[Any, Any], model: MaskedLanguageModel, folder: Path, *, needed: bool
) -> None:
    """Take over the twin and the heads that `save_extra` wrote, where the task has any.

    What is missing is an error only where it is `needed`.

    Raises:
        CheckpointError: It is missing, damaged or of another model.
    """
    path, state = folder / EXTRA_STATE, task.extra_state()
    own = own_tensors(task, model)
    if not (own or any(n.startswith(TWIN) for n in state)) or not (needed or path.is_file()):
        return
    try:
        tensors = load_file(path)
        for name, tensor in own.items():
            if needed or name in tensors:
                if tensors[name].shape != tensor.shape:  # copying would repeat rows in silence
                    raise RuntimeError(f"'{name}' has another shape")
                tensor.copy_(tensors[name])
    except (OSError, KeyError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"the momentum twin and heads in '{path}' cannot be read "
            f"({reason_of(error, most=120)}); restore the file, or train again"
        ) from error
    # The twin's own copy of the heads is never read, so it is not saved.
    twin = {name: tensor for name, tensor in tensors.items() if name.startswith(TWIN)}
    if twin or needed:
        task.load_extra_state({**state, **twin})


@torch.no_grad()
def replaced_words_auc(task: Task[Any, Any], batches: Iterable[TokenBatch]) -> float | None:
    """Return the area under the ROC curve of replaced against original words on held-out text.

    The twin fills frozen masks by sampling, as in training, and the model judges every token that
    is not special.

    Returns:
        None without replaced token detection, and where nothing or everything was replaced.
    """
    if "mrtd" not in task.loss_weights:
        return None
    from maskery.tasks.momentum_text import MomentumTextMLM

    if not isinstance(task, MomentumTextMLM):
        return None
    task.model.eval()
    task.twin.follow_device()
    device = next(task.model.parameters()).device
    prepared = (task.prepare(batch, epoch=FROZEN_EPOCH, progress=0.0) for batch in batches)
    return judged_auc(task.judge(one.to(device)) for one in prepared)


def own_tensors(task: Task[Any, Any], model: MaskedLanguageModel) -> dict[str, torch.Tensor]:
    """Return, by name within the trained module, what an objective trains beside the model."""
    shared = {id(tensor) for tensor in (*model.hf.parameters(), *model.hf.buffers())}
    found = (*task.model.named_parameters(), *task.model.named_buffers())
    return {name: tensor for name, tensor in found if id(tensor) not in shared}


def new_parameters(
    task: Task[Any, Any], model: MaskedLanguageModel, loaded: Iterable[str]
) -> set[str]:
    """Return the names, within the trained module, of parameters that start from nothing."""
    parameters = dict(model.hf.named_parameters())
    fresh = {id(parameters[name]) for name in loaded if name in parameters}
    names = {name for name, tensor in task.model.named_parameters() if id(tensor) in fresh}
    return names | set(own_tensors(task, model))
