"""Held-out figures of image-text models: what the picture adds, chosen words, replaced words."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Vocabulary
from maskery.core.errors import ConfigError
from maskery.data.pairs.batches import HeldOutPairs, JudgedPairs, Pictures, ReadPairs, ViewedPairs
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs, group_ids
from maskery.evaluation.image_text.image_fill import Condition, WordScores, score_pairs, score_words
from maskery.evaluation.image_text.opening import open_image_text
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text import masked
from maskery.evaluation.text.opening import require_same_tokenizer
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.runs.image_text.config import DRAWN_PEOPLE, PairsRunConfig
from maskery.runs.image_text.prepare import Opened, make_task, read_captions, twin_beside
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import ImageTextMLMConfig

log = logging.getLogger(__name__)
CACHE = 2**30  # Bytes of decoded pictures: each is seen with its own caption and with others'


@dataclass(frozen=True, kw_only=True)
class PairsEvaluation:
    """Figures of one model on held-out pairs."""

    scores: dict[Condition, masked.MaskedScores]  # Frozen masks, with right, wrong and no pictures
    difference: dict[str, dict[str, Interval]]  # `right` minus each of the others: loss, top1, top5
    words: WordScores | None  # The chosen words, masked one at a time; None where none were chosen
    mrtd_auc: float | None  # How well replaced words are told from original ones; None without MRTD


def summarise_pairs(
    scored: Mapping[Condition, masked.ExampleSums],
    opened: Opened,
    held_out: HeldOutPairs,
    words: tuple[str, ...],
    task: ImageTextTask | None,
) -> PairsEvaluation:
    """Compute every held-out figure; the twin of `task` replaces words, for the model to detect."""
    found = auc = None
    if words:
        ids, mask = accepted_ids(words, opened.tokenizer), Vocabulary.of(opened.tokenizer)
        found = score_words(opened.model.eval(), held_out, ids, mask.mask_token_id)
    if task is not None:
        auc = masked.replaced_words_auc(task, map(_viewed, held_out), progress=1.0)
    right = scored["right"]
    difference: dict[str, dict[str, Interval]] = {
        name: masked.compare(right, sums) for name, sums in scored.items() if name != "right"
    }
    scores = {condition: masked.summarise(sums) for condition, sums in scored.items()}
    return PairsEvaluation(scores=scores, difference=difference, words=found, mrtd_auc=auc)


def _viewed(batch: JudgedPairs) -> ViewedPairs:
    images = batch.images[batch.right]
    return ViewedPairs(image1=images, image2=images, text1=batch.text)


def accepted_ids(
    words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> dict[int, frozenset[int]]:
    """Return, by the id of each word to score, the ids that are right in its place.

    Alternatives are joined by `|`; `drawn-people` has its own. Words that are several pieces of the
    tokenizer, or unknown to it, are left out and named; one must be left.
    """
    synonyms: dict[str, frozenset[str]] = {}
    for entry in words:
        if entry == DRAWN_PEOPLE:
            from maskery.people.grammar import COLOUR_WORDS, GARMENT_WORDS, SYNONYMS

            synonyms |= {word: SYNONYMS[word] for word in COLOUR_WORDS | GARMENT_WORDS}
            continue
        group = frozenset(word.strip() for word in entry.split("|") if word.strip())
        if not group:
            raise ConfigError(f"--score-words has an entry without a word, {entry!r}; remove it")
        synonyms |= dict.fromkeys(group, group)
    known: dict[str, int] = {}
    for word in {*synonyms, *(other for others in synonyms.values() for other in others)}:
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]  # within a sentence
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            known[word] = int(ids[0])
    left_out = sorted(synonyms.keys() - known.keys())
    named = ", ".join(left_out)
    if len(left_out) == len(synonyms):
        problem = f"none of the words to score is one token of this tokenizer ({named})"
        raise ConfigError(f"{problem}; correct --score-words")
    if left_out:
        log.warning("not scored, because not one token: %s", named)
    return {
        known[word]: frozenset(known[other] for other in {word, *others} if other in known)
        for word, others in synonyms.items()
        if word in known
    }


@dataclass(frozen=True, kw_only=True)
class ImageTextEvaluation:
    """Held-out figures of one image-text model, or of two with their paired difference."""

    models: dict[str, PairsEvaluation]  # By name
    # The last minus the first, where there are two: by sight, then by figure.
    difference: dict[Condition, dict[str, Interval]] | None


def evaluate_image_text(
    model: str,
    data: str,
    *,
    against: str | None = None,
    reading: PairsConfig,
    masking: MaskingConfig,
    seed: int = 0,
    words: tuple[str, ...] = (),
) -> ImageTextEvaluation:
    """Score one model, or two with the same tokenizer, on every caption of some pairs."""
    opened = [open_image_text(name) for name in ([against] if against else []) + [model]]
    if len(opened) == 2:
        require_same_tokenizer(*opened)
    pairs = Pairs.open(data, reading)
    # Captions are cut alike for both, or they would not be asked the same.
    longest = min(int(one.model.config.text_config.max_position_embeddings) for one in opened)
    models: dict[str, PairsEvaluation] = {}
    scored: list[dict[Condition, masked.ExampleSums]] = []
    groups, everything = group_ids(pairs), np.arange(len(pairs))
    for one in opened:
        captions = read_captions(pairs, one.tokenizer, reading, longest)
        pictures = Pictures(pairs, reading.on_bad_image, near=one.view.size, cache_bytes=CACHE)
        held_out = HeldOutPairs(ReadPairs(pairs, captions, pictures, one.view), groups, everything)
        masker = Masker.of(one.tokenizer, masking, seed=seed)
        scored.append(score_pairs(one.model, held_out, masker))
        heading = one.name if one.name not in models else f"{one.name} (again)"
        task, twin = None, twin_beside(one.name)
        if twin is not None:  # as `train pairs` has it
            defaults = PairsRunConfig(pairs="any", objectives=ImageTextMLMConfig(alpha=0.0))
            task = make_task(defaults, one)
            task.twin.load_state_dict(twin)
        models[heading] = summarise_pairs(scored[-1], one, held_out, words, task)
        if held_out.pictures.skipped.count:
            log.warning("%s", held_out.pictures.skipped)
    difference = None
    if len(scored) == 2:
        first, last = scored
        difference = {sight: masked.compare(last[sight], first[sight]) for sight in last}
    return ImageTextEvaluation(models=models, difference=difference)
