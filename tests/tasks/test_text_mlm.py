"""The text task with constant shapes: one compiled graph, no waiting for the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import PAD, VOCAB, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from maskery.core.batch import Vocabulary
from maskery.data.rows import RowSource
from maskery.masking.masker import Masker
from maskery.models import attention
from maskery.models.attention import use_fast_dropout
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.tasks.compiling import static_shapes
from maskery.tasks.text_mlm import LEFT_OUT, PreparedText, TextMLM
from maskery.training.config import TrainingConfig
from maskery.training.stepper import Stepper


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def source() -> RowSource:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 30, 60)
    rows = [{"input_ids": [2, *generator.integers(5, VOCAB, n - 2).tolist(), 3]} for n in lengths]
    return RowSource(rows, batch_tokens=120)


def masker() -> Masker:
    vocabulary = Vocabulary(size=VOCAB, mask_token_id=4, special_ids=tuple(range(5)))
    return Masker.of(vocabulary)


def task(family: str = "bert", *, capacity: float | None = None, **settings: Any) -> TextMLM:
    model = MaskedLanguageModel(tiny(family), packed=True, pad_token_id=PAD)
    shapes = static_shapes(source(), masker(), epochs=1, masked_capacity=capacity)
    return TextMLM(model, masker(), **{"shapes": shapes, **settings})


def batches(learner: TextMLM, count: int = 5) -> list[PreparedText]:
    data = source()
    steps = [data.micro_batches(0, step)[0] for step in range(count)]
    return [learner.prepare(batch, epoch=0, progress=0.0) for batch in steps]


def gradient(learner: TextMLM, prepared: PreparedText) -> torch.Tensor:
    learner.model.zero_grad()
    learner.loss_sums(prepared)["mlm"].backward()
    grads = [p.grad for p in learner.model.parameters() if p.grad is not None]
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "eurobert"])
def test_a_run_of_steps_is_one_graph(family: str) -> None:
    # One family through autograd, too; the graph is the same with either.
    compiled = task(family, compile_backend="aot_eager" if family == "bert" else "eager")
    plain = task(family, shapes=None)
    compiled.model.train()
    plain.model.train()
    for static, dynamic in zip(batches(compiled), batches(plain), strict=True):
        assert static.counts == {**dynamic.counts, LEFT_OUT: 0}
        actual, expected = gradient(compiled, static), gradient(plain, dynamic)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompiles"]


def test_batches_as_they_come_would_be_compiled_again_and_again() -> None:
    """The test above can fail: without constant shapes there is a graph for each step."""
    learner = task(shapes=None, compile_backend="eager")
    for prepared in batches(learner, 3):
        learner.loss_sums(prepared)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_a_batch_that_the_constant_shapes_do_not_hold_comes_as_it_is() -> None:
    static, plain = task(), task(shapes=None)
    assert static.shapes is not None
    static.shapes = replace(static.shapes, num_segments=7)
    ours, theirs = (batches(learner, 1)[0] for learner in (static, plain))
    assert torch.equal(ours.inputs.input_ids, theirs.inputs.input_ids)
    assert ours.counts == {**theirs.counts, LEFT_OUT: 0}
    torch.testing.assert_close(gradient(static, ours), gradient(plain, theirs))


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_sizes_that_are_rounded_up_teach_the_same_in_few_shapes(family: str) -> None:
    few, plain = task(family, shapes=None, few_shapes=True), task(family, shapes=None)
    rounded, exact = batches(few, 9), batches(plain, 9)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.counts == theirs.counts
        assert ours.num_tokens == theirs.num_tokens  # padding is no token of the text
        torch.testing.assert_close(
            gradient(few, ours), gradient(plain, theirs), atol=1e-5, rtol=1e-4
        )
    sizes = {(p.inputs.input_ids.numel(), p.inputs.rows.numel()) for p in rounded}
    assert all(tokens % 64 == 0 and rows % 32 == 0 for tokens, rows in sizes)
    assert len(sizes) <= 4
    assert len({(p.inputs.input_ids.numel(), p.inputs.rows.numel()) for p in exact}) == 9


def test_evaluation_between_steps_does_not_compile_again() -> None:
    learner = task(compile_backend="eager")
    plain = masker().mask(source().micro_batches(0, 3)[0], epoch=0)
    for prepared in batches(learner, 3):
        learner.model.train()
        learner.loss_sums(prepared)
        learner.model.eval()
        with torch.no_grad():
            learner.model(learner.model.lay_out(plain))  # type: ignore[operator]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_masked_tokens_without_a_row_are_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner, plain = task(capacity=1e-6), task(shapes=None)
    learner.shapes = type(learner.shapes)(**{**vars(learner.shapes), "num_masked": 9})
    everything = predicted = 0
    with caplog.at_level(logging.WARNING, logger="maskery"):
        for static, dynamic in zip(batches(learner), batches(plain), strict=True):
            assert static.counts["mlm"] == 9
            assert static.counts["mlm"] + static.counts[LEFT_OUT] == dynamic.counts["mlm"]
            assert int((static.targets >= 0).sum()) == 9
            learner.loss_sums(static)
            everything += dynamic.counts["mlm"]
            predicted += 9
    assert (learner.num_predicted, learner.num_left_out) == (predicted, everything - predicted)
    assert len(caplog.records) == 1
    assert "left out of the loss" in caplog.text


class NoWaiting(TorchDispatchMode):
    """Refuses operations that make a CPU wait for what a GPU has computed."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"the step waits for the device: {name}"
        self.seen += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("static", [False, True], ids=["as they come", "static"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_step_never_waits_for_the_device(
    family: str, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward, clipping and optimiser, on the way that a GPU takes."""
    monkeypatch.setattr(attention, "stays_on_device", lambda query: True)
    learner = task(family) if static else task(family, shapes=None)
    use_fast_dropout(learner.model)
    stepper = Stepper(learner, TrainingConfig(epochs=1), total_steps=2)
    with NoWaiting() as watched:
        for number, prepared in enumerate(batches(learner, 2)):
            stepper.step(number, [prepared])
    assert watched.seen > 100


def test_the_watch_notices_a_wait() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3).sum().item()


def test_batches_are_pinned_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    prepared = batches(task(pin_memory=True), 1)[0]
    names = {"position_ids", "cu_seq_lens_q"}
    tensors = [prepared.inputs.arguments[name] for name in names]
    tensors += [prepared.inputs.input_ids, prepared.inputs.rows, prepared.targets]
    assert {id(t) for t in pinned} == {id(t) for t in tensors}
    assert len(pinned) == 5  # a tensor that two arguments share is pinned once
