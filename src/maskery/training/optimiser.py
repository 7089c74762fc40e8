"""Numbers of a run: optimisers, the learning rate, the precision, and sums that repeat.

Muon is momentum whose matrices are made orthogonal before they are applied (Jordan et al., "Muon:
an optimizer for hidden layers in neural networks", 2024). A gradient of a matrix is mostly a few
large directions; its update here has them all at about the same length, so that rare ones (what one
patch of a picture says about one word) are learnt with the common ones. It is for matrices between
hidden layers: embeddings, positions, convolutions, biases, norms and output layers keep AdamW.

`torch.optim.Muon` gives the same updates, sharded too, but multiplies in bfloat16 everywhere. On a
CPU without such products that takes 18 to 28 times as long, so it is not used.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from maskery.core.errors import ModelError
from maskery.core.processes import allow_half
from maskery.training.config import BaseTrainingConfig, Precision
from maskery.training.parallel import laid_out_like, whole

NARROW = 256  # On a CPU with bfloat16, narrower matrices lose more by converting than they gain
UNINITIALIZED: Any = torch.utils.deterministic  # its attribute is made at run time
# Keys of parameter groups: the peak learning rate, True for groups that Muon moves, and the step
# before which a group stays as it is.
PEAK, ORTHOGONAL, STARTS_AT = "peak_lr", "orthogonal", "starts_at"
BUFFER = "momentum_buffer"
MOMENTUM = 0.95  # the paper's
# Quintic iteration of the paper: its slope at zero is as steep as possible, so that five rounds
# bring singular values to between 0.7 and 1.2.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
SMALLEST_SIDE = 32  # Matrices with a shorter side are output layers of a few answers


def resolve_precision(config: BaseTrainingConfig, model: nn.Module) -> Precision:
    """Return the precision that the config names or, for auto, the faster one for this model."""
    if config.precision != "auto":
        return config.precision
    on_gpu = torch.cuda.is_available()
    fast = multiplies_bf16(torch.device("cuda" if on_gpu else "cpu"))
    return "bf16" if fast and (on_gpu or mean_width(model) >= NARROW) else "fp32"


def take_precision(config: BaseTrainingConfig, model: nn.Module) -> Precision:
    """Let this process compute and measure in the precision of a run; returns it."""
    precision = resolve_precision(config, model)
    allow_half(precision == "bf16")
    return precision


def multiplies_bf16(device: torch.device) -> bool:
    """Return True if a device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch's older versions do not say what the CPU has.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and cpu_multiplies_bf16(capabilities)


def cpu_multiplies_bf16(capabilities: Mapping[str, Any]) -> bool:
    """Return True for AMX, and for AVX512-BF16 where it does two products for one of float32."""
    if capabilities.get("amx_tile") or capabilities.get("amx_bf16"):
        return True
    # Intel's cores start one AVX512-BF16 product a cycle and two of float32: without AMX, bfloat16
    # is slower (150 against 260 GFLOP/s on an Emerald Rapids whose AMX is hidden). AMD's start as
    # many of either.
    intel = "intel" in str(capabilities.get("cpu_name", "")).lower()
    return bool(capabilities.get("avx512_bf16")) and not intel


