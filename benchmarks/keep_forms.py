"""Measures ways to keep an encoder's vectors while it learns to fill words.

    python benchmarks/keep_forms.py --folder DIR --forms nothing token:20 pooled:20 --seeds 3

The run is the quickstart's; only the form and its weight change. For each: held-out loss from the
start to the end, and the nearest neighbour's topic over all labelled paragraphs, after minus
before.
One JSON line a run is added to DIR/results.jsonl, and runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from maskery.core.batch import TokenBatch
from maskery.objectives.mlm import mlm_loss_sum
from maskery.runs.text.quickstart import quickstart_config, write_corpus
from maskery.runs.text.run import train_text
from maskery.tasks.keep_embedding import KEEP, KeepEmbedding, PreparedKeep
from maskery.tasks.text_mlm import PreparedText, TextMLM, TextParts

TEMPERATURE = 0.05  # SimCSE's


def pooled(rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the mean of each text's rows, of length 1: (N, D)."""
    of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    sums = torch.zeros(len(lengths), rows.shape[1]).index_add(0, of, rows)
    return F.normalize(sums / lengths[:, None], dim=1)


def cosine(ours: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the mean of 1 - cosine."""
    return (1.0 - F.cosine_similarity(ours, start)).mean()


def contrast(ours: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return InfoNCE of texts against the start's texts of the batch."""
    return F.cross_entropy(ours @ start.T / TEMPERATURE, torch.arange(len(ours)))


def similarity(ours: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of similarity matrices, each row's summed."""
    return ((ours @ ours.T - start @ start.T) ** 2).sum(1).mean()


OF_TOKENS: dict[str, Callable[..., torch.Tensor]] = {
    "token": cosine,
    "token-mse": lambda ours, start: F.mse_loss(ours, start) / start.var(),
}
OF_TEXTS: dict[str, Callable[..., torch.Tensor]] = {
    "pooled": cosine,
    "contrast": contrast,
    "similarity": similarity,
}


@dataclass(frozen=True, kw_only=True)
class PreparedForm(PreparedKeep):
    """A batch with the lengths of its texts."""

    lengths: torch.Tensor

    def to(self, device: torch.device) -> Self:
        """Stay: this is measured on a CPU."""
        assert device.type == "cpu"
        return self


class Form(KeepEmbedding):
    """Holds the vectors by one of the forms above; texts are read masked, or unmasked once more."""

    def __init__(self, parts: TextParts, form: str, weight: float) -> None:
        super().__init__(parts.model, parts.masker, weight)
        self.form, self.unmasked = form.removesuffix("-unmasked"), form.endswith("-unmasked")

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedForm:
        """Keep the lengths, and all tokens where texts are pooled."""
        prepared = super().prepare(batch, epoch=epoch, progress=progress)
        fields = {name: getattr(prepared, name) for name in prepared.__dataclass_fields__}
        counts = {**prepared.counts, KEEP: 1}
        if self.form in OF_TEXTS:
            every = torch.arange(batch.num_tokens)
            fields |= {"kept": every, "start": replace(prepared.start, rows=every)}
        lengths = torch.from_numpy(np.diff(batch.boundaries))
        return PreparedForm(**{**fields, "counts": counts}, lengths=lengths)

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the loss of the masked tokens, and the distance: a mean, counted once."""
        assert isinstance(prepared, PreparedForm)

        def read(model: Any, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
            return model.logits(rows[prepared.masked]), rows[prepared.kept]

        logits, rows = self.model(prepared.inputs, read=read)
        if self.unmasked:
            rows = self.model(prepared.start, read=lambda _model, rows: rows)
        ours, start = rows.float(), self._start_rows(prepared.start)
        if self.form in OF_TEXTS:
            ours, start = pooled(ours, prepared.lengths), pooled(start, prepared.lengths)
        distance = {**OF_TOKENS, **OF_TEXTS}[self.form](ours, start)
        return {"mlm": mlm_loss_sum(logits, prepared.targets), KEEP: distance}


def run(folder: Path, form: str, seed: int) -> dict[str, Any]:
    """Train once; returns the figures."""
    kind, _, weight = form.partition(":")
    config = quickstart_config(write_corpus(folder), folder / f"{kind}-{weight}-{seed}")
    training = replace(config.training, seed=seed)
    config = replace(config, training=training, cache_dir=folder / "cache")

    def objective(parts: TextParts) -> TextMLM:
        return TextMLM.of(parts) if kind == "nothing" else Form(parts, kind, float(weight))

    began = time.perf_counter()
    result = train_text(config, objective=objective, progress=False)
    assert result.vectors is not None
    return {
        "form": form,
        "seed": seed,
        "loss": [result.before.loss.value, result.after.loss.value],
        "neighbours": {n: i.value for n, i in result.vectors.figures[0].models.items()},
        "difference": list(result.vectors.figures[0].difference or ()),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--forms", nargs="+", default=["nothing", "token:20"])
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
