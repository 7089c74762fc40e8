"""Noise files, as RDE published them: training captions exchanged for those of others."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from maskery.core.errors import DataError, counted
from maskery.data.pairs.records import Record


def exchanged(records: Sequence[Record], path: Path) -> tuple[list[Record], str]:
    """Exchange training captions as a noise file says; returns a note about them, too.

    RDE's `noiseindex` (Qin et al., CVPR 2024): an index for each caption of the training split, in
    the order of the annotations, into the same captions.
    """
    captions = [caption for r in records if r.split == "train" for caption in r.caption]
    try:
        index, count = np.asarray(np.load(path)), len(captions)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the noise file '{path}' is no .npy that can be read: {error}") from error
    is_whole = index.shape == (count,) and index.dtype.kind in "iu"
    if not is_whole or (count and not 0 <= index.min() <= index.max() < count):
        raise DataError(
            f"the noise file '{path}' has the shape {index.shape} of {index.dtype}: it must hold a "
            f"number from 0 to {count - 1} for each of the {count:,} training captions; name the "
            f"file that was made for this dataset"
        )
    given = iter([captions[i] for i in index.tolist()])
    moved = int((index != np.arange(len(index))).sum())
    return [
        replace(r, caption=list(islice(given, len(r.caption)))) if r.split == "train" else r
        for r in records
    ], f"exchanged by '{path}': {moved:,} of {counted(len(captions), 'training caption')}"
