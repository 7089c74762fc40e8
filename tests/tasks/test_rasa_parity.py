"""One whole training step against RaSa's released code, on its golden record.

`tests/golden/README.md` explains every key.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskery.core.batch import Vocabulary
from maskery.masking.masker import Masker
from maskery.models.checkpoint_import.convert import Imported, import_albef
from maskery.models.checkpoint_import.state_dict import Given
from maskery.objectives.itm import has_negative
from maskery.tasks.caption_steps import MaskedText, MRTDPlan, PaddedText, PreparedPairs
from maskery.tasks.image_text import ImageTextTask, Step
from maskery.tasks.image_text_config import PersonSearchConfig

# Another record in the same layout, of any size and batch, can be tried in its place.
OURS = Path(__file__).parents[1] / "golden" / "rasa_tiny"
FOLDER = Path(os.environ.get("MASKERY_GOLDEN", OURS))
# Of float32 sums over some thousand terms, in another order than the release adds them.
RELATIVE, ABSOLUTE = 1e-5, 1e-6
LOSSES = {"itc": "cl", "itm": "pitm", "mlm": "mlm", "prd": "prd", "mrtd": "mrtd"}


@dataclass
class Replay:
    record: dict[str, torch.Tensor]
    task: ImageTextTask
    imported: Imported
    result: Step
    total: torch.Tensor
    sizes: dict[str, Any]


def prepared_from(record: dict[str, torch.Tensor], sizes: dict[str, Any]) -> PreparedPairs:
    labels = record["mlm_labels"]
    positions = (labels.flatten() != -100).nonzero().squeeze(-1)
    real = record["text1.attention_mask"].bool()
    everywhere = real.flatten().nonzero().squeeze(-1)
    return PreparedPairs(
        image1=record["image1"],
        image2=record["image2"],
        text1=PaddedText(input_ids=record["text1.input_ids"], attention_mask=real),
        text2=PaddedText(
            input_ids=record["text2.input_ids"],
            attention_mask=record["text2.attention_mask"].bool(),
        ),
        mlm=MaskedText(
            input_ids=record["mlm_input_ids"],
            positions=positions,
            targets=labels.flatten()[positions],
        ),
        mrtd=MRTDPlan(
            masked_ids=record["mrtd_masked_ids"],
            sampled_at=everywhere,
            uniforms=torch.full((len(everywhere),), float("nan")),
            judged_at=everywhere,
            sampled=record["mrtd_sampled"].flatten()[everywhere],
        ),
        alpha=sizes["alpha"],
        num_tokens=int(real.sum()),
        terms=frozenset({"itc", "itm", "mlm", "prd", "mrtd"}),
        ids=record["idx"],
        replaced=record["replace"],
        negative_uniforms=torch.full((2, len(record["idx"])), float("nan")),
        num_negatives=2 * int(has_negative(record["idx"], record["idx"]).sum()),
        negatives=torch.stack((record["image_neg_idx"], record["text_neg_idx"])),
    )


@pytest.fixture(scope="module")
def replay() -> Replay:
    sizes = json.loads((FOLDER / "config.json").read_text("utf-8"))
    record = load_file(FOLDER / "step.safetensors")
    imported = import_albef(
        load_file(FOLDER / "weights.safetensors"),
        {},
        Given(text_heads=sizes["num_attention_heads"], vision_heads=sizes["vision_heads"]),
    )
    itc, itm, mlm, prd, mrtd = sizes["weights"]
    config = PersonSearchConfig(
        itc_weight=itc,
        itm_weight=itm,
        mlm_weight=mlm,
        prd_weight=prd,
        mrtd_weight=mrtd,
        momentum=sizes["momentum"],
        alpha=sizes["alpha"],
        queue_size=sizes["queue_size"],
        distill_over="sequence",
        mrtd_sample_at="every",
    )
    names = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    vocabulary = Vocabulary(
        size=sizes["vocab_size"],
        mask_token_id=sizes["mask_token_id"],
        special_ids=tuple(sizes[name] for name in names),
    )
    masker = Masker.of(vocabulary)  # not asked: the record's masks are handed in
    task = ImageTextTask(
        imported.model,
        config,
        pad_token_id=sizes["pad_token_id"],
        masker=masker,
        mrtd_masker=masker,
    )
    task.load_extra_state(imported.extra_state)
    prepared = prepared_from(record, sizes)
    task.before_step()
    result = task.step(prepared)
    total = torch.stack(
        [
            task.loss_weights[name] * loss_sum / prepared.counts[name]
            for name, loss_sum in result.loss_sums.items()
        ]
    ).sum()
    total.backward()
    return Replay(record, task, imported, result, total, sizes)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=RELATIVE, atol=ABSOLUTE)


def test_every_weight_is_used(replay: Replay) -> None:
    assert replay.imported.report.left_over == ()
    assert replay.imported.report.missing == ()
    names = set(load_file(FOLDER / "weights.safetensors"))
    assert set(replay.imported.report.used) == names


def test_sizes_are_read_off_the_weights(replay: Replay) -> None:
    config, sizes = replay.imported.model.config, replay.sizes
    text, vision = config.text_config, config.vision_config
    assert config.fusion_layer == sizes["fusion_layer"]
    assert config.embed_dim == sizes["embed_dim"]
    assert text.vocab_size == sizes["vocab_size"]
    assert text.num_hidden_layers == sizes["num_hidden_layers"]
    assert text.layer_norm_eps == sizes["layer_norm_eps_text"]
    assert vision.num_hidden_layers == sizes["vision_depth"]
    assert vision.image_size == [sizes["image_size"]] * 2
    assert vision.layer_norm_eps == sizes["layer_norm_eps_vision"]


def test_teacher_probabilities(replay: Replay) -> None:
    prepared, lesson = replay.result.prepared, replay.result.lesson
    soft = replay.record["soft_labels"].flatten(0, 1)[prepared.mlm.positions]
    assert lesson.soft_labels is not None
    assert lesson.replacements is not None
    close(lesson.soft_labels, soft)
    weights = replay.record["teacher_mrtd_probs"].flatten(0, 1)[prepared.mrtd.sampled_at]
    close(lesson.replacements.weights, weights)


def test_replaced_caption_and_labels(replay: Replay) -> None:
    replacements = replay.result.lesson.replacements
    assert replacements is not None
    assert torch.equal(replacements.input_ids, replay.record["mrtd_input_ids"])
    assert torch.equal(replacements.labels, replay.record["mrtd_labels"])


@pytest.mark.parametrize("name", LOSSES)
def test_loss(replay: Replay, name: str) -> None:
    mean = replay.result.loss_sums[name] / replay.result.prepared.counts[name]
    close(mean, replay.record[f"loss_{LOSSES[name]}"])


def test_total(replay: Replay) -> None:
    close(replay.total, replay.record["loss_total"])


def test_every_gradient_norm(replay: Replay) -> None:
    names = [n for n in replay.record if n.startswith("grad_norm.")]
    assert names
    places = {name: p.split(", ") for name, p in replay.imported.report.used.items()}
    parameters = dict(replay.task.model.named_parameters())
    for name in names:
        gradients = [parameters[n].grad for n in places[name.removeprefix("grad_norm.")]]
        norms = [g.norm() for g in gradients if g is not None]
        assert len(norms) == len(gradients), name
        expected = replay.record[name]
        torch.testing.assert_close(
            torch.stack(norms).norm(), expected, rtol=1e-4, atol=1e-6, msg=name
        )


def test_every_trained_parameter_has_a_recorded_norm(replay: Replay) -> None:
    places = replay.imported.report.used
    recorded = {n.removeprefix("grad_norm.") for n in replay.record if n.startswith("grad_norm.")}
    covered = {place for name in recorded for place in places[name].split(", ")}
    assert covered == {n for n, p in replay.task.model.named_parameters() if p.requires_grad}


def test_queues_after_the_step(replay: Replay) -> None:
    task, record = replay.task, replay.record
    close(task.queues["image_queue"].features.T, record["after.image_queue"])
    close(task.queues["text_queue"].features.T, record["after.text_queue"])
    assert torch.equal(task.queues["image_queue"].ids.view(1, -1), record["after.idx_queue"])
    assert torch.equal(task.queues["text_queue"].ids.view(1, -1), record["after.idx_queue"])
    assert (
        task.queues["image_queue"].pointer
        == task.queues["text_queue"].pointer
        == int(record["after.queue_ptr"])
    )


def test_momentum_twin_after_the_step(replay: Replay) -> None:
    twin = dict(replay.task.twin.model.named_parameters())
    places = {name: p.split(", ") for name, p in replay.imported.report.used.items()}
    recorded = [n for n in replay.record if n.startswith("after.") and "encoder_m." in n]
    assert recorded
    for name in recorded:
        parts = [twin[n] for n in places[name.removeprefix("after.")]]
        close(torch.cat(parts), replay.record[name])


def test_replaying_the_returned_decisions_gives_the_same_losses(replay: Replay) -> None:
    task = replay.task
    with torch.no_grad():
        first = task.step(replay.result.prepared)
    batch = len(replay.record["idx"])
    for queue in (task.queues["image_queue"], task.queues["text_queue"]):
        assert queue.pointer == (int(replay.record["after.queue_ptr"]) + batch) % len(queue)
    # The queue has moved on, so the contrast differs; nothing else does.
    for name in ("itm", "mlm", "prd", "mrtd"):
        torch.testing.assert_close(first.loss_sums[name], replay.result.loss_sums[name].detach())
