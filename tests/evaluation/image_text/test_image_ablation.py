from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.errors import DataError
from maskery.evaluation.image_text.image_fill import score_pairs, score_words
from maskery.evaluation.text.masked import FROZEN_EPOCH
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes

PAD, CLS, SEP, MASK = 0, 1, 2, 3
VOCABULARY = Vocabulary(size=30, mask_token_id=MASK, special_ids=(PAD, CLS, SEP, MASK))
MASKER = Masker.of(VOCABULARY, config=MaskingConfig(mask_rate=0.4), seed=0)
COUNT = 9


@dataclass(frozen=True)
class Judged:
    images: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor
    text: TokenBatch
    groups: npt.NDArray[np.uint64]


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    torch.manual_seed(0)
    sizes = ImageTextSizes(image_size=(16, 8), width=16, num_heads=2, embed_dim=6, max_length=16)
    return build_from_scratch(sizes, vocabulary_size=30).eval()


def caption(number: int) -> list[int]:
    generator = np.random.default_rng(number)
    words = generator.integers(4, 30, 3 + number % 4).tolist()
    return [CLS, *words, SEP]


def image(number: int) -> torch.Tensor:
    return torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(number))


def judged(numbers: list[int]) -> Judged:
    """Caption n has picture n and the wrong picture n + 1 (modulo all)."""
    rows = [caption(n) for n in numbers]
    bounds = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    text = TokenBatch(
        input_ids=np.concatenate(rows).astype(np.int64),
        boundaries=bounds,
        example_ids=np.array(numbers, np.uint64),
        starts=np.zeros(len(rows), np.int64),
        word_starts=np.ones(int(bounds[-1]), np.bool_),
    )
    return Judged(
        images=torch.stack([image(n) for n in range(COUNT)]),
        right=torch.tensor(numbers),
        wrong=torch.tensor([(n + 1) % COUNT for n in numbers]),
        text=text,
        groups=np.array([n // 2 for n in numbers], np.uint64),
    )


def plain(model: ImageTextModel, ids: list[int], picture: int | None) -> torch.Tensor:
    """(L, V) by the model's own forward pass, one caption at a time."""
    pixels = None if picture is None else image(picture)[None]
    with torch.no_grad():
        logits: torch.Tensor = model(pixels, torch.tensor([ids])).logits[0]
    return logits


def test_losses_equal_the_plain_forward_pass_of_each_caption_under_each_sight(
    model: ImageTextModel,
) -> None:
    scored = score_pairs(model, [judged(list(range(COUNT)))], MASKER)
    pictures = {"right": lambda n: n, "wrong": lambda n: (n + 1) % COUNT, "none": lambda n: None}
    for sight, picture in pictures.items():
        expected = np.zeros((5, 3))
        for number in range(COUNT):
            masked = MASKER.mask(judged([number]).text, epoch=FROZEN_EPOCH)
            if not len(masked.positions):
                continue
            rows = plain(model, masked.input_ids.tolist(), picture(number))[masked.positions]
            targets = torch.from_numpy(masked.targets)
            expected[number // 2] += [
                len(targets),
                float(F.cross_entropy(rows, targets, reduction="sum")),
                int((rows.argmax(dim=1) == targets).sum()),
            ]
        seen = expected[:, 0] > 0
        sums = scored[sight].sums  # type: ignore[index]
        np.testing.assert_allclose(sums[:, :3], expected[seen], rtol=1e-4)
    assert not np.allclose(scored["right"].sums[:, 1], scored["wrong"].sums[:, 1])


def test_figures_do_not_depend_on_the_batches(model: ImageTextModel) -> None:
    whole = score_pairs(model, [judged(list(range(COUNT)))], MASKER)
    parts = score_pairs(model, [judged([n]) for n in range(COUNT)], MASKER)
    for sight, sums in whole.items():
        np.testing.assert_allclose(sums.sums, parts[sight].sums, rtol=1e-4)


def test_chosen_words_are_masked_one_at_a_time_and_synonyms_count(model: ImageTextModel) -> None:
    chosen = range(4, 20)
    filled: dict[int, list[int]] = {}
    for number in range(COUNT):
        ids = caption(number)
        for place, word in enumerate(ids):
            if word in chosen:
                hidden = [*ids[:place], MASK, *ids[place + 1 :]]
                filled.setdefault(word, []).append(
                    int(plain(model, hidden, number)[place].argmax())
                )
    total = sum(map(len, filled.values()))
    # Everything the model says counts for one of the words, nothing for the others.
    lenient = next(iter(filled))
    accepted = {word: frozenset({word}) for word in chosen}
    accepted[lenient] = frozenset(filled[lenient]) | {lenient}
    hits = sum(guess in accepted[word] for word, guesses in filled.items() for guess in guesses)
    scores = score_words(model, [judged(list(range(COUNT)))], accepted, MASK)
    assert scores.words == total
    assert scores.accuracy["right"].value == pytest.approx(hits / total)
    assert hits >= len(filled[lenient])
    over = scores.accuracy["right"].value - scores.accuracy["wrong"].value
    assert scores.difference["wrong"].value == pytest.approx(over)


def test_no_word_in_any_caption_is_one_line(model: ImageTextModel) -> None:
    with pytest.raises(DataError, match="none of the words"):
        score_words(model, [judged([0])], {PAD: frozenset({PAD})}, MASK)
