"""`samples.json`: what a finished run shows of itself, for its report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from maskery.data.images.drawing import png_uri
from maskery.evaluation.image_text.image_ablation import sample_pictures
from maskery.evaluation.text.opening import open_model
from maskery.evaluation.text.samples import sample_text
from maskery.runs.frame.run_folder import CONFIG, load_config, write_json
from maskery.runs.image_text.start import start_model
from maskery.runs.pairs.config import PairsRunConfig
from maskery.runs.pairs.measure import is_pairs_run, trained_config
from maskery.runs.pairs.prepare import open_pairs, prepare_pairs
from maskery.runs.person_search.evaluate import search_samples
from maskery.runs.person_search.settings import is_person_search_run
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import prepare_text

SAMPLES = "samples.json"
PACKAGES = ("maskery", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def save_samples(folder: Path) -> None:
    """Write a run's sample fills, changed words or searches, and its environment.

    Args:
        folder: A finished run.

    Raises:
        MaskeryError: Its corpus or its model is no longer there.
    """
    samples: dict[str, Any] = {"environment": environment()}
    if is_person_search_run(folder):
        samples["searches"] = [
            {
                "caption": sample.caption,
                "found": [
                    {"picture": png_uri(found.image, height=160), "right": found.right}
                    for found in sample.found
                ],
            }
            for sample in search_samples(folder)
        ]
    elif is_pairs_run(folder):
        config = trained_config(load_config(folder / CONFIG, PairsRunConfig), folder)
        start = start_model(config, open_pairs(config)[0], progress=False)
        run = prepare_pairs(config, start=start, progress=False)
        model, tokenizer = run.start.model.eval(), run.start.tokenizer
        pictures = sample_pictures(model, run.held_out, tokenizer, run.start.view)
        samples["pictures"] = [asdict(one) for one in pictures]
    else:
        text = prepare_text(load_config(folder / CONFIG, TextRunConfig), progress=False)
        after = open_model(str(folder)).model
        batches = text.held_out.in_order()
        samples |= asdict(sample_text(text.model, after, batches, text.loaded.tokenizer))
    write_json(folder / SAMPLES, samples)


def environment() -> dict[str, str]:
    """Versions and machine, in words."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        **found,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "processors": str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "threads": str(torch.get_num_threads()),
    }
