"""`maskery push` as typed, against a stand-in for the hub with the signatures of the real one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.runs.frame import push as module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "notes.txt").write_text("\n".join(lines(40)) + "\n")
    told = ["train", "text", folder / "notes.txt", "--model", save_tiny_model(folder / "start")]
    told += ["--output", folder / "run", "--batch-tokens", "256", "--max-steps", "1"]
    assert main([str(word) for word in [*told, "--cache-dir", folder / "cache"]]) == 0
    return folder / "run"


class Hub:
    """Keeps what is uploaded; every call must fit the signature of `HfApi`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api: Any = create_autospec(HfApi, instance=True)
        self.api.create_repo.side_effect = lambda name, **_: SimpleNamespace(repo_id=f"me/{name}")
        self.api.upload_folder.side_effect = self.upload
        self.files: dict[str, bytes] = {}
        monkeypatch.setattr(module, "HfApi", lambda: self.api)
        monkeypatch.setattr(module, "get_token", lambda: "token")

    def upload(self, *, folder_path: Path, **_: Any) -> SimpleNamespace:
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url="https://hub/me/notes/commit/1")

    @property
    def card(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.files["README.md"].decode().split("---")[1])
        return found


def test_the_model_is_uploaded_with_a_card_that_the_hub_reads(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, before = Hub(monkeypatch), (run / "model" / "README.md").read_bytes()
    flags = "--private --revision trial --license apache-2.0 --language en de --base-model a/b"
    assert main(["push", str(run), "notes", *flags.split()]) == 0
    assert "https://hub/me/notes/commit/1" in capsys.readouterr().out
    hub.api.create_repo.assert_called_once_with("notes", private=True, exist_ok=True)
    hub.api.create_branch.assert_called_once_with("me/notes", branch="trial", exist_ok=True)
    assert hub.api.upload_folder.call_args.kwargs["repo_id"] == "me/notes"
    assert hub.api.upload_folder.call_args.kwargs["revision"] == "trial"
    model = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    assert hub.files.keys() == model.keys()
    assert all(hub.files[name] == model[name] for name in model if name != "README.md")
    assert (run / "model" / "README.md").read_bytes() == before
    card = hub.card
    assert (card["license"], card["language"], card["base_model"]) == (
        "apache-2.0",
        ["en", "de"],
        "a/b",
    )
    assert card["pipeline_tag"] == "fill-mask"
    results = card["model-index"][0]["results"][0]
    assert card["model-index"][0]["name"] == "notes"
    assert results["task"] == {"type": "fill-mask"}
    after = json.loads((run / "evaluation.json").read_text())["after"]
    metrics = {one["name"]: one["value"] for one in results["metrics"]}
    assert metrics == {name: after[name][0] for name in ("loss", "perplexity", "top1", "top5")}
    assert "datasets" not in card  # a file of this machine is no dataset of the hub
    assert str(run.parent) not in hub.files["README.md"].decode()


def test_what_the_hub_has_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config |= {"corpus": ["owner/texts:en"], "model": "owner/encoder"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    hub = Hub(monkeypatch)
    assert main(["push", str(copy), "me/notes"]) == 0
    assert (hub.card["datasets"], hub.card["base_model"]) == (["owner/texts"], "owner/encoder")
    hub.api.create_branch.assert_not_called()
    assert main(["push", str(copy), "me/notes", "--datasets", "a/b"]) == 0
    assert hub.card["datasets"] == ["a/b"]


def test_what_goes_wrong_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(monkeypatch)
    response: Any = SimpleNamespace(headers={}, request=None)
    hub.api.create_repo.side_effect = HfHubHTTPError("403 Forbidden", response=response)
    assert main(["push", str(run), "other/notes"]) == 2
    error = capsys.readouterr().err
    assert "'hf://other/notes' cannot be pushed (403 Forbidden" in error
    monkeypatch.setattr(module, "get_token", lambda: None)
    assert main(["push", str(run), "me/notes"]) == 2
    error += capsys.readouterr().err
    assert "no credentials for the hub" in error
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run / "config.yaml", unfinished)
    assert main(["push", str(unfinished), "me/notes"]) == 2
    error += capsys.readouterr().err
    assert "has no model yet" in error
    assert error.count("\n") == 3
