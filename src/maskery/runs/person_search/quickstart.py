"""The person-search quickstart: draw people, learn to find them, and show five searches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.retrieval.evaluate import Retrieval
from maskery.evaluation.retrieval.retrieval_set import draw_searches, spread_queries
from maskery.people.config import PeopleConfig
from maskery.people.dataset import draw_people
from maskery.runs.person_search.config import PersonSearchRunConfig, small
from maskery.runs.person_search.run import (
    PersonSearchResult,
    PersonSearchRun,
    prepare_person_search,
    train_person_search,
)

PEOPLE, RUN, PICTURE = "people", "run", "searches.png"
NUM_TEST, NUM_VAL = 200, 50

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PersonSearchQuickstart:
    """The result of the quickstart."""

    result: PersonSearchResult
    before: Retrieval  # Figures of the initial model on the test split
    after: Retrieval  # Those of the trained one
    picture: Path  # Five searches with their ten best pictures
    seconds: float  # The time all of it took


def people_config(num_people: int = 2850) -> PeopleConfig:
    """People in three pictures each; the last 200 are never seen in training."""
    shares = (NUM_VAL / num_people, NUM_TEST / num_people)
    return PeopleConfig(
        num_people=num_people,
        images_per_person=3,
        width=32,
        height=64,
        splits=(1 - sum(shares), *shares),
    )


def quickstart_config(people: Path, output: Path) -> PersonSearchRunConfig:
    """The preset `small` for one more epoch, in which matching catches up with similarity."""
    config = small(PersonSearchDataConfig(dataset="drawn-people", root=people))
    training = replace(config.training, epochs=config.training.epochs + 1)
    return replace(config, output=output, training=training)


def run_person_search_quickstart(
    folder: Path,
    *,
    draw_progress: Progress | None = None,
    progress: bool = True,
) -> PersonSearchQuickstart:
    """Draw people, measure, train, measure again, and show searches, in a new or empty folder.

    `draw_progress` is called as `draw_people` does.
    """
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    draw_people(folder / PEOPLE, people_config(), draw_progress)
    config = quickstart_config(folder / PEOPLE, folder / RUN)
    before = _measure(prepare_person_search(config, progress=False))
    result = train_person_search(config, progress=progress)
    run = prepare_person_search(replace(config, model=str(result.folder)), progress=False)
    after = _measure(run)
    assert run.test is not None
    ranking = after.contrastive if after.reranked is None else after.reranked
    queries = spread_queries(len(ranking))
    draw_searches(run.test, queries, ranking[queries]).save(folder / PICTURE)
    return PersonSearchQuickstart(
        result=result,
        before=before,
        after=after,
        picture=folder / PICTURE,
        seconds=time.perf_counter() - began,
    )


def _measure(run: PersonSearchRun) -> Retrieval:
    assert run.test is not None
    with torch.no_grad():
        return run.measure(run.test)
