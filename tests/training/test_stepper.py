from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from maskery.training.config import TrainingConfig
from maskery.training.loop import TrainingLoop
from maskery.training.optimiser import build_optimiser
from maskery.training.stepper import Stepper

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
