"""Retrieval settings and figures of runs and models, on their own data or on others' (transfer)."""

import json
import logging
import statistics
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskery.core.batch import Ints
from maskery.core.errors import ConfigError, meant
from maskery.data.images.drawing import png_uri
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.config import DatasetName, PersonSearchDataConfig
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.evaluation.image_text import opening
from maskery.evaluation.retrieval.config import (
    ModelRetrieval,
    RetrievalConfig,
    read_model_retrieval,
)
from maskery.evaluation.retrieval.evaluate import Retrieval, RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, spread_queries
from maskery.models.image_text.build import is_aligned
from maskery.objectives.terms import TERMS, belongs
from maskery.runs.frame.config_file import CONFIG, load_config, open_run, run_kind, to_plain
from maskery.runs.frame.run_folder import MODEL, fingerprint_of
from maskery.runs.image_text.config import Overrides, PersonSearchRunConfig
from maskery.training.optimiser import take_precision
from maskery.training.snapshot import flat

log = logging.getLogger(__name__)

HeldOutSplit = Literal["val", "test"]
RANKINGS = ("contrastive", "reranked")
RANKS = "ranks.jsonl"  # In a run's folder, of the split that its figures are of


def retrieval_of(
    config: PersonSearchRunConfig, trained: tuple[str, ...] | None = None
) -> ModelRetrieval:
    """Return the settings saved with a model; `trained` are by default the terms that are on."""
    return ModelRetrieval(
        clean_captions=config.data.clean_captions,
        max_words=config.data.max_words,
        max_length=config.max_length,
        rerank=config.retrieval.rerank,
        score=config.retrieval.score,
        odds_weight=config.retrieval.odds_weight,
        trained=tuple(config.objectives.weights) if trained is None else trained,
    )


def released_retrieval(missing: Collection[str]) -> ModelRetrieval:
    """Return retrieval settings for released ALBEF and RaSa checkpoints.

    Its `Retrieval.py` and `configs/PS_cuhk_pedes.yaml` (Bai et al., IJCAI 2023): cleaned captions
    of 50 words, cut at 50 tokens, and the 128 most similar pictures ranked by the logit of a match.
    `missing` are parameters of the model that the checkpoint lacks.
    """
    trained = (n for n, term in TERMS.items() if not any(belongs(p, term.heads) for p in missing))
    return ModelRetrieval(
        clean_captions=True,
        max_words=50,
        max_length=50,
        rerank=128,
        score="matching",
        trained=tuple(trained),
    )


def run_config_of(folder: Path) -> PersonSearchRunConfig | None:
    """Return the configuration of the run that a folder, or the model in it, belongs to."""
    if folder.name == MODEL and run_kind(folder) is None:
        folder = folder.parent
    if run_kind(folder) != PersonSearchRunConfig.kind:
        return None
    return load_config(folder / CONFIG, PersonSearchRunConfig)


def known_retrieval(name: str) -> ModelRetrieval | None:
    """Return the retrieval settings in a model's own file or, of older models, of its run."""
    found = read_model_retrieval(name)
    if found is not None:
        return found
    config = run_config_of(Path(name))
    return None if config is None else retrieval_of(config)


def finds_alone(name: str) -> bool:
    """Return True if an image-text model is known to find pictures, and not to fill words."""
    known = known_retrieval(name)
    if known is None:
        return is_aligned(name)
    return "itc" in known.trained and "mlm" not in known.trained


def open_for_retrieval(name: str) -> opening.OpenImageText:
    """`open_image_text`, with everything that is known of the model."""
    opened = opening.open_image_text(name)
    return replace(opened, retrieval=known_retrieval(name) or opened.retrieval)


@dataclass(frozen=True)
class Spread:
    """A figure over several runs."""

    mean: float
    deviation: float  # Of the sample: divided by one less than the runs


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation:
    """Figures of one or several models on the same held-out data."""

    figures: dict[str, RetrievalFigures]  # By the name that each model was given by
    splits: dict[str, str | None]  # By the same names, the measured split, where it is a dataset's
    seeds: dict[str, int | None]  # Likewise what each run was trained with, where that is known
    # By ranking (those of `RANKINGS` that all models have) and figure; None for one model.
    spread: dict[str, dict[str, Spread]] | None


