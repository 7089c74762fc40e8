from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.batch import MaskedTokens, TokenBatch, Vocabulary
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker

MakeBatch = Callable[..., TokenBatch]
POLICIES = ["token", "word", "span"]


def take(batch: TokenBatch, rows: list[int]) -> TokenBatch:
    """Some sequences of a batch, in that order, by a plain loop."""
    edges = batch.boundaries.tolist()
    pieces = [slice(edges[row], edges[row + 1]) for row in rows]
    return TokenBatch(
        input_ids=np.concatenate([batch.input_ids[p] for p in pieces]),
        boundaries=np.cumsum([0, *(p.stop - p.start for p in pieces)]),
        example_ids=batch.example_ids[rows],
        starts=batch.starts[rows],
        word_starts=np.concatenate([batch.word_starts[p] for p in pieces]),
    )


def rows_of(masked: MaskedTokens) -> list[tuple[list[int], list[int]]]:
    """What became of each sequence: its ids and its labels."""
    edges, labels = masked.batch.boundaries.tolist(), masked.labels()
    return [
        (masked.input_ids[a:b].tolist(), labels[a:b].tolist()) for a, b in itertools.pairwise(edges)
    ]


@pytest.mark.parametrize("policy", POLICIES)
@given(
    lengths=st.lists(st.integers(-1, 40), min_size=1, max_size=10),
    rate=st.sampled_from([1e-6, 0.15, 0.6]),
    data=st.data(),
)
def test_masks_do_not_depend_on_the_batch(
    make_batch: MakeBatch,
    vocabulary: Vocabulary,
    policy: str,
    lengths: list[int],
    rate: float,
    data: st.DataObject,
) -> None:
    starts = data.draw(st.lists(st.integers(0, 2000), min_size=len(lengths), max_size=len(lengths)))
    batch = make_batch(lengths, starts=starts, continues=0.3)
    masker = Masker.of(vocabulary, config=MaskingConfig(policy=policy, mask_rate=rate), seed=5)
    whole = rows_of(masker.mask(batch, epoch=2))
    order = data.draw(st.permutations(range(len(lengths))))
    size = data.draw(st.integers(1, len(lengths)))
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        part = rows_of(masker.mask(take(batch, rows), epoch=2))
        assert part == [whole[row] for row in rows]


