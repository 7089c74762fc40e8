"""A whole person-search run on two processes takes the course of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fork_server import ForkServer
from safetensors.torch import load_file
from tiny_persons import save_cuhk

from maskery.core.system import METRICS, read_metrics
from maskery.training.journal import SPEEDS

SETTINGS = (
    *("--max-steps", "4", "--batch-pairs", "7", "--learning-rate", "1e-3", "--vocab-size", "200"),
    *("--log-every", "1", "--checkpoint-every", "2", "--eval-every", "2", "--rerank", "4"),
    *("--height", "16", "--width", "16", "--prd-weight", "0.5", "--mrtd-weight", "0.5"),
    *("--mlm-weight", "1", "--alpha", "0.4", "--queue-size", "24", "--json"),
    # Muon rounds to bf16, and a last digit decides how.
    *("--optimiser", "adamw"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    save_cuhk(folder / "data")
    return folder


def train(folder: Path, name: str, *more: str) -> list[str]:
    data = ("--dataset", "cuhk-pedes", "--root", str(folder / "data"))
    return ["train", "person-search", *data, *SETTINGS, "--output", str(folder / name), *more]


@pytest.fixture(scope="module")
def one(server: ForkServer, folder: Path) -> Path:
    server.run(train(folder, "one"), folder / "log-one")
    return folder / "one"


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_take_the_course_of_one(
    server: ForkServer, folder: Path, one: Path, sharding: str
) -> None:
    arguments = train(folder, sharding, "--sharding", sharding)
    printed = server.run(arguments, folder / f"log-{sharding}", ranks=2)
    # One process reports, for both of them.
    result, _ = json.JSONDecoder().raw_decode(printed[printed.index("{") :])
    expected = json.loads((one / "evaluation.json").read_text())
    assert result["best_step"] == expected["best_step"]
    assert result["test"]["num_texts"] == expected["test"]["num_texts"]
    for mine, theirs in zip(
        read_metrics(one / METRICS), read_metrics(folder / sharding / METRICS), strict=True
    ):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"kind", *SPEEDS}:
            np.testing.assert_allclose(theirs[name], mine[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for name in ("model.safetensors", "extra_state.safetensors"):
        saved = [load_file(run / "model" / name) for run in (one, folder / sharding)]
        assert saved[0].keys() == saved[1].keys()
        for key, tensor in saved[0].items():
            torch.testing.assert_close(saved[1][key], tensor, rtol=1e-3, atol=1e-5, msg=key)