class Conditions(dict[str, tuple[str, str]]):
    """Conditions that all runs share, as the first run had them, by their topic."""

    def add(self, name: str, conditions: Mapping[str, str], done: str = "measured") -> None:
        """Add conditions under which a run was `done`; refuse others than an earlier run's."""
        for about, value in conditions.items():
            first, expected = self.setdefault(about, (name, value))
            if value != expected:
                problem = f"'{first}' and '{name}' are not {done} alike"
                why = f"({about}: {expected} and {value}), so a mean over them would say nothing"
                raise ConfigError(f"{problem} {why}; measure each for itself, or make them alike")


def evaluate_retrieval_models(
    names: Sequence[str],
    *,
    data: str | None = None,
    reading: PairsConfig | None = None,
    split: HeldOutSplit = "test",
    overrides: Overrides | None = None,
    progress: bool = False,
    on: PersonSearchDataConfig | None = None,
    read: Callable[[PersonSearchDataConfig], PersonSearchData] | None = None,
    each: Callable[[RetrievalSet, Retrieval], None] | None = None,
) -> RetrievalEvaluation:
    """Measure models, each on the split of its own run, or all on the same pairs.

    `names` are run folders, or model folders where `data` is given: a source of pairs that name
    persons. The split is of the runs' datasets; `val` where a dataset has no test split. `on` is
    another dataset instead, `read` how one is read, and `each` is called with what every model was
    measured on and found.
    """
    require_once(names, "run")
    overrides, read = overrides or Overrides(), read or cache(open_person_search)
    reading, conditions = reading or PairsConfig(), Conditions()
    runs = {name: own_run(name, needed=data is None and on is None) for name in names}
    for name, run in runs.items() if len(names) > 1 else ():
        # Told before the first is measured, which may take an hour.
        if (known := known_retrieval(name)) is None:
            continue
        known = overrides.of_model(known)
        ranking = known.ranking if "itm" in known.trained else replace(known.ranking, rerank=0)
        conditions.add(name, ranking_conditions(ranking))
        if run is not None and data is None:
            dataset = read(overrides.of_data(run.data, known))
            conditions.add(name, gallery_conditions(dataset, split))
    own = {name: run_config_of(Path(name).resolve()) for name in names}
    for name, config in own.items():
        if config is not None:
            conditions.add(name, recipe_of(config), "trained")
    figures, splits = {}, dict[str, str | None]()
    for name, run in runs.items():
        opened, settings = open_for_measuring(name, run, overrides)
        conditions.add(name, ranking_conditions(settings))
        source = on or (run.data if run is not None and data is None else None)
        if source is not None:
            dataset = read(overrides.of_data(source, opened.retrieval))
            splits[name], pairs = split_of(dataset, split)
            gallery = held_out_set(opened, run, pairs, source, settings)
        else:
            # Captions are prepared as those were that the model learnt from.
            pairs = Pairs.open(str(data), reading).prepared(opened.retrieval.prepare)
            splits[name], gallery = None, held_out_set(opened, None, pairs, reading, settings)
        retrieval = gallery.evaluate(opened.model, settings, progress=progress)
        found = figures[name] = retrieval.figures
        if each is not None:
            each(gallery, retrieval)
        for line in gallery.skipped:
            log.warning("%s", line)
        readable = {"pictures": found.num_images, "captions": found.num_texts}
        conditions.add(name, {f"{what} that can be read": f"{n:,}" for what, n in readable.items()})
    seeds = {name: None if one is None else one.training.seed for name, one in own.items()}
    spread = spread_of(list(figures.values()))
    return RetrievalEvaluation(figures=figures, splits=splits, seeds=seeds, spread=spread)


