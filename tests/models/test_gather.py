from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from maskery.models.gather import gather_rows

# Rank 0 has one row, rank 1 three.
ONE_OF_TWO = """
import sys, torch
from maskery.models.gather import gather_rows
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2
)
rows = torch.arange(2 * (1 + 2 * rank)).view(-1, 2) + 10 * rank
torch.save(gather_rows(rows), out)
torch.distributed.destroy_process_group()
"""


def test_one_process_keeps_its_rows() -> None:
    rows = torch.arange(6).view(3, 2)
    assert gather_rows(rows) is rows


def test_two_processes_see_all_rows_in_order(tmp_path: Path) -> None:
    store, outs = str(tmp_path / "store"), [str(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(r), store, outs[r]], env=environment
        )
        for r in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    for out in outs:
        assert torch.load(out).tolist() == [[0, 1], [10, 11], [12, 13], [14, 15]]
