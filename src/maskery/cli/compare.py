"""`maskery compare`, `sweep` and `merge`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from maskery.cli.main import Command, Trusting
from maskery.cli.output import as_text, figures_csv, prepare_outputs
from maskery.core.errors import ConfigError
from maskery.core.ranges import Range, Weight
from maskery.core.system import quick_imports
from maskery.runs.frame.run_folder import write_text

if TYPE_CHECKING:
    from maskery.evaluation.text.comparison import Row


@dataclass(frozen=True, kw_only=True)
class Comparing(Command):
    """The forms of a comparison."""

    csv: Path | None = None
    """Also write the figures into this file, one line a row of the table."""
    page: Path | None = None
    """Also write one self-contained page: the figures, also as CSV, and the runs' curves over one
    another."""

    def execute(self) -> None:
        """Compare; files that cannot be written are refused before anything is computed."""
        prepare_outputs(csv=self.csv, page=self.page)
        self.report(self.compare())

    def compare(self) -> Sequence["Row"]:
        """Return the rows of the comparison."""
        raise NotImplementedError

    def report(self, rows: Sequence["Row"]) -> None:
        """Print a comparison, and write it into the files that were named."""
        from maskery.report.page import comparison_page, comparison_table, reference

        figures = as_csv(rows)
        if self.csv is not None:
            write_text(self.csv, figures)
        if self.page is not None:
            write_text(self.page, comparison_page(rows, figures))
        self.answer({"against": reference(rows), "rows": rows}, as_text(comparison_table(rows)))


@dataclass(frozen=True, kw_only=True)
class Compare(Comparing, Trusting):
    """Compare text runs that were measured on the same held-out text and masks.

    Shows the settings that differ, held-out figures with 95% intervals, and each run's difference
    to the best one, paired by example. Runs that differ in the seed alone become one row: mean and
    standard deviation over seeds.

    Examples:
      maskery compare runs/notes-minilm runs/notes-minilm-2
      maskery compare runs/notes-* --against runs/notes-minilm --page compared.html
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of finished text runs."""
    against: Path | None = None
    """The run that the others are compared with. Default: that of the lowest held-out loss."""

    def compare(self) -> Sequence["Row"]:
        """Compare the runs that were named."""
        with quick_imports():
            from maskery.runs.text.evaluate import compare_folders
        return compare_folders(self.runs, self.against)


@dataclass(frozen=True, kw_only=True)
class Sweep(Comparing, Trusting):
    """Train a text run with several values of its settings, one after the other, and compare.

    Every combination of the values is a run in a folder of its own, SWEEP/NAME-VALUE. The same
    command goes on after an interruption: finished runs are kept, an interrupted one resumes.

    Examples:
      maskery sweep runs/notes-minilm/config.yaml --over learning_rate=1e-4,3e-4
      maskery sweep notes.yaml --over mask_rate=0.15,0.3 --over seed=0,1 --output runs/rates
    """

    quiet = False
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The config.yaml of a text run."""
    over: tyro.conf.UseAppendAction[tuple[str, ...]]
    """A setting and its values, as mask_rate=0.15,0.3; may be given several times."""
    output: Path | None = None
    """The folder of the runs' folders. Default: that of CONFIG's run, with -sweep after its
    name."""

    def compare(self) -> Sequence["Row"]:
        """Train what is missing, and compare all runs."""
        with quick_imports():
            from maskery.runs.text.evaluate import compare_folders, plan_sweep, run_sweep
        runs = plan_sweep(self.config, self.over, self.output)
        return compare_folders(run_sweep(runs, progress=not self.json))


@dataclass(frozen=True, kw_only=True)
class Merge(Comparing):
    """Merge the weights of models that were trained from one start, or fold an adapter in.

    Examples:
      maskery merge runs/laws runs/letters --weights 0.5 0.5 --output models/both
      maskery merge runs/laws runs/letters --method ties --base minilm --output models/both
      maskery merge runs/laws runs/letters --eval-data held_out.txt --csv curve.csv
      maskery merge runs/laws/model/adapter --output models/laws
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL ...")]
    """Run folders, model folders, folders of adapters, hub names or minilm."""
    output: Path | None = None
    """The model folder to write; must be empty or not exist."""
    weights: tuple[Weight, ...] = ()
    """The weight of each model. Default: all the same."""
    method: Literal["linear", "ties"] = "linear"
    """linear: the weighted sum. ties: what the models changed in --base, the largest changes of
    each, where most agree on the sign (Yadav et al. 2023)."""
    base: str | None = None
    """The model that all were trained from, with --method ties."""
    density: Annotated[float, Range(0, 1, above=True, hint="try {flag} 0.2")] = 0.2
    """Share of each model's changes that ties keeps."""
    eval_data: tuple[str, ...] = ()
    """Measure two models on this text, and what lies between them: a row a weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.method == "ties") != (self.base is not None):
            raise ConfigError("--method ties and --base MODEL, its start, need each other")
        if self.output is None and not self.eval_data:
            raise ConfigError("name the folder to write, --output, or text to measure, --eval-data")
        if (self.csv or self.page) and not self.eval_data:
            raise ConfigError("--csv and --page hold a curve, which needs --eval-data")

    def compare(self) -> Sequence["Row"]:
        """Merge, and measure the curve between two models."""
        with quick_imports():
            from maskery.runs.text.merge import merge
        place, texts = self.output, self.eval_data
        return merge(self.models, self.weights, self.base, self.density, place, texts)

    def report(self, rows: Sequence["Row"]) -> None:
        """Print the curve, or where the model is."""
        if rows:
            super().report(rows)
        else:
            self.answer({"output": self.output}, f"written to {self.output}")


def as_csv(rows: Sequence["Row"]) -> str:
    """Return all figures as CSV; unknown ends of intervals are empty."""
    names = ("loss", "perplexity", "top1", "top5")
    lines: list[dict[str, Any]] = []
    for row in rows:
        line = {"run": " ".join(row.runs), "seed": " ".join(map(str, row.seeds)), **row.settings}
        found = {name: getattr(row.scores, name) for name in names}
        found |= {f"difference_{name}": value for name, value in row.difference.items()}
        deviations = {f"{name}_deviation": value for name, value in row.deviation.items()}
        lines.append(line | found | deviations)
    return figures_csv(lines)
