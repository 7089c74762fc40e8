"""Measures ways to keep an encoder's vectors while it learns to fill words.

    python benchmarks/keep_forms.py --folder DIR --forms nothing text:10 token:10 --seeds 3

The run is the quickstart's; the form and its weight change, and settings after commas
(`text:10,head_first=0.1,max_steps=130`). A name that ends in `-clean` lets the frozen start read
the unmasked text, one in `-unmasked` both. For each: held-out loss as loaded, before and after, and
the nearest neighbour of each labelled paragraph, after minus before. One JSON line a run is
added to DIR/results.jsonl, and runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.models.layout import EncoderInputs
from maskery.objectives.mlm import mlm_loss_sum
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.quickstart import quickstart_config, write_corpus
from maskery.runs.text.run import train_text
from maskery.tasks.keep_embedding import KEEP, KeepEmbedding, PreparedKeep
from maskery.tasks.text_mlm import PreparedText, TextMLM, TextParts

TEMPERATURE = 0.05  # SimCSE's


def cosine(ours: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the mean of 1 - cosine."""
    return (1.0 - F.cosine_similarity(ours, start)).mean()


def squared(ours: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the squared error as a share of the variance."""
    return F.mse_loss(ours, start) / start.var()


def contrast(ours: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return InfoNCE of texts against the start's texts of the batch."""
    likeness = F.normalize(ours, dim=1) @ F.normalize(start, dim=1).T
    return F.cross_entropy(likeness / TEMPERATURE, torch.arange(len(ours)))


def similarity(ours: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of similarity matrices, each row's summed."""
    ours, start = F.normalize(ours, dim=1), F.normalize(start, dim=1)
    return ((ours @ ours.T - start @ start.T) ** 2).sum(1).mean()


# By name: True for a form that compares vectors of texts, False for states of tokens.
FORMS: dict[str, tuple[bool, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "text": (True, cosine),
    "token": (False, cosine),
    "token-mse": (False, squared),
    "text-mse": (True, squared),
    "contrast": (True, contrast),
    "similarity": (True, similarity),
}


@dataclass(frozen=True, kw_only=True)
class PreparedForm(PreparedKeep):
    """A masked batch beside the same text unmasked."""

    clean: EncoderInputs


class Form(KeepEmbedding):
    """Holds the encoder by one of the forms; on a CPU."""

    def __init__(self, parts: TextParts, form: str, weight: float) -> None:
        super().__init__(parts.model, parts.masker, weight, frozen_share=parts.frozen_share)
        self.reads = next((end for end in ("clean", "unmasked") if form.endswith(f"-{end}")), "")
        self.of_texts, self.distance = FORMS[form.removesuffix(f"-{self.reads}")]

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Lay out the unmasked text, too; the distance is a mean, counted once."""
        prepared = super().prepare(batch, epoch=epoch, progress=progress)
        if not isinstance(prepared, PreparedKeep):
            return prepared
        every = torch.arange(batch.num_tokens).numpy()
        clean = self.lay_out(
            MaskedTokens(
                batch=batch, input_ids=batch.input_ids, positions=every, targets=batch.input_ids
            )
        )
        fields = {name: getattr(prepared, name) for name in prepared.__dataclass_fields__}
        counts = {**prepared.counts, KEEP: 1}
        return PreparedForm(**{**fields, "counts": counts}, clean=clean)

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the loss of the masked tokens and the distance."""
        if not isinstance(prepared, PreparedForm):
            return super().loss_sums(prepared)

        def read(model: Any, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
            return model.logits(rows[prepared.masked]), rows

        logits, rows = self.model(prepared.inputs, read=read)
        if self.reads == "unmasked":
            rows = self.model(prepared.clean, read=lambda _model, rows: rows)
        start = self._start_rows(prepared.clean if self.reads else prepared.inputs)
        kept = [hidden.float()[prepared.kept] for hidden in (rows, start)]
        if self.of_texts:
            kept = [self.pooling.pool(hidden, prepared.kept_lengths) for hidden in kept]
        return {"mlm": mlm_loss_sum(logits, prepared.targets), KEEP: self.distance(*kept)}


def configured(folder: Path, form: str, seed: int) -> tuple[str, float, TextRunConfig]:
    """Read a form with its settings; returns its name, its weight and the run."""
    named, *settings = form.split(",")
    name, _, weight = named.partition(":")
    output = folder / f"{form}-{seed}".replace(":", "-")
    shutil.rmtree(output, ignore_errors=True)  # of a run that was broken off
    config = replace(quickstart_config(write_corpus(folder), output), cache_dir=folder / "cache")
    training = replace(config.training, seed=seed)
    for key, value in (setting.split("=") for setting in settings):
        if key == "head_first":
            config = replace(config, head_first=value)
        else:
            training = replace(training, **{key: int(value) if value.isdigit() else float(value)})
    return name, float(weight or 0), replace(config, training=training)


def run(folder: Path, form: str, seed: int) -> dict[str, Any]:
    """Train once; returns the figures."""
    name, weight, config = configured(folder, form, seed)

    def objective(parts: TextParts) -> TextMLM:
        return TextMLM.of(parts) if name == "nothing" else Form(parts, name, weight)

    began = time.perf_counter()
    result = train_text(config, objective=objective, progress=False)
    assert result.vectors is not None
    scores = [result.as_loaded, result.before, result.after]
    return {
        "form": form,
        "seed": seed,
        "loss": [one.loss.value for one in scores if one],
        "neighbours": {n: i.value for n, i in result.vectors.figures[0].models.items()},
        "difference": list(result.vectors.figures[0].difference or ()),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--forms", nargs="+", default=["nothing", "text:10"])
    parser.add_argument("--seeds", type=int, default=3)
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    results = wanted.folder / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["form"], row["seed"]) for row in map(json.loads, lines)}
    for seed in range(wanted.seeds):
        for form in wanted.forms:
            if (form, seed) not in done:
                with results.open("a") as file:
                    print(json.dumps(run(wanted.folder, form, seed)), file=file, flush=True)


if __name__ == "__main__":
    main()
