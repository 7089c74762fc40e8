from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import image_text_pairs as tiny
import pytest
import torch

from maskery.core.errors import CheckpointError, ConfigError
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import PersonSearchConfig


def task(**changes: Any) -> ImageTextTask:
    config = PersonSearchConfig(**{"queue_size": 10, **changes})
    return ImageTextTask(tiny.model(), config, **tiny.PARTS)


def prepared_for(of: ImageTextTask, ids: list[int], persons: list[int] | None = None) -> Any:
    return of.prepare(tiny.pairs(ids, persons), epoch=2, progress=0.5)


def test_all_five_terms_train_every_parameter() -> None:
    of = task()
    prepared = prepared_for(of, [1, 2, 3], [7, 7, 8])
    sums = of.loss_sums(prepared)
    assert set(sums) == set(prepared.counts) == {"itc", "itm", "mlm", "prd", "mrtd"}
    assert prepared.counts["itm"] == 9
    sum(sums.values()).backward()  # type: ignore[union-attr]
    idle = [n for n, p in of.model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@pytest.mark.parametrize("persons", [[7], [7, 7], [7, 7, 7]])
def test_a_batch_of_one_person_has_no_negatives_and_still_trains(persons: list[int]) -> None:
    of = task()
    prepared = prepared_for(of, list(range(1, len(persons) + 1)), persons)
    assert prepared.counts["itm"] == len(persons)
    sums = of.loss_sums(prepared)
    sum(sums.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(loss) for loss in sums.values())


def test_negatives_are_other_persons() -> None:
    of = task()
    persons = torch.tensor([7, 7, 8, 9])
    for epoch in range(10):
        batch = tiny.pairs([1, 2, 3, 4], persons.tolist())
        decided = of.step(of.prepare(batch, epoch=epoch, progress=0.5)).prepared
        assert decided.negatives is not None
        assert (persons[decided.negatives] != persons).all()


def test_a_step_replays_from_what_it_returned() -> None:
    of = task()
    of.model.eval()
    queues = {n: t.clone() for n, t in of.extra_state().items()}
    first = of.step(prepared_for(of, [1, 2, 3]))
    of.load_extra_state(queues)
    nan = torch.full((2, 3), float("nan"))
    again = of.step(dataclasses.replace(first.prepared, negative_uniforms=nan))
    for name, loss in first.loss_sums.items():
        assert torch.equal(loss, again.loss_sums[name])


@pytest.mark.parametrize("term", ["itc", "itm", "mlm", "prd", "mrtd"])
def test_each_term_can_be_switched_off_without_changing_the_others(term: str) -> None:
    whole, without = task(), task(**{f"{term}_weight": 0})
    whole.model.eval()
    without.model.eval()
    prepared = prepared_for(whole, [1, 2, 3])
    expected, actual = whole.loss_sums(prepared), without.loss_sums(prepared)
    assert set(actual) == set(expected) - {term} == set(without.loss_weights)
    for name, loss in actual.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5)
    sum(actual.values()).backward()  # type: ignore[union-attr]
    idle = [n for n, p in without.model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_contrast_alone_needs_no_fusion() -> None:
    of = task(itm_weight=0, mlm_weight=0, prd_weight=0, mrtd_weight=0)
    assert prepared_for(of, [1, 2], [7, 8]).counts == {"itc": 2}  # what is off is not logged
    step = of.step(prepared_for(of, [1, 2]))
    assert set(step.loss_sums) == {"itc"}


def test_albef_contrasts_two_ways() -> None:
    rasa, albef = task(), task(within_modality=False)
    rasa.model.eval()
    albef.model.eval()
    prepared = prepared_for(rasa, [1, 2, 3])
    assert not torch.allclose(rasa.loss_sums(prepared)["itc"], albef.loss_sums(prepared)["itc"])


def test_queues_take_in_the_twins_features() -> None:
    of = task()
    prepared = prepared_for(of, [1, 2, 3], [5, 6, 5])
    of.loss_sums(prepared)
    with torch.no_grad():
        twin = of.twin.model
        images = twin.image_feature(twin.encode_image(prepared.image2))
    torch.testing.assert_close(of.queues["image_queue"].features[:3], images)
    assert (
        of.queues["image_queue"].ids[:4].tolist()
        == of.queues["text_queue"].ids[:4].tolist()
        == [5, 6, 5, -100]
    )
    for _ in range(4):
        of.loss_sums(prepared)
    assert of.queues["image_queue"].pointer == 5


def test_data_parallel_training_reduces_every_gradient(tmp_path: Path) -> None:
    of, alone = task(), task()
    of.model.eval()
    alone.model.eval()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        of.model = torch.nn.parallel.DistributedDataParallel(of.model)
        # A parameter without gradient in the first step would stop the second.
        for ids in ([1, 2, 3], [4, 5]):
            for one in (of, alone):
                one.model.zero_grad()
                sum(one.loss_sums(prepared_for(one, ids)).values()).backward()  # type: ignore[union-attr]
        for wrapped, plain in zip(of.model.parameters(), alone.model.parameters(), strict=True):
            if plain.grad is not None:
                assert wrapped.grad is not None
                torch.testing.assert_close(wrapped.grad, plain.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_the_temperature_stays_in_bounds() -> None:
    of = task()
    with torch.no_grad():
        of.temperature.fill_(3.0)
    of.before_step()
    assert of.temperature.item() == pytest.approx(0.5)


def test_extra_state_goes_through_a_checkpoint() -> None:
    of, other = task(), task(seed=9)
    of.loss_sums(prepared_for(of, [1, 2, 3]))
    of.before_step()
    other.load_extra_state({n: t.clone() for n, t in of.extra_state().items()})
    for name, tensor in of.extra_state().items():
        assert torch.equal(tensor, other.extra_state()[name]), name
    with pytest.raises(CheckpointError, match="queue is 10 x 6"):
        task(queue_size=9).load_extra_state(of.extra_state())


def test_impossible_settings_are_one_line() -> None:
    with pytest.raises(ConfigError, match="queue_size is 0"):
        PersonSearchConfig(queue_size=0)
    with pytest.raises(ConfigError, match="temperature"):
        PersonSearchConfig(min_temperature=0.9)
    with pytest.raises(ConfigError, match="itm_weight is -1"):
        PersonSearchConfig(itm_weight=-1)
