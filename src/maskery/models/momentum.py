"""The momentum twin: a model whose weights follow another's as a moving average.

He et al., "Momentum Contrast" (MoCo, CVPR 2020), section 3.2, equation 2; as a teacher of soft
labels: Li et al., "Align before Fuse" (ALBEF, NeurIPS 2021), section 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from maskery.core.errors import CheckpointError, ConfigError, reason_of

ModelT = TypeVar("ModelT", bound=nn.Module)


class MomentumTwin(Generic[ModelT]):
    """A copy of a model that takes no gradients and moves only when `update` is called.

    The twin is in evaluation mode, so its dropout is off and its soft labels are those of one
    network. RaSa and ALBEF left it in training mode; `train_mode=True` does so too.

    Attributes:
        model: The twin itself.
        momentum: What an update keeps of the twin's weights, in [0, 1].
    """

    def __init__(self, online: ModelT, momentum: float, *, train_mode: bool = False):
        if not 0 <= momentum <= 1:
            raise ConfigError(
                f"momentum is {momentum}: it must be from 0 (the twin is the model) to 1 (the twin "
                f"never moves); 0.995 is the usual choice"
            )
        self.momentum = momentum
        self._online = online
        self.model: ModelT = copy.deepcopy(online)
        self.model.requires_grad_(False).train(train_mode)

    @torch.no_grad()
    def update(self) -> None:
        """Move every weight: `twin = momentum * twin + (1 - momentum) * online`.

        Where both are sharded over processes, each moves its own part.
        """
        self.follow_device()
        twin = [_own_part(parameter) for parameter in self.model.parameters()]
        online = [_own_part(parameter) for parameter in self._online.parameters()]
        torch._foreach_lerp_(twin, online, 1 - self.momentum)
        for twin_buffer, buffer in zip(self.model.buffers(), self._online.buffers(), strict=True):
            twin_buffer.copy_(buffer)

    def follow_device(self) -> None:
        """Move the twin to where the online model is now."""
        device = next(self._online.parameters()).device
        if next(self.model.parameters()).device != device:
            self.model.to(device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The twin's weights, by the model's own names; tied ones once."""
        everything = self.model.state_dict()
        own = {name for name, _ in self.model.named_parameters()}
        own |= {name for name, _ in self.model.named_buffers()}
        return {name: tensor for name, tensor in everything.items() if name in own}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            CheckpointError: It belongs to a model of another make.
        """
        try:
            wrong = sorted(self.state_dict().keys() ^ state.keys())
            if wrong:
                raise RuntimeError(f"'{wrong[0]}' and {len(wrong) - 1} others are on one side")
            self.model.load_state_dict(dict(state), strict=False)  # tied names stand there once
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's momentum twin does not fit this model ({reason_of(error)}); "
                f"resume with the model and settings of the checkpoint's run"
            ) from error


def _own_part(parameter: nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
