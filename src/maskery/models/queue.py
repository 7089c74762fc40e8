"""A first-in-first-out queue of features from earlier batches.

He et al., "Momentum Contrast" (MoCo, CVPR 2020), section 3.2.

Shapes: B new features, K queued, E features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from maskery.core.errors import CheckpointError, ConfigError

NOBODY = -100
"""The identity of a place that holds no feature yet: it matches no one."""


class FeatureQueue:
    """The last K features, each with the identity it shows.

    Places that were never written hold random unit vectors with the identity `NOBODY`, as in MoCo.
    A batch may be of any size: writing wraps around the end exactly, and of a batch larger than the
    queue the last K features stay.

    Attributes:
        features: (K, E) float32, unit length.
        ids: (K,) int64.
        pointer: Where the next feature goes, from 0 to K - 1.
    """

    def __init__(self, num_features: int, size: int, *, generator: torch.Generator | None = None):
        if num_features < 1 or size < 1:
            raise ConfigError(
                f"a queue of {size} features of width {num_features}: both must be at least 1"
            )
        self.features = F.normalize(torch.randn(size, num_features, generator=generator), dim=1)
        self.ids = torch.full((size,), NOBODY)
        self.pointer = 0

    def __len__(self) -> int:
        """K."""
        return len(self.ids)

    def to(self, device: torch.device) -> None:
        """Move the queue, in place."""
        self.features, self.ids = self.features.to(device), self.ids.to(device)

    @torch.no_grad()
    def enqueue(self, features: torch.Tensor, ids: torch.Tensor) -> None:
        """Write a batch over the oldest features.

        What is no finite number is left out, and the old feature stays in its place: the loop skips
        a step that is spoilt, and one in the queue would spoil every step after it.

        Args:
            features: (B, E), unit length.
            ids: (B,) int64.
        """
        size, num_new = len(self), len(ids)
        kept = min(size, num_new)
        first = self.pointer + num_new - kept
        places = torch.arange(first, first + kept, device=self.ids.device) % size
        new = features[num_new - kept :].to(self.features)
        sound = new.isfinite().all(dim=1)
        self.features[places] = torch.where(sound[:, None], new, self.features[places])
        self.ids[places] = torch.where(sound, ids[num_new - kept :].to(self.ids), self.ids[places])
        self.pointer = (self.pointer + num_new) % size

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors that `load_state_dict` restores the queue from."""
        return {
            "features": self.features,
            "ids": self.ids,
            "pointer": torch.tensor(self.pointer),
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            CheckpointError: It belongs to a queue of another size.
        """
        shape = tuple(state["features"].shape)
        if shape != tuple(self.features.shape):
            raise CheckpointError(
                f"the checkpoint's queue is {shape[0]} x {shape[1]} and this run's is "
                f"{self.features.shape[0]} x {self.features.shape[1]}: they must agree; "
                f"resume with the settings of the checkpoint's run"
            )
        self.features = state["features"].to(self.features, copy=True)
        self.ids = state["ids"].to(self.ids, copy=True)
        self.pointer = int(state["pointer"])