def datasets_of(named: Sequence[str]) -> dict[str, PersonSearchDataConfig]:
    """Read `cuhk-pedes:DIR` and the like; two names of one place are refused."""
    found, kinds = {}, {str(one): one for one in typing.get_args(DatasetName)}
    for text in named:
        kind, _, place = text.partition(":")
        if kind not in kinds or not place:
            fix = f"KIND is one of {', '.join(kinds)}{meant(kind, kinds)}"
            raise ConfigError(f"--on has '{text}'; name each as KIND:DIR, where {fix}")
        found[text] = PersonSearchDataConfig(dataset=kinds[kind], root=Path(place))
    require_once([text.partition(":")[2] for text in named], "dataset")
    return found


def evaluate_transfer(names: Sequence[str], on: Sequence[str], **how: Any) -> dict[str, Any]:
    """Measure each model on each dataset, `KIND:DIR`, as `evaluate_retrieval_models` does.

    Returns plain data: `figures` by model and dataset, and `splits` by dataset, `seeds` by model.
    """
    require_once(names, "run")
    datasets, read = datasets_of(on), cache(open_person_search)
    found: dict[str, Any] = {"figures": {}, "splits": {}, "seeds": {}}
    for name in names:
        for given, own in datasets.items():
            one = asdict(evaluate_retrieval_models([name], on=own, read=read, **how))
            found["figures"].setdefault(name, {})[given] = one["figures"][name]
            found["splits"][given], found["seeds"][name] = one["splits"][name], one["seeds"][name]
    return found


def require_once(names: Sequence[str], what: str) -> None:
    """Refuse a place that is named twice, also by two names."""
    seen: dict[Path, str] = {}
    for name in names:
        first = seen.setdefault(Path(name).resolve(), name)
        if first != name or list(names).count(name) > 1:
            also = "" if first == name else f", also as '{name}'"
            raise ConfigError(f"'{first}' is named twice{also}; name each {what} once")


def own_run(name: str, *, needed: bool) -> PersonSearchRunConfig | None:
    """Return the configuration of a finished run; None of another model, if none is needed."""
    if run_kind(name) == PersonSearchRunConfig.kind:
        return open_run(name).finished(PersonSearchRunConfig)
    if needed:
        problem = f"'{name}' is no run of maskery train person-search"
        why = "so it has no held-out pictures of its own"
        raise ConfigError(f"{problem}, {why}; name some with --data PAIRS")
    return None


def gallery_conditions(data: PersonSearchData, split: HeldOutSplit) -> dict[str, str]:
    """Return the dataset, split, pictures and captions, as conditions."""
    name, pairs = split_of(data, split)
    # Eight digits in hexadecimal are enough to tell two datasets apart in a message.
    pictures, persons = (fingerprint_of(ids)[:8] for ids in (pairs.ids, pairs.persons))
    return {
        "the dataset": data.title,
        "the split": name,
        "pictures": f"{len(pairs):,}",
        "captions": f"{sum(len(pair.captions) for pair in pairs):,}",
        "the fingerprint of pictures, captions and persons": f"{pictures}{persons}",
    }


def recipe_of(config: PersonSearchRunConfig) -> dict[str, str]:
    """Return how a run was trained but for its seed and where its files are, as conditions."""
    plain = to_plain(config) | {"training": config.training.course()}
    left = {"output", "resume", "retrieval", "image_cache_mb", "root", "images", "seed"}
    kept = {path: value for path, value in flat(plain) if left.isdisjoint(path)}
    return {".".join(path): str(value) for path, value in kept.items()}


def ranking_conditions(settings: RetrievalConfig) -> dict[str, str]:
    """Return how pictures are ranked, as conditions."""
    odds = f" with odds at {settings.odds_weight:g}" if settings.score == "sum" else ""
    return {
        "pictures ranked anew (--rerank)": str(settings.rerank),
        "the score they are ranked by": settings.score + odds if settings.rerank else "similarity",
    }


