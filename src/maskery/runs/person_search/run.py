"""A person-search run: pictures of persons with captions in; a model that finds people out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from maskery.core.processes import join_processes
from maskery.core.system import is_main_process
from maskery.data.pairs.captions import fingerprint
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.batches import PersonSource
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.evaluation.retrieval.config import LABELS, save_model_retrieval
from maskery.evaluation.retrieval.evaluate import Retrieval, RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES, RankingFigures
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, evaluate_set
from maskery.models.image_text.model import ImageTextModel
from maskery.runs.frame.run_folder import MODEL, default_folder
from maskery.runs.frame.run_frame import (
    card_figure,
    fingerprint_of,
    identity,
    model_card,
    run_in_folder,
    save_model_folder,
)
from maskery.runs.image_text.prepare import (
    StartModel,
    choose_max_length,
    described,
    learnt_anew,
    open_pictures,
    prepare_model,
    read_captions,
    require_policy,
    save_model,
)
from maskery.runs.person_search.config import PersonSearchRunConfig
from maskery.runs.person_search.settings import retrieval_of
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.loss_terms import without_terms
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.optimiser import build_optimiser
from maskery.training.parallel import whole
from maskery.training.snapshot import restore_task

log = logging.getLogger(__name__)

# RaSa trains these two heads, which ALBEF does not have, at a rate of their own.
NEW_HEADS = ("prd_head", "mrtd_head")


@dataclass(frozen=True, kw_only=True)
class PersonSearchRun:
    """The parts of a person-search run, before its first step."""

    config: PersonSearchRunConfig
    data: PersonSearchData
    start: StartModel
    task: ImageTextTask
    train: PersonSource  # Training batches
    val: RetrievalSet  # What the best epoch is chosen by
    # What is measured at the end; None where the dataset has no test split.
    test: RetrievalSet | None
    identity: str  # What a continuation must share, as JSON

    def measure(self, split: RetrievalSet) -> Retrieval:
        """Measure how well the captions of a split find their persons among its pictures.

        The run's processes share the matching out: all of them must ask.
        """
        retrieval = self.config.retrieval
        if "itm" not in self.task.trained:  # the matching head has learnt nothing
            retrieval = replace(retrieval, rerank=0)
        return evaluate_set(
            whole_model(self.start.model), split, retrieval, processes=join_processes()
        )


@dataclass(frozen=True, kw_only=True)
class PersonSearchResult:
    """The result of a person-search run.

    Attributes:
        folder: The run folder.
        best_step: After which step the model that is kept was the best on `val`.
        val: Its figures there.
        test: Its figures on the test split; None where there is none.
        summary: Steps, tokens and time.
        notes: One line for each kind of thing that was left out or looks odd.
    """

    folder: Path
    best_step: int
    val: RetrievalFigures
    test: RetrievalFigures | None
    summary: Summary
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return {
            "run": str(self.folder),
            "model": str(self.folder / MODEL),
            "best_step": self.best_step,
            "val": asdict(self.val),
            "test": None if self.test is None else asdict(self.test),
            "training": asdict(self.summary),
            "notes": list(self.notes),
        }


def train_person_search(
    config: PersonSearchRunConfig,
    *,
    progress: bool = True,
    beside: Path | None = None,
    terms: Sequence[Any] = (),
) -> PersonSearchResult:
    """Run a person-search configuration from its dataset to the model of its best epoch.

    Args:
        config: All settings of the run.
        progress: Draw progress bars.
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        terms: Loss terms of your own, as objects; see `maskery.objectives.terms`.

    Raises:
        MaskeryError: Something the user can mend.
    """
    config.require_start()
    config = config.anchored()
    return run_in_folder(
        config,
        beside or default_folder(str(config.data.root), config.start),
        prepare=lambda folder: prepare_person_search(
            config, folder=folder, progress=progress and is_main_process(), terms=terms
        ),
        train=lambda run, folder: _train_measure_save(run, folder, progress=progress),
    )


def _train_measure_save(
    run: PersonSearchRun, folder: Path, *, progress: bool
) -> PersonSearchResult:
    """Train, go back to the best epoch, measure that and save it."""
    config = run.config
    loop = TrainingLoop(
        run.task,
        run.train,
        build_optimiser(run.start.model, config.training, learnt_anew(run.start, NEW_HEADS)),
        # By default every epoch is measured, as in RaSa, which keeps the best one's model.
        replace(config.training, eval_every=config.training.eval_every or run.train.num_steps(0)),
        folder,
        identity=run.identity,
        evaluate=lambda _step: logged(run.measure(run.val).figures),
        progress=progress,
    )
    summary = loop.train(resume=config.resume == "auto")
    best_step = go_back_to_best(run, loop)
    result = PersonSearchResult(
        folder=folder,
        best_step=best_step,
        val=run.measure(run.val).figures,
        test=None if run.test is None else run.measure(run.test).figures,
        summary=summary,
        notes=(*run.data.notes, *skipped_lines(run)),
    )

    def write(path: Path) -> None:
        card = person_search_card(config, result, run.task.loss_weights)
        save_model(path, run.start, run.task, card)
        save_model_retrieval(path, retrieval_of(config, run.task.trained))

    if is_main_process():
        save_model_folder(folder / MODEL, write)
    return result


def go_back_to_best(run: PersonSearchRun, loop: TrainingLoop) -> int:
    """Make the run's model that of its best checkpoint; returns its step."""
    found = join_processes().on_main(lambda: str(loop.checkpoints.best_sound() or ""))
    return restore_task(Path(found), run.task) if found else loop.total_steps


