"""The task of masked diffusion: its loss by a plain loop, and texts of known entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import PAD, tiny

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.random import Stream
from maskery.evaluation.text.masked import score_examples, summarise
from maskery.masking.diffusion import FLOOR, NelboMasker
from maskery.masking.masker import Masker
from maskery.masking.policies import Draws
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.tasks.text_mlm import TextMLM, TextParts, diffusion

MASK, WORDS = 4, 5  # the first id of a word
ALWAYS = Vocabulary(size=99, mask_token_id=MASK, special_ids=tuple(range(WORDS)))


def texts(rows: list[list[int]], first: int = 0) -> TokenBatch:
    """[CLS] words [SEP] of each row."""
    ids = [[2, *row, 3] for row in rows]
    return TokenBatch(
        input_ids=np.concatenate(ids).astype(np.int64),
        boundaries=np.cumsum([0, *map(len, ids)]),
        example_ids=np.arange(first, first + len(ids), dtype=np.uint64),
        starts=np.zeros(len(ids), np.int64),
        word_starts=np.ones(sum(map(len, ids)), np.bool_),
    )


def task(*, packed: bool = True, seed: int = 0, **settings: object) -> TextMLM:
    model = MaskedLanguageModel(tiny("bert", **settings), packed=packed, pad_token_id=PAD)
    parts = TextParts(model=model, tokenizer=None, masker=Masker.of(ALWAYS, seed=seed))  # type: ignore[arg-type]
    return diffusion(parts)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_loss_is_that_of_a_plain_loop(packed: bool) -> None:
    generator = np.random.default_rng(1)
    rows = [generator.integers(WORDS, 99, n).tolist() for n in (3, 11, 1, 7, 11)]
    learner, batch, expected = task(packed=packed, seed=9), texts(rows), 0.0
    draws = Draws(seed=9, epoch=4)
    words = draws.at("diffusion time", batch.example_ids, batch.starts)
    chances = np.split(draws.uniforms(Stream.SELECT, batch), batch.boundaries[1:-1])
    for row, word, own in zip(rows, words.tolist(), chances, strict=True):
        t = FLOOR + (1 - FLOOR) * (word + 1) / 2**32
        truth = [2, *row, 3]
        hidden = [i for i in range(1, len(row) + 1) if own[i] < t]
        seen = [MASK if i in hidden else token for i, token in enumerate(truth)]
        with torch.no_grad():
            logits = learner.model.hf(torch.tensor([seen])).logits[0].double()
        expected += sum(
            float(F.cross_entropy(logits[i], torch.tensor(truth[i]))) / t for i in hidden
        )
    prepared = learner.prepare(batch, epoch=4, progress=0.5)
    loss = learner.loss_sums(prepared)["mlm"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert prepared.counts == {"mlm": 33}

    # The gradient is that of the same loss by PyTorch's own function.
    (mine,) = torch.autograd.grad(loss, learner.model.hf.get_input_embeddings().weight)
    each = F.cross_entropy(learner.model(prepared.inputs), prepared.targets, reduction="none")
    (other,) = torch.autograd.grad(
        each @ prepared.weights, learner.model.hf.get_input_embeddings().weight
    )
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_nothing_masked_is_a_loss_of_zero() -> None:
    learner = task()
    prepared = learner.prepare(texts([[]]), epoch=0, progress=0.0)
    loss = learner.loss_sums(prepared)["mlm"]
    loss.backward()
    assert loss.item() == 0.0


def test_a_chain_of_known_entropy() -> None:
    """Trained for some seconds, the NELBO of held-out text is just above the entropy."""
    states, length = 4, 6
    chances = np.array([[0.7, 0.2, 0.05, 0.05], [0.05, 0.7, 0.2, 0.05]] * 2)
    chances[2:] = np.roll(chances[:2], 2, axis=1)
    first = np.full(states, 1 / states)  # stationary: the columns sum to 1, too
    assert (first @ chances) == pytest.approx(first)
    row = -(chances * np.log(chances)).sum(axis=1) @ first
    entropy = (np.log(states) + (length - 1) * row) / length
    generator = np.random.default_rng(0)

    def draw(count: int) -> list[list[int]]:
        found = [generator.integers(states, size=count)]
        for _ in range(length - 1):
            below = chances[found[-1]].cumsum(axis=1) < generator.random(count)[:, None]
            found.append(below.sum(axis=1))
        return (np.stack(found, axis=1) + WORDS).tolist()  # type: ignore[no-any-return]

    learner = task(vocab_size=WORDS + states, num_hidden_layers=1)
    model = learner.model.train()
    steps = 250
    optimiser = torch.optim.AdamW(model.parameters(), 8e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 8e-3, total_steps=steps)
    for step in range(steps):
        prepared = learner.prepare(texts(draw(256), step * 256), epoch=0, progress=0.0)
        loss = learner.loss_sums(prepared)["mlm"] / prepared.counts["mlm"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    rows = np.array(draw(3000)) - WORDS
    scored = summarise(
        score_examples(model, [texts((rows + WORDS).tolist(), 10**6)], NelboMasker.of(ALWAYS))
    )
    assert scored.masked_tokens == rows.size
    assert scored.loss.low < 1.02 * entropy
    # A text may be likelier than its chain's by chance; this one's own cost is known exactly.
    own = -np.log(chances[rows[:, :-1], rows[:, 1:]]).sum() + len(rows) * np.log(states)
    assert own / rows.size == pytest.approx(entropy, rel=0.02)
    assert own < scored.loss.value * rows.size < 1.03 * own
