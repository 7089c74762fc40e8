"""Fill masks with a picture, and the image ablation: with the right one, a wrong one, and none.

Masks are frozen and wrong pictures fixed, so the three answers are to the same questions and can be
compared word by word.

Shapes: B captions, L tokens of the longest, I pictures, M masked tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Floats, Ids, Ints, MaskedTokens, Vocabulary
from maskery.core.errors import DataError
from maskery.core.processes import inference
from maskery.data.images.config import ViewConfig
from maskery.data.images.drawing import png_uri
from maskery.data.images.loading import pillow
from maskery.data.images.views import view
from maskery.data.pairs.batches import JudgedPairs
from maskery.evaluation.image_text.opening import OpenImageText, load_picture
from maskery.evaluation.intervals import Interval, Kind, ratio_interval
from maskery.evaluation.text.fill import Candidate, Filler, candidates
from maskery.evaluation.text.masked import FROZEN_EPOCH, ExampleSums, require_numbers, token_rows
from maskery.evaluation.text.samples import context, whole_words
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.text_encoder import ImageKeys
from maskery.models.layout import pad

Condition = Literal["right", "wrong", "none"]
SHOWN, GUESSES = 8, 3  # captions in the report, and words that fill each
Question: TypeAlias = tuple[JudgedPairs, Ints, Ints]  # captions, their ids masked, and where


@dataclass(frozen=True, kw_only=True)
class WordScores:
    """Chosen words, masked one at a time."""

    accuracy: dict[Condition, Interval]  # the share filled with the word or a synonym of it
    difference: dict[Condition, Interval]  # `right` minus `wrong`, and `right` minus `none`, paired
    words: int  # words that were masked
    examples: int  # pictures or persons they come from


@inference()
def score_pairs(
    model: ImageTextModel, batches: Iterable[JudgedPairs], masker: Masker
) -> dict[Condition, ExampleSums]:
    """Predict the frozen masks of every caption under each condition."""
    masked = ((batch, masker.mask(batch.text, epoch=FROZEN_EPOCH)) for batch in batches)
    questions = ((batch, one.input_ids, one.positions) for batch, one in masked)
    none = "no held-out caption has a token that can be masked; bring more pairs"
    scored = _score(model, questions, token_rows, none)
    for sums in scored.values():
        require_numbers(torch.from_numpy(sums.sums))
    return scored


@inference()
def score_words(
    model: ImageTextModel,
    batches: Iterable[JudgedPairs],
    accepted: Mapping[int, frozenset[int]],  # by the id of a chosen word, those that are right
    mask_token_id: int,
) -> WordScores:
    """Mask each chosen word of each caption, one at a time, and fill it under each condition."""
    chosen = np.array(sorted(accepted), np.int64)

    def questions() -> Iterator[Question]:
        for batch in batches:
            places = np.flatnonzero(np.isin(batch.text.input_ids, chosen))
            rows = batch.text.sequences_of(places)
            # In rounds, each with at most one word of a caption.
            turn = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
            for number in range(int(turn.max(initial=-1)) + 1):
                positions = places[turn == number]
                ids = batch.text.input_ids.copy()
                ids[positions] = mask_token_id
                yield batch, ids, positions

    def measure(logits: torch.Tensor, originals: Ints) -> Floats:
        filled = logits.argmax(dim=-1).tolist()
        hits = [f in accepted[o] for f, o in zip(filled, originals.tolist(), strict=True)]
        return np.column_stack((np.ones(len(hits)), np.array(hits, float)))

    none = "none of the words to score stands in a held-out caption; name others"
    scored = _score(model, questions(), measure, none)
    count = scored["right"].sums[:, 0]
    hits = {condition: sums.sums[:, 1] for condition, sums in scored.items()}
    gains = {name: hits["right"] - hit for name, hit in hits.items() if name != "right"}
    kind: Kind = "difference of shares"
    return WordScores(
        accuracy={name: ratio_interval(hit, count, "share") for name, hit in hits.items()},
        difference={name: ratio_interval(gain, count, kind) for name, gain in gains.items()},
        words=int(count.sum()),
        examples=len(count),
    )


def _score(
    model: ImageTextModel,
    questions: Iterable[Question],
    measure: Callable[[torch.Tensor, Ints], Floats],  # of logits (M, V) and ids (M,), a row each
    none: str,
) -> dict[Condition, ExampleSums]:
    """Ask questions under each condition and sum by picture or person; `none` is told of none."""
    groups: list[Ids] = []
    rows: dict[Condition, list[Floats]] = {}
    for batch, ids, positions in questions:
        if not len(positions):
            continue
        groups.append(batch.groups[batch.text.sequences_of(positions)])
        for condition, logits in logits_by_condition(model, batch, ids, positions).items():
            rows.setdefault(condition, []).append(measure(logits, batch.text.input_ids[positions]))
    if not groups:
        raise DataError(none)
    shown = np.concatenate(groups)
    return {name: ExampleSums.of(shown, np.concatenate(parts)) for name, parts in rows.items()}


def logits_by_condition(
    model: ImageTextModel, batch: JudgedPairs, input_ids: Ints, positions: Ints
) -> dict[Condition, torch.Tensor]:
    """Compute the logits (M, V) at some tokens under each condition; all is encoded once."""
    padded = pad(input_ids, batch.text.boundaries, positions, pad_token_id=0)
    pictures: dict[Condition, torch.Tensor | None]
    pictures = {"right": batch.right, "wrong": batch.wrong, "none": None}

    def compute(model: ImageTextModel) -> dict[Condition, torch.Tensor]:
        device = model.device
        inputs = padded.to(device)
        mask = inputs.arguments["attention_mask"].bool()
        hidden = model.text_encoder.encode_text(inputs.input_ids, mask)
        keys = model.project_images(model.encode_image(batch.images.to(device)))
        answers: dict[Condition, torch.Tensor] = {}
        for condition, shown in pictures.items():
            seen = None if shown is None else [key.select(shown.to(device)) for key in keys]
            fused = model.text_encoder.fuse(hidden, mask, seen)
            masked = fused.flatten(0, 1)[inputs.rows]
            answers[condition] = model.text_encoder.mlm_logits(masked).float()
        return answers

    # Through `forward`, where a sharded model is put together.
    scored: dict[Condition, torch.Tensor] = model(compute=compute)
    return scored


@dataclass(frozen=True, kw_only=True)
class PictureFill:
    """One hidden word of a held-out caption."""

    left: str  # the text before it
    word: str  # the word
    right: str  # the text after it
    picture: str  # the caption's picture, a PNG as a data URI
    wrong_picture: str  # the wrong one
    guesses: dict[Condition, tuple[Candidate, ...]]  # the likeliest words
    probabilities: dict[Condition, float]  # of the word itself


@inference()
def sample_pictures(
    model: ImageTextModel,
    batches: Iterable[JudgedPairs],
    tokenizer: PreTrainedTokenizerBase,
    view: ViewConfig,
) -> tuple[PictureFill, ...]:
    """Fill a word of some captions of the first batch in each condition, by a fixed seed."""
    batch = next(iter(batches))
    positions = _hidden_words(batch, Vocabulary.of(tokenizer))
    ids = batch.text.input_ids.copy()
    ids[positions] = int(tokenizer.mask_token_id)
    logits = logits_by_condition(model, batch, ids, positions)
    logs = {condition: each.log_softmax(dim=-1).cpu() for condition, each in logits.items()}
    found = []
    places = zip(positions.tolist(), batch.text.sequences_of(positions).tolist(), strict=True)
    for row, (position, sequence) in enumerate(places):
        first, last = batch.text.boundaries[sequence : sequence + 2].tolist()
        target = int(batch.text.input_ids[position])
        left, right = context(ids[first:last], position - first, tokenizer)
        own = {condition: each[row] for condition, each in logs.items()}
        found.append(
            PictureFill(
                left=left,
                word=tokenizer.decode([target]).strip(),
                right=right,
                picture=data_uri(batch.images[batch.right[sequence]], view),
                wrong_picture=data_uri(batch.images[batch.wrong[sequence]], view),
                guesses={name: candidates(one, tokenizer, GUESSES) for name, one in own.items()},
                probabilities={name: float(one[target].exp()) for name, one in own.items()},
            )
        )
    return tuple(found)


def _hidden_words(batch: JudgedPairs, vocabulary: Vocabulary) -> Ints:
    """Choose one position in each of a few captions: a random whole word, the same every time."""
    places = np.flatnonzero(whole_words(batch.text, vocabulary))
    edges = np.searchsorted(places, batch.text.boundaries)
    generator = np.random.default_rng(0)
    found: dict[int, int] = {}  # by picture or person, each shown once
    for group, first, last in zip(batch.groups.tolist(), edges[:-1], edges[1:], strict=True):
        # In shorter captions nothing is left to tell the word by.
        if group not in found and last - first >= 3 and len(found) < SHOWN:
            found[group] = int(generator.choice(places[first:last]))
    return np.array(list(found.values()), np.int64)


def data_uri(pixels: torch.Tensor, view: ViewConfig) -> str:
    """Return a prepared picture (3, H, W) as it looked, as a PNG in a data URI."""
    mean, std = (np.array(c, np.float32)[:, None, None] for c in view.normalisation)
    shown = (pixels.float().cpu().numpy() * std + mean).clip(0, 1)
    array = (shown.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return png_uri(pillow().fromarray(array))


class ImageFiller(Filler):
    """Fills masks by an image-text model that looks at a picture: a file, its bytes, or none."""

    def __init__(self, opened: OpenImageText, image: str | Path | bytes | None) -> None:
        self.network: ImageTextModel = opened.model
        self.tokenizer = opened.tokenizer
        self.mask_id = int(opened.tokenizer.mask_token_id)
        self.limit = int(opened.model.config.text_config.max_position_embeddings)
        self._keys: list[ImageKeys] | None = None
        if image is not None:
            pixels = view(load_picture(image, opened.view.size), opened.view)
            with inference():
                tokens = opened.model.encode_image(pixels[None].to(opened.model.device))
                self._keys = opened.model.project_images(tokens)

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the fused states (B, L, D) of texts (B, L); the mask is False at padding."""
        alike = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        keys = self._keys and [key.select(alike) for key in self._keys]
        hidden: torch.Tensor = self.network.text_encoder(ids, mask, keys)
        return hidden

    def predict(self, masked: MaskedTokens) -> torch.Tensor:
        """See `Filler.predict`; every sequence looks at the picture."""
        padded = pad(masked.input_ids, masked.batch.boundaries, masked.positions, pad_token_id=0)
        inputs = padded.to(self.network.device)
        hidden = self.read(inputs.input_ids, inputs.arguments["attention_mask"].bool())
        return self.network.text_encoder.mlm_logits(hidden.flatten(0, 1)[inputs.rows]).float()

    @property
    def detects(self) -> bool:
        """True if the replaced-token-detection head has been trained."""
        return bool(self.network.mrtd_head.bias.any())

    @inference()
    def replaced(self, ids: Ints) -> list[float]:
        """Return the probability that each token of a text (L,) was replaced."""
        row = torch.from_numpy(ids)[None].to(self.network.device)
        logits = self.network.mrtd_head(self.read(row)).float()
        return list(logits.softmax(dim=-1)[0, :, 1].tolist())
