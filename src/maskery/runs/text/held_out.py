"""The held-out figures of a run over its course, of the text that decides and of named others."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskery.core.batch import TokenBatch
from maskery.core.errors import CheckpointError, counted
from maskery.core.processes import inference, join_processes
from maskery.core.system import is_main_process
from maskery.core.task import Task
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text import masked
from maskery.evaluation.text.masked import ExampleSums, MaskedScores
from maskery.runs.frame.run_folder import write_bytes
from maskery.runs.text.prepare import TextRun

log = logging.getLogger(__name__)

# Sums of the start as it was loaded, of the start with its head trained alone, and of the trained
# model; those of other texts have a name after the stem.
BEFORE, WITH_HEAD, HELD_OUT = "before.safetensors", "with_head.safetensors", "held_out.safetensors"
AS_LOADED = "as loaded"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Held-out figures of one text."""

    as_loaded: MaskedScores | None  # Of the start as it was loaded, if its head was trained alone
    before: MaskedScores  # Of the initial model, with the head that was trained alone, if it was
    after: MaskedScores  # Of the trained model
    difference: dict[str, Interval]  # Paired, after minus before: loss, top1, top5


class HeldOutText:
    """Scores one held-out text of a run at its start, while and after it trains."""

    # Made before the first step: the start is scored now; a resumed run reads its sums. The text
    # that decides has no name.
    def __init__(self, run: TextRun, folder: Path, name: str = "") -> None:
        self.run, self.folder, self.name = run, folder, name
        kept = self._kept(BEFORE)
        self.loaded = self.last = kept or run.score(name=name)
        if kept is None:
            self._write(BEFORE)
        self.with_head = self._kept(WITH_HEAD)

    def score(self, step: int) -> dict[str, float]:
        """Score the model after a step; returns figures for the log."""
        if step > self.run.first.step:
            self.last = self.run.score(name=self.name)
        if step and step == self.run.head_steps:
            self.with_head = self.last
            self._write(WITH_HEAD)
        _, loss, top1, top5 = self.last.sums.sum(axis=0) / self.last.sums[:, 0].sum()
        if self.name:
            return {f"{self.name}_loss": loss, f"{self.name}_top1": top1}
        perplexity = float(np.exp(min(loss, 700.0)))
        return {"loss": loss, "perplexity": perplexity, "top1": top1, "top5": top5}

    def finish(self, *, scored: bool) -> Measured:
        """Write the last sums and compare; if nothing was `scored` since a restore, do so first."""
        if not scored:
            self.last = self.run.score(name=self.name)
        self._write(HELD_OUT)
        if self.run.head_steps > self.run.first.step and self.with_head is None:
            told = "'%s' is lost: 'before' has the head as it was loaded"
            log.warning(told, self._path(WITH_HEAD))
        before = self.with_head or self.loaded
        loaded = None if self.with_head is None else masked.summarise(self.loaded)
        first, last = masked.summarise(before), masked.summarise(self.last)
        difference = masked.compare(self.last, before)
        return Measured(as_loaded=loaded, before=first, after=last, difference=difference)

    @property
    def heads(self) -> dict[str, str]:
        """Return the head that each column of figures has, in words."""
        if not self.run.loaded.new_parameters or self.run.first.step > self.run.head_steps:
            return {"before": "its own", "after": "trained on"}
        if self.with_head is None:
            return {"before": "new, untrained", "after": "trained"}
        steps = f"trained alone, {counted(self.run.head_steps, 'step')}"
        return {AS_LOADED: "new, untrained", "before": steps, "after": "trained with the encoder"}

    def _kept(self, file: str) -> ExampleSums | None:
        resumes = self.run.config.resume == "auto"
        return kept_scores(self._path(file), self.run.identity) if resumes else None

    def _write(self, file: str) -> None:
        if is_main_process():
            write_bytes(self._path(file), self.last.to_bytes(self.run.identity))

    def _path(self, file: str) -> Path:
        return self.folder / (file.replace(".", f"-{self.name}.") if self.name else file)


def kept_scores(path: Path, identity: str) -> ExampleSums | None:
    """Return the sums in a file; None if it is missing, damaged or of another run."""
    processes = join_processes()
    try:
        kept, of = ExampleSums.read(path)
        found = kept if of == identity else None
    except CheckpointError:
        found = None
    if processes.on_main(lambda: None if found is None else "sound") is None:
        return None
    if found is None:
        problem = f"'{path}' can be read by the main process and not by process {processes.rank}"
        raise CheckpointError(f"{problem}; put the run folder where all processes see it")
    return found


@inference()
def text_auc(task: Task[Any, Any], batches: Iterable[TokenBatch]) -> float | None:
    """Return `replaced_words_auc` of a text task, computed as other held-out figures are."""
    return masked.replaced_words_auc(task, batches, progress=0.0)
