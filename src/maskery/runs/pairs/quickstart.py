"""The pairs quickstart: emoji by two artists teach a model to fill words and to find pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskery.data.images.config import ViewConfig
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.evaluation.retrieval.retrieval_set import (
    RetrievalSet,
    draw_searches,
    evaluate_set,
    spread_queries,
)
from maskery.runs.image_text.config import PairsRunConfig, PairsTrainingConfig
from maskery.runs.pairs.emoji import SIDE, WORDS, available_sets, write_emoji
from maskery.runs.pairs.run import PairsResult, train_pairs
from maskery.runs.person_search.evaluate import open_for_retrieval
from maskery.tasks.image_text_config import ImageTextMLMConfig

SEEN, OTHER, RUN, PICTURE = "emoji", "other", "run", "searches.png"
# Keywords are shared by many emoji.
NAMES_ALONE = PairsConfig(caption_column="name")
SEARCHES = (
    *("woman astronaut: dark skin", "thumbs up: brown skin", "woman with headscarf: tan skin"),
    *("man running: pale skin, facing right", "flag: Japan", "grinning face with sweat"),
    *("red heart", "cat face", "strawberry", "right arrow"),
)


@dataclass(frozen=True, kw_only=True)
class PairsQuickstart:
    """The result of the quickstart."""

    result: PairsResult  # its figures are those of filling
    searches: dict[str, RetrievalFigures]  # by what is searched
    gallery: Path  # the pictures of the last and largest of them
    picture: Path  # ten searches there with their ten best pictures
    seconds: float  # the time all of it took


def quickstart_config(folder: Path, judged: str) -> PairsRunConfig:
    """Return settings for two artists' pictures; held-out concepts of `judged` are measured.

    Nothing is mirrored, for names say left and right. Without replaced words, soft labels and
    keywords a step takes half the time.
    """
    return PairsRunConfig(
        pairs=str(folder / SEEN / "train-*.jsonl"),
        eval_pairs=str(folder / SEEN / f"test-{judged}.jsonl"),
        score_words=WORDS,
        output=folder / RUN,
        reading=NAMES_ALONE,
        view=ViewConfig(height=SIDE, width=SIDE, flip_probability=0.0),
        objectives=ImageTextMLMConfig(alpha=0.0, mrtd_weight=0.0, itc_weight=0.5),
        training=PairsTrainingConfig(
            epochs=100, max_steps=1200, batch_pairs=32, optimiser="muon", learning_rate=1e-3
        ),
    )


def run_pairs_quickstart(folder: Path, *, progress: bool = True) -> PairsQuickstart:
    """Fetch emoji, train on two artists' pictures, and search a third's, in a new or empty folder.

    Raises:
        DataError: There are no emoji on this machine; said before the folder is made.
    """
    began = time.perf_counter()
    sets = available_sets()[:3]
    for number, name in enumerate(sets):
        write_emoji(folder / (OTHER if number == 2 else SEEN), name)
    galleries = {"held-out concepts": folder / SEEN / f"test-{sets[0]}.jsonl"}
    for name in sets[2:]:
        galleries["the same by another artist"] = folder / OTHER / f"test-{name}.jsonl"
        galleries["all of that artist's"] = folder / OTHER / f"{name}.jsonl"
    result = train_pairs(quickstart_config(folder, sets[0]), progress=progress)
    opened = open_for_retrieval(str(result.folder))
    figures = {}
    for about, table in galleries.items():
        gallery = RetrievalSet.read_by(opened, Pairs.open(table, NAMES_ALONE))
        found = evaluate_set(opened.model, gallery, RetrievalConfig(rerank=0), progress=progress)
        figures[about] = found.figures
    captions = [gallery.caption(query) for query in range(len(gallery.queries))]
    wanted = [captions.index(caption) for caption in SEARCHES if caption in captions]
    queries = np.array(wanted or spread_queries(len(captions), 10), np.int64)
    draw_searches(gallery, queries, found.contrastive[queries], height=SIDE).save(folder / PICTURE)
    return PairsQuickstart(
        result=result,
        searches=figures,
        gallery=table.parent / sets[-1],
        picture=folder / PICTURE,
        seconds=time.perf_counter() - began,
    )
