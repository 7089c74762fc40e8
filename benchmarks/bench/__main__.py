"""Run the benchmark: `python benchmarks/bench`, or `python -m bench` in the folder benchmarks/."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

# Started by its path, Python looks for modules in this folder and not in the one around it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.config import BenchConfig
from maskery.cli.main import parse, set_up_logging
from maskery.cli.output import print_json, table
from maskery.core.errors import DataError, MaskeryError
from maskery.core.ranges import Settings

PROGRAM = "bench"


@dataclass(frozen=True, kw_only=True)
class Bench(Settings):
    """Maskery beside HF's recipe and the seed document's loop, interleaved in one run.

    Examples:
      python benchmarks/bench
      python benchmarks/bench meditations.txt
      python benchmarks/bench notes.txt --contenders maskery hf-blocks --dropout none --rounds 5
      python benchmarks/bench meditations.txt --json --chart bench.png
    """

    run: Annotated[BenchConfig, tyro.conf.OmitArgPrefixes]
    chart: Path | None = None
    """Also draw a chart: a .png or .svg file."""
    json: bool = False
    """Print JSON on standard output."""


def main(arguments: Sequence[str]) -> int:
    """Parse, measure, report.

    Raises:
        MaskeryError: The corpus is missing, or a contender failed.
    """
    wanted = parse(Bench, PROGRAM, arguments, program="python -m")
    set_up_logging(quiet=True)
    if wanted.run.corpus == Path():
        from maskery.runs.text.quickstart import write_corpus

        corpus = write_corpus(Path(tempfile.mkdtemp(prefix="maskery-bench-")))
        wanted = replace(wanted, run=replace(wanted.run, corpus=corpus))
    if not wanted.run.corpus.is_file():
        raise DataError(f"there is no file '{wanted.run.corpus}'; name a text file to train on")
    from bench.run import run_bench

    result = run_bench(wanted.run, lambda line: print(line, file=sys.stderr))
    if wanted.chart is not None:
        from bench.chart import draw_chart

        draw_chart(result, wanted.chart)
    if wanted.json:
        print_json(result)
    else:
        print(describe(result))
    return 0


def describe(result: dict[str, Any]) -> str:
    """The result as a table."""
    first = result["rows"][0]["name"]
    rows = [["", "real tok/s", f"{first} is", "range", "real share", "of peak", "memory"]]
    for row in result["rows"]:
        memory = row["peak_memory_mb"]
        rows.append(
            [
                row["name"],
                f"{row['tokens_per_second']:,.0f}",
                f"{row['ratio']:.2f}x",
                f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
                f"{100 * row['padding_efficiency']:.0f}%",
                f"{100 * row['peak_share']:.0f}%",
                "-" if memory is None else f"{memory:,.0f} MB",
            ]
        )
    machine = result["environment"]
    return (
        f"{table(rows)}\n{machine['device']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}; dropout: {machine['config']['dropout']}; medians over "
        f"{machine['config']['rounds']} interleaved rounds; peak: the fastest matrix product seen, "
        f"{machine['matrix_peak_gflops']:,.0f} GFLOP/s"
    )


def command() -> int:
    """Run the benchmark; the exit code is 2 for anything the user can mend."""
    try:
        return main(sys.argv[1:])
    except MaskeryError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(command())
