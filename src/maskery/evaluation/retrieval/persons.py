"""Retrieval on a split of a person-search dataset."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskery.core.processes import Processes
from maskery.data.person_search.batches import HeldOutPersons
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import Retrieval, evaluate_retrieval
from maskery.models.image_text.model import ImageTextModel


def evaluate_persons(
    model: ImageTextModel,
    split: HeldOutPersons,
    config: RetrievalConfig,
    *,
    queries: npt.NDArray[np.int64] | None = None,
    processes: Processes | None = None,
) -> Retrieval:
    """Let the captions of a split find their persons among all its pictures.

    Args:
        model: As in `evaluate_retrieval`.
        split: Captions and pictures.
        config: How candidates are ranked.
        queries: (Q,) int64, which of its T captions. Default: all.
        processes: As in `evaluate_retrieval`.

    Raises:
        DataError: As in `evaluate_retrieval`, or no picture can be read.
    """
    chosen = np.arange(len(split.queries)) if queries is None else queries
    return evaluate_retrieval(
        model,
        split.images(),
        split.texts_of(chosen),
        image_persons=split.image_persons,
        text_persons=split.text_persons[chosen],
        config=config,
        processes=processes,
    )
