"""Gradients do not depend on how threads take turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils import deterministic

from maskery.training.precision import exact_sums

CPU = torch.device("cpu")


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_rows_that_are_read_often_get_the_same_gradient_every_time() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 20, 64, generator=generator, requires_grad=True)
    weights = torch.randn(64, 20, 64, generator=generator)
    read = torch.randint(8, (64,), generator=generator)
    expected = torch.zeros(8, 20, 64)
    for row, weight in zip(read.tolist(), weights, strict=True):
        expected[row] += weight
    with exact_sums(CPU):
        for _ in range(200):  # without it, about one in four differs on two free threads
            (found,) = torch.autograd.grad((rows[read] * weights).sum(), rows)
            assert torch.equal(found, expected)


def settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )


def test_settings_are_as_before_afterwards() -> None:
    before = settings()
    with exact_sums(CPU):
        assert settings() == (True, True, False)
    assert settings() == before
    with pytest.raises(ZeroDivisionError), exact_sums(CPU):
        1 / 0  # noqa: B018
    assert settings() == before


def test_a_stricter_setting_stays() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with exact_sums(CPU):
            assert settings()[:2] == (True, False)
        assert settings()[:2] == (True, False)
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_devices_keep_the_settings_of_the_caller() -> None:
    before = settings()
    with exact_sums(torch.device("meta")):
        assert settings() == before
