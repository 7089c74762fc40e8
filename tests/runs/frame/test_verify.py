"""Steps of a run recomputed from a kept checkpoint: what is the same, and what is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.core.system import sha256_of
from maskery.runs.frame.verify import compared, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "notes.txt").write_text("\n".join(lines(60)) + "\n")
    save_tiny_model(folder / "start")
    flags = "--batch-tokens 128 --epochs 5 --max-steps 8 --log-every 2 --checkpoint-every 4"
    told = ["train", "text", folder / "notes.txt", "--model", folder / "start", *flags.split()]
    told += ["--output", folder / "run", "--cache-dir", folder / "cache"]
    assert main([str(word) for word in told]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def content(folder: Path) -> dict[str, str]:
    return {str(path): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def flip(checkpoint: Path, file: str = "model.safetensors", *, reseal: bool) -> None:
    """Flip one bit of one number; with `reseal`, the manifest says that it was so."""
    tensors = load_file(checkpoint / file)
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name].view(-1).view(torch.int32)[5] ^= 1 << 12
    save_file(tensors, checkpoint / file)
    if reseal:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest[file] = sha256_of(checkpoint / file)
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_is_what_its_steps_make_of_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(folder)
    assert main(["verify", str(folder)]) == 0
    assert "verified" in capsys.readouterr().out
    certificate = folder / "verified.json"
    found = json.loads(certificate.read_text())
    certificate.unlink()
    assert content(folder) == before
    assert found["verified"]
    assert found["steps"] == [5, 8]
    assert found["recomputed_from"] == 4
    # Lines of steps 6 and 8, each with loss, mlm, learning rate, gradient norm and so on.
    assert found["compared"]["losses"]["values"] >= 6
    weights = load_file(folder / "checkpoints" / "step-00000008" / "model.safetensors")
    # Each weight with two moments and a count of steps, and what else a checkpoint holds.
    assert found["compared"]["step-00000008"]["values"] >= 4 * len(weights) - 3
    assert all(one["different"] == 0 for one in found["compared"].values())
    assert found["settings"]["training"]["seed"] == found["seed"] == 0


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("reseal", [False, True])
def test_one_changed_bit_is_found(folder: Path, step: int, reseal: bool) -> None:
    flip(folder / "checkpoints" / f"step-{step:08d}", reseal=reseal)
    found = verify(folder, progress=False)
    assert not found["verified"]
    if not reseal:
        assert "does not match its checksum" in found["problems"][0]
    elif step == 8:
        assert found["compared"]["step-00000008"]["different"] == 1
        assert found["compared"]["losses"]["different"] == 0


def test_a_changed_moment_is_found(folder: Path) -> None:
    flip(folder / "checkpoints" / "step-00000008", "optimiser.safetensors", reseal=True)
    assert "optimiser.safetensors" in verify(folder, progress=False)["problems"][0]


def changed_seed(folder: Path, made: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("  seed: 0\n", "  seed: 1\n"))


def changed_corpus(folder: Path, made: Path) -> None:
    other = folder.parent / "other.txt"
    other.write_text((made / "notes.txt").read_text().replace("number 7.", "number 70.", 1))
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace(str(made / "notes.txt"), str(other)))


def changed_loss(folder: Path, made: Path) -> None:
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    next(row for row in rows if row["kind"] == "train" and row["step"] == 6)["loss"] += 1e-12
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed_seed, "seed is 1 here and 0 in the run"),
        (changed_corpus, "corpus_fingerprint is"),
        (changed_loss, "losses: 1 of"),
    ],
)
def test_what_was_changed_is_named(
    folder: Path,
    made: Path,
    change: Callable[[Path, Path], None],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(folder, made)
    with pytest.raises(SystemExit) as end:
        main(["verify", str(folder), "--steps", "5..8", "--certificate", str(folder.parent / "c")])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "NOT verified" in printed
    assert told in printed
    assert told in json.loads((folder.parent / "c").read_text())["problems"][0]


def test_another_machine_has_a_tolerance(folder: Path) -> None:
    path = folder / "samples.json"
    environment = verify(folder, progress=False)["environment"]
    path.write_text(json.dumps({"environment": {**environment, "torch": "0.1"}}))
    flip(folder / "checkpoints" / "step-00000008", reseal=True)
    found = verify(folder, progress=False)
    assert (found["same_machine"], found["verified"], found["tolerance"]) == (False, True, 1e-3)
    assert not verify(folder, tolerance=1e-12, progress=False)["verified"]


@pytest.mark.parametrize("steps", [None, "1..4"])
def test_one_checkpoint_has_no_steps_to_recompute(folder: Path, steps: str | None) -> None:
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    with pytest.raises(ConfigError, match=r"keeps checkpoints of 8, .* smaller --checkpoint-every"):
        verify(folder, steps)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("3..8", "keeps checkpoints of 4, 8: --steps begin after one of them"),
        ("5..9", "4, 8: --steps begin after one of them and end at the last or before"),
        ("5..5", "nothing was written in steps 5 to 5; end --steps later"),
        ("8..5", "give FIRST..LAST"),
        ("5-8", "give FIRST..LAST"),
    ],
)
def test_steps_that_cannot_be_recomputed_are_one_line(
    made: Path, tmp_path: Path, steps: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    assert main(["verify", str(made / "run"), "--steps", steps, "--certificate", str(path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not path.exists()


def test_differences_are_relative_above_one() -> None:
    one, other = torch.tensor([0.5, 200.0]), torch.tensor([0.5, 201.0])
    found = compared({"a": one, "b": one}, {"a": other, "b": one})
    assert (found["values"], found["different"], found["where"]) == (2, 1, "a")
    assert found["largest_difference"] == pytest.approx(1 / 200)
    assert compared({"a": one}, {})["largest_difference"] == float("inf")
    zero = torch.zeros(1)
    assert compared({"a": zero}, {"a": -zero})["different"] == 1  # equal numbers, another bit
