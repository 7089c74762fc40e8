from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.errors import ConfigError
from maskery.masking.config import MaskingConfig
from maskery.masking.mask import IGNORE_INDEX, Masked, mask
from maskery.masking.masker import Masker

MakeBatch = Callable[..., TokenBatch]


def padded(batch: TokenBatch, pad: int = 0) -> torch.Tensor:
    rows = np.split(batch.input_ids, batch.boundaries[1:-1])
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=pad
    )


@pytest.fixture
def input_ids(make_batch: MakeBatch) -> torch.Tensor:
    return padded(make_batch([60, 3, 0, 41]))


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    rate=st.sampled_from([1e-6, 0.15, 0.5]),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**24 - 1),
    shares=st.sampled_from([(0.8, 0.1), (0.0, 1.0), (1.0, 0.0), (0.3, 0.3)]),
)
def test_it_masks_as_the_engine_does(
    make_batch: MakeBatch,
    vocabulary: Vocabulary,
    lengths: list[int],
    rate: float,
    seed: int,
    epoch: int,
    shares: tuple[float, float],
) -> None:
    batch = make_batch(lengths)
    config = MaskingConfig(mask_rate=rate, mask_share=shares[0], random_share=shares[1])
    flat = Masker.of(vocabulary, config=config, seed=seed).mask(batch, epoch=epoch)
    ids, labels = mask(
        padded(batch),
        vocabulary.size,
        probability_matrix=rate,
        vocabulary=vocabulary,
        mask_share=shares[0],
        random_share=shares[1],
        seed=seed,
        epoch=epoch,
    )
    real = torch.arange(ids.shape[1]) < torch.from_numpy(batch.lengths).unsqueeze(1)
    assert ids[real].tolist() == flat.input_ids.tolist()
    assert labels[real].tolist() == flat.labels().tolist()
    assert (labels[~real] == IGNORE_INDEX).all()
    assert (ids[~real] == 0).all()


def test_the_calls_of_the_seed_documents(input_ids: torch.Tensor, vocabulary: Vocabulary) -> None:
    probability_matrix = torch.full(input_ids.shape, 0.15)
    labels = input_ids.clone()
    first = mask(
        input_ids=input_ids,
        vocab_size=1000,
        targets=labels,
        probability_matrix=probability_matrix,
        vocabulary=vocabulary,
    )
    again = mask(input_ids, 1000, probability_matrix=0.15, vocabulary=vocabulary)
    assert isinstance(first, Masked)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
        assert one.shape == input_ids.shape
        assert one.dtype == torch.int64
    masked = first.labels != IGNORE_INDEX
    assert torch.equal(first.labels[masked], input_ids[masked])
    assert torch.equal(first.input_ids[~masked], input_ids[~masked])


def test_the_text_seed_shows_the_mask_token_alone(
    input_ids: torch.Tensor, vocabulary: Vocabulary
) -> None:
    ids, labels = mask(
        input_ids,
        1000,
        probability_matrix=0.15,
        vocabulary=vocabulary,
        mask_share=1.0,
        random_share=0.0,
    )
    assert (ids[labels != IGNORE_INDEX] == vocabulary.mask_token_id).all()


def test_the_arguments_are_not_written_to(input_ids: torch.Tensor, vocabulary: Vocabulary) -> None:
    arguments = {
        "input_ids": input_ids,
        "targets": input_ids + 1,
        "probability_matrix": torch.full(input_ids.shape, 0.9),
        "masked_indices": torch.rand(input_ids.shape) < 0.5,
        "example_ids": torch.tensor([4, 3, 2, 1]),
    }
    before = {name: tensor.clone() for name, tensor in arguments.items()}
    versions = {name: tensor._version for name, tensor in arguments.items()}
    masked = mask(**arguments, vocab_size=1000, vocabulary=vocabulary)  # type: ignore[arg-type]
    for name, tensor in arguments.items():
        assert tensor._version == versions[name]
        assert torch.equal(tensor, before[name])
    assert masked.input_ids.data_ptr() != input_ids.data_ptr()


def test_labels_come_from_the_targets(input_ids: torch.Tensor, vocabulary: Vocabulary) -> None:
    targets = input_ids + 1000
    _, labels = mask(input_ids, 1000, targets, probability_matrix=0.5, vocabulary=vocabulary)
    masked = labels != IGNORE_INDEX
    assert masked.any()
    assert torch.equal(labels[masked], targets[masked])


def test_a_selection_is_replayed(input_ids: torch.Tensor, vocabulary: Vocabulary) -> None:
    drawn = mask(input_ids, 1000, probability_matrix=0.4, vocabulary=vocabulary, seed=8)
    replayed = mask(
        input_ids,
        1000,
        probability_matrix=0.4,
        vocabulary=vocabulary,
        seed=8,
        masked_indices=drawn.labels != IGNORE_INDEX,
    )
    assert torch.equal(drawn.input_ids, replayed.input_ids)
    assert torch.equal(drawn.labels, replayed.labels)
    none = torch.zeros(input_ids.shape, dtype=torch.bool)
    nothing = mask(
        input_ids, 1000, probability_matrix=0.4, vocabulary=vocabulary, masked_indices=none
    )
    assert torch.equal(nothing.input_ids, input_ids)
    assert (nothing.labels == IGNORE_INDEX).all()


