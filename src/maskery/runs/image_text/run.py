"""An image-text run of either kind: pairs in; a trained model and its held-out figures out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from maskery.core.system import is_main_process
from maskery.data.pairs.batches import PairSource, Pictures
from maskery.data.person_search.batches import PersonSource
from maskery.masking.config import POLICIES
from maskery.objectives.terms import check_terms
from maskery.runs.frame.run_folder import MODEL, default_folder
from maskery.runs.frame.run_frame import RunResult, run_in_folder, save_model_folder
from maskery.runs.image_text.config import ImageTextRunConfig
from maskery.runs.image_text.prepare import Prepared
from maskery.training.journal import Callback, check_callbacks, check_trackers
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.optimiser import build_optimiser

ResultT = TypeVar("ResultT", bound=RunResult)


@dataclass(frozen=True, kw_only=True)
class ImageTextRun(ABC, Generic[ResultT]):
    """A run before its first step; a kind of run adds its held-out data and their figures."""

    config: ImageTextRunConfig
    prepared: Prepared
    train: PairSource | PersonSource  # Training batches
    identity: str  # What a continuation must share, as JSON

    # What a kind of run adds: the figures in the log (the first tells the best checkpoint), what is
    # measured at the end, and the card of the model.
    @abstractmethod
    def _logged(self) -> dict[str, float]: ...

    @abstractmethod
    def _result(self, folder: Path, loop: TrainingLoop, summary: Summary) -> ResultT: ...

    @abstractmethod
    def _save(self, folder: Path, result: ResultT) -> None: ...

    def skipped(self, *held_out: Pictures) -> tuple[str, ...]:
        """Return what was left out while training and measuring, one line a kind."""
        every = (self.train.pictures, *held_out)
        told = (self.train.captions.skipped, *(pictures.skipped for pictures in every))
        return tuple(str(skipped) for skipped in told if skipped.count)

    def train_measure_save(
        self, folder: Path, callbacks: Sequence[Callback], *, progress: bool
    ) -> ResultT:
        """Train in a run folder, measure, and save the model."""
        model, training = self.prepared.start.model, self.config.training
        loop = TrainingLoop(
            self.prepared.task,
            self.train,
            build_optimiser(model, training, self.prepared.learnt_anew()),
            training,
            folder,
            identity=self.identity,
            evaluate=lambda _step: self._logged(),
            progress=progress,
            callbacks=callbacks,
        )
        summary = loop.train(resume=self.config.resume == "auto")
        model.eval()
        result = self._result(folder, loop, summary)
        if is_main_process():
            save_model_folder(folder / MODEL, lambda path: self._save(path, result))
        return result


def train_image_text(
    config: ImageTextRunConfig,
    prepare: Callable[..., ImageTextRun[ResultT]],
    data: str,
    terms: Sequence[Any],
    callbacks: Sequence[Callback],
    *,
    progress: bool,
    beside: Path | None,
) -> ResultT:
    """Prepare a run in its folder, named after `data` by default, and train it there."""
    # What cannot be loaded is told before anything is read, and leaves no run folder.
    POLICIES.find(config.masking.policy)
    check_terms(config.objectives.term, terms)
    check_callbacks(callbacks)
    check_trackers(config.training.all_trackers)
    drawn = progress and is_main_process()
    result: ResultT = run_in_folder(
        config,
        beside or default_folder(data, config.start),
        prepare=lambda folder: prepare(config, folder=folder, progress=drawn, terms=terms),
        train=lambda run, folder: run.train_measure_save(folder, callbacks, progress=progress),
    )
    return result
