from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskery.training.config import TrainingConfig
from maskery.training.loop import TrainingLoop
from maskery.training.optimiser import build_optimiser
from maskery.training.stepper import BadSteps, Stepper, poison_if_not_finite, update_if_finite

Make = Callable[..., Any]
CONFIG = TrainingConfig(epochs=2, learning_rate=1e-2, precision="fp32")


def gradients(make_task: Make, make_source: Make, micro: int) -> tuple[Any, Any]:
    """The gradients and losses of one step cut into `micro` parts; nothing is clipped."""
    task, source = make_task(), make_source(micro=micro)
    stepper = Stepper(task, replace(CONFIG, clip_norm=0.0), total_steps=10)
    found: dict[str, torch.Tensor] = {}
    stepper.optimiser.register_step_pre_hook(
        lambda *_: found.update(
            {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
        )
    )
    batches = source.micro_batches(0, 0, rank=0, world_size=1)
    losses = stepper.step(0, stepper.prepare(0, batches))
    return found, losses


def test_a_step_is_the_formula(make_task: Make, make_source: Make) -> None:
    found, losses = gradients(make_task, make_source, micro=1)
    task = make_task()
    rows = task.prepare(
        make_source().micro_batches(0, 0, rank=0, world_size=1)[0], epoch=0, progress=0.0
    )
    x, y = rows.inputs.double().numpy(), rows.targets.double().numpy()
    state = task.model.state_dict()
    w, b = state["1.weight"].double().numpy()[0], float(state["1.bias"])
    chosen = rows.chosen.numpy()
    predicted = x @ w + b
    error, size = (predicted - y)[chosen], np.abs(predicted)
    assert float(losses["error"]) == pytest.approx((error**2).mean(), rel=1e-5)
    assert float(losses["size"]) == pytest.approx(size.mean(), rel=1e-5)
    assert float(losses["loss"]) == pytest.approx((error**2).mean() + 0.5 * size.mean(), rel=1e-5)
    slope = 2 * error @ x[chosen] / chosen.sum() + 0.5 * np.sign(predicted) @ x / len(x)
    np.testing.assert_allclose(found["1.weight"][0].numpy(), slope, rtol=1e-4, atol=1e-6)
    norm = np.sqrt(sum(float((g**2).sum()) for g in found.values()))
    assert float(losses["grad_norm"]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("micro", [2, 3, 5])
def test_micro_batches_make_no_difference(make_task: Make, make_source: Make, micro: int) -> None:
    whole, whole_losses = gradients(make_task, make_source, micro=1)
    parts, part_losses = gradients(make_task, make_source, micro=micro)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-6)
    for name, value in whole_losses.items():
        torch.testing.assert_close(part_losses[name], value, rtol=1e-5, atol=1e-6)


def test_a_term_with_nothing_to_count_is_nought(make_task: Make) -> None:
    task = make_task()
    stepper = Stepper(task, CONFIG, total_steps=10)
    rows = task.prepare(np.array([3, 6, 9]), epoch=0, progress=0.0)  # none of them is chosen
    losses = stepper.step(0, [rows])
    assert float(losses["error"]) == 0.0
    assert all(torch.isfinite(tensor).all() for tensor in task.model.state_dict().values())


@pytest.mark.parametrize(("limit", "expected"), [(0.5, 0.5), (1e9, None), (0.0, None)])
def test_gradients_are_clipped_to_the_norm(
    make_task: Make, limit: float, expected: float | None
) -> None:
    task = make_task()
    stepper = Stepper(task, replace(CONFIG, clip_norm=limit), total_steps=10)
    norms: list[float] = []
    stepper.optimiser.register_step_pre_hook(
        lambda *_: norms.append(
            torch.cat([p.grad.flatten() for p in stepper.parameters]).norm().item()
        )
    )
    rows = task.prepare(np.arange(12), epoch=0, progress=0.0)
    losses = stepper.step(0, [rows])
    # The norm in the log is the one before clipping.
    assert float(losses["grad_norm"]) > 1.0
    assert norms == [pytest.approx(expected or float(losses["grad_norm"]), rel=1e-4)]


def test_a_loop_of_ones_own_is_the_run(tmp_path: Any, make_task: Make, make_source: Make) -> None:
    source, own, trained = make_source(micro=2), make_task(dropout=0.3), make_task(dropout=0.3)
    optimiser = build_optimiser(trained.model, CONFIG, {"1.bias"})
    TrainingLoop(
        trained, source, optimiser, CONFIG, tmp_path, identity="run", progress=False
    ).train()

    stepper = Stepper(own, CONFIG, total_steps=10, new_parameters={"1.bias"})
    for number in range(10):
        epoch, index = divmod(number, source.num_steps(0))
        batches = source.micro_batches(epoch, index, rank=0, world_size=1)
        losses = stepper.step(number, stepper.prepare(number, batches, epoch=epoch))
        assert set(losses) == {"loss", "error", "size", "grad_norm"}
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(own.model.state_dict()[name], tensor), name


def test_a_step_that_is_no_number_changes_nothing_but_the_twin(make_task: Make) -> None:
    task = make_task()
    stepper = Stepper(task, CONFIG, total_steps=10)
    rows = task.prepare(np.arange(12), epoch=0, progress=0.0)
    rows.targets[1] = float("inf")
    before = task.model[1].weight.detach().clone()
    losses = stepper.step(0, [rows])
    assert not torch.isfinite(losses["grad_norm"])
    assert torch.equal(task.model[1].weight, before)
    stepper.step(1, [task.prepare(np.arange(12), epoch=0, progress=0.1)])
    assert not torch.equal(task.model[1].weight, before)


@pytest.mark.parametrize("value", [0.0, 1.5, -3e38, 1e-42])
def test_a_finite_loss_keeps_its_gradients_to_the_last_bit(value: float) -> None:
    plain = torch.tensor([0.1, 0.7], requires_grad=True)
    guarded = plain.detach().clone().requires_grad_(True)
    (plain.sin().sum() + value).backward()
    poison_if_not_finite(guarded.sin().sum() + value).backward()
    assert guarded.grad is not None
    assert plain.grad is not None
    assert torch.equal(guarded.grad, plain.grad)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_no_number_leaves_no_finite_gradient(value: float) -> None:
    weights = torch.tensor([0.1, 0.7], requires_grad=True)
    poison_if_not_finite(weights.sin().sum() + value).backward()
    assert weights.grad is not None
    assert not torch.isfinite(weights.grad).any()


@pytest.mark.parametrize("fused", [True, False])
def test_an_update_is_left_out_where_the_norm_is_not_finite(fused: bool) -> None:
    guarded, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(guarded.state_dict())
    optimisers = [torch.optim.AdamW(m.parameters(), lr=0.1, fused=fused) for m in (guarded, plain)]
    for bad in (False, True, True, False):
        for model in (guarded, plain):
            model(torch.ones(1, 3)).sum().backward()
        assert guarded.weight.grad is not None
        if bad:
            guarded.weight.grad[0, 0] = math.nan
        norm = torch.nn.utils.clip_grad_norm_(guarded.parameters(), 1e9)
        before = [p.clone() for p in guarded.parameters()]
        update_if_finite(optimisers[0], list(guarded.parameters()), norm)
        assert all(p.grad is None for p in guarded.parameters())
        if bad:  # nothing moves, no count either
            assert all(torch.equal(a, b) for a, b in zip(before, guarded.parameters(), strict=True))
        else:
            optimisers[1].step()
        optimisers[1].zero_grad(set_to_none=True)
    for one, other in zip(guarded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
        states = [o.state[p] for o, p in zip(optimisers, (one, other), strict=True)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_bad_steps_in_a_row() -> None:
    bad = BadSteps(3, in_a_row=1)
    counts = []
    for norm in (math.nan, 1.0, math.inf, -math.inf, math.nan, 0.0):
        bad.add(torch.tensor(norm))
        counts.append((bad.in_a_row, bad.too_many))
    assert counts == [(2, False), (0, False), (1, False), (2, False), (3, True), (0, False)]
    assert bad.free_to_ask


def test_parameters_that_start_later_wait_and_then_warm_up_of_their_own(make_task: Make) -> None:
    task, total, start = make_task(), 20, 5
    config = replace(CONFIG, warmup_share=0.2)
    optimiser = build_optimiser(task.model, config, {"1.bias"}, others_start_at=start)
    stepper = Stepper(task, config, total_steps=total, optimiser=optimiser)
    assert stepper.starts == {start}
    first = task.model[1].weight.detach().clone()
    for number in range(8):
        bias = task.model[1].bias.detach().clone()
        rows = task.prepare(np.arange(12), epoch=0, progress=0.0)
        stepper.step(number, [rows])
        assert not torch.equal(task.model[1].bias, bias)
        assert torch.equal(task.model[1].weight, first) == (number < start)
        rates = {g["starts_at"]: g["lr"] / g["peak_lr"] for g in optimiser.param_groups}
        assert rates[0] == pytest.approx(
            (number + 1) / 4 if number < 4 else (total - number) / (total - 4)
        )
        if number >= start:  # 3 of its own 15 steps are its warm-up
            assert rates[start] == pytest.approx((number - start + 1) / 3)
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    # Adam's corrections count its own steps.
    assert int(optimiser.state[task.model[1].weight]["step"]) == 3
