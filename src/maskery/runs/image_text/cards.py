"""Model cards of image-text models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from maskery.evaluation.retrieval.config import LABELS
from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES
from maskery.runs.frame.run_frame import card_figure, model_card

if TYPE_CHECKING:  # each kind of run writes its own card, without importing the other kind
    from maskery.runs.pairs.config import PairsRunConfig
    from maskery.runs.pairs.evaluate import PairsEvaluation
    from maskery.runs.person_search.config import PersonSearchRunConfig
    from maskery.runs.person_search.run import PersonSearchResult


def pairs_model_card(config: PairsRunConfig, evaluation: PairsEvaluation) -> str:
    """Return the card of a trained model, in Markdown."""
    scores = evaluation.scores
    rows = [
        f"| {label} | " + " | ".join(card_figure(getattr(s, name)) for s in scores.values()) + " |"
        for name, label in (("loss", "loss (nats)"), ("top1", "top-1"), ("top5", "top-5"))
    ]
    if evaluation.words is not None:
        shares = (card_figure(share) for share in evaluation.words.accuracy.values())
        rows.append("| chosen words | " + " | ".join(shares) + " |")
    right = scores["right"]
    found = ""
    if (auc := evaluation.mrtd_auc) is not None:
        found = f"\nReplaced words are told from original ones with an AUC of {auc:.3f}.\n"
    table = "\n".join(rows)
    text = f"""
# An image-text masked language model trained with Maskery

Starting from `{config.start}`, trained on `{Path(config.pairs).name}` with
{config.masking.policy} masking at a rate of {config.masking.mask_rate}.

Held out, {right.masked_tokens:,} masked tokens of {right.examples:,} pictures or persons, the same
model with the right picture, with a wrong one and with none (95% intervals):

| | right | wrong | none |
| --- | --- | --- | --- |
{table}
{found}
```
maskery fill path/of/this/folder "A woman in a [MASK] coat." --image picture.jpg
```
"""
    return model_card(text.lstrip(), tags=("image-text",))


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
