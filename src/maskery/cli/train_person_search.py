"""`maskery train person-search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import tyro

from maskery.cli.console import parse, set_up_logging, take_config
from maskery.cli.figures import retrieval_table
from maskery.cli.run_end import told_by_figures
from maskery.core.errors import ConfigError
from maskery.core.startup import is_main_process, quick_imports
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.runs.frame.run_folder import load_config
from maskery.runs.person_search.config import PersonSearchRunConfig
from maskery.runs.person_search.presets import PRESETS, PresetName


@dataclass(frozen=True, kw_only=True)
class TrainPersonSearch:
    """Learn to find people by what is said of them.

    RaSa's five losses on CUHK-PEDES, ICFG-PEDES, RSTPReid, drawn people or your own data. The model
    of the best epoch by R@1 on validation identities is kept in model/, and measured on the test
    split: by similarity, and with the best of each text ranked anew by matching.

    Examples:
      maskery data draw-people people --people 3000
      maskery train person-search --dataset drawn-people --root people
      maskery train person-search --dataset cuhk-pedes --root CUHK-PEDES --preset rasa --model models/albef
      torchrun --nproc-per-node 4 -m maskery.cli.main train person-search --dataset rstpreid --root RSTPReid --preset rasa --model models/albef
      maskery train person-search --dataset jsonl --root mine.jsonl --mrtd-weight 0 --resume auto
    """  # noqa: E501

    run: Annotated[PersonSearchRunConfig, tyro.conf.OmitArgPrefixes]
    preset: PresetName = "small"
    """What the other settings start from: small trains from scratch in minutes; rasa is RaSa as
    released; albef is ALBEF's pre-training objective."""
    json: bool = False
    """Print the result as JSON on standard output."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    rest, saved = take_config(arguments)
    if saved is None:
        default = TrainPersonSearch(run=PRESETS[chosen_preset(rest)](_nothing_yet()))
    elif "--preset" in rest:
        raise ConfigError("--preset and --config do not go together: the file has every setting")
    else:
        default = TrainPersonSearch(run=load_config(saved, PersonSearchRunConfig))
    wanted = parse(TrainPersonSearch, "train person-search", rest, default)
    set_up_logging(quiet=wanted.json or not is_main_process())
    with quick_imports():
        from maskery.runs.person_search.run import train_person_search

    result = train_person_search(wanted.run, progress=not wanted.json)
    if not told_by_figures(result, as_json=wanted.json, notes=result.notes):
        return 0
    print(f"the best model by R@1 on validation identities is that after step {result.best_step:,}")
    print(retrieval_table(result.test or result.val))
    print(f"the model is in {result.folder / 'model'}; try it:")
    print(f'  maskery search {result.folder} --gallery PICTURES "a woman in a red coat"')
    return 0


def chosen_preset(arguments: Sequence[str]) -> PresetName:
    """The preset that arguments name; what is no preset is left for the parser to refuse."""
    for index, argument in enumerate(arguments):
        name = argument.removeprefix("--preset=")
        if argument == "--preset":
            name = "".join(arguments[index + 1 : index + 2])
        if (argument == "--preset" or name != argument) and name in PRESETS:
            return name
    return "small"


def _nothing_yet() -> PersonSearchDataConfig:
    """A dataset that the parser insists on."""
    missing = cast("Any", tyro.MISSING)
    return PersonSearchDataConfig(dataset=missing, root=missing)
