"""No disk, no memory: one line, whatever was being done, and it can be done again."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fork_server import ForkServer
from test_damage import fill, one_line
from tiny_image_text import save_tiny_image_text
from tiny_pairs import save_tiny_pairs

from runs import assert_same_outcome, make_text, outcome


def refused(server: ForkServer, arguments: list[str], folder: Path) -> None:
    """Run a command that must end in one line about space."""
    full = server.start(arguments, folder)
    assert full.wait() == [2], full.text
    one_line(full.text, "free some space")


@pytest.mark.parametrize("left", [0, 40_000])
def test_a_model_that_has_no_room(
    tmp_path: Path, server: ForkServer, small_disk: Path, left: int
) -> None:
    arguments = [*make_text(tmp_path), "--resume", "auto", "--keep-checkpoints", "1"]
    server.run([*arguments, "--output", str(tmp_path / "whole")], tmp_path / "log-whole")
    run = small_disk / "run"
    shutil.copytree(tmp_path / "whole", run)
    shutil.rmtree(run / "model")
    ballast = fill(small_disk, left)
    refused(server, [*arguments, "--output", str(run)], tmp_path / "log")
    assert not (run / "model").exists()
    ballast.unlink()
    server.run([*arguments, "--output", str(run)], tmp_path / "log-again")
    assert_same_outcome(run, outcome(tmp_path / "whole"))


def test_shards_and_an_index_that_have_no_room(
    tmp_path: Path, server: ForkServer, small_disk: Path
) -> None:
    text, model = make_text(tmp_path)[2:5:2]
    pairs, seeing = save_tiny_pairs(tmp_path / "pairs"), tmp_path / "seeing"
    save_tiny_image_text(seeing)
    shards = ["tokenize", text, str(small_disk / "shards"), "--model", model]
    search = ["search", str(seeing), "red paper", "--gallery", str(pairs.parent)]
    search += ["--cache-dir", str(small_disk / "cache")]
    for number, command in enumerate((shards, search)):
        ballast = fill(small_disk, 4096)
        refused(server, command, tmp_path / f"log-{number}")
        ballast.unlink()
        server.run(command, tmp_path / f"log-again-{number}")


def test_memory_that_is_used_up_is_one_line(tmp_path: Path) -> None:
    """Asked for at once, or a little more at every step."""
    arguments = make_text(tmp_path)
    script = f"""
import resource, sys
import maskery.runs.text.run
from maskery.cli.main import main
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = size + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(main({[*arguments, "--output", str(tmp_path / "run"), "--batch-tokens", "100000"]!r}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    if ended.returncode == 0:
        pytest.skip("the run fits into 64 MB")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    one_line(ended.stderr, "the memory is used up")
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
