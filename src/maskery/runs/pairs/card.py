"""The model card of an image-text model."""

from __future__ import annotations

from pathlib import Path

from maskery.runs.frame.run_frame import card_figure, model_card
from maskery.runs.pairs.config import PairsRunConfig
from maskery.runs.pairs.measure import PairsEvaluation


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
    if evaluation.mrtd_auc is not None:
        found = "\nReplaced words are told from original ones with an AUC of "
        found += f"{evaluation.mrtd_auc:.3f}.\n"
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
