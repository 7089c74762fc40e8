"""The causal plug-in: both losses by a plain loop, for every family, and no look ahead."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import PAD, VOCAB, tiny
from tiny_text import lines, save_tiny_model

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.errors import ConfigError
from maskery.core.registry import load_plugin
from maskery.core.system import read_metrics
from maskery.masking.masker import Masker
from maskery.models import attention
from maskery.models.layout import PACKABLE
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm import TextParts
from maskery.tasks.text_mlm_config import TextMLMConfig
from maskery.training.config import TrainingConfig

PLUGIN = f"{Path(__file__).parents[2] / 'examples/plugins/causal_objective.py'}:causal"
VOCABULARY = Vocabulary(size=VOCAB, mask_token_id=4, special_ids=tuple(range(5)))


def batch_of(lengths: list[int], seed: int = 0) -> TokenBatch:
    generator = np.random.default_rng(seed)
    ids = [[2, *generator.integers(5, VOCAB, n).tolist(), 3] for n in lengths]
    return TokenBatch(
        input_ids=np.concatenate(ids).astype(np.int64),
        boundaries=np.cumsum([0, *map(len, ids)]),
        example_ids=np.arange(len(ids), dtype=np.uint64),
        starts=np.zeros(len(ids), np.int64),
        word_starts=np.ones(sum(map(len, ids)), np.bool_),
    )


def task(family: str, share: float, monkeypatch: pytest.MonkeyPatch, *, packed: bool = True) -> Any:
    monkeypatch.setenv("CAUSAL_SHARE", str(share))
    model = MaskedLanguageModel(tiny(family).double(), packed=packed, pad_token_id=PAD)
    masker = Masker.of(VOCABULARY, rate=0.3, seed=2)
    parts = TextParts(model=model, tokenizer=None, masker=masker)  # type: ignore[arg-type]
    return load_plugin(PLUGIN, flag="--objective", contract="an objective")(parts)


@pytest.mark.parametrize("on_device", [False, True], ids=["segments", "device"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_both_losses_are_those_of_a_plain_loop(
    share: float, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "stays_on_device", lambda query: on_device)
    learner, batch = task("bert", share, monkeypatch), batch_of([5, 1, 9, 9, 3, 12, 7])
    masked, chosen = learner.masker.mask(batch, epoch=3), learner.chosen(batch, 3)
    expected, counts = {"mlm": 0.0, "causal": 0.0}, {"mlm": 0, "causal": 0}
    labels = masked.labels()
    for (a, b), is_causal in zip(pairwise(batch.boundaries), chosen.tolist(), strict=True):
        ids = torch.from_numpy((batch if is_causal else masked).input_ids[a:b])[None]
        seen = torch.ones(b - a, b - a, dtype=torch.bool)
        seen = seen.tril() if is_causal else seen
        with torch.no_grad():
            logits = learner.model.hf(input_ids=ids, attention_mask=seen[None, None]).logits[0]
        truth = torch.from_numpy(labels[a:b])
        if is_causal:
            truth = torch.cat((ids[0, 1:], torch.tensor([-100])))
            truth[-2] = -100  # [SEP] is not predicted
        name = "causal" if is_causal else "mlm"
        expected[name] += F.cross_entropy(logits, truth, reduction="sum").item()
        counts[name] += int((truth >= 0).sum())
    prepared = learner.prepare(batch, epoch=3, progress=0.0)
    found = {name: value.item() for name, value in learner.loss_sums(prepared).items()}
    assert 0 < chosen.sum() < 7 or share == 1.0
    assert prepared.counts == counts
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_no_family_sees_what_follows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        learner = task(family, 1.0, monkeypatch)
    except ValueError as error:  # this Transformers does not know the family
        pytest.skip(str(error))
    batch = batch_of([6, 10])
    prepared = learner.prepare(batch, epoch=0, progress=0.0)
    changed = batch.input_ids.copy()
    changed[12:17] = changed[12:17][::-1]  # tokens 4 to 8 of the second text
    other = learner.prepare(replace(batch, input_ids=changed), epoch=0, progress=0.0)
    with torch.no_grad():
        one, two = learner.model(prepared.inputs), learner.model(other.inputs)
    rows = prepared.inputs.rows
    same = (rows < 12).numpy()
    assert (one[same] - two[same]).abs().max() < 1e-9
    assert (one[~same] - two[~same]).abs().amax(dim=1).min() > 1e-6


def test_the_share_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batch = task("bert", 0.3, monkeypatch), batch_of([2] * 3000)
    chosen = learner.chosen(batch, 1)
    assert chosen.mean() == pytest.approx(0.3, abs=0.03)
    part = replace(batch_of([2] * 50), example_ids=batch.example_ids[100:150])
    assert np.array_equal(learner.chosen(part, 1), chosen[100:150])
    assert not np.array_equal(learner.chosen(batch, 2), chosen)


def test_what_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'deberta-v2' are padded.* bert, camembert"):
        task("deberta-v2", 0.3, monkeypatch, packed=False)
    with pytest.raises(ConfigError, match=r"CAUSAL_SHARE is 1\.5: it must be from 0 to 1"):
        task("bert", 1.5, monkeypatch)


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSAL_SHARE", "0.5")
    (tmp_path / "corpus.txt").write_text("\n".join(lines(200)), "utf-8")
    config = TextRunConfig(
        corpus=(str(tmp_path / "corpus.txt"),),
        model=str(save_tiny_model(tmp_path / "model")),
        output=tmp_path / "run",
        held_out_share=0.2,
        objectives=TextMLMConfig(objective=PLUGIN),
        training=TrainingConfig(batch_tokens=512, max_steps=30, log_every=1, learning_rate=1e-2),
    )
    train_text(config, progress=False)
    losses = [r["causal"] for r in read_metrics(tmp_path / "run/metrics.jsonl") if "causal" in r]
    assert losses[-1] < 0.7 * losses[0]
