from __future__ import annotations

import dataclasses
from typing import Any

import image_text_pairs as tiny
import numpy as np
import pytest
import torch

from maskery.core.errors import CheckpointError, ConfigError
from maskery.core.task import Prepared
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import ImageTextMLMConfig


def task(**changes: Any) -> ImageTextTask:
    return ImageTextTask(tiny.model(), ImageTextMLMConfig(**changes), **tiny.PARTS)


def prepared_for(of: ImageTextTask, ids: list[int]) -> Any:
    return of.prepare(tiny.pairs(ids), epoch=2, progress=0.5)


def test_counts_are_masked_and_judged_words() -> None:
    of = task()
    prepared = prepared_for(of, [1, 2, 3])
    assert isinstance(prepared, Prepared)
    real_words = int((tiny.captions([1, 2, 3]).input_ids > tiny.MASK).sum())
    assert prepared.counts["mrtd"] == real_words
    assert 3 <= prepared.counts["mlm"] < real_words
    assert prepared.num_tokens == real_words + 6
    flat = prepared.text1.input_ids.flatten()
    assert torch.equal(flat[prepared.mlm.positions], prepared.mlm.targets)
    assert not torch.equal(prepared.mlm.input_ids, prepared.mrtd.masked_ids)


def test_decisions_do_not_depend_on_the_batch() -> None:
    of = task()
    both, alone = prepared_for(of, [4, 5]), prepared_for(of, [5])
    length = int(alone.text1.attention_mask.sum())
    for get in (lambda p: p.mlm.input_ids, lambda p: p.mrtd.masked_ids):
        assert torch.equal(get(both)[1, :length], get(alone)[0])
    assert torch.equal(both.mrtd.uniforms[-len(alone.mrtd.uniforms) :], alone.mrtd.uniforms)


def test_sums_and_gradients_do_not_depend_on_how_a_step_is_cut() -> None:
    results = []
    for parts in ([[1, 2, 3, 4]], [[1, 2], [3, 4]]):
        of = task()
        of.model.eval()
        totals = dict.fromkeys(of.loss_weights, 0.0)
        for part in parts:
            sums = of.loss_sums(prepared_for(of, part))
            sum(sums.values()).backward()  # type: ignore[union-attr]
            for name, loss in sums.items():
                totals[name] += loss.item()
        gradients = {n: p.grad for n, p in of.model.named_parameters() if p.grad is not None}
        results.append((totals, gradients))
    (whole, gradients), (cut, cut_gradients) = results
    assert whole == pytest.approx(cut, rel=1e-5)
    assert set(gradients) == set(cut_gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, cut_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_step_replays_from_what_it_returned() -> None:
    of = task()
    of.model.eval()
    first = of.step(prepared_for(of, [1, 2, 3]))
    assert first.prepared.mrtd.sampled is not None
    uniforms = torch.full_like(first.prepared.mrtd.uniforms, float("nan"))
    plan = dataclasses.replace(first.prepared.mrtd, uniforms=uniforms)
    again = of.step(dataclasses.replace(first.prepared, mrtd=plan))
    for name, loss in first.loss_sums.items():
        assert torch.equal(loss, again.loss_sums[name])


def test_the_twin_moves_only_in_before_step() -> None:
    of = task(momentum=0.5)
    with torch.no_grad():
        for parameter in of.model.parameters():
            parameter.add_(1.0)
    name = "text_encoder.bert.encoder.layer.0.output.dense.weight"
    before = of.twin.model.state_dict()[name].clone()
    for ids in ([1, 2], [3]):
        of.loss_sums(prepared_for(of, ids))
    assert torch.equal(of.twin.model.state_dict()[name], before)
    of.before_step()
    torch.testing.assert_close(of.twin.model.state_dict()[name], before + 0.5)


def test_the_twin_teaches_from_the_second_view() -> None:
    of = task()
    of.model.eval()
    prepared = prepared_for(of, [1, 2])
    swapped = dataclasses.replace(prepared, image2=prepared.image1)
    soft, other = (of.step(p).lesson.soft_labels for p in (prepared, swapped))
    assert soft is not None
    assert not torch.allclose(soft, other)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(len(soft)))


