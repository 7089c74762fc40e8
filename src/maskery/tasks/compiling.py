"""Compiled text steps: where they pay, the constant shapes they need, and the way back.

A compiled step is compiled again for every new shape, so batches are filled up to constant ones.
Tokens and sequences are bounded by the plan of every epoch, so they never overflow. How many tokens
a batch masks is random: there is room for six standard deviations above what is expected. Nothing
here fails for want of a compiler: the step is computed uncompiled, with one line that says why.
"""

import importlib.util
import logging
import math
import os
import shutil
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from maskery.core.batch import StaticShapes, TokenBatch
from maskery.core.task import BatchSource, StandIn
from maskery.data.batching import DEVIATIONS, Bounds
from maskery.masking.masker import Masker
from maskery.models.attention import FLASH_CAPABILITY
from maskery.models.layout import TOKEN_MULTIPLE, round_up

log = logging.getLogger(__name__)

COMPILERS = ("gcc", "clang", "cc")  # the names that Triton looks for, beside $CC
SAMPLED_STEPS = 16  # whose masks are drawn to estimate how many tokens a batch masks


class BoundedSource(BatchSource[TokenBatch], Protocol):
    """Batches of text whose sizes are known before."""

    def bounds(self, epochs: int, num_processes: int = 1) -> Bounds:
        """Return limits of the micro-batches of the first epochs."""


def compile_obstacle(*, device: torch.device, packed: bool, half_precision: bool) -> str | None:
    """Return the reason why a text step that should be compiled is not, or None."""
    if device.type != "cuda":
        return f"on '{device.type}' a compiled step is slower than an uncompiled one"
    if not packed:
        return "padded batches change their shape at every step; it takes --layout packed"
    if not half_precision or torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        return "variable-length flash attention takes bf16 on a GPU that has it (Ampere or newer)"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which torch.compile needs; pip install triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), *COMPILERS)):
        return "no C compiler was found (gcc or clang, or $CC), which torch.compile needs"
    return None


class Compiled:
    """A function that is compiled at its first call, or called as it is if that fails."""

    def __init__(self, function: Callable[..., torch.Tensor], *, backend: str = "inductor") -> None:
        self.function = function  # the compiled one, once a first call has proven it
        compiled = torch.compile(function, backend=backend, dynamic=False)
        self._unproven: Callable[..., torch.Tensor] | None = compiled

    def __call__(self, *args: Any) -> torch.Tensor:
        """Call the compiled function."""
        compiled = self._unproven
        if compiled is None:
            return self.function(*args)
        # Imported here, because it takes seconds that uncompiled runs need not spend.
        from torch._dynamo.exc import TorchDynamoException
        from torch._functorch import config as functorch_config

        try:
            # The backward pass is compiled now, too, so that it cannot fail later.
            with functorch_config.patch(force_non_lazy_backward_lowering=True):
                result = compiled(*args)
        except (TorchDynamoException, ImportError, OSError) as error:
            log.warning("the step is not compiled: torch.compile failed (%s)", reason(error))
            self._unproven = None
            return self.function(*args)
        self.function, self._unproven = compiled, None
        return result


def reason(error: Exception) -> str:
    """Return a compiler's message without the name of the part that wraps it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.endswith("raised:")]
    return (said or lines or [type(error).__name__])[0]


def static_shapes(
    source: BoundedSource,
    masker: Masker,
    *,
    epochs: int,
    num_processes: int = 1,
    masked_capacity: float | None = None,  # rows for masked tokens, as a share of the tokens
) -> StaticShapes:
    """Return shapes that hold every micro-batch of a run on packed batches."""
    bounds = source.bounds(epochs, num_processes)
    num_tokens, share = round_up(bounds.num_tokens, TOKEN_MULTIPLE), masked_capacity
    if share is None:
        share = expected_share(source, masker, bounds.num_tokens)
    num_masked = min(round_up(math.ceil(share * num_tokens), TOKEN_MULTIPLE), num_tokens)
    return StaticShapes(
        num_tokens=num_tokens,
        num_segments=bounds.num_sequences + -(-num_tokens // bounds.longest),
        longest=bounds.longest,
        num_masked=num_masked,
    )


def expected_share(source: BoundedSource, masker: Masker, num_tokens: int) -> float:
    """Return the share of tokens that is masked, six standard deviations above its mean."""
    progress = max((0.0, 1.0), key=masker.config.rate_at)
    lengths, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    # Steps come in random order; those of shards are made from the shards of a block.
    for step in range(min(source.num_steps(0), SAMPLED_STEPS)):
        for batch in source.micro_batches(0, step, rank=0, world_size=1):
            assert not isinstance(batch, StandIn)  # one process has a share of every step
            masked = masker.mask(batch, epoch=0, progress=progress)
            inside = batch.sequences_of(masked.positions)
            counts.append(np.bincount(inside, minlength=len(batch.lengths)))
            lengths.append(batch.lengths)
    length, count = np.concatenate(lengths), np.concatenate(counts)
    share = count.sum() / max(length.sum(), 1)
    # Sequences are masked independently, so a batch's variance is the sum of theirs.
    variance = ((count - share * length) ** 2).sum() / max(length.sum(), 1)
    return float(share + DEVIATIONS * math.sqrt(variance / max(num_tokens, 1)))
