"""`maskery train text`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from maskery.cli.console import parse, set_up_logging, take_config
from maskery.cli.figures import scores_table
from maskery.cli.run_end import told_by_figures
from maskery.core.startup import quick_imports
from maskery.runs.frame.run_folder import load_config
from maskery.runs.text.config import TextRunConfig


@dataclass(frozen=True, kw_only=True)
class TrainText:
    """Adapt an encoder to your text, or train one from scratch.

    Prints held-out loss, perplexity and accuracy before and after, and leaves a run folder with
    config.yaml, metrics.jsonl, checkpoints/ and model/, a Hugging Face folder.

    Examples:
      maskery train text meditations.txt --model minilm
      maskery train text 'notes/**/*.txt.gz' --model bert-base-uncased --epochs 1 --mask-rate 0.3
      maskery train text logs.jsonl --text-column message --model scratch:tiny --policy word
      maskery train text meditations.txt --objective mlm+mrtd --momentum 0.99
      maskery train text meditations.txt --output runs/meditations-minilm --resume auto
      maskery train --config runs/meditations-minilm/config.yaml --output runs/again
    """

    run: Annotated[TextRunConfig, tyro.conf.OmitArgPrefixes]
    json: bool = False
    """Print the result as JSON on standard output."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    rest, saved = take_config(arguments)
    default = None if saved is None else TrainText(run=load_config(saved, TextRunConfig))
    wanted = parse(TrainText, "train text", rest, default)
    set_up_logging(quiet=wanted.json)
    with quick_imports():
        from maskery.runs.text.run import train_text

    result = train_text(wanted.run, progress=not wanted.json)
    if not told_by_figures(result, as_json=wanted.json):
        return 0
    columns = {"before": result.before, "after": result.after}
    judged = None if result.mrtd_auc is None else {"after": result.mrtd_auc}
    print(scores_table(columns, result.difference, judged))
    print(f"the model is in {result.folder / 'model'}; try it:")
    print(f'  maskery fill {result.folder} "The [MASK] of the matter."')
    return 0