def test_pictures_that_come_as_bytes_are_normalised_where_the_batch_goes() -> None:
    of, noise = task(), np.random.default_rng(0).integers(0, 256, (2, 3, 16, 8, 3), dtype=np.uint8)
    scale = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    levels = (noise / 255 - np.array(scale[0])) / np.array(scale[1])
    one, two = torch.from_numpy(levels.astype(np.float32)).movedim(-1, -3)
    prepared = dataclasses.replace(prepared_for(of, [1, 2, 3]), image1=one, image2=two)
    image1, image2 = torch.from_numpy(noise)
    sent = dataclasses.replace(prepared, image1=image1, image2=image2, normalisation=scale)
    arrived = sent.to(torch.device("cpu"))
    assert arrived.normalisation is None  # so that it can be moved again
    torch.testing.assert_close(arrived.image1, one)
    torch.testing.assert_close(arrived.image2, two)


def test_special_tokens_are_never_replacements() -> None:
    of = task()
    for epoch in range(20):
        prepared = of.prepare(tiny.pairs([1, 2, 3]), epoch=epoch, progress=0.5)
        replacements = of.step(prepared).lesson.replacements
        assert replacements is not None
        assert (replacements.sampled > tiny.MASK).all()
        unmasked = prepared.mrtd.masked_ids == prepared.text1.input_ids
        kept = torch.ones_like(unmasked).flatten()
        kept[prepared.mrtd.sampled_at] = False
        kept = kept.view_as(unmasked)
        assert torch.equal(replacements.input_ids[kept], prepared.text1.input_ids[kept])


def test_terms_of_weight_zero_are_left_out() -> None:
    without = task(mrtd_weight=0)
    step = without.step(prepared_for(without, [1, 2]))
    assert set(step.loss_sums) == {"mlm"} == set(without.loss_weights)
    assert step.lesson.replacements is None
    assert not without.model.mrtd_head.weight.requires_grad  # type: ignore[union-attr]
    hard = task(alpha=0, mrtd_weight=0)
    assert hard.step(prepared_for(hard, [1, 2])).lesson.soft_labels is None


def test_soft_labels_of_weight_zero_are_hard_labels() -> None:
    hard, soft = task(alpha=0), task(alpha=0.4)
    hard.model.eval()
    soft.model.eval()
    prepared = prepared_for(hard, [1, 2])
    assert prepared.alpha == 0
    expected = hard.loss_sums(prepared)["mlm"]
    actual = soft.loss_sums(dataclasses.replace(prepared, alpha=0.0))["mlm"]
    torch.testing.assert_close(actual, expected)


def test_the_image_can_be_kept_from_masked_words() -> None:
    seeing, blind = task(), task(mlm_with_image=False)
    seeing.model.eval()
    blind.model.eval()
    prepared = prepared_for(seeing, [1, 2])
    other = dataclasses.replace(
        prepared, image1=prepared.image1.flip(0), image2=prepared.image2.flip(0)
    )
    assert not torch.allclose(seeing.loss_sums(prepared)["mlm"], seeing.loss_sums(other)["mlm"])
    torch.testing.assert_close(blind.loss_sums(prepared)["mlm"], blind.loss_sums(other)["mlm"])


def test_a_batch_in_which_nothing_is_masked_has_no_mlm_loss() -> None:
    of = task()
    prepared = prepared_for(of, [1])
    nothing = torch.zeros(0, dtype=torch.int64)
    mlm = dataclasses.replace(prepared.mlm, positions=nothing, targets=nothing)
    loss = of.loss_sums(dataclasses.replace(prepared, mlm=mlm))["mlm"]
    loss.backward()
    assert loss.item() == 0


def test_every_trained_parameter_gets_a_gradient() -> None:
    of = task()
    sum(of.loss_sums(prepared_for(of, [1, 2, 3])).values()).backward()  # type: ignore[union-attr]
    idle = [n for n, p in of.model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_alpha_warms_up() -> None:
    config = ImageTextMLMConfig(alpha=0.4, alpha_warmup=0.1)
    assert [config.alpha_at(p) for p in (0, 0.05, 0.1, 0.9)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert ImageTextMLMConfig(alpha=0.4, alpha_warmup=0).alpha_at(0) == 0.4


def test_extra_state_goes_through_a_checkpoint() -> None:
    of, other = task(momentum=0.5), task(momentum=0.5)
    with torch.no_grad():
        for parameter in of.model.parameters():
            parameter.mul_(1.5)
    of.before_step()
    other.load_extra_state({n: t.clone() for n, t in of.extra_state().items()})
    for name, tensor in of.extra_state().items():
        assert torch.equal(tensor, other.extra_state()[name]), name
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load_extra_state({})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("momentum", 1.1),
        ("alpha", -0.1),
        ("alpha", float("nan")),
        ("mlm_weight", -1),
        ("mrtd_weight", float("inf")),
        ("distill_over", "words"),
        ("mrtd_sample_at", "some"),
    ],
)
def test_impossible_settings_are_one_line(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} is"):
        ImageTextMLMConfig(**{field: value})


