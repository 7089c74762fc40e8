"""A person-search run: pictures of persons with captions in; a model that finds people out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from maskery.core.errors import counted
from maskery.core.processes import join_processes
from maskery.core.system import is_main_process
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.batches import PersonSource
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.evaluation.retrieval.config import save_model_retrieval
from maskery.evaluation.retrieval.evaluate import Retrieval, RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES, RankingFigures
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, ranks_jsonl
from maskery.models.image_text.model import ImageTextModel
from maskery.runs.frame.run_folder import write_text
from maskery.runs.frame.run_frame import RunResult, fingerprint_of
from maskery.runs.image_text.config import PersonSearchRunConfig
from maskery.runs.image_text.prepare import prepare_model
from maskery.runs.image_text.run import ImageTextRun, train_image_text
from maskery.runs.person_search.evaluate import RANKS, retrieval_of
from maskery.tasks.loss_terms import without_terms
from maskery.training.journal import Callback
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.parallel import whole
from maskery.training.snapshot import restore_task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersonSearchResult(RunResult):
    """The result of a person-search run."""

    best_step: int  # After which step the model that is kept was the best on `val`
    val: RetrievalFigures  # Its figures there
    test: RetrievalFigures | None  # Those on the test split; None where there is none
    notes: tuple[str, ...]  # One line for each kind of thing that was left out or looks odd


@dataclass(frozen=True, kw_only=True)
class PersonSearchRun(ImageTextRun[PersonSearchResult]):
    """The parts of a person-search run, before its first step."""

    config: PersonSearchRunConfig
    train: PersonSource
    data: PersonSearchData
    val: RetrievalSet  # What the best epoch is chosen by
    test: RetrievalSet | None  # Measured at the end; None where the dataset has no test split

    def measure(self, split: RetrievalSet) -> Retrieval:
        """Measure how well a split's captions find their persons; all processes must ask."""
        retrieval, model = self.config.retrieval, whole_model(self.prepared.start.model)
        if "itm" not in self.prepared.task.trained:  # the matching head has learnt nothing
            retrieval = replace(retrieval, rerank=0)
        return split.evaluate(model, retrieval, processes=join_processes())

    def _logged(self) -> dict[str, float]:
        figures, values = self.measure(self.val).figures, dict[str, float]()
        for ranking in ("reranked", "contrastive"):
            found: RankingFigures | None = getattr(figures, ranking)
            if found is not None:
                named = ((f"{ranking}_{name}", getattr(found, name).value) for name in FIGURES)
                values.update(named)
        return values

    def _result(self, folder: Path, loop: TrainingLoop, summary: Summary) -> PersonSearchResult:
        # The model of the best epoch is the one that is kept.
        best = join_processes().on_main(lambda: str(loop.checkpoints.best_sound() or ""))
        step = restore_task(Path(best), self.prepared.task) if best else loop.total_steps
        val = found = self.measure(self.val)
        if self.test is not None:
            found = self.measure(self.test)
        if is_main_process():
            write_text(folder / RANKS, ranks_jsonl((self.test or self.val).rank_rows(found)))
        measured = [split.pictures for split in (self.val, self.test) if split is not None]
        return PersonSearchResult(
            folder=folder,
            best_step=step,
            val=val.figures,
            test=None if self.test is None else found.figures,
            summary=summary,
            notes=(*self.data.notes, *self.skipped(*measured)),
        )

    def _save(self, folder: Path, result: PersonSearchResult) -> None:
        config, task = self.config, self.prepared.task
        losses = ", ".join(f"{name} {weight:g}" for name, weight in task.loss_weights.items())
        self.prepared.save_model(
            folder,
            result.to_json(),
            title="A person-search model trained with Maskery",
            trained=f"""{config.data.dataset} with the losses {losses}.
This is the model after step {result.best_step:,} of {result.summary.steps:,}, the best by R@1 on
validation identities.""",
            example='''
maskery search path/of/this/folder --gallery pictures/ "a woman in a red coat"''',
            tags=("text-based-person-search", "image-text"),
        )
        save_model_retrieval(folder, retrieval_of(config, task.trained))


def train_person_search(
    config: PersonSearchRunConfig,
    *,
    progress: bool = True,
    beside: Path | None = None,
    terms: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
) -> PersonSearchResult:
    """Run a person-search configuration from its dataset to the model of its best epoch.

    Args:
        config: All settings of the run.
        progress: Draw progress bars.
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        terms: Loss terms of your own, as objects; see `maskery.objectives.terms`.
        callbacks: Called while the run trains; see `Callback`.

    Raises:
        MaskeryError: Something the user can mend.
    """
    config.require_start()
    config = config.anchored()
    data, prepare = str(config.data.root), prepare_person_search
    return train_image_text(
        config, prepare, data, terms, callbacks, progress=progress, beside=beside
    )


def prepare_person_search(
    config: PersonSearchRunConfig,
    *,
    folder: Path | None = None,
    progress: bool = True,
    terms: Sequence[Any] = (),
) -> PersonSearchRun:
    """Read and tokenise the dataset, and load or make the initial model."""
    data = open_person_search(config.data)
    prepared = prepare_model(
        config, data.train, config.data, folder=folder, progress=progress, terms=terms
    )
    total = sum(len(pairs) for pairs in (data.train, data.val, data.test) if pairs)
    train = PersonSource(
        prepared.read(data.train, len(data.train) / total),
        weak_pair_probability=config.weak_pair_probability,
        **prepared.batching,
    )

    def held_out(pairs: Pairs) -> RetrievalSet:
        read = prepared.read(pairs, len(pairs) / total)
        return RetrievalSet(read, batch_images=config.retrieval.batch_images)

    log.info(
        "%s: %s of %s to train on, %s to choose the epoch by",
        data.title,
        counted(len(prepared.captions.owners), "caption"),
        counted(len(data.train.person_names), "person"),
        counted(len(data.val), "picture"),
    )
    ranking, training = config.retrieval, config.training
    if ranking.rerank and "itm" not in prepared.task.trained:
        log.warning(
            "rerank is %d, and matching, which ranks anew, is not trained: similarity alone ranks; "
            "add --itm-weight 0.5, or take --rerank 0",
            ranking.rerank,
        )
    # By default every epoch is measured, as in RaSa, which keeps the best one's model.
    training = replace(training, eval_every=training.eval_every or train.num_steps(0))
    return PersonSearchRun(
        config=replace(config, training=training),
        data=data,
        prepared=prepared,
        train=train,
        val=held_out(data.val),
        test=None if data.test is None else held_out(data.test),
        identity=prepared.identity(
            data=[fingerprint_of(split.ids) for split in (data.train, data.val)],
            persons=[fingerprint_of(split.persons) for split in (data.train, data.val)],
            # These decide which epoch is the best.
            rerank=ranking.rerank,
            score=ranking.score,
            odds_weight=ranking.odds_weight,
            weak_pair_probability=config.weak_pair_probability,
        ),
    )


def whole_model(model: ImageTextModel) -> ImageTextModel:
    """Return the model or, where it is sharded, a whole copy; every process must ask."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    copy: ImageTextModel = ImageTextModel(model.config).to(model.device)
    tensors = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
    copy.load_state_dict(without_terms(tensors))
    return copy
