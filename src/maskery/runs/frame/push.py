"""Upload the model of a finished run to the Hugging Face hub, with what the hub reads of a card."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, get_token

from maskery.core.errors import ConfigError
from maskery.data.corpus.files import asked, hub_name
from maskery.runs.frame.config_file import open_run, to_plain
from maskery.runs.frame.run_folder import EVALUATION, MODEL

KNOWN = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}  # packaged models on the hub


def push(
    folder: Path, repo: str, named: dict[str, Any], *, private: bool, revision: str | None
) -> str:
    """Upload the model of a run, which stays as it is; returns the address of the commit.

    `named` are fields of `ModelCardData`, in the place of what the run knows. Repository and
    `revision`, a branch, are made if they are not there; `private` counts only then.

    Raises:
        ConfigError: The run is not finished, or there are no credentials.
        DataError: The hub cannot be reached, or refuses.
    """
    run = open_run(folder)
    known = of_run(run.finished(type(run.config)), folder)
    if get_token() is None:
        problem = "there are no credentials for the hub"
        raise ConfigError(f"{problem}: log in with hf auth login, or set HF_TOKEN")
    with TemporaryDirectory() as place, asked(f"hf://{repo}", "pushed"):
        copy = shutil.copytree(folder / MODEL, Path(place) / MODEL)
        card = ModelCard.load(copy / "README.md")
        plain = {name: to_plain(value) for name, value in named.items()}
        vars(card.data).update(known | {"model_name": repo.rpartition("/")[2]} | plain)
        card.save(copy / "README.md")
        api = HfApi()
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=copy, revision=revision).commit_url)


def of_run(config: Any, folder: Path) -> dict[str, Any]:
    """Return what follows from a run: the model it began with, its data, its figures."""
    start, data = getattr(config, "start", config.model), hub_name(getattr(config, "corpus", ()))
    begun = None if ":" in start else hub_name([KNOWN.get(start, start)])
    document = json.loads((folder / EVALUATION).read_text("utf-8"))
    # Of a text run, of a run of pairs with the right picture, of person search.
    told = [document.get("after"), document.get("scores", {}).get("right")]
    told += [(document.get("test") or {}).get(ranking) for ranking in ("reranked", "contrastive")]
    task = "fill-mask" if config.kind == "text" else config.kind
    results = [
        EvalResult(task, "held-out", "held out by the run", name, value[0], metric_name=name)
        for name, value in next(filter(None, told)).items()
        if isinstance(value, list) and value[0] is not None
    ]
    found = {"base_model": begun and begun.name, "datasets": data and [data.name]}
    return {**found, "eval_results": results}
