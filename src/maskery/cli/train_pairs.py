"""`maskery train pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from maskery.cli.console import parse, set_up_logging, take_config
from maskery.cli.figures import sights_table
from maskery.cli.run_end import told_by_figures
from maskery.core.startup import quick_imports
from maskery.runs.frame.run_folder import load_config
from maskery.runs.pairs.config import PairsRunConfig


@dataclass(frozen=True, kw_only=True)
class TrainPairs:
    """Learn to fill the hidden words of captions from their pictures.

    Masked language modelling and replaced token detection with a momentum twin, on any
    image-caption data. Prints held-out figures of the same model with the right picture, a wrong
    one and none, and leaves a run folder with config.yaml, metrics.jsonl, checkpoints/ and model/.

    Examples:
      maskery data draw-people people --people 3000
      maskery train pairs people/pairs_train.jsonl --score-words drawn-people
      maskery train pairs captions.csv --images photos --model models/albef
      maskery train pairs photos/ --text-model bert-base-uncased --vision-model facebook/deit-tiny-patch16-224
      maskery train pairs captions.json --images photos --output runs/photos --resume auto
    """  # noqa: E501

    run: Annotated[PairsRunConfig, tyro.conf.OmitArgPrefixes]
    json: bool = False
    """Print the result as JSON on standard output."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    rest, saved = take_config(arguments)
    default = None if saved is None else TrainPairs(run=load_config(saved, PairsRunConfig))
    wanted = parse(TrainPairs, "train pairs", rest, default)
    set_up_logging(quiet=wanted.json)
    with quick_imports():
        from maskery.runs.pairs.run import train_pairs

    result = train_pairs(wanted.run, progress=not wanted.json)
    if not told_by_figures(result, as_json=wanted.json, notes=result.skipped):
        return 0
    print(sights_table(result.evaluation))
    print(f"the model is in {result.folder / 'model'}; try it:")
    print(f'  maskery fill {result.folder} "A picture of a [MASK]." --image PICTURE')
    return 0
