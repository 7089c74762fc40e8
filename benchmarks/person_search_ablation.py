"""What each part of RaSa's objective, and doubt, add on drawn people: three seeds, one table.

    python benchmarks/person_search_ablation.py --folder /tmp/ablation
    python benchmarks/person_search_ablation.py --folder /tmp/ablation --trained-start
    python benchmarks/person_search_ablation.py --folder /tmp/ablation --steps 900 \
        --swap-captions 0.2 --variants "similarity alone" "similarity alone, doubt"

Every run has the same steps, batches and order of the data for its seed; only the objective
differs. A run of 450 steps takes about four minutes of one core. Runs that are done are not
repeated, so a stopped call is continued by the next; `--table` only prints what there is. With
`--trained-start` all runs, and their twins, start from one model that has learnt by similarity
alone, in twice the steps.
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
ALONE = replace(FULL, itm_weight=0.0, mlm_weight=0.0, prd_weight=0.0, mrtd_weight=0.0, alpha=0.0)
VARIANTS: dict[str, PersonSearchConfig] = {
    "full": FULL,
    "without MRTD": replace(FULL, mrtd_weight=0.0),
    "without soft labels": replace(FULL, alpha=0.0),
    "without the image in MLM": replace(FULL, mlm_with_image=False),
    "similarity and matching": replace(ALONE, itm_weight=FULL.itm_weight),
    "similarity alone": ALONE,
    "similarity alone, doubt": replace(ALONE, doubt=True),
}
START_SEED = 100
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
    people: Path, output: Path, variant: str, *, seed: int, steps: int, start: Path | None = None
) -> PersonSearchRunConfig:
    """One run: the preset `small` with another objective and fewer steps."""
    config = small(PersonSearchDataConfig(dataset="drawn-people", root=people))
    return replace(
        config,
        model=str(start) if start else config.model,
        output=output,
        resume="auto",
        objectives=VARIANTS[variant],
        retrieval=replace(config.retrieval, rerank=16 if VARIANTS[variant].itm_weight else 0),
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


def trained_start(folder: Path, steps: int) -> Path:
    """Train the model that runs start from, unless it is there."""
    output = folder / "start"
    if not (output / "evaluation.json").is_file():
        config = configuration(
            folder / "people", output, "similarity alone", seed=START_SEED, steps=2 * steps
        )
        train_person_search(config, progress=False)
    return output


def run_all(
    folder: Path, variants: Sequence[str], seeds: Sequence[int], steps: int, start: Path | None
) -> None:
    """Run every variant with every seed that is not done."""
    for seed in seeds:
        for name in variants:
            output = folder / f"{steps}-steps" / name.replace(" ", "-") / f"seed-{seed}"
            if (output / "evaluation.json").is_file():
                continue
            began = time.process_time()
            config = configuration(
                folder / "people", output, name, seed=seed, steps=steps, start=start
            )
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
    return {name: runs for name, runs in found.items() if runs}


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
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--trained-start", action="store_true")
    parser.add_argument("--swap-captions", type=float, default=0.0, help="share of the training's")
    parser.add_argument("--table", action="store_true", help="train nothing")
    wanted = parser.parse_args()
    folder = wanted.folder / ("trained-start" if wanted.trained_start else "from-scratch")
    if wanted.swap_captions:
        folder = folder.with_name(f"{folder.name}-{wanted.swap_captions:g}-swapped")
    if not wanted.table:
        draw_people(folder / "people", replace(PEOPLE, swap_captions=wanted.swap_captions))
        start = trained_start(folder, wanted.steps) if wanted.trained_start else None
        run_all(folder, wanted.variants, wanted.seeds, wanted.steps, start)
    print(table(read(folder, wanted.steps)))


if __name__ == "__main__":
    main()
