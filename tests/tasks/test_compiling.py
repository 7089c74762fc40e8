"""Where a step is compiled, and that it is computed all the same where it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskery.tasks import compiling
from maskery.tasks.compiling import Compiled, compile_obstacle

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine as it should be: a recent GPU, Triton and a compiler."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object())
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)


@pytest.mark.usefixtures("gpu")
def test_packed_text_in_bf16_on_a_gpu_is_compiled() -> None:
    assert compile_obstacle(device=CUDA, packed=True, half_precision=True) is None


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"device": torch.device("cpu")}, "on 'cpu' a compiled step is slower"),
        ({"device": torch.device("mps")}, "on 'mps' a compiled step is slower"),
        ({"packed": False}, "--layout packed"),
        ({"half_precision": False}, "takes bf16"),
    ],
)
def test_what_stands_in_the_way_is_named(changed: dict[str, Any], reason: str) -> None:
    usual = {"device": CUDA, "packed": True, "half_precision": True}
    obstacle = compile_obstacle(**{**usual, **changed})
    assert obstacle is not None
    assert reason in obstacle


@pytest.mark.usefixtures("gpu")
def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    obstacle = compile_obstacle(device=CUDA, packed=True, half_precision=True)
    assert "Ampere" in str(obstacle)


@pytest.mark.usefixtures("gpu")
def test_no_compiler_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gcc").unlink()
    obstacle = compile_obstacle(device=CUDA, packed=True, half_precision=True)
    assert "no C compiler was found" in str(obstacle)
    own = tmp_path / "own-compiler"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("CC", str(own))
    assert compile_obstacle(device=CUDA, packed=True, half_precision=True) is None


@pytest.mark.usefixtures("gpu")
def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    obstacle = compile_obstacle(device=CUDA, packed=True, half_precision=True)
    assert "Triton is not installed" in str(obstacle)


def square(values: torch.Tensor) -> torch.Tensor:
    return values.square().sum()


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_a_compiler_that_fails_costs_one_line_and_no_result(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Inductor writes C++ for a CPU; here it finds no compiler for it."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    function = Compiled(square)
    with caplog.at_level(logging.WARNING, logger="maskery"):
        results = [function(torch.full((4,), float(n), requires_grad=True)) for n in (1, 2)]
    assert [float(r.detach()) for r in results] == [4.0, 16.0]
    assert len(caplog.records) == 1
    assert "the step is not compiled: torch.compile failed" in caplog.text
    assert "\n" not in caplog.records[0].message


def test_a_backward_pass_that_cannot_be_compiled_is_noticed_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.backends.common import aot_autograd

    def refuse(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no backward pass")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=refuse)
    function = Compiled(square, backend=backend)  # type: ignore[arg-type]
    values = torch.ones(3, requires_grad=True)
    with caplog.at_level(logging.WARNING, logger="maskery"):
        function(values).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [2.0, 2.0, 2.0]
    assert "no backward pass" in caplog.text


def test_an_error_of_the_function_itself_is_not_swallowed() -> None:
    def broken(values: torch.Tensor) -> torch.Tensor:
        return values @ torch.ones(5)

    with pytest.raises((RuntimeError, torch._dynamo.exc.TorchRuntimeError)):
        Compiled(broken, backend="eager")(torch.ones(3))
