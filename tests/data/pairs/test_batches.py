from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pairs import new_tokenizer, save_tiny_pairs

from maskery.core.errors import DataError
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.images.views import view_pixels
from maskery.data.pairs.batches import (
    CaptionTokens,
    HeldOutPairs,
    PairSource,
    Pictures,
    ReadPairs,
    ViewedPairs,
    tokenise_captions,
)
from maskery.data.pairs.pairs import Pairs, group_ids

VIEW = ViewConfig(height=8, width=8, mean=HALF_MEAN, std=HALF_STD, pad=2, crop_scale=(0.3, 1.0))


TOKENIZER = new_tokenizer()


def captions_of(pairs: Pairs) -> CaptionTokens:
    return tokenise_captions(pairs, TOKENIZER, Skipped("caption", "fail"), max_length=64)


def source_of(
    pairs: Pairs, on_bad: Literal["skip", "fail"] = "skip", cache: int = 0, **settings: Any
) -> PairSource:
    pictures = Pictures(pairs, on_bad, near=None, cache_bytes=cache)
    return PairSource(
        ReadPairs(pairs, captions_of(pairs), pictures, VIEW),
        np.arange(len(pairs)),
        **{"batch_pairs": 5, "seed": 3, **settings},
    )


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    # Noise, so that every view is different.
    path = save_tiny_pairs(tmp_path, 12)
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number:03d}.png")
    return Pairs.open(path)


def by_id(batches: list[ViewedPairs]) -> dict[int, tuple[torch.Tensor, torch.Tensor, list[int]]]:
    found = {}
    for batch in batches:
        text = batch.text1
        for row, name in enumerate(text.example_ids.tolist()):
            ids = text.input_ids[text.boundaries[row] : text.boundaries[row + 1]].tolist()
            found[name] = (batch.image1[row], batch.image2[row], ids)
    return found


def epoch_of(source: PairSource, epoch: int, **share: int) -> list[ViewedPairs]:
    steps = range(source.num_steps(epoch))
    return [batch for step in steps for batch in source.micro_batches(epoch, step, **share)]


def same(one: dict[int, Any], other: dict[int, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[i][0], other[i][0])
        and torch.equal(one[i][1], other[i][1])
        and one[i][2] == other[i][2]
        for i in one
    )


def test_an_epoch_reads_every_pair_once_in_two_different_views(pairs: Pairs) -> None:
    source = source_of(pairs)
    assert source.num_steps(0) == 3
    batches = epoch_of(source, 0)
    assert [len(batch.text1.lengths) for batch in batches] == [5, 5, 2]
    found = by_id(batches)
    assert set(found) == set(pairs.ids.tolist())
    assert all(one.shape == (3, 8, 8) for one, _, _ in found.values())
    assert not any(torch.equal(one, two) for one, two, _ in found.values())


def test_views_and_captions_do_not_depend_on_cutting_caching_or_processes(pairs: Pairs) -> None:
    whole = by_id(epoch_of(source_of(pairs), 1))
    assert same(whole, by_id(epoch_of(source_of(pairs, cache=10**6), 1)))
    assert same(whole, by_id(epoch_of(source_of(pairs, micro_pairs=2), 1)))
    ranks = [epoch_of(source_of(pairs), 1, rank=rank, world_size=2) for rank in (0, 1)]
    assert same(whole, by_id(ranks[0] + ranks[1]))
    assert not same(whole, by_id(epoch_of(source_of(pairs), 2)))


def test_both_captions_of_a_pair_are_read_over_the_epochs(pairs: Pairs) -> None:
    source = source_of(pairs)
    texts: dict[int, set[tuple[int, ...]]] = {}
    for epoch in range(20):
        for name, (_, _, ids) in by_id(epoch_of(source, epoch)).items():
            texts.setdefault(name, set()).add(tuple(ids))
    assert all(len(read) == 2 for read in texts.values())


def test_broken_pictures_are_left_out_and_counted_once(tmp_path: Path, pairs: Pairs) -> None:
    (tmp_path / "003.png").write_bytes(b"no picture")
    source = source_of(pairs, cache=10**6)
    found = by_id(epoch_of(source, 0) + epoch_of(source, 1))
    assert set(found) == set(pairs.ids.tolist()) - {int(pairs.ids[3])}
    assert source.pictures.skipped.count == 1
    assert "003.png is not a picture" in str(source.pictures.skipped)
    with pytest.raises(DataError, match=r"003\.png is not a picture"):
        epoch_of(source_of(pairs, "fail"), 0)


def test_a_batch_of_one_broken_picture_takes_the_next(tmp_path: Path, pairs: Pairs) -> None:
    (tmp_path / "003.png").write_bytes(b"")
    batches = epoch_of(source_of(pairs, batch_pairs=1), 0)
    assert len(batches) == 12
    assert all(len(batch.text1.lengths) == 1 for batch in batches)
    assert int(pairs.ids[3]) not in by_id(batches)


def test_only_broken_pictures_is_one_line(tmp_path: Path, pairs: Pairs) -> None:
    for number in range(12):
        (tmp_path / f"{number:03d}.png").unlink()
    source = source_of(pairs)
    with pytest.raises(DataError, match="no picture of the pairs can be read") as caught:
        source.micro_batches(0, 0)
    assert "\n" not in str(caught.value)


def held_out(pairs: Pairs, batch_pairs: int) -> HeldOutPairs:
    pictures = Pictures(pairs, "skip", near=None)
    return HeldOutPairs(
        ReadPairs(pairs, captions_of(pairs), pictures, VIEW),
        group_ids(pairs),
        np.arange(2, 12),
        batch_pairs=batch_pairs,
    )


def test_held_out_pictures_are_the_same_at_any_batch_size(pairs: Pairs) -> None:
    seen = []
    for batch_pairs in (1, 3, 100):
        rows = []
        for batch in held_out(pairs, batch_pairs):
            right, wrong = batch.images[batch.right], batch.images[batch.wrong]
            assert not torch.equal(right, wrong)
            rows += [(r.sum().item(), w.sum().item()) for r, w in zip(right, wrong, strict=True)]
        assert len(rows) == 20  # two captions each
        seen.append(rows)
    assert seen[0] == seen[1] == seen[2]


def test_a_broken_wrong_picture_leaves_its_caption_out(tmp_path: Path, pairs: Pairs) -> None:
    (tmp_path / "004.png").write_bytes(b"no picture")
    judged = held_out(pairs, 4)
    count = sum(len(batch.text.lengths) for batch in judged)
    assert count == 2 * (10 - 2)  # its own pair, and the one whose wrong picture it was


def test_pictures_are_kept_at_the_size_that_is_read(pairs: Pairs) -> None:
    """Resized once instead of in every view: the same pixels."""
    whole = Pictures(pairs, "skip", near=None).load([0, 1])
    kept = Pictures(pairs, "skip", near=(8, 4), cache_bytes=1 << 20)
    small = kept.load([0, 1])
    config = ViewConfig(height=4, width=8, mean=HALF_MEAN, std=HALF_STD)
    for first, second in zip(whole, small, strict=True):
        assert first is not None
        assert second is not None
        assert second.size == (8, 4)
        assert np.array_equal(view_pixels(first, config), view_pixels(second, config))
    assert kept.load([0])[0] is small[0]
