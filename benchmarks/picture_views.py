"""Two augmented views of each picture: pairs a second, Maskery's pool beside one thread.

    python benchmarks/picture_views.py
    python benchmarks/picture_views.py --side 384 --pairs 64 --rounds 5 --json views.json

Pictures are JPEGs of 150 by 400 pixels, as in CUHK-PEDES, drawn from a seed. `before` is how they
were read until the pool came: decoded by threads, then cropped, augmented and normalised one after
another, the three colours of a pixel together. Rounds are interleaved and the views are compared
bit for bit before anything is timed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from maskery.data.images.config import IMAGENET_MEAN, IMAGENET_STD, ViewConfig
from maskery.data.images.loading import MAX_WORKERS, ImageRef, Skipped, decode_many
from maskery.data.images.views import view_draws, view_pixels, view_stack

Views = tuple[torch.Tensor, torch.Tensor]


def make_pictures(count: int) -> list[ImageRef]:
    """Blurred noise: as many details as a photograph of a person has."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        held = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 255, (50, 19, 3), dtype=np.uint8))
        small.resize((150, 400), Image.Resampling.BICUBIC).save(held, "JPEG", quality=90)
        found.append(ImageRef.held(f"{number}.jpg", held.getvalue()))
    return found


def before(refs: list[ImageRef], config: ViewConfig, pool: ThreadPoolExecutor) -> Views:
    """Decode in threads; everything else in this one."""
    images = [image for image in decode_many(refs, Skipped("image", "fail"), pool=pool) if image]
    mean, std = (np.array(values, np.float32) for values in config.normalisation)

    def view(number: int) -> torch.Tensor:
        draws = drawn(len(images), number)
        pixels = [view_pixels(image, config, row) for image, row in zip(images, draws, strict=True)]
        levels = np.stack(pixels).astype(np.float32)
        levels *= 1 / (255 * std)
        levels -= mean / std
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(levels, -1, -3)))

    return view(0), view(1)


def now(refs: list[ImageRef], config: ViewConfig, pool: ThreadPoolExecutor) -> Views:
    """As training on a CPU reads them: `PicturedExamples.views`."""
    images = [image for image in decode_many(refs, Skipped("image", "fail"), pool=pool) if image]
    draws = np.concatenate([drawn(len(images), number) for number in (0, 1)])
    both = view_stack([*images, *images], config, draws, pool=pool)
    return both[: len(images)], both[len(images) :]


def drawn(count: int, number: int) -> np.ndarray:
    """Draw the uniforms of a view of each picture."""
    return view_draws(0, 0, np.arange(count, dtype=np.uint64), view=number)


def measure(side: int, pairs: int, rounds: int) -> dict[str, object]:
    """Pairs a second of both ways, by rounds, and the ratio within each round."""
    torch.set_num_threads(1)
    sizes = {"height": side, "width": side, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    config = ViewConfig(**sizes, crop_scale=(0.5, 1.0), augment_operations=2)
    refs, ways = make_pictures(pairs), {"before": before, "now": now}
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as alone:
        for one, other in zip(before(refs, config, pool), now(refs, config, pool), strict=True):
            assert torch.equal(one, other), "the views differ"
        speeds: dict[str, list[float]] = {name: [] for name in (*ways, "now, one thread")}
        for _ in range(rounds):
            for name, way in ways.items():
                speeds[name].append(pairs / seconds(partial(way, refs, config, pool)))
            speeds["now, one thread"].append(pairs / seconds(partial(now, refs, config, alone)))
    ratios = [new / old for old, new in zip(speeds["before"], speeds["now"], strict=True)]
    return {"pairs_per_second": speeds, "ratios": ratios, "workers": workers, "side": side}


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = measure(chosen.side, chosen.pairs, chosen.rounds)
    for name, speeds in found["pairs_per_second"].items():
        print(f"{name:16} {statistics.median(speeds):6.1f} pairs/s at {chosen.side} pixels")
    ratios = found["ratios"]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