def mean_width(model: nn.Module) -> float:
    """Return the mean over all matrix elements of their matrix's smaller side; 0 without any."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    elements = sum(p.numel() for p in matrices)
    return sum(min(p.shape) * p.numel() for p in matrices) / max(elements, 1)


@contextmanager
def exact_sums(device: torch.device) -> Iterator[None]:
    """Add gradients in one order on a CPU, so that a run repeats bit for bit on several threads."""
    # Where a row is read more than once (`features[negatives]`), PyTorch's threads add its
    # gradients as they come, and the last digits differ from run to run. The step is no slower for
    # it. On other devices the caller's settings stay: what an order costs there is not measured.
    if device.type != "cpu":
        yield
        return
    was = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = UNINITIALIZED.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=only_warned if was else True)
    UNINITIALIZED.fill_uninitialized_memory = False  # it is for finding faults, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=only_warned)
        UNINITIALIZED.fill_uninitialized_memory = filled


def build_optimiser(
    model: nn.Module,
    config: BaseTrainingConfig,
    new_parameters: Collection[str] = (),  # names of those that learn at `head_learning_rate`
    *,
    others_start_at: int = 0,  # the step before which all others stay as they are
    factors: Mapping[nn.Parameter, float] | None = None,  # shares of the peak rate; 1 for others
) -> torch.optim.AdamW:
    """Make the optimiser that the config names, without the frozen parameters.

    Every group has its peak rate as `peak_lr`, and its first step as `starts_at`.
    """
    rate, head_rate = config.learning_rate, config.head_learning_rate
    if head_rate is None:
        # A head from nothing learns faster than the rest, but above 1e-3 AdamW is often unstable.
        head_rate = max(rate, min(10.0 * rate, 1e-3))
    matrices = hidden_matrices(model) if config.optimiser == "muon" else set()
    groups: dict[tuple[bool, bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Biases, norms and scalars have one dimension or none.
            factor = (factors or {}).get(parameter, 1.0)
            key = (parameter in matrices, name in new_parameters, parameter.dim() >= 2, factor)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        problem = f"{type(model).__name__} has no parameter to train"
        fix = "call requires_grad_(True) on those that are to learn"
        raise ModelError(f"{problem}: there is none, or all are frozen; {fix}")
    kinds = {"adamw": torch.optim.AdamW, "muon": MuonAdamW, "stable-adamw": StableAdamW}
    described: list[dict[str, Any]] = []
    for (matrix, new, decays, factor), parameters in groups.items():
        peak = factor * (config.muon_learning_rate if matrix else head_rate if new else rate)
        marks = {PEAK: peak, ORTHOGONAL: matrix, STARTS_AT: 0 if new else others_start_at}
        decay = config.weight_decay if decays else 0.0
        described.append({"params": parameters, "lr": 0.0, "weight_decay": decay, **marks})
    # RoBERTa's betas, for with 0.999 large batches are unstable, and BERT's epsilon.
    return kinds[config.optimiser](described, betas=(0.9, 0.98), eps=1e-6, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, factor_of: Callable[[int], float]) -> None:
    """Give every group its peak times the factor of a group that starts at its first step."""
    for group in optimiser.param_groups:
        group["lr"] = factor_of(group[STARTS_AT]) * group[PEAK]


def learning_rate_factor(step: int, total: int, config: BaseTrainingConfig) -> float:
    """Return the share of the peak learning rate at a step from 0; above 0 and at most 1."""
    # It depends on the step alone, so resuming needs no state.
    warmup = round(total * config.warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    falls = total - warmup
    shape: str = config.lr_schedule
    if shape == "wsd":
        falls, shape = min(falls, round(total * config.decay_share)), config.decay_shape
    left = min(1.0, (total - step) / max(falls, 1))
    if shape == "constant":
        return 1.0
    if shape == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    elif shape == "1-sqrt":
        left = 1.0 - math.sqrt(1.0 - left)
    return config.lr_floor + (1.0 - config.lr_floor) * left


# Algorithm 2 of Wortsman et al. (2023), arXiv:2304.13013.
class StableAdamW(torch.optim.AdamW):
    """AdamW that moves a tensor less far where its gradient outgrows its mean square."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), eps = self.state[parameter], group["betas"], group["eps"]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state |= {moment: torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        square = square / (1 - beta2 ** state["step"])
        # Above 1 where the mean square lags behind. As in the paper, it shortens the decay, too.
        excess = whole((gradient**2 / square.clamp(min=eps**2)).mean()).sqrt().clamp(min=1)
        rate = group["lr"] / excess
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(rate * mean / (square.sqrt() + eps))


# One optimiser, so that schedules, checkpoints and sharding treat it like any other.
class MuonAdamW(torch.optim.AdamW):
    """AdamW that leaves the groups marked `orthogonal` to Muon."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient; gradients of Muon's are consumed."""
        assert closure is None
        for group in self.param_groups:
            if group[ORTHOGONAL]:
                self._step_matrices(group)
        super().step()  # skips parameters without gradient

    def _step_matrices(self, group: dict[str, Any]) -> None:
        # Matrices of one shape are made orthogonal together: many small ones keep a GPU waiting.
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            directions = [whole(self._direction(parameter)) for parameter in parameters]
            updates = orthogonalised(torch.stack(directions))
            # Tall matrices are moved further, so that outputs change as much as with square ones.
            length = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(laid_out_like(update, parameter), alpha=-length)
                parameter.grad = None

    def _direction(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return Nesterov's look-ahead of the running mean of the gradients."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if BUFFER not in state:
            state[BUFFER] = torch.zeros_like(parameter)
        running_mean: torch.Tensor = state[BUFFER].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(running_mean, MOMENTUM)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Return (K, R, C) matrices with all singular values near 1 and the same singular vectors.

    A matrix of zeros stays one. Values are good to the two digits of bf16 where that is fast.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    near = matrices.mT if tall else matrices
    # The iteration needs singular values of at most 1, and their norm is at least the largest.
    near = near / near.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    near = near.to(torch.bfloat16 if multiplies_bf16(matrices.device) else torch.float32)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = near @ near.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        near = torch.baddbmm(near, polynomial, near, beta=linear)
    return (near.mT if tall else near).to(matrices.dtype)


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return the weights that Muon is for: of linear layers between hidden states."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    read_out = {getattr(output, "weight", None)}
    read_out |= {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear)} - read_out
    large = [weight for weight in linear if min(weight.shape) >= SMALLEST_SIDE]
    return {weight for weight in large if isinstance(weight, nn.Parameter)}
