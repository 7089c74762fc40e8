"""What an encoder learns from scratch in equal time, objective by objective.

    python benchmarks/objectives.py --folder DIR --seconds 45 --runs 3

The text is the Python language reference by paragraphs, every tenth held out; the model is
`scratch:tiny` with one vocabulary, and Muon. A trial of each kind finds how many steps fit into the
time, the whole schedule of its runs; reading, evaluations and saving do not count. Judged are: the
held-out loss on frozen masks (mean nats, 15% of the tokens; where the model fills words), a linear
probe of the chapter that a paragraph is from (accuracy), and 300 minimal pairs made from a grammar
(where it fills words). Finished runs are lines of DIR/log.jsonl, and are not repeated. Nothing else
may run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from maskery import evaluate, train
from maskery.cli.main import main as command
from maskery.runs.text.quickstart import write_corpus, write_topics

PLUGINS = Path(__file__).resolve().parents[1] / "examples" / "plugins"
CAUSAL = f"{PLUGINS}/causal_objective.py:causal"
COMMON: dict[str, Any] = {
    "model": "scratch:tiny", "unit": "line", "batch_tokens": 2048, "optimiser": "muon",
    "learning_rate": 1e-3, "warmup_share": 0.1, "hidden_dropout": 0.0, "epochs": 1000,
    "held_out_tokens": 1000, "checkpoint_every": 10**9, "checkpoint_minutes": None,
    "report": False, "progress": False,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "mlm 15%": {"mask_rate": 0.15},
    "mlm 30% to 15%": {"mask_rate": 0.3, "mask_rate_end": 0.15, "mask_schedule": "linear"},
    "diffusion": {"objective": "diffusion"},
    "causal, then mlm 15%": {"mask_rate": 0.15},
    "ELECTRA": {"objective": f"{PLUGINS}/electra_objective.py:Electra", "mask_rate": 0.15},
}
FIRST = 0.25  # Share of the steps of a causal phase that comes first
TRIAL = 30  # Steps that tell how long one takes; the first are slower
NOUNS = (
    *("statement", "expression", "name", "object", "function"),
    *("module", "value", "method", "argument", "type"),
)
VERBS = [("is", "are"), ("has", "have"), ("was", "were"), ("does", "do")]
ENDINGS = {"is": "used", "has": "a value", "was": "defined", "does": "not change"}


def main() -> None:
    """Run what is missing of the log, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="texts, runs and the log")
    parser.add_argument("--seconds", type=float, default=45.0, help="of training")
    parser.add_argument("--runs", type=int, default=3, help="of each kind, with seeds from 0")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a run in a process of its own, as JSON
    options = parser.parse_args()
    folder, log = options.folder, options.folder / "log.jsonl"
    if options.one is not None:
        print(json.dumps(run(folder, **json.loads(options.one))))
        return
    write_texts(folder)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed, kind in itertools.product(range(options.runs), KINDS):
        asked = {"kind": kind, "seed": seed, "seconds": options.seconds}
        if any(asked.items() <= line.items() for line in done):
            continue
        steps = [line["steps"] for line in done if line["kind"] == kind]
        again = [sys.executable, *sys.argv, "--one", json.dumps(asked | {"steps": steps[:1]})]
        found = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout
        done.append(asked | json.loads(found.splitlines()[-1]))
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    print(table(done))


