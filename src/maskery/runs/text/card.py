"""The model card that is saved beside every model."""

from __future__ import annotations

from maskery.evaluation.intervals import interval_note
from maskery.evaluation.text.masked import MaskedScores
from maskery.runs.frame.run_frame import card_figure, model_card, public_name
from maskery.runs.text.config import TextRunConfig


def text_model_card(config: TextRunConfig, before: MaskedScores, after: MaskedScores) -> str:
    """Markdown with the metadata block that model hubs read."""
    rows = "\n".join(
        f"| {label} | {card_figure(getattr(before, name))} | {card_figure(getattr(after, name))} |"
        for name, label in (
            ("loss", "loss (nats)"),
            ("perplexity", "perplexity"),
            ("top1", "top-1 accuracy"),
            ("top5", "top-5 accuracy"),
        )
    )
    corpus = ", ".join(f"`{public_name(name)}`" for name in config.corpus)
    text = f"""
# A masked language model adapted with Maskery

Starting from `{public_name(config.model)}`, trained on {corpus} with
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
    return model_card(text.lstrip(), pipeline_tag="fill-mask")
