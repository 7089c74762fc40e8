"""`maskery train text`, `pairs`, `person-search` and `--config`; `maskery report`."""

import argparse
import typing
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from maskery.cli.main import HELP, Command, Trusting, parse
from maskery.cli.output import as_text, prepare_outputs
from maskery.core.errors import ConfigError, counted, meant
from maskery.core.ranges import Count, Range
from maskery.core.system import is_main_process, quick_imports
from maskery.runs.frame import config_file
from maskery.runs.frame.config_file import KINDS, SAMPLES, open_run
from maskery.runs.frame.run_folder import has_model, repeated_folder, write_json
from maskery.runs.shortcuts import finish_report, save_samples

USAGE = """usage: maskery train text CORPUS ...
       maskery train pairs PAIRS
       maskery train person-search --dataset NAME --root DIR
       maskery train --config RUN/config.yaml

The last repeats a run of any kind, with its settings, in the next free folder; flags after it
change settings, and --resume auto goes on with the run itself.

maskery train text --help, maskery train pairs --help and so on show all flags.
"""
ABOUT = {
    "text": """Adapt an encoder to your text, or train one from scratch.

Prints held-out loss, perplexity and accuracy before and after, and leaves a run folder with
config.yaml, metrics.jsonl, checkpoints/ and model/, a Hugging Face folder.

Examples:
  maskery train text meditations.txt --model minilm
  maskery train text 'notes/**/*.txt.gz' --model bert-base-uncased --epochs 1 --mask-rate 0.3
  maskery train text logs.jsonl --text-column message --model scratch:tiny --policy word
  maskery train text meditations.txt --objective mlm+mrtd --momentum 0.99
  maskery train text meditations.txt --output runs/meditations-minilm --resume auto
  maskery train --config runs/meditations-minilm/config.yaml --epochs 3
""",
    "pairs": """Learn to fill the hidden words of captions from their pictures.

Masked language modelling and replaced token detection with a momentum twin, on any image-caption
data. Prints held-out figures of the same model with the right picture, a wrong one and none, and
leaves a run folder with config.yaml, metrics.jsonl, checkpoints/ and model/.

Examples:
  maskery data draw-people people --people 3000
  maskery train pairs people/pairs_train.jsonl --score-words drawn-people
  maskery train pairs captions.csv --images photos --model models/albef
  maskery train pairs photos/ --text-model bert-base-uncased --vision-model facebook/deit-tiny-patch16-224
  maskery train pairs captions.json --images photos --output runs/photos --resume auto
""",  # noqa: E501
    "person-search": """Learn to find people by their descriptions.

RaSa's five losses on CUHK-PEDES, ICFG-PEDES, RSTPReid, drawn people or your own data. The model of
the best epoch by R@1 on validation identities is kept in model/, and measured on the test split:
by similarity, and with the best of each text ranked anew by matching.

Examples:
  maskery data draw-people people --people 3000
  maskery train person-search --dataset drawn-people --root people
  maskery train person-search --dataset cuhk-pedes --root CUHK-PEDES --preset rasa --model models/albef
  maskery train person-search --dataset rstpreid --root RSTPReid --preset rasa --model models/albef --processes 4
  maskery train person-search --dataset jsonl --root mine.jsonl --mrtd-weight 0 --resume auto
""",  # noqa: E501
}
EXAMPLES = {
    "text": 'fill {folder} "The [MASK] of the matter."',
    "pairs": 'fill {folder} "A picture of a [MASK]." --image PICTURE',
    "person-search": 'search {folder} --gallery PICTURES "a woman in a red coat"',
}
PRESET = """Settings to start from: small trains from scratch in minutes; rasa is RaSa as released;
albef is ALBEF's pre-training objective; irra, rde and clip start from a CLIP."""
Preset = Literal["small", "rasa", "albef", "irra", "rde", "clip"]


