"""One process; several are in `tests/training/test_many_processes.py`."""

from __future__ import annotations

import pytest
import torch

from maskery.core.processes import Processes, join_processes, lost_process


def test_one_process_says_nothing_to_anyone() -> None:
    alone = join_processes()
    assert alone is join_processes()
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)
    assert alone.sum([1.5, 2.0]) == [1.5, 2.0]
    assert alone.gather([1.5, 2.0]) == [[1.5, 2.0]]
    assert alone.on_main(lambda: "done") == "done"
    assert alone.main_first(lambda: "done") == "done"


def test_errors_pass_through() -> None:
    def fail() -> str:
        raise KeyError("x")

    with pytest.raises(KeyError):
        Processes().on_main(fail)
    with pytest.raises(KeyError):
        Processes().main_first(fail)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[..gloo/transport/tcp/pair.cc:537] Connection closed by peer [::1]"), True),
        (torch.distributed.DistNetworkError("recv failed"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("Broken pipe"), False),
    ],
)
def test_the_end_of_another_process_is_told_in_one_line(error: Exception, lost: bool) -> None:
    found = lost_process(error)
    assert (found is not None) == lost
    if found is not None:
        assert str(found).startswith("another process of the run has ended, or is silent (")
        assert "--resume auto" in str(found)


def test_parts_come_together_alone() -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    for together in (Processes().add, Processes().agree, Processes().join):
        assert torch.equal(together(rows), rows)
