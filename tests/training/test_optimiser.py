from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maskery.core.errors import ConfigError, ModelError
from maskery.training.config import TrainingConfig
from maskery.training.optimiser import (
    BUFFER,
    PEAK,
    build_optimiser,
    hidden_matrices,
    learning_rate_factor,
    orthogonalised,
    set_learning_rate,
)
from maskery.training.snapshot import named_tensors, optimiser_tensors
from maskery.training.stepper import Stepper


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(5, 4)
        self.dense = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embeddings.weight  # tied


NEW = {"head.bias", "dense.weight"}


def groups(config: TrainingConfig, new: set[str] = NEW) -> dict[str, tuple[float, float]]:
    """By parameter name, its peak learning rate and decay."""
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in build_optimiser(model, config, new).param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in found
            found[names[parameter]] = (group[PEAK], group["weight_decay"])
    return found


def test_biases_norms_and_scalars_have_no_decay() -> None:
    found = groups(TrainingConfig(weight_decay=0.1))
    assert {name for name, (_, decay) in found.items() if decay} == {
        "embeddings.weight",
        "dense.weight",
    }
    assert set(found) == {
        "embeddings.weight",
        "dense.weight",
        "dense.bias",
        "norm.weight",
        "norm.bias",
        "scale",
        "head.bias",
    }
    assert {decay for _, decay in found.values()} == {0.0, 0.1}


@pytest.mark.parametrize(
    ("rate", "head", "expected"),
    [
        (2e-5, None, 2e-4),
        (3e-4, None, 1e-3),
        (2e-3, None, 2e-3),
        (1e-4, 5e-3, 5e-3),
    ],
)
def test_new_parameters_learn_at_the_rate_of_a_head(
    rate: float, head: float | None, expected: float
) -> None:
    found = groups(TrainingConfig(learning_rate=rate, head_learning_rate=head))
    for name, (peak, _) in found.items():
        assert peak == pytest.approx(expected if name in NEW else rate)


def test_a_head_learns_at_its_rate_even_if_it_is_the_lower() -> None:
    found = groups(TrainingConfig(learning_rate=1e-3, head_learning_rate=1e-4))
    assert found["head.bias"][0] == 1e-4
    assert found["scale"][0] == 1e-3


def test_the_factor_scales_every_peak() -> None:
    optimiser = build_optimiser(Model(), TrainingConfig(learning_rate=1e-4), NEW)
    assert {group["lr"] for group in optimiser.param_groups} == {0.0}
    set_learning_rate(optimiser, lambda _: 0.5)
    for group in optimiser.param_groups:
        assert group["lr"] == 0.5 * group[PEAK]


def test_a_step_is_adamw() -> None:
    """Against the formula of Loshchilov and Hutter (ICLR 2019, algorithm 2), one step."""
    torch.manual_seed(0)
    model = Model()
    optimiser = build_optimiser(model, TrainingConfig(learning_rate=1e-2, weight_decay=0.1))
    set_learning_rate(optimiser, lambda _: 1.0)
    before = model.dense.weight.detach().clone()
    gradient = torch.randn(4, 4)
    model.dense.weight.grad = gradient.clone()
    optimiser.step()
    # After one step the corrected moments are the gradient and its square.
    expected = before * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-6)
    torch.testing.assert_close(model.dense.weight.detach(), expected)


def test_steps_are_those_of_stable_adamw() -> None:
    """Against algorithm 2 of Wortsman et al. (2023), line by line, with a gradient that grows."""
    torch.manual_seed(0)
    model = Model()
    config = TrainingConfig(optimiser="stable-adamw", learning_rate=0.01, weight_decay=0.1)
    optimiser = build_optimiser(model, config)
    set_learning_rate(optimiser, lambda _: 1.0)
    theta = model.dense.weight.detach().double().numpy().copy()
    v, u, rate, decay, beta1, beta2, eps = 0.0, 0.0, 0.01, 0.1, 0.9, 0.98, 1e-6
    limited = []
    for t, size in enumerate((1.0, 1.0, 30.0, 1.0), start=1):
        gradient = size * np.random.default_rng(t).standard_normal((4, 4))
        model.dense.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimiser.step()
        beta1_hat = beta1 * (1 - beta1 ** (t - 1)) / (1 - beta1**t)
        beta2_hat = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
        v = beta1_hat * v + (1 - beta1_hat) * gradient
        u = beta2_hat * u + (1 - beta2_hat) * gradient**2
        rms = np.sqrt(np.mean(gradient**2 / np.maximum(u, eps**2)))
        eta = rate / max(1.0, rms)
        theta = theta - eta * decay * theta - eta * v / (np.sqrt(u) + eps)
        limited.append(rms > 1.0)
        np.testing.assert_allclose(model.dense.weight.detach().numpy(), theta, rtol=1e-5, atol=1e-7)
    assert limited[2]
    assert not limited[3]


