"""The same run on one, two and four processes, replicated and sharded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fork_server import ForkServer
from safetensors.torch import load_file
from tiny_pairs import save_tiny_pairs
from tiny_text import lines, save_tiny_model

from maskery.core.system import METRICS, read_metrics
from maskery.core.task import StandIn
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
from maskery.training.config import TrainingConfig
from maskery.training.journal import SPEEDS

TEXT = (
    *("--epochs", "9", "--max-steps", "20", "--batch-tokens", "256", "--learning-rate", "1e-3"),
    *("--log-every", "1", "--checkpoint-every", "5", "--keep-checkpoints", "9", "--json"),
)
PAIRS = (
    *("--max-steps", "6", "--batch-pairs", "8", "--learning-rate", "1e-3", "--vocab-size", "200"),
    *("--log-every", "1", "--checkpoint-every", "2", "--keep-checkpoints", "9", "--json"),
    *("--height", "16", "--width", "16", "--held-out-share", "0.2"),
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    model = save_tiny_model(folder / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    (folder / "corpus.txt").write_text("\n".join(lines(300)))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    save_tiny_pairs(folder / "data", 48)
    return folder


def train_text(folder: Path, name: str, *more: str) -> list[str]:
    model, cache = str(folder / "model"), str(folder / "cache")
    return [
        *("train", "text", str(folder / "corpus.txt"), "--model", model, "--cache-dir", cache),
        *(*TEXT, "--output", str(folder / name), *more),
    ]


def train_pairs(folder: Path, name: str, *more: str) -> list[str]:
    data = str(folder / "data" / "pairs.jsonl")
    return ["train", "pairs", data, *PAIRS, "--output", str(folder / name), *more]


def numbers(run: Path) -> np.ndarray:
    """Every figure of `metrics.jsonl` but the speed, line by line."""
    rows = read_metrics(run / METRICS)
    return np.array(
        [
            value
            for row in rows
            for name, value in sorted(row.items())
            if name not in ("kind", *SPEEDS)
        ]
    )


def tensors(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / name)


def assert_same_run(one: Path, other: Path) -> None:
    np.testing.assert_allclose(numbers(other), numbers(one), rtol=1e-5, atol=1e-5)
    for name in ("model.safetensors", "optimiser.safetensors", "extra.safetensors"):
        expected, found = tensors(one, name), tensors(other, name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)
    saved = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    assert saved[0].keys() == saved[1].keys()
    described = [(run / "model" / "config.json").read_text() for run in (one, other)]
    assert described[0] == described[1]


@pytest.fixture(scope="module")
def one_text(server: ForkServer, text: Path) -> Path:
    server.run(train_text(text, "one"), text / "log-one", report=False)
    return text / "one"


@pytest.fixture(scope="module")
def pairs_run(server: ForkServer, pairs: Path) -> Callable[[int, str], Path]:
    """Train on so many processes, shared in that way, once for all tests that ask."""

    @cache
    def trained(ranks: int, sharding: str) -> Path:
        name = f"{sharding}-{ranks}"
        command = train_pairs(pairs, name, "--sharding", sharding)
        server.run(command, pairs / f"log-{name}", ranks=ranks, report=False)
        return pairs / name

    return trained


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (2, ()),
        (2, ("--micro-batch-tokens", "64")),
        (4, ("--sharding", "fsdp", "--micro-batch-tokens", "32")),
    ],
    ids=["ddp-2", "ddp-2-accumulating", "fsdp-4-accumulating"],
)
def test_text_on_several_processes(
    server: ForkServer, text: Path, one_text: Path, ranks: int, more: tuple[str, ...]
) -> None:
    name = f"run-{ranks}{'-'.join(more)}"
    printed = server.run(
        train_text(text, name, *more), text / f"log-{name}", ranks=ranks, report=False
    )
    assert len(numbers(one_text)) > 20 * 5
    assert_same_run(one_text, text / name)
    # The processes share the held-out text out, and what each example scored is the same.
    scores = [load_file(run / "before.safetensors") for run in (one_text, text / name)]
    assert torch.equal(scores[0]["ids"], scores[1]["ids"])
    torch.testing.assert_close(scores[0]["sums"], scores[1]["sums"], rtol=1e-6, atol=1e-6)
    # One process reports, for all of them.
    result = json.loads(printed[printed.index("{") :])
    assert result["training"]["steps"] == 20
    assert result["training"]["tokens"] > 20 * 200


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_image_text_on_several_processes(
    pairs_run: Callable[[int, str], Path], sharding: str
) -> None:
    runs = pairs_run(1, "ddp"), pairs_run(2, sharding)
    assert_same_run(*runs)
    twins = [load_file(run / "model" / "extra_state.safetensors") for run in runs]
    assert twins[0].keys() == twins[1].keys()
    for key, tensor in twins[0].items():
        torch.testing.assert_close(twins[1][key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world_size", [2, 4, 7])
@pytest.mark.parametrize("micro", [64, 256])
def test_masks_are_the_same_for_any_number_of_processes(
    text: Path, world_size: int, micro: int
) -> None:
    def masked(world_size: int, micro: int) -> list[list[tuple[int, ...]]]:
        training = TrainingConfig(batch_tokens=256, micro_batch_tokens=micro)
        config = TextRunConfig(
            corpus=(str(text / "corpus.txt"),),
            model=str(text / "model"),
            cache_dir=text / "cache",
            training=training,
        )
        run = TextRun(config, progress=False)
        masker = Masker.of(run.loaded.tokenizer, config=MaskingConfig(), seed=3)
        steps = []
        for step in range(4):
            rows: list[tuple[int, ...]] = []
            for rank in range(world_size):
                for batch in run.train.micro_batches(1, step, rank=rank, world_size=world_size):
                    if isinstance(batch, StandIn):
                        continue
                    found = masker.mask(batch, epoch=1, progress=0.5)
                    at = found.positions
                    row = np.searchsorted(batch.boundaries, at, side="right") - 1
                    place = batch.starts[row] + at - batch.boundaries[row]
                    columns = (batch.example_ids[row], place, found.targets, found.input_ids[at])
                    rows += zip(*(column.tolist() for column in columns), strict=True)
            steps.append(sorted(rows))
        return steps

    expected = masked(1, 256)
    assert sum(map(len, expected)) > 50
    assert masked(world_size, micro) == expected


def copied_back_to(run: Path, name: str, step: int) -> Path:
    """A copy of a run as it was after an earlier step."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(copy / "model")
    return copy


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, "ddp"), (2, "ddp")),
        ((2, "fsdp"), (1, "ddp")),
        ((2, "ddp"), (2, "fsdp")),
    ],
    ids=lambda kind: f"{kind[1]}-{kind[0]}",
)
def test_a_run_goes_on_with_other_processes(
    server: ForkServer,
    pairs: Path,
    pairs_run: Callable[[int, str], Path],
    first: tuple[int, str],
    second: tuple[int, str],
) -> None:
    name = f"from-{first[1]}{first[0]}-to-{second[1]}{second[0]}"
    copied_back_to(pairs_run(*first), name, 4)
    more = ("--sharding", second[1], "--resume", "auto")
    printed = server.run(
        train_pairs(pairs, name, *more), pairs / f"log-{name}", ranks=second[0], report=False
    )
    assert json.loads(printed[printed.index("{") :])["training"]["resumed_from"] == 4
    assert_same_run(pairs_run(1, "ddp"), pairs / name)