def test_token_masks_do_not_depend_on_how_a_document_is_cut_into_windows(
    make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    document = make_batch([600], ids=[9])
    masker = Masker.of(vocabulary, config=MaskingConfig(mask_rate=0.5))
    whole_ids, whole_labels = rows_of(masker.mask(document, epoch=0))[0]
    for cuts in ([0, 300, 600], [0, 200, 400, 600], [0, 1, 50, 599, 600]):
        windows = make_batch(np.diff(cuts).tolist(), ids=[9] * (len(cuts) - 1), starts=cuts[:-1])
        inner = ~np.isin(windows.input_ids, [101, 102])
        ids = windows.input_ids.copy()
        ids[inner] = document.input_ids[1:-1]
        windows = TokenBatch(**{**vars(windows), "input_ids": ids})
        masked = masker.mask(windows, epoch=0)
        same = masked.labels()[inner] == np.array(whole_labels[1:-1])
        # A window of one or two tokens is given a mask if none was drawn.
        assert (~same).sum() <= 2
        assert np.array_equal(masked.input_ids[inner][same], np.array(whole_ids[1:-1])[same])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_input_is_not_written_to(
    make_batch: MakeBatch, vocabulary: Vocabulary, policy: str
) -> None:
    batch = make_batch([30, 0, 12], continues=0.3)  # its arrays are read-only
    before = {name: array.copy() for name, array in vars(batch).items()}
    masked = Masker.of(vocabulary, config=MaskingConfig(policy=policy)).mask(batch, epoch=0)
    assert masked.batch is batch
    assert masked.input_ids.flags.writeable
    for name, array in before.items():
        assert np.array_equal(getattr(batch, name), array)


@pytest.mark.parametrize("policy", POLICIES)
def test_labels_and_targets_hold_the_originals(
    make_batch: MakeBatch, vocabulary: Vocabulary, policy: str
) -> None:
    batch = make_batch([50] * 40, continues=0.3)
    masked = Masker.of(vocabulary, config=MaskingConfig(policy=policy)).mask(batch, epoch=0)
    labels = masked.labels()
    assert labels[masked.positions].tolist() == batch.input_ids[masked.positions].tolist()
    assert masked.targets.tolist() == batch.input_ids[masked.positions].tolist()
    others = np.delete(np.arange(batch.num_tokens), masked.positions)
    assert (labels[others] == -100).all()
    assert np.array_equal(masked.input_ids[others], batch.input_ids[others])
    assert (np.diff(masked.positions) > 0).all()
    assert not vocabulary.protected[masked.targets].any()


@pytest.mark.parametrize("policy", POLICIES)
def test_masks_are_fresh_in_each_epoch_and_for_each_seed(
    make_batch: MakeBatch, vocabulary: Vocabulary, policy: str
) -> None:
    batch = make_batch([5000])
    config = MaskingConfig(policy=policy)
    masks = {
        (seed, epoch): set(
            Masker.of(vocabulary, config=config, seed=seed)
            .mask(batch, epoch=epoch)
            .positions.tolist()
        )
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    }
    first = masks[0, 0]
    for other in (masks[0, 1], masks[1, 0]):
        # Independent masks share 15% of their tokens: about 112 of 750, never half.
        assert len(first & other) < 0.3 * len(first)


def test_static_masks_stay(make_batch: MakeBatch, vocabulary: Vocabulary) -> None:
    batch = make_batch([200, 100])
    masker = Masker.of(vocabulary, config=MaskingConfig(static=True))
    first, later = (masker.mask(batch, epoch=epoch) for epoch in (0, 7))
    assert np.array_equal(first.input_ids, later.input_ids)
    assert np.array_equal(first.positions, later.positions)
    fresh = Masker.of(vocabulary, config=MaskingConfig()).mask(batch, epoch=0)
    assert np.array_equal(first.positions, fresh.positions)


def test_the_rate_follows_the_schedule(make_batch: MakeBatch, vocabulary: Vocabulary) -> None:
    batch = make_batch([500] * 100)
    config = MaskingConfig(mask_rate=0.4, mask_rate_end=0.1, mask_schedule="linear")
    masker = Masker.of(vocabulary, config=config)
    for progress, rate in ((0.0, 0.4), (0.5, 0.25), (1.0, 0.1)):
        share = len(masker.mask(batch, epoch=0, progress=progress).positions) / 50_000
        assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / 50_000)


def test_spans_are_corrupted_alike(make_batch: MakeBatch, vocabulary: Vocabulary) -> None:
    batch = make_batch([400] * 30, continues=0.3)
    config = MaskingConfig(policy="span", mask_share=0.5, random_share=0.5)
    masked = Masker.of(vocabulary, config=config).mask(batch, epoch=0)
    shown = masked.input_ids[masked.positions] == vocabulary.mask_token_id
    spans = np.split(shown, np.flatnonzero(np.diff(masked.positions) > 1) + 1)
    assert all(span.all() or not span.any() for span in spans)
    # About half of the spans each way: five binomial standard errors.
    share = np.mean([span.all() for span in spans])
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(spans))


def test_the_generator_fills_other_words_under_the_same_policy(
    vocabulary: Vocabulary, make_batch: MakeBatch
) -> None:
    config = MaskingConfig(
        policy="span",
        span_max=3,
        mask_rate=0.1,
        mask_rate_end=0.2,
        mask_schedule="linear",
        static=True,
    )
    masker = Masker.of(vocabulary, config=config, seed=2**64 - 1)
    generator = masker.for_generator(0.3)
    written_out = MaskingConfig(
        policy="span", span_max=3, mask_rate=0.3, mask_share=1.0, random_share=0.0, static=True
    )
    assert generator == Masker.of(vocabulary, config=written_out, seed=0)
    batch = make_batch([60] * 50)
    masked = generator.mask(batch, epoch=0)
    assert (masked.input_ids[masked.positions] == vocabulary.mask_token_id).all()
    own = set(masker.mask(batch, epoch=0).positions.tolist())
    assert own.difference(masked.positions.tolist())