def factors(total: int, warmup_share: float, shape: str, **more: Any) -> np.ndarray:
    """Factors of every step; any warm-up may come before the fall of wsd, unlike in a config."""
    asked = {"lr_floor": 0.0, "decay_share": 1.0, "decay_shape": "linear"} | more
    config: Any = SimpleNamespace(warmup_share=warmup_share, lr_schedule=shape, **asked)
    return np.array([learning_rate_factor(step, total, config) for step in range(total)])


# 100 steps, 10 of them warm-up: steps 0 to 9 rise to the peak, and 90 are left from step 10 on.
LEFT = (100 - np.arange(10, 100)) / 90
AFTER = {"linear": LEFT, "cosine": (1 + np.cos(np.pi * (1 - LEFT))) / 2, "constant": np.ones(90)}


@pytest.mark.parametrize("shape", AFTER)
def test_the_formula(shape: str) -> None:
    expected = np.concatenate((np.arange(1, 11) / 10, AFTER[shape]))
    np.testing.assert_allclose(factors(100, 0.1, shape), expected, rtol=1e-12)


# Of wsd, the last 25 of 100 steps fall: Hägele et al. (2024), section 3, with x the share of the
# fall that is behind.
BEHIND = np.arange(25) / 25
FALLS = {
    "linear": 1 - BEHIND,
    "cosine": (1 + np.cos(np.pi * BEHIND)) / 2,
    "1-sqrt": 1 - np.sqrt(BEHIND),
}