def test_processes_agree_on_the_best_after_a_resume(server: ForkServer, text: Path) -> None:
    """A rate so low that no figure ever beats the first: none is the best after the stop."""
    arguments = ("--eval-every", "2", "--learning-rate", "1e-12", "--max-steps", "12")
    arguments += ("--best-metric", "top1")
    whole = text / "whole"
    server.run(train_text(text, whole.name, *arguments), text / "log-whole", ranks=2, report=False)
    held_out = [line for line in read_metrics(whole / METRICS) if line["kind"] == "held_out"]
    assert len({line["top1"] for line in held_out}) == 1
    copied_back_to(whole, "resumed", 5)
    again = train_text(text, "resumed", *arguments, "--resume", "auto")
    server.run(again, text / "log-resumed", ranks=2, report=False)
    assert_same_run(whole, text / "resumed")


@pytest.fixture(scope="module")
def head_first(server: ForkServer, text: Path) -> Path:
    """A run on one process whose new head is trained first."""
    encoder = save_tiny_model(text / "encoder", head=False)
    (encoder / "config.json").write_text((text / "model" / "config.json").read_text())
    server.run(train_head_first(text, "head-first"), text / "log-head-first", report=False)
    return text / "head-first"


def train_head_first(folder: Path, name: str, *more: str) -> list[str]:
    model = str(folder / "encoder")
    return train_text(folder, name, "--model", model, "--head-first", "0.4", *more)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_head_that_is_trained_first(
    server: ForkServer, text: Path, head_first: Path, sharding: str
) -> None:
    """On two processes, which were then stopped while it was."""
    whole, again = (text / f"head-first-{sharding}{end}" for end in ("", "-again"))
    sharded = ("--sharding", sharding)
    server.run(
        train_head_first(text, whole.name, *sharded),
        text / f"log-{whole.name}",
        ranks=2,
        report=False,
    )
    copied_back_to(whole, again.name, 5)
    command = train_head_first(text, again.name, *sharded, "--resume", "auto")
    server.run(command, text / f"log-{again.name}", ranks=2, report=False)
    for run in (whole, again):
        assert_same_run(head_first, run)
        scores = [load_file(one / "with_head.safetensors") for one in (head_first, run)]
        torch.testing.assert_close(scores[1]["sums"], scores[0]["sums"], rtol=1e-4, atol=1e-5)


def test_a_small_step_leaves_a_process_a_stand_in(server: ForkServer, text: Path) -> None:
    """Two sequences a step, four processes."""
    for ranks in (1, 4):
        name = f"small-{ranks}"
        arguments = train_text(text, name, "--batch-tokens", "36", "--max-steps", "6")
        server.run(arguments, text / f"log-{name}", ranks=ranks, report=False)
    assert_same_run(text / "small-1", text / "small-4")


def test_an_error_is_told_once(server: ForkServer, text: Path, one_text: Path) -> None:
    run = server.start(train_text(text, "one"), text / "log-error", ranks=2)
    assert run.wait() == [2, 2]
    assert run.text.count("is in use") == 1
    assert "Traceback" not in run.text
    run = server.start(train_text(text, "x", "--batch-tokens", "0"), text / "log-error-2", ranks=2)
    assert run.wait() == [2, 2]
    assert run.text.count("batch_tokens is 0") == 1


def test_the_launcher_itself_and_what_it_says_of_a_failure(
    server: ForkServer, text: Path, one_text: Path
) -> None:
    """Its processes are fresh ones, of `python -m maskery`."""
    command = ["-m", "maskery", *train_text(text, "torchrun"), "--processes", "2"]
    done = server.python(*command)
    assert done.returncode == 0, done.stderr
    assert_same_run(one_text, text / "torchrun")
    done = server.python(*command, environment={"MASKERY_TIMEOUT": "soon"})
    assert done.returncode == 2
    assert done.stderr.count("MASKERY_TIMEOUT is 'soon'") == 1
    assert "Traceback" not in done.stderr
    assert "ChildFailed" not in done.stderr