def write_texts(folder: Path) -> None:
    """Write training and held-out paragraphs, an example a line, the chapters, and the pairs."""
    if (folder / "pairs.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = [" ".join(x.split()) for x in write_corpus(folder).read_text("utf-8").split("\n\n")]
    lines = [line for line in lines if line]
    (folder / "held_out.txt").write_text("\n".join(lines[::10]), "utf-8")
    (folder / "train.txt").write_text("\n".join(x for i, x in enumerate(lines) if i % 10), "utf-8")
    write_topics(folder)
    pairs = [json.dumps(pair) for pair in minimal_pairs(random.Random(0))]
    (folder / "pairs.jsonl").write_text("\n".join(pairs), "utf-8")


def minimal_pairs(draw: random.Random) -> list[dict[str, str]]:
    """Return agreement of subject and verb: next to each other, and with a noun between."""
    found = []
    for noun, between, (one, many) in itertools.product(NOUNS, NOUNS, VERBS):
        if noun == between:
            continue
        plural, other = draw.random() < 0.5, draw.random() < 0.5
        subject = f"The {noun}s" if plural else f"The {noun}"
        right, wrong = (many, one) if plural else (one, many)
        for term, words in (
            ("agreement, adjacent", subject),
            ("agreement, a noun between", f"{subject} of the {between}{'s' if other else ''}"),
        ):
            good, bad = (f"{words} {verb} {ENDINGS[one]}." for verb in (right, wrong))
            found.append({"sentence_good": good, "sentence_bad": bad, "linguistics_term": term})
    return draw.sample(found, 300)


def run(folder: Path, kind: str, seed: int, seconds: float, steps: list[int]) -> dict[str, Any]:
    """Train for the time, and measure; `held_out` is None of a model that fills no words."""
    if not steps:
        trial = trained(folder, kind, seed, TRIAL)
        steps = [round(TRIAL * seconds / trial["seconds"])]
    found = trained(folder, kind, seed, steps[0])
    model = str(folder / "runs" / "now")
    fills = kind != "ELECTRA"
    held_out = (folder / "held_out.txt").read_text("utf-8").splitlines()
    loss = evaluate(f"{model}/model", held_out).scores.loss.value if fills else None
    probe = answer(["probe", model, "--labels", str(folder / "topics.jsonl")])
    linear = next(one for one in probe["figures"] if one["name"] == "linear probe")
    suite = answer(["score", model, "--suite", str(folder / "pairs.jsonl")]) if fills else None
    pairs = [x["accuracy"][0] for x in suite["figures"] if x["level"] == "micro"] if suite else []
    return {
        "trained": found["seconds"],
        "steps": steps[0],
        "tokens": found["tokens"],
        "held_out": loss,
        "probe": next(iter(linear["models"].values()))[0],
        "pairs": pairs[0] if pairs else None,
    }


def trained(folder: Path, kind: str, seed: int, steps: int) -> dict[str, float]:
    """Train a kind for some steps into `runs/now`; returns its seconds and tokens."""
    settings = {**COMMON, **KINDS[kind], "seed": seed}
    settings |= {"eval_data": str(folder / "held_out.txt"), "cache_dir": folder / "cache"}
    now, first = folder / "runs" / "now", folder / "runs" / "first"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    total = {"seconds": 0.0, "tokens": 0.0}
    parts = [(now, {**settings, "max_steps": steps})]
    if kind.startswith("causal"):
        before = round(FIRST * steps)
        causal = {**settings, "objective": CAUSAL, "max_steps": before, "lr_schedule": "constant"}
        parts = [(first, causal), (now, {**settings, "from_run": str(first), "max_steps": steps})]
        os.environ["CAUSAL_SHARE"] = "1"
    for output, chosen in parts:
        found = train(str(folder / "train.txt"), output=output, **chosen).summary
        total["seconds"] += found.seconds
        total["tokens"] += found.tokens
    return total


def answer(words: list[str]) -> Any:
    """Return what a command answers as JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert command([*words, "--json"]) == 0
    return json.loads(out.getvalue())


def table(lines: list[dict[str, Any]]) -> str:
    """Draw a row for each kind: means over seeds, with their ranges."""
    rows = [f"{'objective':22}{'tokens':>9}  held-out loss          probe (%)            pairs (%)"]
    for kind in KINDS:
        runs = [line for line in lines if line["kind"] == kind]
        cells = []
        for name, scale, digits in (("held_out", 1, 3), ("probe", 100, 1), ("pairs", 100, 1)):
            values = [scale * run[name] for run in runs if run[name] is not None]
            mean = f"{statistics.mean(values):.{digits}f}" if values else "-"
            ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if values else ""
            cells.append(f"{mean}{ends}".ljust(21))
        tokens = statistics.mean(run["tokens"] for run in runs)
        rows.append(f"{kind:22}{tokens:9,.0f}  {'  '.join(cells)}".rstrip())
    return "\n".join(rows)


if __name__ == "__main__":
    main()
