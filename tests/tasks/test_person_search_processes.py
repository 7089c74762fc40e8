"""Two processes against one at the same batch: losses, gradients, queues and negatives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import image_text_pairs as helper
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from maskery.models.gather import Crowd
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import PersonSearchConfig

IDS, PERSONS = [1, 2, 3, 4, 5, 6, 7], [7, 8, 8, 7, 9, 10, 7]
WORLD = 2
BATCH_TERMS = ("sdm", "tal", "infonce", "sigmoid", "id")
PAIRS = SimpleNamespace(persons=np.arange(11).repeat(2), person_names=tuple("abcdefghijk"))


def one_step(rank: int, world_size: int, *, ddp: bool = False) -> dict[str, torch.Tensor]:
    """Two steps of one process on its share: sums, counts, gradients, queues and negatives."""
    # A queue that the batches do not fill evenly, so that its order counts.
    config = PersonSearchConfig(queue_size=10, term=BATCH_TERMS, doubt=True)
    task = ImageTextTask(helper.model(), config, pairs=PAIRS, **helper.PARTS)
    model = task.model
    if ddp:
        task.model = torch.nn.parallel.DistributedDataParallel(model)
    found: dict[str, torch.Tensor] = {}
    mine = slice(rank, None, world_size)
    for epoch in (0, 1):
        batch = helper.pairs(IDS[mine], PERSONS[mine])
        object.__setattr__(batch, "crowd_ids", torch.tensor(PERSONS))
        prepared = task.prepare(batch, epoch=epoch, progress=0.5)
        task.before_step()
        step = task.step(prepared)
        counts = {name: float(count) for name, count in prepared.counts.items()}
        if world_size > 1:
            for name in counts:
                total = torch.tensor(counts[name])
                torch.distributed.all_reduce(total)
                counts[name] = float(total)
        model.zero_grad()
        terms = {name: value / counts[name] for name, value in step.loss_sums.items()}
        loss = torch.stack([task.loss_weights[name] * term for name, term in terms.items()]).sum()
        (loss * (world_size if ddp else 1)).backward()
        decided = step.prepared
        assert decided.negatives is not None
        found |= {f"{epoch}.{name}": term.detach() for name, term in terms.items()}
        found[f"{epoch}.images"], found[f"{epoch}.texts"] = decided.negatives
    found |= {f"gradient.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {n: t for n, t in task.extra_state().items() if n.startswith(("image_q", "text_q"))}
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    try:
        crowd = Crowd.of(2 + rank, 5 - rank, torch.device("cpu"))
        rows = torch.tensor([10.0 * rank + row for row in range(2 + rank)], requires_grad=True)
        gathered = crowd.gather_with_gradients(rows)
        (gathered * torch.arange(5.0) * (rank + 1)).sum().backward()
        torch.save(
            {
                "longest": crowd.longest,
                "mine": crowd.mine,
                "rows": crowd.gather(rows.detach()),
                "gradient": rows.grad,
                "summed": one_step(rank, WORLD),
                "ddp": one_step(rank, WORLD, ddp=True),
            },
            f"{folder}/{rank}.pt",
        )
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])  # where the new processes find this module
        torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
            work, args=(str(folder),), nprocs=WORLD, start_method="spawn"
        )
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    return one_step(0, 1)


def test_the_crowd_is_in_the_order_of_dealing(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        assert part["rows"].tolist() == [0, 10, 1, 11, 12]
        assert part["longest"] == 5
    assert parts[0]["mine"].tolist() == [0, 2]
    assert parts[1]["mine"].tolist() == [1, 3, 4]
    # Each place's weight, from both processes: once and twice.
    assert parts[0]["gradient"].tolist() == [0, 6]
    assert parts[1]["gradient"].tolist() == [3, 9, 12]


@pytest.mark.parametrize("term", ["itc", "itm", "mlm", "prd", "mrtd", *BATCH_TERMS])
def test_losses_of_two_ranks_add_up_to_those_of_one(
    parts: list[dict[str, Any]], alone: dict[str, torch.Tensor], term: str
) -> None:
    for epoch in (0, 1):
        together = sum(part["summed"][f"{epoch}.{term}"] for part in parts)
        torch.testing.assert_close(together, alone[f"{epoch}.{term}"], rtol=1e-5, atol=1e-6)


def test_hard_negatives_are_drawn_among_all_ranks(
    parts: list[dict[str, Any]], alone: dict[str, torch.Tensor]
) -> None:
    foreign = 0
    for epoch in (0, 1):
        for kind in ("images", "texts"):
            whole = alone[f"{epoch}.{kind}"]
            for rank, part in enumerate(parts):
                drawn = part["summed"][f"{epoch}.{kind}"]
                assert torch.equal(drawn, whole[rank::WORLD])
                foreign += int((drawn % WORLD != rank).sum())
    assert foreign > 0


@pytest.mark.parametrize("how", ["summed", "ddp"])
def test_gradients_of_two_ranks_are_those_of_one(
    parts: list[dict[str, Any]], alone: dict[str, torch.Tensor], how: str
) -> None:
    names = [name for name in alone if name.startswith("gradient.")]
    assert len(names) > 50
    for name in names:
        both = [part[how][name] for part in parts]
        if how == "ddp":
            torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)
            total = both[0]
        else:
            total = both[0] + both[1]
        torch.testing.assert_close(total, alone[name], rtol=1e-4, atol=1e-5, msg=name)


def test_queues_hold_the_same_in_the_same_order(
    parts: list[dict[str, Any]], alone: dict[str, torch.Tensor]
) -> None:
    for queue in ("image_queue", "text_queue"):
        for part in parts:
            assert torch.equal(part["summed"][f"{queue}.ids"], alone[f"{queue}.ids"])
            assert part["summed"][f"{queue}.pointer"] == alone[f"{queue}.pointer"] == 4
            torch.testing.assert_close(
                part["summed"][f"{queue}.features"], alone[f"{queue}.features"]
            )
