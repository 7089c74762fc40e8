"""Upload the model of a finished run to the Hugging Face hub, with what the hub reads of a card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, get_token

from maskery.core.errors import ConfigError
from maskery.data.corpus.files import asked, hub_name
from maskery.runs.frame.config_file import open_run
from maskery.runs.frame.run_folder import EVALUATION, MODEL

CARD = "README.md"
# What a packaged model is called on the hub.
KNOWN = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}


def push(
    folder: Path, repo: str, named: dict[str, Any], *, private: bool, revision: str | None
) -> str:
    """Upload the model folder of a run; returns the address of the commit.

    Args:
        folder: The run folder, which stays as it is.
        repo: NAME or OWNER/NAME; it is made if it is not there.
        named: Fields of `ModelCardData`, in the place of what the run knows.
        private: Make it private, if it is not there yet.
        revision: A branch, which is made if it is not there.

    Raises:
        ConfigError: The run is not finished, or there are no credentials.
        DataError: The hub cannot be reached, or refuses.
    """
    run = open_run(folder)
    config = run.finished(type(run.config))
    if get_token() is None:
        raise ConfigError(
            "there are no credentials for the hub: log in with hf auth login, or set HF_TOKEN"
        )
    with TemporaryDirectory() as place:
        copy = Path(place) / MODEL
        shutil.copytree(folder / MODEL, copy)
        card = ModelCard.load(copy / CARD)
        for name, value in (of_run(config, folder, repo) | named).items():
            setattr(card.data, name, value or None)
        card.save(copy / CARD)
        with asked(f"hf://{repo}", "pushed"):
            api = HfApi()
            name = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=copy, revision=revision)
    return str(done.commit_url)


def of_run(config: Any, folder: Path, repo: str) -> dict[str, Any]:
    """Return the fields of a card that follow from a run: where it began, its data, its figures."""
    start, data = getattr(config, "start", config.model), hub_name(getattr(config, "corpus", ()))
    document = json.loads((folder / EVALUATION).read_text("utf-8"))
    # Of a text run, of a run of pairs with the right picture, of person search.
    told = [document.get("after"), document.get("scores", {}).get("right")]
    told += [(document.get("test") or {}).get(ranking) for ranking in ("reranked", "contrastive")]
    results = [
        EvalResult(
            task_type="fill-mask" if config.kind == "text" else config.kind,
            dataset_type="held-out",
            dataset_name=f"held out by the run{f' of {data.name}' if data else ''}",
            metric_type="accuracy" if name.startswith("top") else name,
            metric_name=name,
            metric_value=value[0],
        )
        for name, value in next(filter(None, told)).items()
        if isinstance(value, list) and value[0] is not None
    ]
    begun = None if ":" in start else hub_name([KNOWN.get(start, start)])
    return {
        "model_name": repo.rpartition("/")[2],
        "eval_results": results,
        "base_model": begun and begun.name,
        "datasets": data and [data.name],
    }
