"""A text objective of a user's own: made from the parts of a run, and held to its contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_text import lines, save_tiny_model
from torch import nn

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError, PluginError
from maskery.core.registry import FromFile
from maskery.core.task import loss_sums_of, prepare_all
from maskery.data.rows import RowSource, tokenise_rows
from maskery.masking.masker import Masker
from maskery.models.loading import load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.tasks.momentum_text import MomentumTextMLM
from maskery.tasks.text_mlm import TextMLM, TextParts, make_text_task
from maskery.tasks.text_mlm_config import TextMLMConfig


@pytest.fixture
def parts(tmp_path: Path) -> TextParts:
    loaded = load_masked_lm(str(save_tiny_model(tmp_path / "model")))
    model = MaskedLanguageModel(loaded.model, packed=True, pad_token_id=0)
    masker = Masker.of(loaded.tokenizer)
    return TextParts(model=model, tokenizer=loaded.tokenizer, masker=masker)


def batch_of(parts: TextParts) -> TokenBatch:
    rows = tokenise_rows(lines(4), parts.tokenizer, max_length=32)
    batch = RowSource(rows, batch_tokens=1000).micro_batches(0, 0)[0]
    assert isinstance(batch, TokenBatch)
    return batch


def test_names_of_ours_make_our_tasks(parts: TextParts) -> None:
    assert type(make_text_task(parts)) is TextMLM
    with_twin = replace(parts, settings=TextMLMConfig(momentum=0.9))
    assert make_text_task(with_twin).loss_weights == {"mlm": 1.0}
    detecting = replace(parts, settings=TextMLMConfig(objective="mlm+mrtd"))
    task = make_text_task(detecting)
    assert isinstance(task, MomentumTextMLM)
    assert task.loss_weights == {"mlm": 1.0, "mrtd": 0.5}


def test_a_file_an_object_and_a_name_are_one_thing(parts: TextParts, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from maskery.tasks.text_mlm import TextMLM\nmine = TextMLM.of\n")
    batch = batch_of(parts)
    losses = []
    for choice in ("mlm", f"{path}:mine", TextMLM.of):
        task = make_text_task(parts, choice)
        task.model.eval()
        prepared = task.prepare(batch, epoch=0, progress=0.0)
        losses.append(float(task.loss_sums(prepared)["mlm"].detach()))
    assert losses[0] == losses[1] == losses[2]


def test_a_configuration_never_loads_the_file_that_it_names(
    parts: TextParts, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nmine = None\n")
    settings = TextMLMConfig(objective=FromFile(f"{path}:mine"))
    with pytest.raises(PluginError, match=f"add --objective {path}:mine"):
        make_text_task(replace(parts, settings=settings))
    assert not (tmp_path / "ran").exists()


class Headed(TextMLM):
    """Sorts masked tokens from others by a head of its own."""

    def __init__(self, model: MaskedLanguageModel, masker: Masker, **settings: Any) -> None:
        model.add_head("size", nn.Linear(model.hf.config.hidden_size, 1))
        super().__init__(model, masker, **settings)
        self.loss_weights = {"mlm": 1.0, "size": 0.5}

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> Any:
        prepared = super().prepare(batch, epoch=epoch, progress=progress)
        return replace(prepared, counts={**prepared.counts, "size": len(prepared.targets)})

    def loss_sums(self, prepared: Any) -> Mapping[str, torch.Tensor]:
        def read(model: MaskedLanguageModel, rows: torch.Tensor) -> torch.Tensor:
            return (model.heads["size"](rows) ** 2).sum()

        size = self.model(prepared.inputs, read=read)
        return {**super().loss_sums(prepared), "size": size}


def test_a_head_of_an_objectives_own_gets_gradients(parts: TextParts) -> None:
    task = make_text_task(parts, Headed.of)
    [prepared] = prepare_all(task, [batch_of(parts)], epoch=0, progress=0.0)
    sums = loss_sums_of(task, prepared)
    torch.stack(list(sums.values())).sum().backward()
    rows = parts.model.hidden(prepared.inputs).detach()  # type: ignore[attr-defined]
    head = parts.model.heads["size"]
    expected = 2 * (head(rows) * rows).sum(dim=0)
    # Dropout is off: the model was loaded in evaluation mode.
    torch.testing.assert_close(head.weight.grad[0], expected, rtol=1e-4, atol=1e-4)  # type: ignore[index,union-attr]
    assert all(p.grad is not None for p in task.model.parameters())
    with pytest.raises(ConfigError, match="the model has a 'size' already"):
        make_text_task(parts, Headed.of)


def misfits(parts: TextParts) -> list[tuple[Any, str]]:
    def fails(parts: TextParts) -> Any:
        raise ValueError("no such luck")

    def elsewhere(parts: TextParts) -> Any:
        task = TextMLM.of(parts)
        task.model = nn.Linear(2, 2)
        return task

    return [
        (fails, "fails: making the task fails with ValueError: no such luck; it must be a call"),
        (lambda parts: SimpleNamespace(model=1, prepare=2), "without loss_weights, loss_sums"),
        (elsewhere, "does not hold `parts.model`"),
        (3, "it must be a callable"),
    ]


def test_what_makes_no_task_is_said_in_one_line(parts: TextParts) -> None:
    for objective, message in misfits(parts):
        with pytest.raises(PluginError) as caught:
            make_text_task(parts, objective)
        assert message in str(caught.value)
        assert "--objective" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prepare": lambda batch, **when: batch}, "prepare returned TokenBatch"),
        ({"loss_sums": lambda prepared: {"mlm": 1.0}}, "'mlm' has shape ()"),
        ({"loss_sums": lambda prepared: {"mlm": torch.zeros(3)}}, "'mlm' has shape (3,)"),
        ({"loss_sums": lambda prepared: {"x": torch.zeros(())}}, "'x' is not in loss_weights"),
        ({"loss_sums": lambda prepared: None}, "returned nothing with a gradient (a NoneType)"),
        ({"loss_sums": lambda prepared: {}}, "returned nothing with a gradient (a dict)"),
        ({"loss_sums": lambda p: {"mlm": torch.ones(())}}, "returned nothing with a gradient"),
        (
            {"loss_sums": lambda p: {"x": torch.zeros(())}, "loss_weights": {"x": 1.0}},
            "'x' is not in counts",
        ),
    ],
)
def test_a_task_whose_parts_do_not_fit_is_said_in_one_line(
    parts: TextParts, change: dict[str, Any], message: str
) -> None:
    task: Any = TextMLM.of(parts)
    for name, value in change.items():
        setattr(task, name, value)

    def step() -> None:
        [prepared] = prepare_all(task, [batch_of(parts)], epoch=0, progress=0.0)
        loss_sums_of(task, prepared)

    with pytest.raises(PluginError) as caught:
        step()
    assert message in str(caught.value)
    assert str(caught.value).startswith("text_mlm.py:TextMLM: ")
