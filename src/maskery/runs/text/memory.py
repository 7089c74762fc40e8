"""Choose micro-batches by memory: as many tokens as leave room for what their gradients need."""

import logging
import os

import numpy as np
import torch
from accelerate import PartialState

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError
from maskery.core.task import loss_sums_of, prepare_all
from maskery.runs.text.prepare import TextRun
from maskery.training.optimiser import resolve_precision

log = logging.getLogger(__name__)

WEIGHT_BYTES = 16  # of a trained weight: itself, its gradient and two moments in float32
# Of the device's memory; the rest is for the text, other programs and what is freed late.
GPU_SHARE, CPU_SHARE = 0.8, 0.5
# Of what is kept: the backward pass adds gradients of some of it (seen: a tenth to a fifth).
PEAK = 1.3
AUTO = "--micro-batch-tokens auto"
MEASURED = 512  # tokens of the passes that are measured; of more of them, each adds the same


def limit_micro_batches(run: TextRun) -> None:
    """Give the run's source the largest micro-batches that fit: a step, half of it, a quarter, ...

    The memory of a token comes from what two forward passes keep for their gradients, over few and
    over more of the longest held-out texts. Only the device's whole memory counts, not what is free
    of it: on the same machine the choice is always the same, and a resumed run goes on with it.
    """
    source, state = run.held_out, PartialState()
    run.model.to(state.device)
    order = np.argsort(-source.lengths, kind="stable")
    few = -(-MEASURED // int(source.lengths[order[0]]))
    # Where there are fewer texts, they are read again.
    passes = (_kept(run, source.batch(np.resize(order, count))) for count in (few, 2 * few))
    (less, kept_by_less), (more, kept_by_more) = passes
    each = (kept_by_more - kept_by_less) / (more - less)
    fixed = float(WEIGHT_BYTES) * sum(p.numel() for p in run.model.parameters())
    fixed += max(kept_by_less - less * each, 0.0)
    cost = PEAK * each  # of a token that is trained on
    room = (_memory(state) - fixed) / cost
    tokens = run.train.batching.batch_tokens
    while tokens > max(room, 1):
        tokens = -(-tokens // 2)
    longest = run.train.batching.max_length
    if tokens < longest:
        needs = f"{longest:,} tokens needs about {(fixed + cost * longest) / 2**30:.1f} GiB"
        problem = f"{AUTO}: a sequence of {needs} to be trained on, more than there is"
        raise ConfigError(f"{problem}; lower --max-length, or add --checkpoint-activations")
    log.info("%s: %s, at %.0f KiB a token", AUTO, f"{tokens:,}", cost / 2**10)
    run.train.limit_micro_batches(tokens)


def _memory(state: PartialState) -> float:
    """Return the bytes that this process may use of its device."""
    if state.device.type == "cuda":
        return GPU_SHARE * float(torch.cuda.mem_get_info(state.device)[1])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return CPU_SHARE * float(whole) / float(state.num_processes)


def _kept(run: TextRun, batch: TokenBatch) -> tuple[int, float]:
    """Return the tokens of a batch, and the bytes that a forward pass keeps for its gradients."""
    device, kept = PartialState().device, dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in run.task.model.parameters()}
    (prepared,) = prepare_all(run.task, [batch], epoch=0, progress=0.0)
    half = resolve_precision(run.config.training, run.task.model) == "bf16"
    # Dropout is drawn, and the run's own draws must not move on by it.
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        run.task.model.train()
        sums = loss_sums_of(run.task, prepared.to(device))
    needed = float(sum(size for place, size in kept.items() if place not in own))
    del sums  # Until here it holds what is kept, so that no place is used twice
    return prepared.num_tokens, needed
