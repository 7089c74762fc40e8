"""Any image-text model on any pairs, alone or beside another: no run is needed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from maskery.core.errors import CheckpointError, reason_of
from maskery.core.task import EXTRA_STATE
from maskery.core.vocabulary import Vocabulary
from maskery.data.pairs.batches import HeldOutPairs
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs, group_ids
from maskery.data.pairs.pictures import Pictures
from maskery.evaluation.auc import judged_auc
from maskery.evaluation.image_text.image_ablation import Condition, score_pairs, score_words
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text.masked import ExampleSums, compare
from maskery.evaluation.text.opening import require_same_tokenizer
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.loading import resolve
from maskery.runs.image_text.parts import read_captions
from maskery.runs.pairs.config import PairsRunConfig
from maskery.runs.pairs.measure import (
    PairsEvaluation,
    accepted_ids,
    judgements,
    summarise_sights,
)
from maskery.tasks.image_text_config import ImageTextMLMConfig
from maskery.tasks.image_text_mlm import ImageTextMLM

log = logging.getLogger(__name__)

CACHE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class ImageTextEvaluation:
    """Held-out figures of one image-text model, or of two with their paired difference.

    Attributes:
        models: By name.
        difference: The last minus the first, where there are two: by sight, then by figure.
    """

    models: dict[str, PairsEvaluation]
    difference: dict[Condition, dict[str, Interval]] | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        models = {name: evaluation.to_json() for name, evaluation in self.models.items()}
        return {"models": models, "difference": self.difference}


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
    """Score one model, or two, on every caption of some pairs.

    Args:
        model: A folder of an image-text model, or of a run.
        data: Pairs, as for `train pairs`; all count as held out.
        against: Another model with the same tokenizer.
        reading: How the pairs are read.
        masking: How their captions are masked.
        seed: Of the masks.
        words: Words masked one at a time, as in `train pairs`.

    Raises:
        MaskeryError: A model cannot be opened, the pairs cannot be read, or the models cut text
            into different tokens.
    """
    opened = [open_image_text(name) for name in ([against] if against else []) + [model]]
    if len(opened) == 2:
        require_same_tokenizer(*opened)
    pairs = Pairs.open(data, reading)
    # Captions are cut alike for both, or they would not be asked the same.
    longest = min(int(one.model.config.text_config.max_position_embeddings) for one in opened)
    models: dict[str, PairsEvaluation] = {}
    scored: list[dict[Condition, ExampleSums]] = []
    for one in opened:
        held_out = held_out_pairs(one, pairs, reading, longest)
        masker = Masker.of(one.tokenizer, masking, seed=seed)
        scored.append(score_pairs(one.model, held_out, masker))
        heading = one.name if one.name not in models else f"{one.name} (again)"
        models[heading] = _evaluate(one, held_out, scored[-1], words)
        if held_out.pictures.skipped.count:
            log.warning("%s", held_out.pictures.skipped)
    difference = None
    if len(scored) == 2:
        first, last = scored
        difference = {sight: compare(last[sight], first[sight]) for sight in last}
    return ImageTextEvaluation(models=models, difference=difference)


def held_out_pairs(
    opened: OpenImageText, pairs: Pairs, reading: PairsConfig, max_length: int
) -> HeldOutPairs:
    """All of some pairs as a model reads them."""
    captions = read_captions(pairs, opened.tokenizer, reading, max_length)
    if pairs.skipped_captions.count:
        log.warning("%s", pairs.skipped_captions)
    pictures = Pictures(pairs, reading.on_bad_image, near=opened.view.size, cache_bytes=CACHE_BYTES)
    everything = np.arange(len(pairs))
    return HeldOutPairs(pairs, captions, pictures, opened.view, group_ids(pairs), everything)


def _evaluate(
    opened: OpenImageText,
    held_out: HeldOutPairs,
    scored: dict[Condition, ExampleSums],
    words: tuple[str, ...],
) -> PairsEvaluation:
    chosen = None
    if words:
        accepted = accepted_ids(words, opened.tokenizer)
        mask_token_id = Vocabulary.of(opened.tokenizer).mask_token_id
        chosen = score_words(opened.model, held_out, accepted, mask_token_id)
    return summarise_sights(scored, words=chosen, mrtd_auc=_mrtd_auc(opened, held_out))


def _mrtd_auc(opened: OpenImageText, held_out: HeldOutPairs) -> float | None:
    """How well replaced words are told from original ones; None without a momentum twin.

    The twin that lies beside the model replaces words as `train pairs` does by default.
    """
    path = Path(resolve(opened.name)) / EXTRA_STATE
    if not path.is_file():
        return None
    vocabulary, defaults = Vocabulary.of(opened.tokenizer), PairsRunConfig(pairs="any")
    masker = Masker.of(vocabulary, defaults.masking)
    task = ImageTextMLM(
        opened.model,
        ImageTextMLMConfig(alpha=0.0),
        vocabulary=vocabulary,
        pad_token_id=int(opened.tokenizer.pad_token_id or 0),
        masker=masker,
        mrtd_masker=masker.for_generator(defaults.mrtd_mask_rate),
    )
    try:
        task.load_extra_state(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the momentum twin in '{path}' cannot be read ({reason_of(error, most=120)}); "
            f"restore the file, or remove it to do without replaced words"
        ) from error
    task.model.eval()
    return judged_auc(judgements(task, held_out, opened.model.device))
