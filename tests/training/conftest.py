from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import nn

WIDTH = 6
MakeTask = Callable[..., Any]
MakeSource = Callable[..., Any]


@dataclass(frozen=True)
class Rows:
    """A prepared batch: inputs (n, WIDTH) and targets (n,), some of them to be learned from."""

    inputs: torch.Tensor
    targets: torch.Tensor
    chosen: torch.Tensor

    @property
    def counts(self) -> Mapping[str, int]:
        return {"error": int(self.chosen.sum()), "size": len(self.inputs)}

    @property
    def num_tokens(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> Self:
        return replace(self, inputs=self.inputs.to(device))


class Regression:
    """A linear model with two loss terms, dropout, a twin that follows it, and a call log."""

    def __init__(self, *, width: int = WIDTH, dropout: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        linear = nn.Linear(width, 1)
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.model: nn.Module = nn.Sequential(nn.Dropout(dropout), linear)
        self.model.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self.loss_weights: Mapping[str, float] = {"error": 1.0, "size": 0.5}
        self.twin = torch.zeros(width)
        self.calls: list[tuple[Any, ...]] = []

    def prepare(self, batch: np.ndarray, *, epoch: int, progress: float) -> Rows:
        self.calls.append(("prepare", epoch, progress))
        # Drawn by example and epoch, as masks are, so that the cut of a step does not matter.
        noise = np.array([np.random.default_rng([2, epoch, n]).normal() for n in batch])
        inputs = np.stack([np.random.default_rng([1, n]).normal(size=WIDTH) for n in batch])
        targets = inputs @ np.arange(WIDTH) + 0.1 * noise
        return Rows(
            torch.tensor(inputs, dtype=torch.float32),
            torch.tensor(targets, dtype=torch.float32),
            torch.tensor(batch % 3 != 0),
        )

    def loss_sums(self, prepared: Rows) -> Mapping[str, torch.Tensor]:
        predicted = self.model(prepared.inputs).squeeze(1)
        errors = (predicted - prepared.targets) ** 2
        return {"error": errors[prepared.chosen].sum(), "size": predicted.abs().sum()}

    def before_step(self) -> None:
        self.calls.append(("before_step",))
        weight: torch.Tensor = self.model[1].weight.detach()  # type: ignore[index]
        self.twin = 0.9 * self.twin + 0.1 * weight[0]
        self.model.steps_seen += 1  # type: ignore[operator]

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        return {"twin": self.twin}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.twin = state["twin"].clone()


class Numbers:
    """Steps of `batch` numbers, shuffled by epoch, cut into `micro` micro-batches."""

    def __init__(self, *, total: int = 50, batch: int = 12, micro: int = 1) -> None:
        self.total, self.batch, self.micro = total, batch, micro

    def num_steps(self, epoch: int) -> int:
        return -(-self.total // self.batch)

    def micro_batches(
        self, epoch: int, step: int, *, rank: int, world_size: int
    ) -> Sequence[np.ndarray]:
        assert (rank, world_size) == (0, 1)
        order = np.random.default_rng(epoch).permutation(self.total)
        chosen = order[step * self.batch : (step + 1) * self.batch]
        # Unequal parts, so that a mean of means would be wrong.
        cuts = [len(chosen) * n * n // (self.micro * self.micro) for n in range(1, self.micro)]
        return [part for part in np.split(chosen, cuts) if len(part)]


@pytest.fixture(scope="session")
def make_task() -> MakeTask:
    return Regression


@pytest.fixture(scope="session")
def make_source() -> MakeSource:
    return Numbers