def spread_of(figures: Sequence[RetrievalFigures]) -> dict[str, dict[str, Spread]] | None:
    """Return mean and standard deviation over runs; None of a single one."""
    if len(figures) < 2:
        return None
    spread: dict[str, dict[str, Spread]] = {}
    for ranking in RANKINGS:
        found = [getattr(one, ranking) for one in figures]
        for name in () if None in found else FIGURES:
            values = [getattr(one, name).value for one in found]
            one_figure = Spread(statistics.fmean(values), statistics.stdev(values))
            spread.setdefault(ranking, {})[name] = one_figure
    return spread


def open_for_measuring(
    name: str, run: PersonSearchRunConfig | None, overrides: Overrides
) -> tuple[opening.OpenImageText, RetrievalConfig]:
    """Open a model; returns it and how it is measured, both with the overrides."""
    opened = open_for_retrieval(name)
    if run is None:
        opened.require_contrast()
    else:
        take_precision(run.training, opened.model)
    opened = replace(opened, retrieval=overrides.of_model(opened.retrieval))
    ranking = opened.retrieval.ranking
    if overrides.odds_weight is not None and ranking.score != "sum":
        problem = f"odds_weight is set, and '{name}' is ranked by {ranking.score}"
        raise ConfigError(f"{problem}, which has no use for it; add --score sum, or leave it out")
    if ranking.rerank and not opened.trained("itm"):
        log.info("the matching head of '%s' was never trained, so it is left out", name)
        ranking = replace(ranking, rerank=0)
    own = RetrievalConfig() if run is None else run.retrieval
    sizes = {name: getattr(own, name) for name in ("batch_images", "batch_tokens", "memory_mb")}
    return opened, replace(ranking, **(sizes | overrides.of("batch_tokens", "memory_mb")))


def split_of(data: PersonSearchData, split: HeldOutSplit) -> tuple[HeldOutSplit, Pairs]:
    """Return a split, or validation where the dataset has no test split."""
    if split == "test" and data.test is not None:
        return "test", data.test
    return "val", data.val


def held_out_set(
    opened: opening.OpenImageText,
    run: PersonSearchRunConfig | None,
    pairs: Pairs,
    reading: PersonSearchDataConfig | PairsConfig,
    settings: RetrievalConfig,
) -> RetrievalSet:
    """Return pairs, with pictures as the model's run prepared them or else as the model does."""
    view = None if run is None else opening.preprocessing_of(opened.name, opened.model, run.view)
    size = settings.batch_images
    return RetrievalSet.read_by(opened, pairs, reading, view=view, batch_images=size)


def run_samples(folder: Path) -> dict[str, Any]:
    """Return a few captions that a finished run held out, with the pictures its model finds."""
    run = open_run(folder).finished(PersonSearchRunConfig)
    opened, settings = open_for_measuring(str(folder), run, Overrides())
    data = open_person_search(Overrides().of_data(run.data, opened.retrieval))
    held_out = held_out_set(opened, run, split_of(data, "test")[1], run.data, settings)
    spread = spread_queries(len(held_out.queries))
    queries = np.concatenate((spread, worst_queries(folder / RANKS)))
    found = held_out.evaluate(opened.model, settings, queries=queries)
    samples = held_out.samples(queries, found.last.order)
    ranks = found.last.ranks[:, 0].tolist()
    searches = []
    for (caption, best), rank in zip(samples, ranks, strict=True):
        pictures = [{"picture": png_uri(f.image, height=160), "right": f.right} for f in best]
        searches.append({"caption": caption, "rank": rank, "found": pictures})
    return {"searches": searches[: len(spread)], "worst": searches[len(spread) :]}


def worst_queries(path: Path, count: int = 5) -> Ints:
    """Return the captions of a run whose first right picture came last, the worst first."""
    if not path.is_file():  # runs of earlier versions have none
        return np.empty(0, np.int64)
    ranks = np.array([json.loads(line)["rank"] for line in path.read_text("utf-8").splitlines()])
    order = np.argsort(-ranks, kind="stable")[:count]
    return order[ranks[order] > 1]
