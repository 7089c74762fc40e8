"""`maskery train text`, `pairs`, `person-search` and `--config`; `maskery report`."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from maskery.cli.main import parse, print_json, set_up_logging, take_config
from maskery.core.errors import ConfigError, MaskeryError, MissingExtraError
from maskery.core.system import is_main_process, quick_imports
from maskery.runs.frame.config_file import (
    KINDS,
    SAMPLES,
    kind_of,
    load_config,
    open_run,
    read_settings,
)
from maskery.runs.frame.run_folder import has_model, repeated_folder

log = logging.getLogger(__name__)

USAGE = """usage: maskery train text CORPUS ...
       maskery train pairs PAIRS
       maskery train person-search --dataset NAME --root DIR
       maskery train --config RUN/config.yaml

The last repeats a run of any kind, with its settings, in the next free folder; flags after it
change settings, and --resume auto goes on with the run itself.

maskery train text --help, maskery train pairs --help and so on show all flags.
"""
TEXT = """Adapt an encoder to your text, or train one from scratch.

Prints held-out loss, perplexity and accuracy before and after, and leaves a run folder with
config.yaml, metrics.jsonl, checkpoints/ and model/, a Hugging Face folder.

Examples:
  maskery train text meditations.txt --model minilm
  maskery train text 'notes/**/*.txt.gz' --model bert-base-uncased --epochs 1 --mask-rate 0.3
  maskery train text logs.jsonl --text-column message --model scratch:tiny --policy word
  maskery train text meditations.txt --objective mlm+mrtd --momentum 0.99
  maskery train text meditations.txt --output runs/meditations-minilm --resume auto
  maskery train --config runs/meditations-minilm/config.yaml --epochs 3
"""
PAIRS = """Learn to fill the hidden words of captions from their pictures.

Masked language modelling and replaced token detection with a momentum twin, on any image-caption
data. Prints held-out figures of the same model with the right picture, a wrong one and none, and
leaves a run folder with config.yaml, metrics.jsonl, checkpoints/ and model/.

Examples:
  maskery data draw-people people --people 3000
  maskery train pairs people/pairs_train.jsonl --score-words drawn-people
  maskery train pairs captions.csv --images photos --model models/albef
  maskery train pairs photos/ --text-model bert-base-uncased --vision-model facebook/deit-tiny-patch16-224
  maskery train pairs captions.json --images photos --output runs/photos --resume auto
"""  # noqa: E501
PERSON_SEARCH = """Learn to find people by their descriptions.

RaSa's five losses on CUHK-PEDES, ICFG-PEDES, RSTPReid, drawn people or your own data. The model of
the best epoch by R@1 on validation identities is kept in model/, and measured on the test split:
by similarity, and with the best of each text ranked anew by matching.

Examples:
  maskery data draw-people people --people 3000
  maskery train person-search --dataset drawn-people --root people
  maskery train person-search --dataset cuhk-pedes --root CUHK-PEDES --preset rasa --model models/albef
  torchrun --nproc-per-node 4 -m maskery train person-search --dataset rstpreid --root RSTPReid --preset rasa --model models/albef
  maskery train person-search --dataset jsonl --root mine.jsonl --mrtd-weight 0 --resume auto
"""  # noqa: E501
ABOUT = {"text": TEXT, "pairs": PAIRS, "person-search": PERSON_SEARCH}
PRESET = """Settings to start from: small trains from scratch in minutes; rasa is RaSa as released;
albef is ALBEF's pre-training objective."""
Preset = Literal["small", "rasa", "albef"]


def text(arguments: Sequence[str]) -> int:
    """Run `maskery train text`."""
    return train("text", arguments)


def pairs(arguments: Sequence[str]) -> int:
    """Run `maskery train pairs`."""
    return train("pairs", arguments)


def person_search(arguments: Sequence[str]) -> int:
    """Run `maskery train person-search`."""
    return train("person-search", arguments)


def main(arguments: Sequence[str]) -> int:
    """Repeat the run of `--config FILE`, whatever its kind."""
    if not {"-h", "--help"}.isdisjoint(arguments) and take_config(arguments)[1] is None:
        print(USAGE, end="")
        raise SystemExit(0)
    path = take_config(arguments)[1]
    if path is None:
        raise ConfigError(
            f"name what to train: {', '.join(KINDS)}, or --config RUN/config.yaml to repeat a run"
        )
    return train(kind_of(read_settings(path), path), arguments)


