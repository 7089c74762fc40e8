"""The model card that is saved beside every model."""

from __future__ import annotations

from pathlib import Path

from maskery.evaluation.intervals import Interval, interval_note
from maskery.evaluation.text.masked import MaskedScores
from maskery.runs.text.config import TextRunConfig


def text_model_card(config: TextRunConfig, before: MaskedScores, after: MaskedScores) -> str:
    """Markdown with the metadata block that model hubs read."""
    rows = "\n".join(
        f"| {label} | {_figure(getattr(before, name))} | {_figure(getattr(after, name))} |"
        for name, label in (
            ("loss", "loss (nats)"),
            ("perplexity", "perplexity"),
            ("top1", "top-1 accuracy"),
            ("top5", "top-5 accuracy"),
        )
    )
    corpus = ", ".join(f"`{_shown(name)}`" for name in config.corpus)
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [maskery, masked-language-modelling]
---

# A masked language model adapted with Maskery

Starting from `{_shown(config.model)}`, trained on {corpus} with
{config.masking.policy} masking at a rate of {config.masking.mask_rate}.

Held out, {after.masked_tokens:,} masked tokens of {after.examples:,} examples
({interval_note(after.examples)}):

| | before | after |
| --- | --- | --- |
{rows}

```python
from transformers import pipeline

pipeline("fill-mask", model="path/of/this/folder")
```
"""


def _shown(name: str) -> str:
    """What is said of a model or a corpus in public: not where it lay."""
    return Path(name).name if Path(name).is_absolute() else name


def _figure(interval: Interval) -> str:
    if not interval.known:
        return f"{interval.value:.4g}"
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
