"""Text runs with a momentum twin: their task, what is saved beside the model, the AUC.

Beside a saved model lies `extra_state.safetensors` where there is a twin: its weights as `twin.*`,
and the replaced-token head as `mrtd_head.*`. The model folder itself stays a plain masked language
model; Transformers does not read the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch
from maskery.core.errors import CheckpointError, reason_of
from maskery.core.task import EXTRA_STATE, part_of
from maskery.evaluation.auc import judged_auc
from maskery.evaluation.text.masked import FROZEN_EPOCH
from maskery.evaluation.text.opening import OpenModel
from maskery.masking.masker import Masker
from maskery.models.loading import resolve
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.models.replaced_tokens import HEAD, ReplacedTokenModel
from maskery.runs.text.config import TextRunConfig
from maskery.tasks.momentum_text import MomentumTextMLM
from maskery.tasks.text_mlm import TextMLM

TWIN = "twin.hf."
TextTask = TextMLM | MomentumTextMLM


def wrap_model(
    config: TextRunConfig, hf: PreTrainedModel, *, packed: bool, pad_token_id: int
) -> MaskedLanguageModel:
    """The Hugging Face model of a run with the heads that its objective needs."""
    if "mrtd" not in config.objectives.weights:
        return MaskedLanguageModel(hf, packed=packed, pad_token_id=pad_token_id)
    seed = config.training.seed
    return ReplacedTokenModel(hf, packed=packed, pad_token_id=pad_token_id, seed=seed)


def momentum_task(
    config: TextRunConfig, model: MaskedLanguageModel, tokenizer: PreTrainedTokenizerBase
) -> MomentumTextMLM:
    """The task of a run with a momentum twin, which starts as a copy of the model."""
    masker = Masker.of(tokenizer, config.masking, seed=config.training.seed)
    return MomentumTextMLM(
        model,
        config.objectives,
        vocabulary=masker.vocabulary,
        masker=masker,
        mrtd_masker=masker.for_generator(config.objectives.mrtd_mask_rate),
        pin_memory=torch.cuda.is_available(),
    )


def new_parameters(model: MaskedLanguageModel, loaded: Iterable[str]) -> set[str]:
    """The names, within the trained module, of parameters that start from nothing."""
    heads = {name for name, _ in model.named_parameters() if name.startswith(f"{HEAD}.")}
    return {f"hf.{name}" for name in loaded} | heads


def save_extra(task: TextTask, model: MaskedLanguageModel, folder: Path) -> None:
    """Write what a model folder holds beyond the masked language model, if there is anything."""
    tensors = {n: t for n, t in task.extra_state().items() if n.startswith(TWIN)}
    if isinstance(model, ReplacedTokenModel):
        head = model.mrtd_head.state_dict()
        tensors |= {f"{HEAD}.{name}": tensor for name, tensor in head.items()}
    if tensors:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / EXTRA_STATE)


def load_extra(task: TextTask, model: MaskedLanguageModel, folder: Path, *, needed: bool) -> None:
    """Take over the twin and the head that `save_extra` wrote, where the task has any.

    Args:
        task: Changed in place.
        model: What it trains; likewise.
        folder: A model folder.
        needed: Whether it is an error that there is no such file.

    Raises:
        CheckpointError: It is missing, damaged or of another model.
    """
    path = folder / EXTRA_STATE
    if not isinstance(task, MomentumTextMLM) or not (needed or path.is_file()):
        return
    try:
        tensors = load_file(path)
        head = part_of(tensors, f"{HEAD}.")
        if isinstance(model, ReplacedTokenModel) and (head or needed):
            model.mrtd_head.load_state_dict(head)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"the momentum twin and heads in '{path}' cannot be read "
            f"({reason_of(error, most=120)}); restore the file, or train again"
        ) from error
    # The twin's own copy of the head is never read, so it is not saved.
    twin = {name: tensor for name, tensor in tensors.items() if name.startswith(TWIN)}
    task.load_extra_state({**task.extra_state(), **twin})


def saved_task_auc(
    opened: OpenModel, config: TextRunConfig, batches: Iterable[TokenBatch]
) -> float | None:
    """`replaced_words_auc` of a trained model, with the twin and the head that lie beside it.

    Args:
        opened: The model of a run.
        config: Of that run.
        batches: Held-out text.
    """
    if "mrtd" not in config.objectives.weights:
        return None
    plain = opened.model
    model = wrap_model(config, plain.hf, packed=plain.packed, pad_token_id=plain.pad_token_id)
    task = momentum_task(config, model, opened.tokenizer)
    load_extra(task, model, Path(resolve(opened.name)), needed=True)
    return replaced_words_auc(task, batches)


@torch.no_grad()
def replaced_words_auc(task: TextTask, batches: Iterable[TokenBatch]) -> float | None:
    """The area under the ROC curve of replaced against original words on held-out text.

    The twin fills frozen masks by sampling, as in training, and the model judges every token that
    is not special.

    Returns:
        None without replaced token detection, and where nothing or everything was replaced.
    """
    if not isinstance(task, MomentumTextMLM) or "mrtd" not in task.loss_weights:
        return None
    task.model.eval()
    task.twin.follow_device()
    device = next(task.model.parameters()).device
    prepared = (task.prepare(batch, epoch=FROZEN_EPOCH, progress=0.0) for batch in batches)
    return judged_auc(task.judge(one.to(device)) for one in prepared)
