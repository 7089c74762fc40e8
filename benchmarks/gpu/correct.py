"""Sections about what is computed: compared with the CPU in float64, or with another way."""

from __future__ import annotations

import copy
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo.utils

from gpu.parts import DEVICE, MIXED, Report, config_of, stepper_of, words
from maskery.data.images.config import CLIP_MEAN, CLIP_STD, ViewConfig
from maskery.data.images.views import normalise, normalise_bytes
from maskery.models.layout import can_pack, first_position, pack, pad
from maskery.training.checkpoint import Checkpoints
from maskery.training.snapshot import Position, SnapshotMaker, restore

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert", "eurobert")


def packed_is_padded(report: Report) -> None:
    """Logits and gradients, packed and padded, against float64: a leak is no rounding."""
    import families

    families.SMALL.update(max_position_embeddings=512)
    families.SPECIFIC["distilbert"].update(max_position_embeddings=512)
    if not report.tiny:  # heads of 64, which flash attention takes
        families.SMALL.update(hidden_size=256, intermediate_size=256)
        families.SPECIFIC["distilbert"].update(dim=256, hidden_dim=256)
    bounds = np.concatenate(([0], np.cumsum(MIXED)))
    ids = np.random.default_rng(0).integers(5, families.VOCAB, bounds[-1])
    every = np.arange(len(ids))
    for family in FAMILIES:
        model = families.tiny(family)
        forms = {
            "packed": pack(ids, bounds, every, first_position=first_position(model.config)),
            "padded": pad(ids, bounds, every, pad_token_id=families.PAD),
        }
        truth = _computed(copy.deepcopy(model).double(), forms["padded"], half=False)
        model.to(DEVICE)
        said = []
        for half in (False, True):
            for form, inputs in forms.items():
                got = _computed(model, inputs, half=half)
                off = [float((g - t).norm() / t.norm()) for g, t in zip(got, truth, strict=True)]
                said.append(f"{form} {'bf16' if half else 'fp32'} {off[0]:.0e}/{off[1]:.0e}")
        report.say(f"{family}: logits/gradients off", ", ".join(said))
        report.say(f"{family}: may be packed", can_pack(model.cpu(), families.PAD))


def _computed(model: Any, inputs: Any, *, half: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the tokens and all gradients of their mean square, on the CPU in float64."""
    model.zero_grad(set_to_none=True)
    inputs = inputs.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        logits = model(input_ids=inputs.input_ids, **inputs.arguments).logits
    rows = logits.reshape(-1, logits.shape[-1])[inputs.rows].double()
    rows.square().mean().backward()
    grads = [p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None]
    return rows.detach().cpu(), torch.cat(grads)


def compiled_is_eager(report: Report) -> None:
    """Loss by loss, and how often something was compiled."""
    traces = []
    for compiled in (False, True):
        torch._dynamo.reset()
        config = config_of("bert", **report.narrow)
        source = words(MIXED, config.vocab_size, 4 if report.tiny else 30)
        stepper, steps = stepper_of(config, source, compiled=compiled)
        traces.append(np.array([float(stepper.step(n, step)["loss"]) for n, step in steps]))
    counters = torch._dynamo.utils.counters
    graphs = counters["stats"].get("unique_graphs", 0), sum(counters["graph_break"].values())
    off = float(np.abs(traces[0] / traces[1] - 1).max())
    report.say("compiled = eager: losses off, relative", f"{off:.1e}")
    report.say("compiled: graphs, breaks", graphs)


def resumed_is_unbroken(report: Report) -> None:
    """Repeated, and resumed in the middle: equal bits? Deterministic algorithms, and others."""
    for strict in (False, True):
        torch.use_deterministic_algorithms(strict)
        try:
            first, again, resumed = (
                _trained(report, kind) for kind in ("first", "again", "resumed")
            )
        finally:
            torch.use_deterministic_algorithms(False)
        said = {"again": again, "resumed": resumed}
        off = {name: float((first - weights).abs().max()) for name, weights in said.items()}
        how = {
            name: "equal bits" if not value else f"{value:.1e} off" for name, value in off.items()
        }
        report.say(f"weights after 8 steps, deterministic={strict}", how)


def _trained(report: Report, kind: str) -> torch.Tensor:
    """All weights after eight steps; `resumed` comes from a checkpoint after the fourth."""
    config = config_of("bert", **report.narrow)
    source = words(MIXED, config.vocab_size, 8)
    stepper, steps = stepper_of(config, source)
    if kind == "resumed":
        for number, step in steps:
            stepper.step(number, step)
            if number == 3:
                break
        place = Position(step=4, epoch=0, epoch_step=4, identity="check")
        with tempfile.TemporaryDirectory() as folder:
            snapshot = SnapshotMaker().take(stepper.task, stepper.optimiser, place)
            saved = Checkpoints(Path(folder)).write(snapshot)
            stepper, steps = stepper_of(config, source)
            restore(saved, stepper.task, stepper.optimiser, "check")
        steps = ((number, step) for number, step in steps if number > 3)
    for number, step in steps:
        stepper.step(number, step)
    return torch.cat([p.detach().flatten() for p in stepper.parameters])


def golden_record(report: Report) -> None:
    """One whole step of RaSa's released code, on this device in float32."""
    spec = importlib.util.spec_from_file_location(
        "rasa_parity", ROOT / "tests/tasks/test_rasa_parity.py"
    )
    assert spec is not None
    assert spec.loader is not None
    parity: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = parity
    spec.loader.exec_module(parity)
    prepared, plain = parity.prepared_from, parity.ImageTextTask

    class Here(plain):  # type: ignore[valid-type,misc]
        def before_step(self) -> None:
            self.model.to(DEVICE)
            super().before_step()

    parity.prepared_from = lambda *given: prepared(*given).to(DEVICE)
    parity.ImageTextTask = Here
    replay = parity.replay.__wrapped__ if hasattr(parity.replay, "__wrapped__") else None
    found = (replay or parity.replay._get_wrapped_function())()
    off = {}
    for name, theirs in parity.LOSSES.items():
        mean = found.result.loss_sums[name].detach().cpu() / found.result.prepared.counts[name]
        off[name] = f"{float((mean / found.record[f'loss_{theirs}'] - 1).abs()):.0e}"
    report.say("golden record of RaSa: losses off", off)


def pictures_are_normalised(report: Report) -> None:
    """Pictures that go to the device as bytes, beside those that the host normalises."""
    scale = (CLIP_MEAN, CLIP_STD)
    config = ViewConfig(height=64, width=64, mean=CLIP_MEAN, std=CLIP_STD)
    levels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    found = normalise_bytes(torch.from_numpy(levels).to(DEVICE), scale).cpu()
    off = float((found - normalise(levels, config)).abs().max())
    report.say("pictures as bytes: values off", f"{off:.0e}")
