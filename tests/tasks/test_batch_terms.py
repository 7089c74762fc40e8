"""Terms of a dual encoder's batch against their papers' formulas, written out in NumPy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import image_text_pairs as tiny
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_towers import save_towers

from maskery.core.errors import ConfigError
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.models.image_text.build import build_from_towers
from maskery.objectives.itc import Belief
from maskery.objectives.terms import LossTerm, load_terms
from maskery.runs.image_text.config import irra
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import ImageTextMLMConfig, PersonSearchConfig

Array = npt.NDArray[np.float64]
IDS, PERSONS = [1, 2, 3, 4, 5], [2, 0, 0, 1, 0]
PAIRS = SimpleNamespace(persons=np.array([0, 0, 1, 2, 2]), person_names=("a", "b", "c"))
NAMES = ("sdm", "tal", "infonce", "sigmoid", "id")


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def sdm_rows(scores: Array, same: Array) -> Array:
    p, q = softmax(scores / 0.02), same / same.sum(1, keepdims=True)
    return np.asarray((p * np.log(np.maximum(p, 1e-300) / (q + 1e-8))).sum(1))


def tal(scores: Array, same: Array) -> float:
    total = 0.0
    for i in range(len(scores)):
        positives = [j for j in range(len(scores)) if same[i, j]]
        weights = [np.exp(scores[i, j] / 0.015) for j in positives]
        positive = sum(w * scores[i, j] for w, j in zip(weights, positives, strict=True))
        others = sum(np.exp(scores[i, j] / 0.015) for j in range(len(scores)) if not same[i, j])
        total += max(0.1 - positive / sum(weights) + 0.015 * np.log(others), 0.0)
    return total / len(scores)


def formulas(image: Array, text: Array, same: Array, temperature: float) -> dict[str, float]:
    """Means over the batch, as the papers have them, of features of any length."""
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (image, text)]
    scores = units[0] @ units[1].T
    own = np.arange(len(scores))
    nce = [-np.log(softmax(way / temperature)[own, own]).mean() for way in (scores, scores.T)]
    logits = (2 * same - 1) * (scores / temperature - 10)
    return {
        "sdm": float((sdm_rows(scores, same) + sdm_rows(scores.T, same.T)).mean()),
        "tal": tal(scores, same) + tal(scores.T, same.T),
        "infonce": float(np.mean(nce)),
        "sigmoid": float(np.log1p(np.exp(-logits)).sum() / len(scores)),
    }


def task(**changes: Any) -> Any:
    made: Any = ImageTextTask(
        tiny.model(), PersonSearchConfig(queue_size=4, **changes), pairs=PAIRS, **tiny.PARTS
    )
    made.model.eval()
    return made


def test_each_term_is_its_papers_formula() -> None:
    seen: dict[str, Array] = {}

    def look(step: Any) -> tuple[torch.Tensor, int]:
        image = step.model.image_feature(step.image_tokens, unit=False)
        text = step.model.text_feature(step.caption, step.caption_mask, unit=False)
        seen.update(image=image.detach().double().numpy(), text=text.detach().double().numpy())
        return image.sum(), 1

    alone = dict.fromkeys(("itc_weight", "itm_weight", "mlm_weight", "prd_weight"), 0.0)
    of = task(**alone, mrtd_weight=0.0, term=tuple(f"{name}=0.5" for name in NAMES))
    of.own_terms.append(LossTerm.of(look))
    classifier = of.model.loss_terms["id"].classifier
    assert classifier.weight.shape == (3, 6)
    torch.nn.init.normal_(classifier.weight)
    assert of.loss_weights == dict.fromkeys(NAMES, 0.5)
    prepared = of.prepare(tiny.pairs(IDS, PERSONS), epoch=0, progress=0.5)
    sums = of.loss_sums(prepared)
    persons = np.array(PERSONS)
    same = (persons[:, None] == persons[None]).astype(float)
    expected = formulas(seen["image"], seen["text"], same, of.model.temp.item())
    weight = classifier.weight.detach().double().numpy()
    right = [softmax(seen[side] @ weight.T)[np.arange(5), persons] for side in ("image", "text")]
    expected["id"] = -float(np.log(right).mean())
    for name, value in expected.items():
        assert prepared.counts[name] == 5
        assert sums[name].item() / 5 == pytest.approx(value, abs=1e-6, rel=1e-6), name
    sum(sums[name] for name in NAMES).backward()
    assert of.model.temp.grad is not None  # of InfoNCE
    for name in ("sigmoid.bias", "id.classifier.weight"):
        assert of.model.get_parameter(f"loss_terms.{name}").grad is not None


def test_an_irra_step_is_the_sum_of_three_plain_losses(tmp_path: Path) -> None:
    save_towers(tmp_path, "clip")
    model, *_ = build_from_towers(str(tmp_path), fusion_layers=2, image_size=(16, 8))
    objectives = irra(PersonSearchDataConfig(dataset="cuhk-pedes", root=tmp_path)).objectives
    of: Any = ImageTextTask(model, objectives, pairs=PAIRS, **tiny.PARTS)
    model.eval()
    prepared = of.prepare(tiny.pairs(IDS, PERSONS), epoch=0, progress=0.5)
    sums = of.loss_sums(prepared)
    total = sum(
        of.loss_weights[name] * value / prepared.counts[name] for name, value in sums.items()
    )
    losses, sides = [], []
    for row in range(5):
        picture, mask = prepared.image1[row : row + 1], prepared.text2.attention_mask[row]
        text = prepared.text2.input_ids[row : row + 1, mask]
        words, eyes = model.text_encoder.tower(text)[0], model.visual_encoder(picture)
        sides.append((model.vision_proj(eyes[0, 0]), model.text_proj(words[0, -1])))
        width = prepared.text1.input_ids.shape[1]
        within = (prepared.mlm.positions // width) == row
        places, targets = prepared.mlm.positions[within] % width, prepared.mlm.targets[within]
        masked = prepared.mlm.input_ids[row : row + 1, prepared.text1.attention_mask[row]]
        logits = model(picture, masked).logits[0, places]
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    features = [torch.stack(each).detach().double().numpy() for each in zip(*sides, strict=True)]
    persons = np.array(PERSONS)
    same = (persons[:, None] == persons[None]).astype(float)
    classifier: Any = model.loss_terms["id"].classifier
    weight = classifier.weight.detach().double().numpy()
    right = [softmax(each @ weight.T)[np.arange(5), persons] for each in features]
    expected = formulas(*features, same, 1.0)["sdm"] - float(np.log(right).mean())
    assert total.item() == pytest.approx(expected + torch.cat(losses).mean().item(), rel=1e-5)


def test_doubted_pairs_count_less_in_every_loss_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    belief = Belief(power=torch.tensor(3.0), prior=torch.tensor(0.7))

    def fitted(shares: torch.Tensor) -> Belief:
        seen["shares"] = shares.numpy()
        return belief

    def look(step: Any) -> tuple[torch.Tensor, int]:
        seen.update(trust=step.trust, step=step)
        return step.features.image.sum(), 1

    monkeypatch.setattr(Belief, "fitted", fitted)
    of, plain = (task(term=("sdm",), doubt=doubt) for doubt in (True, False))
    of.own_terms.append(LossTerm.of(look))
    prepared = of.prepare(tiny.pairs(IDS, PERSONS), epoch=0, progress=0.1)
    sums, before = of.loss_sums(prepared), plain.loss_sums(prepared)
    step, trust = seen["step"], seen["trust"].numpy()
    # What the twin finds: the share of other persons' pictures that fit a caption worse.
    persons, scores = np.array(PERSONS), (step.teacher.text @ step.teacher.image.T).numpy()
    others = persons[:, None] != persons[None]
    shares = [(scores[i][others[i]] < scores[i, i]).mean() for i in range(5)]
    np.testing.assert_allclose(seen["shares"], shares, rtol=1e-6)
    right = 0.7 * 3 * np.square(shares)
    np.testing.assert_allclose(trust, right / (right + 0.3), rtol=1e-5)
    assert np.ptp(trust) > 0.1
    image, text = (getattr(step.features, s).detach().double().numpy() for s in ("image", "text"))
    same = (persons[:, None] == persons[None]).astype(float)
    rows = sdm_rows(image @ text.T, same) + sdm_rows(text @ image.T, same)
    assert sums["sdm"].item() == pytest.approx(float((rows * trust).sum()), rel=1e-5)
    assert before["itm"].item() > sums["itm"].item()


def test_a_batch_of_one_person_has_nobody_to_be_told_from_and_finite_gradients() -> None:
    of = task(term=("tal",))
    sums = of.loss_sums(of.prepare(tiny.pairs([1, 2], [1, 1]), epoch=0, progress=0.5))
    assert sums["tal"].item() == 0
    sums["tal"].backward()
    assert torch.isfinite(of.model.text_proj.weight.grad).all()


def test_sigmoid_starts_as_the_siglip_model_that_training_starts_from() -> None:
    (term,) = load_terms(["sigmoid"], [], SimpleNamespace(logit_bias=torch.tensor(-16.5)))
    assert term.compute.bias.item() == -16.5


def test_identities_need_a_second_picture_and_persons() -> None:
    once = SimpleNamespace(persons=np.array([1, 0, 2]), person_names=("a", "b", "c"))
    for pairs in (once, None):
        with pytest.raises(ConfigError, match=r"--term id .* no training person has a second pict"):
            load_terms(["id"], [], tiny.model(), pairs)
    with pytest.raises(ConfigError, match="'id' needs to know persons: maskery train person-se"):
        ImageTextMLMConfig(term=("id=1",))
    assert PersonSearchConfig(term=("id=1", "itc=0")).weights.keys() == {
        "itm",
        "mlm",
        "prd",
        "mrtd",
    }


def look_at_the_twin(step: Any) -> tuple[torch.Tensor, int]:
    return (step.features.image * step.teacher.image).sum(), len(step.ids)


def test_the_twin_reads_nothing_where_no_term_asks_it() -> None:
    off = ("itc_weight", "itm_weight", "prd_weight", "mrtd_weight", "alpha")
    asked, found = [], []
    for terms in ([], [look_at_the_twin]):
        weights: Any = dict.fromkeys(off, 0.0)
        config = PersonSearchConfig(queue_size=4, term=("sdm", "infonce"), **weights)
        of: Any = ImageTextTask(tiny.model(), config, pairs=PAIRS, terms=terms, **tiny.PARTS)
        of.twin.model.visual_encoder.register_forward_hook(lambda *_: asked.append(1))
        found.append(of.loss_sums(of.prepare(tiny.pairs(IDS, PERSONS), epoch=0, progress=0.5)))
    assert len(asked) == 1
    for name in ("sdm", "infonce", "mlm"):
        assert torch.equal(found[0][name], found[1][name])
