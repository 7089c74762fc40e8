"""Muon: momentum whose matrices are made orthogonal before they are applied; AdamW for the rest.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). A gradient of a
matrix is mostly a few large directions; its update here has them all at about the same length, so
that rare ones (what one patch of a picture says about one word) are learnt with the common ones. It
is for matrices between hidden layers: embeddings, positions, convolutions, biases, norms and output
layers keep AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import nn

from maskery.training.parallel import laid_out_like, whole

ORTHOGONAL = "orthogonal"
"""Key of the parameter groups that Muon moves."""
BUFFER = "momentum_buffer"
MOMENTUM = 0.95
# Quintic iteration of the source: its slope at zero is as steep as possible, so that five rounds
# bring singular values to between 0.7 and 1.2.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
SMALLEST_SIDE = 32
"""Matrices with a shorter side are output layers of a few answers: nothing to make orthogonal."""


class MuonAdamW(torch.optim.AdamW):
    """AdamW that leaves the groups marked `orthogonal` to Muon.

    One optimiser, so that schedules, checkpoints and sharding treat it like any other.
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient; gradients of Muon's are consumed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group[ORTHOGONAL]:
                self._step_matrices(group)
        super().step()  # skips parameters without gradient
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            directions = [whole(self._direction(parameter)) for parameter in parameters]
            updates = orthogonalised(torch.stack(directions))
            # Tall matrices: so that the outputs change as much as those of square ones.
            length = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(laid_out_like(update, parameter), alpha=-length)
                parameter.grad = None

    def _direction(self, parameter: nn.Parameter) -> torch.Tensor:
        """Nesterov's look-ahead of the running mean of the gradients."""
        state = self.state[parameter]
        if BUFFER not in state:
            state[BUFFER] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state[BUFFER].lerp_(parameter.grad, 1 - MOMENTUM)
        direction: torch.Tensor = parameter.grad.lerp(state[BUFFER], MOMENTUM)
        return direction


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """The matrices with all singular values near 1 and the same singular vectors.

    Args:
        matrices: (K, R, C); a matrix of zeros stays one.

    Returns:
        (K, R, C) in their own type; values are good to the two digits of bf16 where that is fast.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    near = matrices.mT if tall else matrices
    near = near / near.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    near = near.to(torch.bfloat16 if fast_in_bf16(matrices.device) else torch.float32)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = near @ near.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        near = torch.baddbmm(near, polynomial, near, beta=linear)
    return (near.mT if tall else near).to(matrices.dtype)


def fast_in_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices are faster than of float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """The weights that Muon is for: of linear layers that lead from hidden to hidden states."""
    read_out = set(_weights(m for m in model.modules() if isinstance(m, nn.Embedding)))
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        read_out |= set(_weights([output]))
    linear = _weights(m for m in model.modules() if isinstance(m, nn.Linear))
    return {w for w in linear if min(w.shape) >= SMALLEST_SIDE and w not in read_out}


def _weights(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    weights = (getattr(module, "weight", None) for module in modules)
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]
