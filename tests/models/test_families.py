"""Every family of masked language models: read, trained at its limit, and refused beyond it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from families import PAD, VOCAB, save, tiny_config
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from maskery.cli.main import main
from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.errors import DataError, ModelError
from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.opening import open_model
from maskery.models.layout import PACKABLE, max_positions
from maskery.models.loading import load_masked_lm

DOCS = Path(__file__).parents[2] / "docs" / "text_input.md"
LIMIT = 64
# Their positions are computed, or stop growing, so the model itself would read on: the limit is
# what it was trained for.
READS_ON = {
    *("deberta-v2", "esmc", "eurobert", "gte", "jina_embeddings_v3", "modernbert", "modernvbert"),
    *("neomme", "nomic_bert", "tapas", "ultrabert", "ultravbert"),
}
FAMILIES = sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def batch_of(lengths: list[int]) -> MaskedTokens:
    """Sequences at random, the first and the last token of each masked."""
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.random.default_rng(0).integers(5, VOCAB, int(boundaries[-1]))
    positions = np.unique(np.concatenate((boundaries[:-1], boundaries[1:] - 1)))
    hidden = ids.copy()
    hidden[positions] = 4
    batch = TokenBatch(
        input_ids=ids,
        boundaries=boundaries,
        example_ids=np.arange(len(lengths), dtype=np.uint64),
        starts=np.zeros(len(lengths), np.int64),
        word_starts=np.ones(len(ids), np.bool_),
    )
    return MaskedTokens(batch=batch, input_ids=hidden, positions=positions, targets=ids[positions])


def logits_of_its_own(hf: torch.nn.Module, masked: MaskedTokens, least: int) -> torch.Tensor:
    """The Hugging Face model's logits at the masked tokens, from rows padded by hand."""
    bounds = masked.batch.boundaries.tolist()
    length = max(least, *np.diff(bounds))
    ids = torch.full((len(bounds) - 1, length), PAD)
    attended = torch.zeros_like(ids)
    for row, (start, end) in enumerate(pairwise(bounds)):
        ids[row, : end - start] = torch.from_numpy(masked.input_ids[start:end])
        attended[row, : end - start] = 1
    logits = hf(input_ids=ids, attention_mask=attended).logits
    rows = np.searchsorted(bounds, masked.positions, side="right") - 1
    return logits[rows, masked.positions - np.array(bounds)[rows]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_read_trained_at_its_limit_and_refused_beyond(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reformer draws dropout and hashes from the system's entropy; seeded, both steps have the same.
    monkeypatch.setattr(torch, "seed", lambda: 0)
    opened = open_model(str(save(family, tmp_path)))
    model, limit = opened.model, max_positions(opened.model.hf.config)
    assert model.packed == (family in PACKABLE)

    # Whatever is padded, its rows are the model's own: short, mixed and longest texts.
    least = {"reformer": LIMIT, "funnel": 5}.get(family, 1)
    for lengths in ([3], [9, 3], [limit or 70, 3]):
        masked = batch_of(lengths)
        with torch.no_grad():
            expected = logits_of_its_own(load_masked_lm(str(tmp_path)).model, masked, least)
            torch.testing.assert_close(model(model.lay_out(masked)), expected, atol=1e-4, rtol=1e-3)

    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)  # the same dropout
        logits = model(model.lay_out(masked))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(masked.targets))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0] < 50.0

    filler = Filler(model, opened.tokenizer)
    if limit is None:
        assert family == "funnel"
        return
    assert len(filler.encode(" ".join(["[MASK]"] + ["w9"] * (limit - 1)))) == limit
    with pytest.raises(
        DataError, match=f"{limit + 1} tokens, and the model has {limit} pos"
    ) as told:
        filler.fill(" ".join(["[MASK]"] + ["w9"] * limit))
    assert "\n" not in str(told.value)
    beyond = torch.full((1, limit + 1), 9)
    with torch.no_grad():
        if family in READS_ON:
            opened.model.eval().hf(input_ids=beyond)
        else:
            with pytest.raises((IndexError, RuntimeError, ValueError)):
                opened.model.eval().hf(input_ids=beyond)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_the_documentation_is_true(family: str) -> None:
    limit = max_positions(tiny_config(family))
    less = {None: "none", LIMIT: "all", LIMIT - PAD - 1: "after the padding's"}[limit]
    rows = re.findall(rf"^\| `{family}` \| (\w+) \| ([^|]+) \|$", DOCS.read_text("utf-8"), re.M)
    assert rows == [("packed" if family in PACKABLE else "padded", less)]


def test_settings_that_read_no_text_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nyströmformer's landmarks stand at fixed places of texts of one length."""
    changed = {"segment_means_seq_len": 64, "num_landmarks": 4}
    folder = save("nystromformer", tmp_path, **changed)
    with pytest.raises(ModelError, match="family 'nystromformer' with these settings cannot read"):
        load_masked_lm(str(folder))
    capsys.readouterr()
    assert main(["fill", str(folder), "w9 [MASK]"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
