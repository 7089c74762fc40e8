from __future__ import annotations

import json
import math

import pytest
import torch

from maskery.core.processes import Processes
from maskery.training.window import Window

ALONE = Processes()
CPU = torch.device("cpu")


def losses(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"loss": torch.tensor(v), "grad_norm": torch.tensor(2 * v)} for v in values]


def test_means_are_over_the_sound_steps() -> None:
    window = Window()
    for step in losses(1.0, 2.0, math.nan, 6.0):
        window.add(step, 10)
    means = window.means(ALONE)
    assert (means["loss"], means["grad_norm"], means["skipped_steps"]) == (3.0, 6.0, 1.0)
    assert list(means)[:2] == ["loss", "grad_norm"]


def test_a_window_without_a_sound_step_has_no_losses() -> None:
    window = Window()
    for step in losses(math.inf, math.nan):
        window.add(step, 10)
    assert window.means(ALONE).keys() == {"skipped_steps", "tokens_per_second"}


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_a_window_cut_by_a_checkpoint_is_the_same_to_the_last_bit(cut: int) -> None:
    steps = losses(*(math.sin(number) / 3 for number in range(6)), math.nan)
    whole, first = Window(), Window()
    for step in steps:
        whole.add(step, 3)
    for step in steps[:cut]:
        first.add(step, 3)
    state = tuple(json.loads(json.dumps(first.state(ALONE))))
    second = Window.restored(state, ALONE, CPU)
    for step in steps[cut:]:
        second.add(step, 3)
    assert (second.steps, second.tokens) == (7, 21)
    expected, found = whole.means(ALONE), second.means(ALONE)
    for name in ("loss", "grad_norm", "skipped_steps"):
        assert found[name] == expected[name]


def test_another_number_of_processes_shares_the_sums_anew() -> None:
    row = {"loss": 1.5, "grad_norm": 4.0, "skipped_steps": 0.0, "steps": 2.0, "tokens": 10.0}
    state = (row, {**row, "loss": 0.5, "tokens": 6.0})
    alone = Window.restored(state, ALONE, CPU)
    assert float(alone.sums["loss"]) == 2.0
    assert float(alone.sums["grad_norm"]) == 4.0  # everyone's already
    assert (alone.steps, alone.tokens) == (2, 16)
    third = Window.restored(state, Processes(rank=2, world_size=3), CPU)
    assert float(third.sums["loss"]) == 0.0
    assert (third.steps, third.tokens, float(third.sums["grad_norm"])) == (2, 0, 4.0)
    second = Window.restored(state, Processes(rank=1, world_size=2), CPU)
    assert (float(second.sums["loss"]), second.tokens) == (0.5, 6)
