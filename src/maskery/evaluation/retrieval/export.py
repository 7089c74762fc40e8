"""Write what a retrieval found: a row for each caption, and the features with their names."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from maskery.core.batch import Ints
from maskery.evaluation.retrieval.evaluate import Retrieval
from maskery.evaluation.retrieval.metrics import text_figures
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet

RANKS = "ranks.jsonl"  # In a run's folder, of the split that its figures are of


def rank_rows(measured: RetrievalSet, found: Retrieval) -> list[dict[str, Any]]:
    """Return for each caption the rank of its first right picture (1 is best) and what came first.

    `rank` is by the last ranking, which `average_precision` and `first` are of.
    """
    persons = [*measured.pairs.person_names, None]  # the last is nobody's
    names, queries = names_of(measured, measured.gallery), range(len(found.last.order))
    columns = {
        "caption": map(measured.caption, queries),
        "picture": names_of(measured, measured.captions.owners[measured.queries]),
        "person": (persons[one] for one in measured.text_persons.clip(min=-1).tolist()),
        "rank": found.last.ranks[:, 0].tolist(),
        "rank_by_similarity": found.contrastive.ranks[:, 0].tolist(),
        "average_precision": text_figures(found.last.ranks)[:, 3].tolist(),
        "first": (names[one] for one in found.last.order[:, 0].tolist()),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def names_of(measured: RetrievalSet, pairs: Ints) -> list[str]:
    """Return the names of the pictures of some pairs."""
    return [str(measured.pairs.names[index]) for index in pairs.tolist()]


def ranks_jsonl(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `rank_rows`, one a line."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def save_features(path: Path, measured: RetrievalSet, found: Retrieval) -> None:
    """Write unit features `images` (I, E) and `texts` (T, E), and whom each shows or describes.

    The metadata of the safetensors has the pictures' names and the captions as JSON lists.
    """
    tensors = {"images": found.images.cpu(), "texts": found.texts.cpu()}
    persons = {"image_persons": measured.image_persons, "text_persons": measured.text_persons}
    tensors |= {name: torch.from_numpy(column) for name, column in persons.items()}
    captions = list(map(measured.caption, range(len(found.texts))))
    named = {"images": names_of(measured, measured.gallery), "captions": captions}
    save_file(tensors, path, {name: json.dumps(one) for name, one in named.items()})