def test_learning_lowers_both_losses() -> None:
    of = task(momentum=0.9, alpha=0.1)
    optimizer = torch.optim.AdamW(of.model.parameters(), lr=3e-3)
    history = []
    for step in range(120):
        of.before_step()
        prepared = of.prepare(tiny.pairs(list(range(8))), epoch=step, progress=0.5)
        sums = of.loss_sums(prepared)
        means = {n: s / prepared.counts[n] for n, s in sums.items()}
        total = sum(of.loss_weights[n] * m for n, m in means.items())
        total.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        history.append(means["mlm"].item())
    assert sum(history[-10:]) < 0.7 * sum(history[:10])


def test_the_contrast_is_albefs_formula_with_the_twin_as_teacher() -> None:
    of = task(itc_weight=1.0, momentum=0.5, alpha=0.4)
    of.model.eval()
    of.before_step()
    prepared = prepared_for(of, [1, 2, 3, 2])  # two of one pair: positives of each other
    with torch.no_grad():
        loss = of.loss_sums(prepared)["itc"]

        def features(model: Any, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            tokens, text = model.encode_image(image), prepared.text1
            hidden = model.text_encoder.encode_text(text.input_ids, text.attention_mask)
            pair = model.vision_proj(tokens[:, 0]), model.text_proj(hidden[:, 0])
            return pair[0] / pair[0].norm(dim=1, keepdim=True), pair[1] / pair[1].norm(
                dim=1, keepdim=True
            )

        image, text = features(of.model, prepared.image1)
        image_m, text_m = features(of.twin.model, prepared.image2)
        same = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]]).float()
        hard = same / same.sum(dim=1, keepdim=True)
        expected = 0.0
        for query, query_m, keys in ((image, image_m, text_m), (text, text_m, image_m)):
            targets = 0.6 * hard + 0.4 * torch.softmax(query_m @ keys.T / of.model.temp, dim=1)
            logs = torch.log_softmax(query @ keys.T / of.model.temp, dim=1)
            expected += float(-(targets * logs).sum()) / 2
    assert prepared.counts["itc"] == 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_judging_reads_the_same_words_as_the_detection_loss() -> None:
    of = task()
    of.model.eval()
    prepared = prepared_for(of, [1, 2, 3])
    log_odds, labels = of.judge(prepared)
    assert 0 < int(labels.sum()) < len(labels) == prepared.counts["mrtd"]
    # -log P(label) from the log-odds, summed, is the loss.
    loss = torch.nn.functional.softplus(torch.where(labels == 1, -log_odds, log_odds)).sum()
    assert loss.item() == pytest.approx(of.loss_sums(prepared)["mrtd"].item(), rel=1e-5)
    with pytest.raises(ConfigError, match="mrtd_weight is 0"):
        task(mrtd_weight=0).judge(prepared)


def test_replaced_words_start_late() -> None:
    late, never = task(mrtd_start=0.6, alpha=0.0), task(mrtd_weight=0.0, alpha=0.0)
    batch = tiny.pairs([1, 2, 3])
    before, after = (late.prepare(batch, epoch=2, progress=p) for p in (0.5, 0.6))
    assert before.mrtd is None
    assert before.counts["mrtd"] == 0
    for of in (late, never):
        of.model.eval()
    sums, alone = late.loss_sums(before), never.loss_sums(before)
    assert torch.equal(sums["mlm"], alone["mlm"])
    assert sums["mrtd"].item() == 0.0
    sum(sums.values()).backward()  # type: ignore[union-attr]
    # Data parallelism waits for the gradient of every trained parameter.
    gradient = late.model.get_submodule("mrtd_head").weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert not gradient.any()
    assert late.loss_sums(after)["mrtd"].item() > 0.0


def test_the_twin_rests_while_nothing_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    of = task(mrtd_start=0.6, alpha=0.0)
    looked: list[int] = []
    encode = of.twin.model.encode_image

    def counted(images: torch.Tensor) -> torch.Tensor:
        looked.append(len(images))
        seen: torch.Tensor = encode(images)
        return seen

    monkeypatch.setattr(of.twin.model, "encode_image", counted)
    for progress, expected in ((0.5, []), (0.7, [2])):
        of.loss_sums(of.prepare(tiny.pairs([1, 2]), epoch=0, progress=progress))
        assert looked == expected
