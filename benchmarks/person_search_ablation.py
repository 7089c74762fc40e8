"""What each part of RaSa's objective adds on drawn people: four variants, three seeds, one table.

    python benchmarks/person_search_ablation.py --folder /tmp/ablation

Every run has the same steps, batches and order of the data for its seed; only the objective
differs. A run of 450 steps takes about four minutes of one core. Runs that are done are not
repeated, so a stopped call is continued by the next; `--table` only prints what there is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.people.config import PeopleConfig
from maskery.people.dataset import draw_people
from maskery.runs.frame.run_folder import write_json
from maskery.runs.image_text.config import PersonSearchRunConfig, small
from maskery.runs.person_search.run import train_person_search
from maskery.tasks.image_text_config import PersonSearchConfig

# RaSa's weights; the twin moves faster and the queue is shorter, for runs of few steps.
FULL = PersonSearchConfig(momentum=0.98, queue_size=1024)
VARIANTS: dict[str, PersonSearchConfig] = {
    "full": FULL,
    "without MRTD": replace(FULL, mrtd_weight=0.0),
    "without soft labels": replace(FULL, alpha=0.0),
    "without the image in MLM": replace(FULL, mlm_with_image=False),
}
FIGURES = (
    ("contrastive", "r1", "R@1 by similarity"),
    ("reranked", "r1", "R@1, best 16 ranked anew"),
    ("contrastive", "map", "mAP by similarity"),
    ("reranked", "map", "mAP, best 16 ranked anew"),
)
PEOPLE = PeopleConfig(
    num_people=900, images_per_person=4, width=32, height=64, splits=(0.75, 0.05, 0.2)
)


def configuration(
    people: Path, output: Path, objective: PersonSearchConfig, *, seed: int, steps: int
) -> PersonSearchRunConfig:
    """One run: the preset `small` with another objective and fewer steps."""
    config = small(PersonSearchDataConfig(dataset="drawn-people", root=people))
    return replace(
        config,
        output=output,
        resume="auto",
        objectives=objective,
        training=replace(
            config.training,
            max_steps=steps,
            batch_pairs=32,
            eval_every=steps,
            checkpoint_every=steps,
            keep_checkpoints=1,
            seed=seed,
        ),
    )


def run_all(folder: Path, seeds: Sequence[int], steps: int) -> None:
    """Draw the people once, then run every variant with every seed that is not done."""
    draw_people(folder / "people", PEOPLE)
    for seed in seeds:
        for name, objective in VARIANTS.items():
            output = folder / f"{steps}-steps" / name.replace(" ", "-") / f"seed-{seed}"
            if (output / "evaluation.json").is_file():
                continue
            began = time.process_time()
            config = configuration(folder / "people", output, objective, seed=seed, steps=steps)
            train_person_search(config, progress=False)
            seconds = time.process_time() - began
            write_json(output / "seconds.json", {"processor_seconds": seconds})
            print(f"{name}, seed {seed}: {seconds:.0f} s of processor time", flush=True)


def read(folder: Path, steps: int) -> dict[str, list[Mapping[str, Any]]]:
    """The figures on test people of the runs that are done, by variant."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name in VARIANTS:
        runs = (folder / f"{steps}-steps" / name.replace(" ", "-")).glob("seed-*/evaluation.json")
        found[name] = [json.loads(run.read_text("utf-8"))["test"] for run in sorted(runs)]
    return found


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Mean and standard deviation over seeds, in percent, as Markdown."""
    lines = ["| | runs | " + " | ".join(label for *_, label in FIGURES) + " |"]
    lines.append("| --- " * (len(FIGURES) + 2) + "|")
    for name, runs in found.items():
        cells = []
        for ranking, figure, _ in FIGURES:
            values = [100 * run[ranking][figure][0] for run in runs if run[ranking] is not None]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    known = [run for runs in found.values() for run in runs]
    if known:
        lines.append("")
        lines.append(
            f"{known[0]['num_texts']:,} captions of {known[0]['num_persons']} people never seen in "
            f"training against {known[0]['num_images']:,} pictures; chance "
            f"{100 * known[0]['chance']:.2f}%; mean ± standard deviation over seeds."
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--table", action="store_true", help="train nothing")
    wanted = parser.parse_args()
    if not wanted.table:
        run_all(wanted.folder, wanted.seeds, wanted.steps)
    print(table(read(wanted.folder, wanted.steps)))


if __name__ == "__main__":
    main()
