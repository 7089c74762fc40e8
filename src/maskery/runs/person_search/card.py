"""The model card of a person-search model."""

from __future__ import annotations

from maskery.evaluation.retrieval.config import LABELS
from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES, RankingFigures
from maskery.runs.frame.run_frame import card_figure, model_card
from maskery.runs.person_search.config import PersonSearchRunConfig
from maskery.runs.person_search.result import PersonSearchResult


def person_search_card(config: PersonSearchRunConfig, result: PersonSearchResult) -> str:
    """Return the card of a trained model, in Markdown."""
    split = "the test split" if result.test is not None else "the validation split"
    figures = result.test or result.val
    weights = ", ".join(f"{name} {weight:g}" for name, weight in config.objectives.weights.items())
    text = f"""
# A person-search model trained with Maskery

Starting from `{config.start}`, trained on {config.data.dataset} with the losses {weights}. This is
the model after step {result.best_step:,} of {result.summary.steps:,}, the best by R@1 on validation
identities.

On {split}: {figures.num_texts:,} captions of {figures.num_persons:,} persons against
{figures.num_images:,} pictures (95% intervals over persons; R@1 of a random ranking is
{_percent(figures.chance)}):

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
    rows = [f"| {name} | {_row(found)} |" for name, found in rankings.items()]
    return "\n".join((head, "| --- " * (len(FIGURES) + 1) + "|", *rows))


def _row(found: RankingFigures) -> str:
    figures = (getattr(found, name) for name in FIGURES)
    return " | ".join(card_figure(figure, ".2f", scale=100.0) for figure in figures)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