def train(kind: str, arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    rest, path = take_config(arguments)
    saved = None if path is None else saved_config(path, kind)
    wanted = parse(command_class(kind), f"train {kind}", rest, starting_point(kind, rest, saved))
    set_up_logging(quiet=wanted.json)
    config, beside = wanted.run, None
    if saved is not None and config.output is None:
        if config.resume == "auto":
            config = replace(config, output=saved.output)
        elif saved.output is not None:
            beside = repeated_folder(saved.output)
    with quick_imports():
        train_run = KINDS[kind].load("train")
    result = train_run(config, progress=not wanted.json, beside=beside)
    if is_main_process():
        report(kind, result, as_json=wanted.json)
    return 0


def saved_config(path: Path, kind: str) -> Any:
    """Read the configuration of a run; a run folder that was moved is its own output.

    Raises:
        ConfigError: It cannot be read, or is of another kind.
    """
    config = load_config(path, KINDS[kind].load("config"))
    if (path.parent / "metrics.jsonl").is_file():
        config = replace(config, output=path.parent)
    return config


@cache
def command_class(kind: str) -> type[Any]:
    """Make the dataclass whose fields are the flags of a kind of run."""
    config = Annotated[KINDS[kind].load("config"), tyro.conf.OmitArgPrefixes]  # type: ignore[valid-type]
    as_json = Annotated[bool, tyro.conf.arg(help="Print the result as JSON on standard output.")]
    fields: list[Any] = [("run", config), ("json", as_json, False)]
    if kind == "person-search":
        preset = Annotated[Preset, tyro.conf.arg(help=PRESET)]
        fields.insert(1, ("preset", preset, "small"))
    made = make_dataclass("Train", fields, frozen=True, kw_only=True)
    made.__doc__ = ABOUT[kind]
    return made


def starting_point(kind: str, arguments: Sequence[str], saved: Any) -> Any:
    """Return the values of flags that are not given: a saved run's, a preset's, or None.

    Raises:
        ConfigError: A preset is named beside a saved run.
    """
    command = command_class(kind)
    named = any(argument.partition("=")[0] == "--preset" for argument in arguments)
    if saved is not None:
        if named:
            raise ConfigError(
                "--preset and --config do not go together: the file has every setting"
            )
        return command(run=replace(saved, output=None))
    if kind != "person-search":
        return None
    preset = chosen_preset(arguments)
    return command(run=KINDS[kind].load("preset")(preset, tyro.MISSING), preset=preset)


def chosen_preset(arguments: Sequence[str]) -> Preset:
    """Return the preset that arguments name; the parser refuses other names."""
    presets: tuple[Preset, ...] = ("small", "rasa", "albef")
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for flag, name in pairwise(words):
        if flag == "--preset":
            return next((preset for preset in presets if preset == name), "small")
    return "small"


def report(kind: str, result: Any, *, as_json: bool) -> None:
    """Print a result, then draw the report of its run."""
    if as_json:
        print_json(result.to_json())
    else:
        for line in length_of(result.summary):
            print(line)
        show(kind, result)
    finish_report(result.folder)


def length_of(summary: Any) -> list[str]:
    """Return the steps, tokens and time of a `Summary`; nothing where no time was spent."""
    if summary.resumed_from >= summary.steps:
        return [f"the run was already finished: {summary.steps} steps"]
    if summary.seconds <= 0:
        return []
    return [
        f"{summary.steps} steps; {summary.tokens:,} tokens in {summary.seconds:,.0f} s, "
        f"{summary.tokens / summary.seconds:,.0f} tokens/s"
    ]


def show(kind: str, result: Any) -> None:
    """Print the figures of a run's result, and what to do with its model."""
    from maskery.cli import figures

    folder = result.folder
    if kind == "text":
        judged = None if result.mrtd_auc is None else {"after": result.mrtd_auc}
        print(figures.scores_table(result.columns, result.difference, judged, result.heads))
        if result.vectors is not None:
            from maskery.cli.probe import describe

            print(describe(result.vectors))
        print(f"verdict: {result.verdict}")
        example = f'fill {folder} "The [MASK] of the matter."'
    elif kind == "pairs":
        print("\n".join([*result.skipped, figures.sights_table(result.evaluation)]))
        example = f'fill {folder} "A picture of a [MASK]." --image PICTURE'
    else:
        best = "the best model by R@1 on validation identities is that after step"
        print("\n".join([*result.notes, f"{best} {result.best_step:,}"]))
        print(figures.retrieval_table(result.test or result.val))
        example = f'search {folder} --gallery PICTURES "a woman in a red coat"'
    print(f"the model is in {folder / 'model'}; try it:\n  maskery {example}")


def finish_report(folder: Path) -> None:
    """Draw the report at the end of a run; if it cannot be drawn, warn and go on."""
    # By name: a page has nothing to do with a run, which ends well without one.
    page = importlib.import_module("maskery.report.page")
    log.info("drawing the report")
    try:
        open_run(folder).save_samples()
        log.info("the report is %s", page.write_report(folder))
    except MissingExtraError as error:
        log.warning("no report is drawn: %s; then: maskery report %s", error, folder)
    except MaskeryError as error:
        log.warning("no report is drawn: %s", error)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw the report of a run again: report.html and curves.png in its folder.

    Examples:
      maskery report runs/meditations-minilm
      maskery report runs/meditations-minilm --resample
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder; a run that is still going gets a report of what there is."""
    resample: bool = False
    """Also compute the sample fills and changed words again, as after a change of the corpus."""


def redraw(arguments: Sequence[str]) -> int:
    """Run `maskery report`."""
    wanted = parse(Report, "report", arguments)
    set_up_logging(quiet=True)
    from maskery.report.page import write_report

    run = open_run(wanted.run)
    if has_model(run.folder) and (wanted.resample or not (run.folder / SAMPLES).is_file()):
        run.save_samples()
    print(f"the report is {write_report(run.folder)}")
    return 0
