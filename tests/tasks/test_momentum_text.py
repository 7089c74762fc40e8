"""One step of MLM with soft labels and MRTD on text, against plain Hugging Face and NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_text import lines, save_tiny_model

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.errors import CheckpointError, ConfigError
from maskery.core.random import Stream, uniforms
from maskery.core.task import Prepared
from maskery.data.batching import Template, assemble
from maskery.data.tokenise import encode_texts
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.loading import Loaded, load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.tasks.momentum_text import MomentumTextMLM, PreparedMomentumText
from maskery.tasks.text_mlm_config import TextMLMConfig

Array = npt.NDArray[np.float64]
EPOCH, PROGRESS = 2, 0.5


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return load_masked_lm(str(save_tiny_model(tmp_path / "model")), hidden_dropout=0.0)


def task_of(loaded: Loaded, *, packed: bool = True, **settings: Any) -> MomentumTextMLM:
    vocabulary = Vocabulary.of(loaded.tokenizer)
    settings = {"objective": "mlm+mrtd", "momentum": 0.9, **settings}
    everything = MaskingConfig(mask_rate=0.3, mask_share=1.0, random_share=0.0)
    task = MomentumTextMLM(
        MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=0),
        TextMLMConfig(**settings),
        masker=Masker.of(vocabulary, seed=5),
        mrtd_masker=Masker.of(vocabulary, config=everything, seed=6),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a twin that has fallen behind
        for parameter in task.twin.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    task.model.eval()
    return task


def batch_of(loaded: Loaded, texts: list[str]) -> TokenBatch:
    ids, starts, lengths = encode_texts(texts, loaded.tokenizer)
    names = np.array([hash_of(text) for text in texts], np.uint64)
    template = Template.of(loaded.tokenizer)
    firsts, zeros = np.cumsum(lengths) - lengths, np.zeros(len(texts), np.int64)
    return assemble(ids, starts, firsts, lengths, names, zeros, template)


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**60


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def by_hand(task: MomentumTextMLM, batch: TokenBatch, alpha: float) -> dict[str, float]:
    """Every sentence alone, through the Hugging Face modules, with the formulas written out."""
    online: Any = task.model
    special = list(task.masker.vocabulary.special_ids)
    masked = task.masker.mask(batch, epoch=EPOCH, progress=PROGRESS)
    anew = task.mrtd_masker.mask(batch, epoch=EPOCH, progress=PROGRESS)
    sums = {"mlm": 0.0, "mrtd": 0.0}
    for row, (start, end) in enumerate(pairwise(batch.boundaries)):
        original = batch.input_ids[start:end]
        places = masked.positions[(masked.positions >= start) & (masked.positions < end)] - start
        ids = torch.from_numpy(masked.input_ids[start:end])[None]
        student = softmax(online.hf(ids).logits[0].double().numpy())[places]
        teacher = softmax(task.twin.model.hf(ids).logits[0].double().numpy())[places]
        hard = -np.log(student[np.arange(len(places)), original[places]])
        soft = -(teacher * np.log(student)).sum(axis=1)
        sums["mlm"] += float(((1 - alpha) * hard + alpha * soft).sum())
        if not task.config.detects:
            continue

        filled = anew.positions[(anew.positions >= start) & (anew.positions < end)] - start
        ids = torch.from_numpy(anew.input_ids[start:end])[None]
        weights = softmax(task.twin.model.hf(ids).logits[0].double().numpy())[filled]
        weights[:, special] = 0.0
        drawn = uniforms(6, Stream.SAMPLE, EPOCH, batch.example_ids[[row] * len(filled)], filled)
        replaced = original.copy()
        for place, weight, chance in zip(filled, weights, drawn, strict=True):
            reached = np.cumsum(weight) > float(chance) * weight.sum()
            replaced[place] = int(np.argmax(reached))
        words = np.flatnonzero(~np.isin(original, special))
        hidden = online.hf.bert(torch.from_numpy(replaced)[None]).last_hidden_state[0].numpy()
        head = online.mrtd_head
        logits = hidden[words] @ head.weight.numpy().T + head.bias.numpy()
        truth = (replaced != original)[words].astype(int)
        chances = softmax(logits.astype(np.float64))
        sums["mrtd"] -= float(np.log(chances[np.arange(len(words)), truth]).sum())
    return sums


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("alpha", [0.4, 0.0])
@torch.no_grad()
def test_one_step_is_the_formula(loaded: Loaded, packed: bool, alpha: float) -> None:
    task = task_of(loaded, packed=packed, alpha=alpha)
    batch = batch_of(loaded, lines(5, seed=2))
    prepared = task.prepare(batch, epoch=EPOCH, progress=PROGRESS)
    assert isinstance(prepared, Prepared)
    sums = task.loss_sums(prepared)
    expected = by_hand(task, batch, alpha)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-5)
    words = int((~task.masker.vocabulary.protected[batch.input_ids]).sum())
    assert prepared.counts == {"mlm": len(prepared.targets), "mrtd": words}


def gradients(task: MomentumTextMLM, sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    task.model.zero_grad()
    torch.stack(list(sums.values())).sum().backward()
    return {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}


def test_layouts_agree_and_every_part_is_trained(loaded: Loaded) -> None:
    batch = batch_of(loaded, lines(4, seed=7))
    found = []
    for packed in (True, False):
        task = task_of(loaded, packed=packed)
        found.append(gradients(task, task.loss_sums(prepared_of(task, batch))))
    packed_gradients, padded_gradients = found
    assert set(packed_gradients) == {name for name, _ in task.model.named_parameters()}
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def prepared_of(task: MomentumTextMLM, batch: TokenBatch) -> PreparedMomentumText:
    return task.prepare(batch, epoch=EPOCH, progress=PROGRESS)


@torch.no_grad()
def test_sums_do_not_depend_on_how_a_step_is_cut(loaded: Loaded) -> None:
    task, texts = task_of(loaded), lines(6, seed=4)
    whole = task.loss_sums(prepared_of(task, batch_of(loaded, texts)))
    parts = [
        task.loss_sums(prepared_of(task, batch_of(loaded, part))) for part in (texts[:2], texts[2:])
    ]
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name], rtol=1e-5, atol=0)


@torch.no_grad()
def test_a_step_replays_from_what_it_returned(loaded: Loaded) -> None:
    task = task_of(loaded)
    sums, decided = task.step(prepared_of(task, batch_of(loaded, lines(4))))
    assert decided.plan is not None
    assert decided.plan.sampled is not None
    other = decided.plan.sampled.roll(1)
    again, _ = task.step(decided)
    assert torch.equal(again["mrtd"], sums["mrtd"])
    changed, _ = task.step(replace(decided, plan=replace(decided.plan, sampled=other)))
    assert not torch.equal(changed["mrtd"], sums["mrtd"])


@torch.no_grad()
def test_the_judge_reads_the_same_text_as_the_loss(loaded: Loaded) -> None:
    task = task_of(loaded)
    prepared = prepared_of(task, batch_of(loaded, lines(4)))
    log_odds, labels = task.judge(prepared)
    loss = torch.nn.functional.softplus(torch.where(labels == 1, -log_odds, log_odds)).sum()
    torch.testing.assert_close(loss, task.loss_sums(prepared)["mrtd"], rtol=1e-5, atol=1e-5)
    assert 0 < int(labels.sum()) < len(labels)


@torch.no_grad()
def test_soft_labels_alone_need_no_second_head(loaded: Loaded) -> None:
    task = task_of(loaded, objective="mlm")
    batch = batch_of(loaded, lines(5, seed=2))
    prepared = prepared_of(task, batch)
    assert prepared.counts == {"mlm": len(prepared.targets)}
    expected = by_hand(task, batch, 0.4)["mlm"]
    assert float(task.loss_sums(prepared)["mlm"]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match=r"mlm\+mrtd"):
        task.judge(prepared)


@torch.no_grad()
def test_the_twin_moves_once_and_goes_through_a_checkpoint(loaded: Loaded) -> None:
    task, other = task_of(loaded, momentum=0.75), task_of(loaded)
    online = {name: p.clone() for name, p in task.model.named_parameters()}
    before = {name: p.clone() for name, p in task.twin.model.named_parameters()}
    task.before_step()
    task.loss_sums(prepared_of(task, batch_of(loaded, lines(3))))
    for name, parameter in task.twin.model.named_parameters():
        expected = 0.75 * before[name] + 0.25 * online[name]
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)
    state = {name: tensor.clone() for name, tensor in task.extra_state().items()}
    pointers = [tensor.data_ptr() for tensor in task.extra_state().values()]
    assert len(set(pointers)) == len(pointers)  # tied weights once, as safetensors wants it
    other.load_extra_state(state)
    for name, tensor in other.extra_state().items():
        assert torch.equal(tensor, state[name]), name
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load_extra_state({})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "mrtd"}, r"must be mlm, mlm\+mrtd, diffusion, or FILE.py:NAME"),
        ({"momentum": 1.1}, "from 0 to 1"),
        ({"objective": "mlm+mrtd", "alpha": float("nan")}, "from 0 to 1"),
        ({"alpha": 0.2}, "no momentum twin"),
        ({"twin_train_mode": True}, "no momentum twin"),
        ({"momentum": 0.9, "mrtd_weight": 1.0}, r"needs --objective mlm\+mrtd"),
        ({"mrtd_mask_rate": 0.2}, r"needs --objective mlm\+mrtd"),
        ({"objective": "mlm+mrtd", "mrtd_mask_rate": 1.0}, "between 0 and 1"),
        ({"objective": "mlm+mrtd", "mrtd_weight": 0.0}, "above 0"),
        ({"momentum": 0.9, "alpha": 0.0}, "teach nothing"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TextMLMConfig(**settings)


def test_alpha_rises_over_its_warm_up() -> None:
    config = TextMLMConfig(momentum=0.9, alpha=0.4, alpha_warmup=0.1)
    assert [config.alpha_at(share) for share in (0.0, 0.05, 0.1, 0.9)] == pytest.approx(
        [0.0, 0.2, 0.4, 0.4]
    )
