"""The model card of a person-search model."""

from __future__ import annotations

from maskery.evaluation.intervals import Interval
from maskery.evaluation.retrieval.config import LABELS
from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES, RankingFigures
from maskery.runs.person_search.config import PersonSearchRunConfig
from maskery.runs.person_search.result import PersonSearchResult


def person_search_card(config: PersonSearchRunConfig, result: PersonSearchResult) -> str:
    """Markdown with the metadata block that model hubs read."""
    split = "the test split" if result.test is not None else "the validation split"
    figures = result.test or result.val
    weights = ", ".join(f"{name} {weight:g}" for name, weight in config.objectives.weights.items())
    return f"""---
library_name: transformers
tags: [maskery, text-based-person-search, image-text, masked-language-modelling]
---

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


def _table(figures: RetrievalFigures) -> str:
    rankings = {"by similarity": figures.contrastive}
    if figures.reranked is not None:
        rankings[f"best {figures.rerank} by matching"] = figures.reranked
    head = "| | " + " | ".join(LABELS[name] for name in FIGURES) + " |"
    rows = [f"| {name} | {_row(found)} |" for name, found in rankings.items()]
    return "\n".join((head, "| --- " * (len(FIGURES) + 1) + "|", *rows))


def _row(found: RankingFigures) -> str:
    return " | ".join(_interval(getattr(found, name)) for name in FIGURES)


def _interval(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.value:.2f} [{low:.2f}, {high:.2f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
