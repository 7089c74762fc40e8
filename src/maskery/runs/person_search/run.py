"""A person-search run: pictures of persons with captions in; a model that finds people out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from maskery.core.errors import ConfigError, counted
from maskery.core.processes import join_processes
from maskery.core.system import is_main_process
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.batches import PersonSource
from maskery.data.person_search.dataset import open_person_search
from maskery.evaluation.retrieval.config import save_model_retrieval
from maskery.evaluation.retrieval.evaluate import Retrieval, RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, ranks_jsonl
from maskery.models.image_text.model import ImageTextModel
from maskery.runs.frame.run_folder import fingerprint_of, write_text
from maskery.runs.frame.run_frame import RunResult
from maskery.runs.image_text.config import PersonSearchRunConfig
from maskery.runs.image_text.run import ImageTextRun, train_image_text
from maskery.runs.person_search.evaluate import RANKS, retrieval_of
from maskery.tasks.loss_terms import without_terms
from maskery.training.journal import Callback
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.parallel import whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersonSearchResult(RunResult):
    """The result of a person-search run."""

    best_step: int  # After which step the model that is kept was the best on `val`
    val: RetrievalFigures  # Its figures there
    test: RetrievalFigures | None  # Those on the test split; None where there is none
    notes: tuple[str, ...]  # One line for each kind of thing that was left out or looks odd


class PersonSearchRun(ImageTextRun[PersonSearchResult]):
    """A person-search run: the dataset is read, and the initial model is loaded or made."""

    config: PersonSearchRunConfig
    train: PersonSource

    def __init__(
        self,
        config: PersonSearchRunConfig,
        *,
        folder: Path | None = None,
        progress: bool = True,
        terms: Sequence[Any] = (),
    ) -> None:
        self.data = data = open_person_search(config.data)
        super().__init__(
            config, data.train, config.data, folder=folder, progress=progress, terms=terms
        )
        total = sum(len(pairs) for pairs in (data.train, data.val, data.test) if pairs)
        read, chance = self.read(data.train, len(data.train) / total), config.weak_pair_probability
        self.train = PersonSource(read, weak_pair_probability=chance, **self.batching)

        def held_out(pairs: Pairs) -> RetrievalSet:
            read = self.read(pairs, len(pairs) / total)
            return RetrievalSet(read, batch_images=config.retrieval.batch_images)

        captions = counted(len(self.captions.owners), "caption")
        persons, pictures = len(data.train.person_names), counted(len(data.val), "picture")
        train = f"{captions} of {counted(persons, 'person')} to train on"
        log.info("%s: %s, %s to choose the epoch by", data.title, train, pictures)
        ranking, training = config.retrieval, config.training
        if ranking.rerank and "itm" not in self.task.trained:
            problem = f"rerank is {ranking.rerank}, and matching, which ranks anew, is not trained"
            fix = "add --itm-weight 0.5, or take --rerank 0"
            log.warning("%s: similarity alone ranks; %s", problem, fix)
        # The best epoch is chosen by `val`; `test` is measured at the end, where there is one.
        self.val = held_out(data.val)
        self.test = None if data.test is None else held_out(data.test)
        # By default every epoch is measured, as in RaSa, which keeps the best one's model.
        every = training.eval_every or self.train.num_steps(0)
        self.config = replace(config, training=replace(training, eval_every=every))
        self.identity = self.described(
            data=[fingerprint_of(split.ids) for split in (data.train, data.val)],
            persons=[fingerprint_of(split.persons) for split in (data.train, data.val)],
            # These decide which epoch is the best.
            rerank=ranking.rerank,
            score=ranking.score,
            odds_weight=ranking.odds_weight,
            weak_pair_probability=chance,
        )

    def measure(self, split: RetrievalSet) -> Retrieval:
        """Measure how well a split's captions find their persons; all processes must ask."""
        retrieval, model = self.config.retrieval, whole_model(self.start.model)
        if "itm" not in self.task.trained:  # the matching head has learnt nothing
            retrieval = replace(retrieval, rerank=0)
        return split.evaluate(model, retrieval, processes=join_processes())

    def _logged(self) -> dict[str, float]:
        figures, values = self.measure(self.val).figures, dict[str, float]()
        for ranking in ("reranked", "contrastive"):
            found = getattr(figures, ranking)
            for name in () if found is None else FIGURES:
                values[f"{ranking}_{name}"] = getattr(found, name).value
        return values

    def _result(self, folder: Path, loop: TrainingLoop, summary: Summary) -> PersonSearchResult:
        best = loop.restore_best()  # the model of the best epoch is the one that is kept
        step = loop.total_steps if best is None else best
        val = self.measure(self.val)
        found = val if self.test is None else self.measure(self.test)
        if is_main_process():
            write_text(folder / RANKS, ranks_jsonl((self.test or self.val).rank_rows(found)))
        measured = [split.pictures for split in (self.val, self.test) if split is not None]
        test = None if self.test is None else found.figures
        notes = (*self.data.notes, *self.skipped(*measured))
        return PersonSearchResult(
            folder=folder, best_step=step, val=val.figures, test=test, summary=summary, notes=notes
        )

    def _save(self, folder: Path, result: PersonSearchResult) -> None:
        config, task = self.config, self.task
        losses = ", ".join(f"{name} {weight:g}" for name, weight in task.loss_weights.items())
        self.save_model(
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
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        terms: Loss terms of your own, as objects; see `maskery.objectives.terms`.
        callbacks: Called while the run trains; see `Callback`.
    """
    if config.text_model is None and not config.model:  # as in presets of large models
        problem = "no model is named to start from"
        fix = "give --model the folder that maskery convert ALBEF.pth writes, or a CLIP"
        raise ConfigError(f"{problem}: {fix}; or give --text-model and --vision-model")
    config = config.anchored()
    data = str(config.data.root)
    return train_image_text(
        config, PersonSearchRun, data, terms, callbacks, progress=progress, beside=beside
    )


def whole_model(model: ImageTextModel) -> ImageTextModel:
    """Return the model or, where it is sharded, a whole copy; every process must ask."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    copy: ImageTextModel = ImageTextModel(model.config).to(model.device)
    tensors = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
    copy.load_state_dict(without_terms(tensors))
    return copy
