"""Person search that starts from a CLIP or SigLIP: trained, resumed, evaluated and searched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_persons import save_cuhk
from tiny_towers import save_towers

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.image_text.opening import open_image_text
from maskery.runs.image_text.config import PairsTrainingConfig, PersonSearchRunConfig
from maskery.runs.person_search.run import train_person_search
from maskery.tasks.image_text_config import PersonSearchConfig

DUAL = ["--mlm-weight", "0", "--mrtd-weight", "0", "--itm-weight", "0", "--prd-weight", "0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cuhk(tmp_path_factory.mktemp("cuhk"), {"train": 8, "val": 3, "test": 3})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_towers(folder, "clip")
    return folder


def config_of(root: Path, start: Path, output: Path, **changes: Any) -> PersonSearchRunConfig:
    return PersonSearchRunConfig(
        data=PersonSearchDataConfig(dataset="cuhk-pedes", root=root),
        model=str(start),
        fusion_layers=1,
        output=output,
        objectives=PersonSearchConfig(momentum=0.9, queue_size=32),
        training=PairsTrainingConfig(
            max_steps=3, batch_pairs=8, learning_rate=1e-3, checkpoint_every=1, eval_every=3
        ),
        **changes,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_all_losses_train_on_top_and_a_resumed_run_is_the_same(
    root: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_person_search(config_of(root, clip, tmp_path / "whole"), progress=False)
    cut = config_of(root, clip, tmp_path / "cut", resume="auto")
    die_before(2, train_person_search, cut, monkeypatch)
    train_person_search(cut, progress=False)
    expected, found = weights(whole.folder), weights(tmp_path / "cut")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    start = load_file(clip / "model.safetensors")
    moved = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(
        expected[moved.replace("text_model", "text_encoder.tower")], start[moved]
    )
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if row["kind"] == "train"]
    assert len(losses) > 1
    assert all({"itc", "itm", "mlm", "prd", "mrtd"} <= row.keys() for row in losses)


@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_a_dual_encoder_trains_evaluates_and_searches(
    family: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_towers(tmp_path / "start", family)
    data = ["--dataset", "cuhk-pedes", "--root", str(root), "--height", "24", "--width", "8"]
    start = ["--preset", "small", "--model", str(tmp_path / "start"), "--max-steps", "2", *DUAL]
    few = ["--batch-pairs", "8", "--max-length", "9", "--output", str(tmp_path / "run"), "--json"]
    assert main(["train", "person-search", *data, *start, *few]) == 0
    said = capsys.readouterr()
    trained = json.loads(said.out)
    assert "cut at 9 tokens: " in said.err
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)["figures"].values()
    assert again["contrastive"] == trained["test"]["contrastive"]
    asked = ["search", str(tmp_path / "run"), "--gallery", str(root / "imgs"), "--json"]
    assert main([*asked, "a person in red shirt"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert json.dumps(hits).count("cam_a") >= 10

    opened = open_image_text(str(tmp_path / "run"))
    assert opened.max_tokens == 9
    assert opened.model.config.image_size == [24, 8]
    # The end of the text, which the feature comes from, is there in captions that are cut.
    assert int(opened.encode_query("blue").input_ids[-1]) == opened.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("preset", "terms"),
    [("irra", {"sdm", "mlm", "tal"}), ("rde", {"tal"}), ("clip", {"infonce", "tal"})],
)
def test_presets_of_two_towers_train_with_terms_on_and_off(
    preset: str, terms: set[str], root: Path, clip: Path, tmp_path: Path
) -> None:
    data = ["--dataset", "cuhk-pedes", "--root", str(root), "--preset", preset]
    small = ["--model", str(clip), "--height", "16", "--width", "16", "--batch-pairs", "8"]
    terms_too = ["--max-steps", "1", "--term", "id=0", "--term", "tal=0.5", "--output"]
    assert main(["train", "person-search", *data, *small, *terms_too, str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (step,) = (row for row in rows if row["kind"] == "train")
    assert step.keys() & {"infonce", "sdm", "tal", "sigmoid", "id", "mlm", "itc", "itm"} == terms


def test_a_clip_is_searched_and_evaluated_as_it_is(
    root: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["search", str(clip), "--gallery", str(root / "imgs"), "--json", "a red shirt"]
    assert main(asked) == 0
    assert "cam_a" in capsys.readouterr().out
    rows = json.loads((root / "reid_raw.json").read_text())[:8]
    lines = [
        {"image": row["file_path"], "caption": text, "person": row["id"]}
        for row in rows
        for text in row["captions"]
    ]
    pairs = root / "imgs" / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    assert main(["evaluate", str(clip), "--data", str(pairs), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["figures"].values()
    assert (found["num_texts"], found["num_images"], found["reranked"]) == (16, 8, None)
    assert main(["fill", str(clip), "a [MASK] shirt"]) == 2
    assert "a dual encoder fills no words" in capsys.readouterr().err


def test_words_need_a_fusion_encoder(root: Path, clip: Path, tmp_path: Path) -> None:
    config = config_of(root, clip, tmp_path / "run")
    with pytest.raises(ConfigError, match="fusion layers for itm, mlm, mrtd, prd: add --fusion-l"):
        train_person_search(replace(config, fusion_layers=0), progress=False)
    with pytest.raises(ConfigError, match="--fusion-layers 1 goes on top of a CLIP or SigLIP"):
        train_person_search(replace(config, model="scratch:tiny"), progress=False)
    assert not (tmp_path / "run").exists()
