"""The pairs quickstart: emoji by two artists teach a model to fill words and to find pictures."""

from pathlib import Path

import numpy as np

from maskery.data.images.config import ViewConfig
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet
from maskery.masking.config import MaskingConfig
from maskery.runs.image_text.config import PairsRunConfig, PairsTrainingConfig
from maskery.runs.pairs.emoji import SIDE, WORDS, available_sets, write_emoji
from maskery.runs.pairs.run import PairsResult, train_pairs
from maskery.runs.person_search.evaluate import open_for_retrieval
from maskery.tasks.image_text_config import ImageTextMLMConfig

NAMES_ALONE = PairsConfig(caption_column="name")  # Many emoji share keywords
SEARCHES = (
    *("woman astronaut: dark skin", "thumbs up: brown skin", "woman with headscarf: tan skin"),
    *("man running: pale skin", "flag: Japan", "grinning face with sweat"),
    *("red heart", "cat face", "strawberry", "right arrow"),
)


def quickstart_config(folder: Path) -> PairsRunConfig:
    """Return settings for two artists' pictures; names say left and right, so none is mirrored."""
    return PairsRunConfig(
        pairs=str(folder / "train-*.jsonl"),
        eval_pairs=str(folder / "test-google.jsonl"),
        score_words=WORDS,
        output=folder.parent / "run",
        reading=NAMES_ALONE,
        view=ViewConfig(height=SIDE, width=SIDE, flip_probability=0.0),
        masking=MaskingConfig(policy="word", mask_rate=0.4, mask_share=1.0, random_share=0.0),
        objectives=ImageTextMLMConfig(alpha=0.0, mrtd_weight=0.0, itc_weight=0.5),  # half the time
        training=PairsTrainingConfig(
            epochs=100, max_steps=1200, batch_pairs=32, optimiser="muon", learning_rate=1e-3
        ),
    )


def run_pairs_quickstart(
    folder: Path, *, progress: bool = True
) -> tuple[PairsResult, dict[str, RetrievalFigures], Path]:
    """Fetch emoji, train on two artists' pictures, and search a third's, in a new or empty folder.

    Returns the run, figures by what is searched, and the pictures that ten drawn searches are in.
    """
    seen, other = folder / "emoji", folder / "other"
    tables = {"held-out concepts": seen / "test-google.jsonl"}
    for number, name in enumerate(available_sets()[:3]):
        write_emoji(other if number == 2 else seen, name)
        if number == 2:
            tables["the same by another artist"] = other / f"test-{name}.jsonl"
            tables["all of that artist's"] = other / f"{name}.jsonl"
    result = train_pairs(quickstart_config(seen), progress=progress)
    opened, searches = open_for_retrieval(str(result.folder)), {}
    for about, table in tables.items():
        found = RetrievalSet.read_by(opened, Pairs.open(table, NAMES_ALONE))
        retrieval = found.evaluate(opened.model, RetrievalConfig(rerank=0), progress=progress)
        searches[about] = retrieval.figures
    captions = [found.caption(query) for query in range(len(found.queries))]
    wanted = [captions.index(caption) for caption in SEARCHES if caption in captions]
    queries = np.array(wanted or range(min(10, len(captions))), np.int64)
    sheet = found.draw(queries, retrieval.contrastive.order[queries], height=SIDE)
    sheet.save(folder / "searches.png")
    return result, searches, table.parent / table.stem.removeprefix("test-")