def repeat(arguments: Sequence[str]) -> Command:
    """Parse `maskery train --config FILE`, whatever the kind of the run."""
    path = take_config(arguments)[1]
    if path is None and not HELP.isdisjoint(arguments):
        print(USAGE, end="")
        raise SystemExit(0)
    if path is None:
        close = meant("".join(arguments[:1]), KINDS)
        known = f"{', '.join(KINDS)}, or --config RUN/config.yaml to repeat a run"
        raise ConfigError(f"name what to train: {known}{close}")
    return training(config_file.kind_of(config_file.read_settings(path), path), arguments)


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """A run of any kind; `command_class` adds its settings and its help."""

    quiet = False
    kind: ClassVar[str]
    run: Any
    processes: Count | None = None
    """Processes of this machine that train together, as torchrun starts them. Default: one for
    each GPU, or one."""
    # The folder of the run that is repeated, and the command line.
    repeated: tyro.conf.Suppress[tyro.conf.Fixed[Path | None]] = None
    arguments: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()

    def execute(self) -> None:
        """Train, print the result, and draw the report; or have several processes do so."""
        with quick_imports():
            from maskery.core.processes import launch
        if (code := launch(self.processes, self.arguments)) is not None:
            raise SystemExit(code)
        config, beside = self.run, None
        if self.repeated is not None and config.output is None:
            if config.resume == "auto":
                config = replace(config, output=self.repeated)
            else:
                beside = repeated_folder(self.repeated)
        with quick_imports():
            train_run = KINDS[self.kind].load("train")
        result = train_run(config, progress=not self.json, beside=beside)
        if is_main_process():
            self.answer(result.to_json(), describe(self.kind, result))
            finish_report(result.folder)


def training(kind: str, arguments: Sequence[str]) -> Command:
    """Parse the flags of a kind of run, on top of those of `--config FILE`."""
    rest, path = take_config(arguments)
    # `--config` is taken out first: what it says are the defaults that the parser shows.
    command = command_class(kind)
    parsed = parse(command, f"train {kind}", rest, starting_point(command, rest, path))
    wanted: Command = replace(parsed, arguments=("train", kind, *arguments))
    return wanted


text = partial(training, "text")
pairs = partial(training, "pairs")
person_search = partial(training, "person-search")


