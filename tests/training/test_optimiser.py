from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maskery.training.config import TrainingConfig
from maskery.training.optimiser import (
    PEAK,
    build_optimiser,
    learning_rate_factor,
    set_learning_rate,
)


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
    set_learning_rate(optimiser, 0.5)
    for group in optimiser.param_groups:
        assert group["lr"] == 0.5 * group[PEAK]


def test_a_step_is_adamw() -> None:
    """Against the formula of Loshchilov and Hutter (ICLR 2019, algorithm 2), one step."""
    torch.manual_seed(0)
    model = Model()
    optimiser = build_optimiser(model, TrainingConfig(learning_rate=1e-2, weight_decay=0.1))
    set_learning_rate(optimiser, 1.0)
    before = model.dense.weight.detach().clone()
    gradient = torch.randn(4, 4)
    model.dense.weight.grad = gradient.clone()
    optimiser.step()
    # After one step the corrected moments are the gradient and its square.
    expected = before * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-6)
    torch.testing.assert_close(model.dense.weight.detach(), expected)


def factors(total: int, warmup_share: float, shape: str) -> np.ndarray:
    return np.array(
        [
            learning_rate_factor(step, total, warmup_share=warmup_share, shape=shape)
            for step in range(total)
        ]
    )


# 100 steps, 10 of them warm-up: steps 0 to 9 rise to the peak, and 90 are left from step 10 on.
LEFT = (100 - np.arange(10, 100)) / 90
AFTER = {"linear": LEFT, "cosine": (1 + np.cos(np.pi * (1 - LEFT))) / 2, "constant": np.ones(90)}


@pytest.mark.parametrize("shape", AFTER)
def test_the_formula(shape: str) -> None:
    expected = np.concatenate((np.arange(1, 11) / 10, AFTER[shape]))
    np.testing.assert_allclose(factors(100, 0.1, shape), expected, rtol=1e-12)


@given(
    st.integers(1, 300),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["linear", "cosine", "constant"]),
)
def test_every_step_learns_and_none_exceeds_the_peak(
    total: int, warmup_share: float, shape: str
) -> None:
    seen = factors(total, warmup_share, shape)
    assert (seen > 0).all()
    assert (seen <= 1).all()
    assert seen.max() == 1.0
    peak = int(seen.argmax())
    assert (np.diff(seen[: peak + 1]) > 0).all()
    assert (np.diff(seen[peak:]) <= 0).all()


def test_no_warm_up_starts_at_the_peak() -> None:
    assert factors(4, 0.0, "linear").tolist() == [1.0, 0.75, 0.5, 0.25]
