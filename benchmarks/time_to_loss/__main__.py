"""Seconds of training until a held-out loss is reached, recipe by recipe.

    python benchmarks/time_to_loss meditations --corpus meditations.txt --folder DIR
    python benchmarks/time_to_loss reference --folder DIR --recipes maskery hf --runs 3
    python benchmarks/time_to_loss scratch --folder DIR --set hf.learning_rate=1e-3 hf.steps=200

Each run has a process of its own; recipes take turns. Every finished run is a line of
DIR/TRACK/log.jsonl, and runs that are there are not repeated. README.md has the rules.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recipes import RECIPES, TRACKS, Recipe, run_recipe, write_texts


def main() -> None:
    """Run what is missing of the log, then print the ladder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("track", choices=TRACKS)
    parser.add_argument("--corpus", type=Path, help="the text of the track `meditations`")
    parser.add_argument("--folder", type=Path, required=True, help="texts, models and the log")
    parser.add_argument("--recipes", nargs="+", default=["maskery", "hf"], choices=RECIPES)
    parser.add_argument("--runs", type=int, default=3, help="of each recipe, with seeds from 0")
    parser.add_argument("--set", nargs="*", default=[], help="recipe.setting=number, to tune one")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a run of a process of its own, as JSON
    options = parser.parse_args()
    folder = options.folder / options.track
    if options.one is not None:
        asked = json.loads(options.one)
        recipe = Recipe(**asked["settings"])
        print(json.dumps(run_recipe(asked["recipe"], recipe, options.track, folder, asked["seed"])))
        return
    write_texts(options.track, options.corpus, folder)
    for seed in range(options.runs):
        for name in options.recipes:
            settings = tuned(name, RECIPES[name][options.track], options.set)
            line = {"recipe": name, "seed": seed, "settings": asdict(settings)}
            if not any(line.items() <= done.items() for done in log(folder)):
                append(folder, line | in_own_process(line))
    print(ladder(options.track, log(folder)))


def tuned(name: str, recipe: Recipe, changes: list[str]) -> Recipe:
    """Return a recipe with the user's numbers; those of other recipes do not count."""
    for change in changes:
        place, value = change.split("=")
        owner, setting = place.split(".")
        if owner == name:
            kind = type(getattr(recipe, setting))
            recipe = replace(recipe, **{setting: kind(float(value))})
    return recipe


def in_own_process(line: dict[str, Any]) -> dict[str, Any]:
    """Run one line; what it prints last is its result."""
    command = [sys.executable, *sys.argv, "--one", json.dumps(line)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def log(folder: Path) -> list[dict[str, Any]]:
    """Return the finished runs of a track."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(folder: Path, line: dict[str, Any]) -> None:
    """Add a finished run to the log."""
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), file=sys.stderr)


def ladder(track: str, lines: list[dict[str, Any]]) -> str:
    """Draw one row for each recipe and setting, the slowest first; * marks the target missed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(json.dumps([line["recipe"], line["settings"]]), []).append(line)
    rows = []
    for key, runs in groups.items():
        seconds = [run["seconds"] for run in runs]
        losses = [run["loss"] for run in runs]
        missed = "*" if statistics.mean(losses) > TRACKS[track].target else ""
        rows.append((statistics.median(seconds), missed, key, seconds, losses))
    shown = [f"{track}: held-out loss of at most {TRACKS[track].target}"]
    for middle, missed, key, seconds, losses in sorted(rows, reverse=True):
        name, settings = json.loads(key)
        told = " ".join(f"{field}={value:g}" for field, value in settings.items())
        shown.append(
            f"{name:8} {middle:8.1f} s ({min(seconds):.1f} to {max(seconds):.1f})  "
            f"loss {statistics.mean(losses):.3f}{missed} ({min(losses):.3f} to {max(losses):.3f})  "
            f"n={len(losses)}  {told}"
        )
    return "\n".join(shown)


if __name__ == "__main__":
    main()