def take_config(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take `--config FILE` or `--config=FILE` out of the arguments, wherever it stands."""
    path, rest = taken(arguments, "--config")
    if path == "":
        raise ConfigError("--config names no file; give the config.yaml of a run")
    return rest, None if path is None else Path(path)


def taken(arguments: Sequence[str], *names: str) -> tuple[str | None, list[str]]:
    """Return the value of a flag by any of its names, "" where it has none, and the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(*names, nargs="?", const="", dest="value")
    found, rest = parser.parse_known_args(arguments)
    return found.value, rest


@cache
def command_class(kind: str) -> type[Any]:
    """Make the dataclass whose fields are the flags of a kind of run."""
    config = Annotated[KINDS[kind].load("config"), tyro.conf.OmitArgPrefixes]  # type: ignore[valid-type]
    fields: list[Any] = [("run", config)]
    if kind == "person-search":
        fields.append(("preset", Annotated[Preset, tyro.conf.arg(help=PRESET)], "small"))
    own = {"kind": kind, "__doc__": ABOUT[kind]}
    return make_dataclass("Train", fields, bases=(Train,), namespace=own, frozen=True, kw_only=True)


def starting_point(command: type[Any], arguments: Sequence[str], path: Path | None) -> Any:
    """Return the values of flags that are not given: a saved run's, a preset's, or None."""
    kind, preset = KINDS[command.kind], taken(arguments, "--preset")[0]
    if path is not None:
        saved = config_file.load_config(path, kind.load("config"))
        # A run folder that was moved is its own output.
        output = path.parent if (path.parent / "metrics.jsonl").is_file() else saved.output
        if preset is not None:
            reason = "the file has every setting"
            raise ConfigError(f"--preset and --config do not go together: {reason}")
        return command(run=replace(saved, output=None), repeated=output)
    begun = taken(arguments, "--from", "--from-run")[0] if command.kind == "text" else None
    if begun:
        from maskery.runs.text.branch import open_origin

        saved = open_origin(begun)
        return command(run=replace(saved.config, output=None, resume="no"), repeated=saved.folder)
    if command.kind != "person-search":
        return None
    preset = preset if preset in typing.get_args(Preset) else "small"  # the parser refuses others
    return command(run=kind.load("preset")(preset, tyro.MISSING), preset=preset)


def describe(kind: str, result: Any) -> str:
    """Return the figures of a run's result, and what to do with its model."""
    from maskery.evaluation.tables import run_tables

    folder, found, lines, ran = result.folder, result.to_json(), list[str](), result.summary
    if ran.resumed_from >= ran.steps:
        lines.append(f"the run was already finished: {counted(ran.steps, 'step')}")
    elif ran.seconds > 0:
        amounts = {"pair": ran.pairs, "token": ran.tokens}
        done = [counted(amount, word) for word, amount in amounts.items() if amount]
        speeds = [f"{n / ran.seconds:,.0f} {word}s/s" for word, n in amounts.items() if n]
        took = f"{', '.join(done)} in {ran.seconds:,.0f} s, {', '.join(speeds)}"
        lines.append(f"{counted(ran.steps, 'step')}; {took}")
    lines += [*found.get("skipped", ()), *found.get("notes", ())]
    if kind == "person-search":
        best = "the best model by R@1 on validation identities is that after step"
        lines.append(f"{best} {result.best_step:,}")
    lines += map(as_text, run_tables(found))
    if kind == "text":
        lines.append(f"verdict: {result.verdict}")
    example = EXAMPLES[kind].format(folder=folder)
    return "\n".join([*lines, f"the model is in {folder / 'model'}; try it:\n  maskery {example}"])


@dataclass(frozen=True, kw_only=True)
class Report(Trusting):
    """Draw the report of a run again: report.html, curves.png, figures.csv and words.csv.

    Examples:
      maskery report runs/meditations-minilm
      maskery report runs/meditations-minilm --resample
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder; a run that is still going gets a report of what there is."""
    resample: bool = False
    """Also compute the sample fills and changed words again, as after a change of the corpus."""

    def execute(self) -> None:
        """Write the page and the picture."""
        from maskery.report.page import write_report

        run = open_run(self.run)
        if has_model(run.folder) and self.resample:
            run.save_samples()
        elif has_model(run.folder) and not (run.folder / SAMPLES).is_file():
            save_samples(run)
        path = write_report(run.folder)
        self.answer({"report": str(path)}, f"the report is {path}")


@dataclass(frozen=True, kw_only=True)
class Verify(Trusting):
    """Recompute steps of a run from a kept checkpoint, and certify that they come out the same.

    Compares the losses of metrics.jsonl, and weights and optimiser of every checkpoint within the
    steps: bit for bit on a machine like the run's. Ends with exit code 1 if something differs. What
    the run has written is only read.

    Examples:
      maskery verify runs/meditations-minilm
      maskery verify runs/meditations-minilm --steps 101..120 --certificate verified.json
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    steps: str | None = None
    """FIRST..LAST, counted from 1. Default: the steps between the two newest checkpoints."""
    certificate: Path | None = None
    """The JSON file to write. Default: verified.json in the run folder."""
    tolerance: Annotated[float | None, Range(0)] = None
    """Largest difference of a loss or weight, over its size if that is above 1. Default: 0, and
    0.001 where the run's report names another machine, PyTorch or number of threads."""

    def execute(self) -> None:
        """Recompute, write the certificate, and say what was the same."""
        with quick_imports():
            from maskery.runs.frame.verify import verify
        path = self.certificate or open_run(self.run).folder / "verified.json"
        prepare_outputs(certificate=path)
        found = verify(self.run, self.steps, tolerance=self.tolerance, progress=not self.json)
        write_json(path, found)
        word = "verified" if found["verified"] else "NOT verified"
        lines = ["{}: steps {} to {}".format(word, *found["steps"]), *found["problems"]]
        for name, one in found["compared"].items():
            equal, largest = one["values"] - one["different"], one["largest_difference"]
            told = f"{equal} of {one['values']} equal to the bit, largest difference {largest:.3g}"
            lines.append(f"{name}: {told}")
        self.answer(found, "\n".join([*lines, f"the certificate is {path}"]))
        if not found["verified"]:
            raise SystemExit(1)
