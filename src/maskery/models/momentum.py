"""A momentum twin, whose weights follow a model's as a moving average, and a queue of features.

He et al., "Momentum Contrast" (MoCo, CVPR 2020), section 3.2, equation 2; the twin as a teacher of
soft labels: Li et al., "Align before Fuse" (ALBEF, NeurIPS 2021), section 3.3.

Shapes: B new features, K queued, E features.
"""

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from maskery.core.errors import CheckpointError, ConfigError, explained

ModelT = TypeVar("ModelT", bound=nn.Module)
NOBODY = -100  # The identity of a place in a queue that holds no feature yet: it matches no one


class MomentumTwin(Generic[ModelT]):
    """A copy of a model that takes no gradients and moves only when `update` is called.

    The twin is in evaluation mode, so its dropout is off and its soft labels are those of one
    network. RaSa and ALBEF left it in training mode; `train_mode=True` does so too.
    """

    def __init__(self, online: ModelT, momentum: float, *, train_mode: bool = False):
        if not 0 <= momentum <= 1:
            rule = "it must be from 0 (the twin is the model) to 1 (the twin never moves)"
            raise ConfigError(f"momentum is {momentum}: {rule}; 0.995 is the usual choice")
        self.momentum = momentum  # the share of its weights that the twin keeps in an update
        self._online = online
        self.model: ModelT = copy.deepcopy(online)
        self.model.requires_grad_(False).train(train_mode)

    @torch.no_grad()
    def update(self) -> None:
        """Move every weight: `twin = momentum * twin + (1 - momentum) * online`."""
        self.follow_device()
        # By name: what was attached to the model since, such as a loss term, has no twin.
        own, theirs = dict(self.model.named_parameters()), dict(self._online.named_parameters())
        # Where both are sharded over processes, each moves its own part.
        twin, online = (
            [p.to_local() if isinstance(p, DTensor) else p.detach() for p in parameters]
            for parameters in (own.values(), [theirs[name] for name in own])
        )
        torch._foreach_lerp_(twin, online, 1 - self.momentum)
        buffers = dict(self._online.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])

    def follow_device(self) -> None:
        """Move the twin to where the online model is now."""
        device = next(self._online.parameters()).device
        if next(self.model.parameters()).device != device:
            self.model.to(device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the twin's weights, by the model's own names; tied ones once."""
        own = {name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        return {name: t for name, t in self.model.state_dict().items() if name in own}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict` gave; that of another model is a CheckpointError."""
        problem = "the checkpoint's momentum twin does not fit this model"
        fix = "resume with the model and settings of the checkpoint's run"
        with explained(problem, fix, RuntimeError, kind=CheckpointError):
            if wrong := sorted(self.state_dict().keys() ^ state.keys()):
                raise RuntimeError(f"'{wrong[0]}' and {len(wrong) - 1} others are on one side")
            self.model.load_state_dict(dict(state), strict=False)  # tied names stand there once


class FeatureQueue:
    """The last K features, each with the identity it shows.

    Places that were never written hold random unit vectors with the identity `NOBODY`, as in MoCo.
    A batch may be of any size: writing wraps around the end, and of more than K the last K stay.
    """

    def __init__(self, num_features: int, size: int, *, generator: torch.Generator | None = None):
        if num_features < 1 or size < 1:
            problem = f"a queue of {size} features of width {num_features}"
            raise ConfigError(f"{problem}: both must be at least 1")
        # (K, E) float32 of unit length, and (K,) int64
        self.features = F.normalize(torch.randn(size, num_features, generator=generator), dim=1)
        self.ids = torch.full((size,), NOBODY)
        self.pointer = 0  # where the next feature goes

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> None:
        """Move the queue, in place."""
        self.features, self.ids = self.features.to(device), self.ids.to(device)

    @torch.no_grad()
    def enqueue(self, features: torch.Tensor, ids: torch.Tensor) -> None:
        """Write a batch, (B, E) of unit length and (B,) int64, over the oldest features."""
        size, end = len(self), self.pointer + len(ids)
        new, whose = features[-size:].to(self.features), ids[-size:].to(self.ids)
        places = torch.arange(end - len(whose), end, device=self.ids.device) % size
        # The loop skips a spoilt step, whose features would spoil every step after it.
        sound = new.isfinite().all(dim=1)
        self.features[places] = torch.where(sound[:, None], new, self.features[places])
        self.ids[places] = torch.where(sound, whose, self.ids[places])
        self.pointer = end % size

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors that `load_state_dict` restores the queue from."""
        return {"features": self.features, "ids": self.ids, "pointer": torch.tensor(self.pointer)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict` gave; that of another size is a CheckpointError."""
        theirs, own = (" x ".join(map(str, t.shape)) for t in (state["features"], self.features))
        if theirs != own:
            problem = f"the checkpoint's queue is {theirs} and this run's is {own}"
            fix = "resume with the settings of the checkpoint's run"
            raise CheckpointError(f"{problem}: they must agree; {fix}")
        self.features = state["features"].to(self.features, copy=True)
        self.ids = state["ids"].to(self.ids, copy=True)
        self.pointer = int(state["pointer"])
