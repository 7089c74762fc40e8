r"""Masks by difficulty: a word is masked the less, the better a model knows it already.

    python examples/plugins/difficulty_policy.py runs/notes notes.txt difficulty.npz
    DIFFICULTY=difficulty.npz maskery train text notes.txt --model runs/notes \
        --policy examples/plugins/difficulty_policy.py:policy

The first command lets a run's model fill words of a text. By token, its table has a factor: how far
from sure the model is, in proportion to the mean over the text, so that the mask rate of that text
stays what it was. A token is masked with the run's rate times its factor: a pure function of the
table and of (seed, epoch, example, position). In Python, `Masker.of(tokenizer, policy=policy)`, or
`Difficulty(factors)`.

Shapes: T tokens of a batch, M masked ones, V vocabulary.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskery import ConfigError, Masker, Selection, open_model, texts_source
from maskery.core.batch import TokenBatch, vocabulary_size
from maskery.core.processes import inference
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.evaluation.text.masked import predict, true_log_probabilities
from maskery.masking.policies import Draws

EPOCHS = 20  # at a rate of 0.15, words that occur but once are asked for three times
PRIOR = 5.0  # askings that a rare token is given at the mean, to be judged with more care
LEAST = 0.2  # of the mean: what is known must not be forgotten
MOST = 0.9  # rate of any token: something must be left to fill it from


class Difficulty:
    """Masks each token with the run's rate times the token's factor, (V,) float."""

    def __init__(self, factors: npt.NDArray[np.floating[Any]]) -> None:
        self.factors = factors.astype(np.float32)

    def select(
        self, batch: TokenBatch, maskable: npt.NDArray[np.bool_], rate: float, draws: Draws
    ) -> Selection:
        """Choose single tokens; where none is drawn, the one that came nearest."""
        rates = np.minimum(np.float32(rate) * self.factors[batch.input_ids], np.float32(MOST))
        uniforms = draws.uniforms("difficulty", batch)
        return Selection(selected=(uniforms < rates) & maskable, values=uniforms / rates)


def policy(tokenizer: Any) -> Difficulty:
    """Make the policy of the table that $DIFFICULTY names."""
    table = np.load(os.environ["DIFFICULTY"])
    if str(table["tokenizer"]) != tokenizer_fingerprint(tokenizer):
        raise ConfigError(
            f"the table '{os.environ['DIFFICULTY']}' is of another tokenizer than the model's; "
            f"make one with a run of this model"
        )
    return Difficulty(table["factors"])


# A run that goes on must have the same table.
policy.run_identity = lambda: Path(os.environ["DIFFICULTY"]).read_bytes()  # type: ignore[attr-defined]


@inference()
def measure(model: Any, texts: Any, epochs: int = EPOCHS) -> dict[str, Any]:
    """Return the table of a model, or of a run's: its mean doubt about each token of the texts.

    Args:
        model: A run folder, a model folder, or what `open_model` returns.
        texts: Strings, or anything else that `texts_source` takes.
        epochs: How often the texts are masked anew.
    """
    opened = open_model(model)
    size, masker = vocabulary_size(opened.tokenizer), Masker.of(opened.tokenizer)
    doubts, asked, seen = np.zeros(size), np.zeros(size), np.zeros(size)
    for batch in texts_source(opened, texts).in_order():
        seen += np.bincount(batch.input_ids, minlength=size)
        for masked in (masker.mask(batch, epoch=epoch) for epoch in range(epochs)):
            chances = np.exp(true_log_probabilities(predict(opened.model, masked), masked.targets))
            doubts += np.bincount(masked.targets, weights=1 - chances, minlength=size)
            asked += np.bincount(masked.targets, minlength=size)
    seen[masker.vocabulary.protected] = 0
    factors = (doubts + PRIOR * doubts.sum() / asked.sum()) / (asked + PRIOR)
    factors = np.maximum(factors, LEAST * (factors @ seen) / seen.sum())
    factors *= seen.sum() / (factors @ seen)
    named = tokenizer_fingerprint(opened.tokenizer)
    return {"factors": factors, "seen": seen, "tokenizer": named}


def main() -> None:
    """Save the table of a run's model and a text file, and show both ends of it."""
    run, text, path = sys.argv[1:]
    opened = open_model(run)
    table = measure(opened, Path(text).read_text("utf-8").splitlines())
    with Path(path).open("wb") as file:
        np.savez(file, **table)
    order = sorted(np.flatnonzero(table["seen"]).tolist(), key=table["factors"].__getitem__)
    for token in (*order[:5], *order[5:][-5:]):
        word = opened.tokenizer.convert_ids_to_tokens(token)
        print(f"{table['factors'][token]:5.2f}  {word}")


if __name__ == "__main__":
    main()
