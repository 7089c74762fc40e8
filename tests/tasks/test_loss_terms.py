"""Terms of the user's own in a step of both tasks."""

from __future__ import annotations

from typing import Any

import image_text_pairs as tiny
import pytest
import torch
from torch import nn

from maskery.core.errors import PluginError
from maskery.objectives.terms import LossTerm
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import ImageTextMLMConfig, PersonSearchConfig
from maskery.tasks.loss_terms import TermInputs


def task(kind: str, *terms: Any, **changes: Any) -> Any:
    if kind == "pairs":
        return ImageTextTask(tiny.model(), ImageTextMLMConfig(**changes), terms=terms, **tiny.PARTS)
    config = PersonSearchConfig(queue_size=4, **changes)
    return ImageTextTask(tiny.model(), config, terms=terms, **tiny.PARTS)


def run(of: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    prepared = of.prepare(tiny.pairs([1, 2, 3], [7, 7, 8]), epoch=0, progress=0.5)
    return prepared, of.loss_sums(prepared)


class Agree(nn.Module):
    """Features of a pair should be alike, up to a learnt scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        alike = (step.features.image * step.features.text).sum(dim=1)
        return (1 - self.scale * alike)[:2].sum(), 2


@pytest.mark.parametrize("kind", ["pairs", "person-search"])
def test_a_term_counts_what_it_says_and_trains_heads_and_parameters(kind: str) -> None:
    agree = Agree()
    of = task(kind, LossTerm.of(agree, weight=0.5), itc_weight=0.0)
    assert of.loss_weights["Agree"] == 0.5
    prepared, sums = run(of)
    assert prepared.counts["Agree"] == 3
    sums["Agree"].backward()
    model = of.model
    assert model.vision_proj.weight.grad.abs().sum() > 0
    assert model.text_proj.weight.grad.abs().sum() > 0
    assert not model.temp.requires_grad
    parameters = dict(model.named_parameters())
    assert parameters["loss_terms.Agree.scale"] is agree.scale
    assert agree.scale.grad is not None
    # Its mean over two things stands for the mean over three pairs.
    alike = agree.scale.grad.item()
    assert sums["Agree"].item() / 3 == pytest.approx(1 + alike / 3, rel=1e-5)
    assert "itc" in of.trained
    state = of.extra_state()
    assert not [name for name in state if "loss_terms" in name]
    of.load_extra_state(state)


@pytest.mark.parametrize("kind", ["pairs", "person-search"])
def test_everything_that_is_promised_can_be_read(kind: str) -> None:
    seen: dict[str, Any] = {}

    def look(step: TermInputs) -> tuple[torch.Tensor, int]:
        seen.update(step=step, fused=step.fused, crowd=step.crowd.gather(step.ids))
        matched = step.model.itm_head(step.fused[:, 0])
        return matched.sum() * step.temperature, len(step.ids)

    look.heads = ("itm_head", "temp")  # type: ignore[attr-defined]
    of = task(kind, look, itc_weight=0.0, **({} if kind == "pairs" else {"itm_weight": 0.0}))
    of.model.eval()
    prepared, sums = run(of)
    sums["look"].backward()
    assert of.model.itm_head.weight.grad is not None
    assert of.model.temp.grad is not None
    step = seen["step"]
    text = prepared.text1 if kind == "pairs" else prepared.text2
    rows, length = text.input_ids.shape
    assert step.caption.shape == (rows, length, 16)
    assert torch.equal(step.caption_mask, text.attention_mask)
    alone = of.model(prepared.image1, text.input_ids, text.attention_mask).last_hidden_state
    torch.testing.assert_close(seen["fused"], alone)
    assert step.teacher.image.shape == (rows, 6)
    assert len(step.candidates.text) == len(step.candidate_ids)
    assert set(step.by_use) >= {"mlm", "mrtd"}
    assert torch.equal(seen["crowd"], step.ids)


def test_a_task_with_a_term_and_one_without_have_the_same_other_losses() -> None:
    plain, more = (
        run(task("pairs", itc_weight=0.3))[1],
        run(task("pairs", Agree(), itc_weight=0.3))[1],
    )
    for name, loss in plain.items():
        assert torch.equal(loss, more[name])


def frozen(step: TermInputs) -> Any:
    return step.model.prd_head(step.fused[:, 0]).sum(), 1


BAD = {
    "returned a Tensor, not a pair": lambda step: step.features.image.sum(),
    "its loss is a Tensor of shape (3,)": lambda step: (step.features.image.sum(dim=1), 3),
    "its loss is a float": lambda step: (0.5, 3),
    "its count is 2.5": lambda step: (step.features.image.sum(), 2.5),
    "depends on nothing that is trained": lambda step: (torch.zeros(()), 3),
    "it fails with RuntimeError": lambda step: (step.features.image @ step.features.text, 3),
    "it fails with AttributeError": lambda step: (step.pictures.sum(), 3),
    "it reads 'prd_head', which no term trains": frozen,
}


@pytest.mark.parametrize(("told", "term"), BAD.items())
def test_a_term_that_breaks_its_contract_is_told_in_one_line(told: str, term: Any) -> None:
    term.name = "term"  # a lambda has no name of its own
    of = task("pairs", LossTerm.of(term, choice="mine.py:term"))
    with pytest.raises(PluginError) as caught:
        run(of)
    assert "--term mine.py:term: " in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
