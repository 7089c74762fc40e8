"""An image-text run: pairs in; a model that fills words from pictures, and its figures, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import save_file

from maskery.core.startup import is_main_process
from maskery.core.task import EXTRA_STATE
from maskery.data.pairs.formats import Source
from maskery.evaluation.image_text.image_ablation import Condition
from maskery.evaluation.text.masked import ExampleSums
from maskery.runs.frame.run_folder import MODEL, default_folder, write_text
from maskery.runs.frame.run_frame import run_in_folder, save_model_folder
from maskery.runs.image_text.parts import learnt_anew
from maskery.runs.image_text.start import save_preprocessing, save_weights
from maskery.runs.pairs.card import pairs_model_card
from maskery.runs.pairs.config import PairsRunConfig
from maskery.runs.pairs.measure import PairsEvaluation, evaluate_pairs
from maskery.runs.pairs.prepare import PairsRun, prepare_pairs, skipped_lines
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.optimiser import build_optimiser


@dataclass(frozen=True, kw_only=True)
class PairsResult:
    """What an image-text run came to.

    Attributes:
        folder: The run folder.
        evaluation: The trained model's held-out figures.
        summary: Steps, tokens and time.
        skipped: One line for each kind of thing that was left out.
    """

    folder: Path
    evaluation: PairsEvaluation
    summary: Summary
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return {
            "run": str(self.folder),
            "model": str(self.folder / MODEL),
            **self.evaluation.to_json(),
            "training": asdict(self.summary),
            "skipped": list(self.skipped),
        }


def train_pairs(
    config: PairsRunConfig,
    *,
    source: Source | None = None,
    progress: bool = True,
    beside: Path | None = None,
    terms: Sequence[Any] = (),
) -> PairsResult:
    """Run an image-text configuration from its pairs to a saved model.

    Args:
        config: All settings of the run.
        source: Pairs in Python, in place of those that the config names: an iterable of records
            (mappings with `image`, a path or bytes, `caption`, and where known `person`, `group`
            and `split`), or a `datasets` dataset with image and caption columns.
        progress: Draw progress bars.
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        terms: Loss terms of your own, as objects; see `maskery.objectives.terms`.

    Raises:
        MaskeryError: Something the user can mend.
    """
    config = config.anchored()
    return run_in_folder(
        config,
        beside or default_folder(config.pairs, config.start),
        prepare=lambda folder: prepare_pairs(
            config,
            source=source,
            folder=folder,
            progress=progress and is_main_process(),
            terms=terms,
        ),
        train=lambda run, folder: _train_measure_save(run, folder, progress=progress),
    )


def _train_measure_save(run: PairsRun, folder: Path, *, progress: bool) -> PairsResult:
    """Train, measure and save."""
    config = run.config
    loop = TrainingLoop(
        run.task,
        run.train,
        build_optimiser(run.start.model, config.training, learnt_anew(run.start)),
        config.training,
        folder,
        identity=run.identity,
        evaluate=lambda _step: held_out_figures(run.score()),
        progress=progress,
    )
    summary = loop.train(resume=config.resume == "auto")
    run.start.model.eval()
    result = PairsResult(
        folder=folder,
        evaluation=evaluate_pairs(run),
        summary=summary,
        skipped=skipped_lines(run),
    )
    if is_main_process():
        save_model_folder(folder / MODEL, lambda path: save_model(run, path, result))
    return result


def held_out_figures(scored: dict[Condition, ExampleSums]) -> dict[str, float]:
    """Token-weighted held-out figures without intervals, for the log."""
    figures: dict[str, float] = {}
    for sight, sums in scored.items():
        totals: npt.NDArray[np.float64] = sums.sums.sum(axis=0)
        _, loss, top1, top5 = (totals / totals[0]).tolist()
        figures |= {f"{sight}_loss": loss, f"{sight}_top1": top1, f"{sight}_top5": top5}
    return figures


def save_model(run: PairsRun, folder: Path, result: PairsResult) -> None:
    """Write the model with its tokenizer, how its pictures are prepared, and the momentum twin."""
    save_weights(run.start.model, folder)
    run.start.tokenizer.save_pretrained(folder)
    save_preprocessing(folder, run.start.view)
    extra = {name: t.contiguous().cpu() for name, t in run.task.extra_state().items()}
    save_file(extra, folder / EXTRA_STATE)
    write_text(folder / "README.md", pairs_model_card(run.config, result.evaluation))