def test_the_probability_matrix_decides_each_token(
    make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    ids = padded(make_batch([198] * 400))
    chances = torch.tensor([0.0, 0.1, 0.5, 1.0]).repeat(400, 50)
    _, labels = mask(ids, 1000, probability_matrix=chances, vocabulary=vocabulary)
    masked = labels != IGNORE_INDEX
    special = torch.from_numpy(vocabulary.protected)[ids]
    assert not masked[special].any()
    for chance in (0.0, 0.1, 0.5, 1.0):
        chosen = masked[(chances == chance) & ~special].double()
        error = (chance * (1 - chance) / len(chosen)) ** 0.5
        assert abs(chosen.mean().item() - chance) <= 5 * error


def test_chances_of_a_model_and_narrow_ids(input_ids: torch.Tensor, vocabulary: Vocabulary) -> None:
    """A matrix may require gradients, and ids of 32 bits are masked as int64."""
    chances = torch.full(input_ids.shape, 0.5)
    expected = mask(input_ids, vocabulary.size, probability_matrix=chances, vocabulary=vocabulary)
    matrix = chances.requires_grad_()
    found = mask(input_ids.int(), vocabulary.size, probability_matrix=matrix, vocabulary=vocabulary)
    assert found.input_ids.dtype == torch.int64
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.labels, expected.labels)


def test_at_least_one(input_ids: torch.Tensor, vocabulary: Vocabulary) -> None:
    def counts(chance: float | torch.Tensor, at_least_one: bool) -> list[int]:
        _, labels = mask(
            input_ids,
            1000,
            probability_matrix=chance,
            vocabulary=vocabulary,
            at_least_one=at_least_one,
        )
        return (labels != IGNORE_INDEX).sum(1).tolist()

    assert counts(1e-6, True) == [1, 1, 0, 1]
    assert counts(1e-6, False) == [0, 0, 0, 0]
    # A chance of nought is a wish, not bad luck.
    assert counts(0.0, True) == [0, 0, 0, 0]
    chances = torch.full(input_ids.shape, 1e-6)
    chances[0] = 0.0
    assert counts(chances, True) == [0, 1, 0, 1]
    chances[0, 7] = 1e-6
    assert counts(chances, True) == [1, 1, 0, 1]
    assert counts(torch.tensor(1e-6), True) == [1, 1, 0, 1]


def test_replacements_stay_below_vocab_size(make_batch: MakeBatch, vocabulary: Vocabulary) -> None:
    ids = padded(make_batch([500] * 20))
    shown, labels = mask(
        ids,
        200,
        probability_matrix=1.0,
        vocabulary=vocabulary,
        mask_share=0.0,
        random_share=1.0,
    )
    drawn = shown[labels != IGNORE_INDEX]
    assert set(drawn.tolist()) == set(range(200)) - set(vocabulary.special_ids)


def test_names_decide_the_masks(input_ids: torch.Tensor, vocabulary: Vocabulary) -> None:
    def labels(ids: torch.Tensor, **changes: Any) -> torch.Tensor:
        return mask(ids, 1000, probability_matrix=0.5, vocabulary=vocabulary, **changes).labels

    names = torch.tensor([11, 12, 13, -1])
    whole = labels(input_ids, example_ids=names)
    turned = labels(input_ids.flip(0), example_ids=names.flip(0))
    assert torch.equal(turned.flip(0), whole)
    assert torch.equal(labels(input_ids[1:2], example_ids=names[1:2]), whole[1:2])
    assert not torch.equal(labels(input_ids, example_ids=names, epoch=1), whole)
    assert not torch.equal(labels(input_ids, example_ids=names, seed=1), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(5, dtype=torch.long)}, r"shape \(5,\).*unsqueeze\(0\)"),
        ({"targets": torch.zeros(4, 5, dtype=torch.long)}, r"targets has shape \(4, 5\)"),
        ({"probability_matrix": torch.zeros(62)}, r"probability_matrix has shape \(62,\)"),
        ({"probability_matrix": torch.zeros(62, 4)}, r"it must be \(4, 62\)"),
        ({"probability_matrix": 1.5}, "probability_matrix is 1.5"),
        ({"probability_matrix": float("nan")}, "probability_matrix is nan"),
        ({"probability_matrix": torch.full((4, 62), 15.0)}, "probability_matrix is 15.0"),
        ({"probability_matrix": torch.full((4, 62), float("nan"))}, "probability_matrix is nan"),
        ({"masked_indices": torch.zeros(62, dtype=torch.bool)}, "masked_indices has shape"),
        ({"example_ids": torch.zeros(1, dtype=torch.long)}, "example_ids has shape"),
        ({"mask_share": 0.9, "random_share": 0.2}, "sum to at most 1"),
        ({"mask_share": -0.1}, "at least 0"),
        ({"mask_share": float("nan")}, "at least 0"),
        ({"seed": -1}, "the seed is -1"),
    ],
)
def test_bad_arguments_are_refused(
    input_ids: torch.Tensor, vocabulary: Vocabulary, change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"input_ids": input_ids, "probability_matrix": 0.15, **change}
    with pytest.raises(ConfigError, match=message):
        mask(vocab_size=1000, vocabulary=vocabulary, **arguments)