@pytest.mark.parametrize("shape", FALLS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_formula_of_wsd(shape: str, floor: float) -> None:
    fall = floor + (1 - floor) * FALLS[shape]
    expected = np.concatenate((np.arange(1, 11) / 10, np.ones(65), fall))
    found = factors(100, 0.1, "wsd", lr_floor=floor, decay_share=0.25, decay_shape=shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_stepper_falls_as_its_settings_say() -> None:
    task, chosen = SimpleNamespace(model=Model()), {"decay_share": 0.5, "decay_shape": "linear"}
    for more, last in (({}, 1 - np.sqrt(19 / 20)), (chosen, 1 / 50)):
        config = TrainingConfig(lr_schedule="wsd", warmup_share=0.0, **more)
        stepper: Any = Stepper(task, config, total_steps=100)  # type: ignore[arg-type]
        factor = stepper._rate_factor
        assert factor(49, 0) == 1.0
        assert factor(99, 0) == pytest.approx(last, rel=1e-12)


@given(
    st.integers(1, 300),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["linear", "cosine", "constant", "wsd"]),
    st.floats(0, 1, exclude_min=True),
    st.sampled_from(list(FALLS)),
)
def test_every_step_learns_and_none_exceeds_the_peak(
    total: int, warmup_share: float, shape: str, decay_share: float, decay_shape: str
) -> None:
    more = {"decay_share": decay_share, "decay_shape": decay_shape}
    seen = factors(total, warmup_share, shape, **more)
    assert (seen > 0).all()
    assert (seen <= 1).all()
    assert seen.max() == 1.0
    peak = int(seen.argmax())
    assert (np.diff(seen[: peak + 1]) > 0).all()
    assert (np.diff(seen[peak:]) <= 0).all()


def test_no_warm_up_starts_at_the_peak() -> None:
    assert factors(4, 0.0, "linear").tolist() == [1.0, 0.75, 0.5, 0.25]


CONFIG = TrainingConfig(optimiser="muon", muon_learning_rate=0.02, learning_rate=1e-3)


class EveryKind(nn.Module):
    """Layers of every kind: which of them are Muon's is in the names."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.stem = nn.Conv2d(3, 32, 4)
        self.hidden_square = nn.Linear(32, 32)
        self.hidden_tall = nn.Linear(32, 128)
        self.hidden_flat = nn.Linear(128, 32)
        self.norm = nn.LayerNorm(32)
        self.answers = nn.Linear(32, 2)
        self.decoder = nn.Linear(32, 50)
        self.decoder.weight = self.words.weight


def give_gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("shape", [(2, 48, 48), (1, 40, 96), (3, 96, 40)])
def test_singular_vectors_stay_and_values_come_near_to_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ orthogonalised(matrices) @ right.mT
    values = torch.diagonal(turned, dim1=1, dim2=2)
    # Five rounds do not reach the smallest value of a square matrix; the median tells.
    assert 0.65 < float(values.median()) < 1.25
    assert float(values.max()) < 1.25
    off_diagonal = turned - torch.diag_embed(values)
    assert float(off_diagonal.abs().max()) < 0.02


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalised(torch.zeros(1, 40, 40)), torch.zeros(1, 40, 40))


def test_steps_are_those_of_pytorch() -> None:
    """Against torch.optim.Muon and AdamW on a model of the same weights.

    Both round products to bf16 where that is fast, in another order, so single numbers of matrices
    differ by some percent of their update; its direction and length do not.
    """
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this PyTorch has no Muon to compare with")
    torch.manual_seed(0)
    ours, theirs = EveryKind(), EveryKind()
    theirs.load_state_dict(ours.state_dict())
    optimiser = build_optimiser(ours, CONFIG)
    set_learning_rate(optimiser, lambda _: 1.0)
    named = dict(theirs.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    matrices = [p for n, p in named.items() if n.startswith("hidden") and p.dim() == 2]
    others = [p for n, p in named.items() if not (n.startswith("hidden") and p.dim() == 2)]
    references = [
        muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.dim() >= 2], "weight_decay": 0.01},
                {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=1e-3,
            betas=(0.9, 0.98),
            eps=1e-6,
        ),
    ]
    for step in range(3):
        for model in (ours, theirs):
            give_gradients(model, step)
        optimiser.step()
        for reference in references:
            reference.step()
    for name, parameter in ours.named_parameters():
        if named[name] not in set(matrices):
            torch.testing.assert_close(parameter, named[name], msg=name)
            continue
        moved = (parameter - start[name]).detach()
        expected = (named[name] - start[name]).detach()
        cosine = (moved * expected).sum() / (moved.norm() * expected.norm())
        assert cosine > 0.999, name
        assert float(moved.norm() / expected.norm()) == pytest.approx(1.0, abs=0.01), name


def test_only_matrices_between_hidden_states_are_muons() -> None:
    model = EveryKind()
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[parameter] for parameter in hidden_matrices(model)} == {
        "hidden_square.weight",
        "hidden_tall.weight",
        "hidden_flat.weight",
    }


def test_an_untied_output_layer_is_not_muons() -> None:
    class WithOutput(EveryKind):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(32, 50)

        def get_output_embeddings(self) -> nn.Linear:
            return self.decoder

    model = WithOutput()
    assert model.decoder.weight not in hidden_matrices(model)


@pytest.mark.parametrize(("name", "kept"), [("muon", BUFFER), ("stable-adamw", "exp_avg_sq")])
def test_a_run_goes_on_where_it_was(tmp_path: Path, name: Any, kept: str) -> None:
    """A checkpoint keeps the moments: the next step is the same."""
    from maskery.training.checkpoint import Checkpoints
    from maskery.training.snapshot import Position, SnapshotMaker, restore

    class Task:
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.model = EveryKind()

        def extra_state(self) -> dict[str, torch.Tensor]:
            return {"nothing": torch.zeros(1)}

        def load_extra_state(self, state: dict[str, torch.Tensor]) -> None:
            assert set(state) == {"nothing"}

    def step(task: Task, optimiser: torch.optim.Optimizer, seed: int) -> None:
        give_gradients(task.model, seed)
        set_learning_rate(optimiser, lambda _: 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    task, other = Task(), Task()
    config = replace(CONFIG, optimiser=name)
    optimiser, fresh = (build_optimiser(each.model, config) for each in (task, other))
    step(task, optimiser, 0)
    assert f"{kept}.hidden_tall.weight" in optimiser_tensors(task.model, optimiser)
    position = Position(step=1, epoch=0, epoch_step=1, identity="run")
    path = Checkpoints(tmp_path).write(SnapshotMaker().take(task, optimiser, position))  # type: ignore[arg-type]
    assert restore(path, other, fresh, "run") == position  # type: ignore[arg-type]
    step(task, optimiser, 1)
    step(other, fresh, 1)
    expected, found = named_tensors(task.model), named_tensors(other.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_model_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has no parameter to train"):
        build_optimiser(nn.Linear(2, 2).requires_grad_(False), TrainingConfig())


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimiser is 'sgd'"):
        TrainingConfig(optimiser="sgd")  # type: ignore[arg-type]