def logged(figures: RetrievalFigures) -> dict[str, float]:
    """Return figures without intervals, by name.

    The ranking that a model is judged by comes first: the first figure tells the best checkpoint.
    """
    values: dict[str, float] = {}
    for ranking in ("reranked", "contrastive"):
        found: RankingFigures | None = getattr(figures, ranking)
        if found is not None:
            values |= {f"{ranking}_{name}": getattr(found, name).value for name in asdict(found)}
    return values


def prepare_person_search(
    config: PersonSearchRunConfig,
    *,
    start: StartModel | None = None,
    folder: Path | None = None,
    progress: bool = True,
    terms: Sequence[Any] = (),
) -> PersonSearchRun:
    """Read and tokenise the dataset, and load or make the initial model."""
    require_policy(config)
    data = open_person_search(config.data)
    start, captions, task = prepare_model(
        ImageTextTask,
        config,
        data.train,
        config.data,
        start=start,
        folder=folder,
        progress=progress,
        terms=terms,
    )
    sizes = [len(pairs) if pairs else 0 for pairs in (data.train, data.val, data.test)]
    # What is kept in memory is shared out by the size of the splits.
    caches = [config.image_cache_mb * 2**20 * size // sum(sizes) for size in sizes]
    train = PersonSource(
        data.train,
        captions,
        open_pictures(config, config.data, data.train, start, caches[0]),
        start.view,
        batch_pairs=config.training.batch_pairs,
        micro_pairs=config.training.micro_batch_pairs,
        weak_pair_probability=config.weak_pair_probability,
        seed=config.training.seed,
    )
    val = _held_out(config, start, data.val, caches[1])
    test = None if data.test is None else _held_out(config, start, data.test, caches[2])
    log.info(
        "%s: %s captions of %s persons to train on, %s pictures to choose the epoch by",
        data.title,
        f"{len(captions.owners):,}",
        f"{len(data.train.person_names):,}",
        f"{len(data.val):,}",
    )
    return PersonSearchRun(
        config=config,
        data=data,
        start=start,
        task=task,
        train=train,
        val=val,
        test=test,
        identity=identity_of(config, data, start, task),
    )


def _held_out(
    config: PersonSearchRunConfig, start: StartModel, pairs: Pairs, cache_bytes: int
) -> RetrievalSet:
    longest = choose_max_length(config, start.model)
    captions = read_captions(pairs, start.tokenizer, config.data, longest)
    pictures = open_pictures(config, config.data, pairs, start, cache_bytes)
    return RetrievalSet(
        pairs, captions, pictures, start.view, batch_images=config.retrieval.batch_images
    )


def skipped_lines(run: PersonSearchRun) -> tuple[str, ...]:
    """Return what was left out while training and measuring, one line a kind."""
    splits = [split for split in (run.val, run.test) if split is not None]
    told = [run.train.captions.skipped, run.train.pictures.skipped]
    told += [split.pictures.skipped for split in splits]
    return tuple(str(skipped) for skipped in told if skipped.count)


def identity_of(
    config: PersonSearchRunConfig, data: PersonSearchData, start: StartModel, task: ImageTextTask
) -> str:
    """Return what decides the course of a run and its best epoch, but not how it is computed."""
    ranking = config.retrieval
    return identity(
        config.training,
        {
            **described(config, start, task),
            "data": [fingerprint(data.train), fingerprint(data.val)],
            "persons": [fingerprint_of(split.persons) for split in (data.train, data.val)],
            "rerank": ranking.rerank,
            "score": ranking.score,
            "odds_weight": ranking.odds_weight,
            "weak_pair_probability": config.weak_pair_probability,
        },
    )


def whole_model(model: ImageTextModel) -> ImageTextModel:
    """The model itself or, where it is sharded, a copy that is not; every process must ask."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    copy: ImageTextModel = ImageTextModel(model.config).to(model.device)
    state = model.state_dict()
    tensors = {name: whole(tensor).detach().cpu().contiguous() for name, tensor in state.items()}
    copy.load_state_dict(without_terms(tensors))
    return copy


def person_search_card(
    config: PersonSearchRunConfig, result: PersonSearchResult, weights: Mapping[str, float]
) -> str:
    """Return the card of a trained model, in Markdown; `weights` are those of its loss terms."""
    split = "the test split" if result.test is not None else "the validation split"
    figures = result.test or result.val
    losses = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
    text = f"""
# A person-search model trained with Maskery

Starting from `{config.start}`, trained on {config.data.dataset} with the losses {losses}. This is
the model after step {result.best_step:,} of {result.summary.steps:,}, the best by R@1 on validation
identities.

On {split}: {figures.num_texts:,} captions of {figures.num_persons:,} persons against
{figures.num_images:,} pictures (95% intervals over persons; R@1 of a random ranking is
{100 * figures.chance:.2f}%):

{_table(figures)}

```
maskery search path/of/this/folder --gallery pictures/ "a woman in a red coat"
```
"""
    return model_card(text.lstrip(), tags=("text-based-person-search", "image-text"))


def _table(figures: RetrievalFigures) -> str:
    rankings = {"by similarity": figures.contrastive}
    if figures.reranked is not None:
        rankings[f"best {figures.rerank} by matching"] = figures.reranked
    head = "| | " + " | ".join(LABELS[name] for name in FIGURES) + " |"
    rows = []
    for name, found in rankings.items():
        figures_of = (getattr(found, figure) for figure in FIGURES)
        shown = (card_figure(figure, ".2f", scale=100.0) for figure in figures_of)
        rows.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join((head, "| --- " * (len(FIGURES) + 1) + "|", *rows))
