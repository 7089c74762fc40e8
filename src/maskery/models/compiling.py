"""When a step is compiled, and what happens where it cannot be.

A function is compiled by `torch.compile` for the shapes of its first call. Nothing here fails for
want of a compiler: the step is computed uncompiled, with one line that says why.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

from maskery.models.varlen_attention import FLASH_CAPABILITY

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")
# What Triton looks for, beside $CC.
COMPILERS = ("gcc", "clang", "cc")


def compile_obstacle(*, device: torch.device, packed: bool, half_precision: bool) -> str | None:
    """Why a text step is not compiled although it is asked for, or None.

    Args:
        device: Where the model is trained.
        packed: Whether batches are packed; padded ones change their shape from step to step.
        half_precision: Whether it is computed in bf16 or fp16.
    """
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


class Compiled(Generic[Arguments, ResultT]):
    """A function that is compiled at its first call, or called as it is if that fails.

    Args:
        function: What is compiled, with its backward pass.
        backend: Of `torch.compile`.
    """

    def __init__(
        self, function: Callable[Arguments, ResultT], *, backend: str = "inductor"
    ) -> None:
        self.function = function
        self._compiled: Callable[Arguments, ResultT] | None = torch.compile(
            function, backend=backend, dynamic=False
        )
        self._proven = False

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> ResultT:
        """Call the compiled function."""
        if self._compiled is None:
            return self.function(*args, **kwargs)
        if self._proven:
            return self._compiled(*args, **kwargs)
        # Imported here, because it takes seconds that uncompiled runs need not spend.
        from torch._dynamo.exc import TorchDynamoException
        from torch._functorch import config as functorch_config

        try:
            # The backward pass is compiled now, too, so that it cannot fail later.
            with functorch_config.patch(force_non_lazy_backward_lowering=True):
                result = self._compiled(*args, **kwargs)
        except (TorchDynamoException, ImportError, OSError) as error:
            log.warning("the step is not compiled: torch.compile failed (%s)", reason(error))
            self._compiled = None
            return self.function(*args, **kwargs)
        self._proven = True
        return result


def reason(error: Exception) -> str:
    """What a compiler's error says, without the name of the part that wraps it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.endswith("raised:")]
    return (said or lines or [type(error).__name__])[0]
