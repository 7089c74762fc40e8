"""The person-search quickstart: draw people, learn to find them, and show five searches."""

from dataclasses import replace
from pathlib import Path

from maskery.core.bars import Bar
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.retrieval.evaluate import Retrieval
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, spread_queries
from maskery.people.config import PeopleConfig
from maskery.people.dataset import draw_people
from maskery.runs.image_text.config import PersonSearchRunConfig, small
from maskery.runs.person_search.run import PersonSearchResult, PersonSearchRun, train_person_search

PEOPLE, RUN, PICTURE = "people", "run", "searches.png"
NUM_PEOPLE, NUM_TEST, NUM_VAL = 2850, 200, 50


def people_config() -> PeopleConfig:
    """People in three pictures each; the last 200 are never seen in training."""
    shares = (NUM_VAL / NUM_PEOPLE, NUM_TEST / NUM_PEOPLE)
    splits = (1 - sum(shares), *shares)
    return PeopleConfig(
        num_people=NUM_PEOPLE, images_per_person=3, width=32, height=64, splits=splits
    )


def quickstart_config(people: Path, output: Path) -> PersonSearchRunConfig:
    """The preset `small`, an epoch longer."""
    config = small(PersonSearchDataConfig(dataset="drawn-people", root=people))
    training = replace(config.training, epochs=config.training.epochs + 1)
    return replace(config, output=output, training=training)


def run_person_search_quickstart(
    folder: Path, *, progress: bool = True
) -> tuple[PersonSearchResult, Retrieval, Retrieval]:
    """Draw people into a new folder, train, measure on the test split before and after, search."""
    folder.mkdir(parents=True, exist_ok=True)
    with Bar(None, "drawing", shown=progress, unit="picture") as bar:
        draw_people(folder / PEOPLE, people_config(), bar.reach)
    config = quickstart_config(folder / PEOPLE, folder / RUN)

    def measured(config: PersonSearchRunConfig) -> tuple[RetrievalSet, Retrieval]:
        run = PersonSearchRun(config, progress=False)
        assert run.test is not None
        return run.test, run.measure(run.test)

    _, before = measured(config)
    result = train_person_search(config, progress=progress)
    test, after = measured(replace(config, model=str(result.folder)))
    queries = spread_queries(len(after.last.order))
    test.draw(queries, after.last.order[queries]).save(folder / PICTURE)
    return result, before, after
