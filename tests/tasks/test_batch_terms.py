"""Terms of a dual encoder's batch against their papers' formulas, written out in NumPy."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import image_text_pairs as tiny
import numpy as np
import numpy.typing as npt
import pytest
import torch

from maskery.core.errors import ConfigError
from maskery.objectives.batch import sdm_rows
from maskery.objectives.terms import LossTerm, load_terms
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import ImageTextMLMConfig, PersonSearchConfig

Array = npt.NDArray[np.float64]
IDS, PERSONS = [1, 2, 3, 4, 5], [2, 0, 0, 1, 0]
PAIRS = SimpleNamespace(persons=np.array([0, 0, 1, 2, 2]), person_names=("a", "b", "c"))
NAMES = ("sdm", "tal", "infonce", "sigmoid", "id")


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def sdm(scores: Array, same: Array) -> float:
    p, q = softmax(scores / 0.02), same / same.sum(1, keepdims=True)
    return float((p * np.log(np.maximum(p, 1e-300) / (q + 1e-8))).sum(1).mean())


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
    logits = (2 * same - 1) * (10 * scores - 10)
    return {
        "sdm": sdm(scores, same) + sdm(scores.T, same.T),
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
        for side in ("image", "text"):
            seen[side] = getattr(step.projected, side).detach().double().numpy()
        return step.projected.image.sum(), 1

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
    for name in ("sigmoid.log_scale", "sigmoid.bias", "id.classifier.weight"):
        assert of.model.get_parameter(f"loss_terms.{name}").grad is not None


def test_doubted_pairs_count_less_in_every_loss_of_pairs() -> None:
    seen: dict[str, Any] = {}

    def look(step: Any) -> tuple[torch.Tensor, int]:
        seen.update(trust=step.trust, step=step)
        return step.features.image.sum(), 1

    of = task(term=("sdm",), doubt=3.0, doubt_warmup=0.5)
    of.own_terms.append(LossTerm.of(look))
    prepared = of.prepare(tiny.pairs(IDS, PERSONS), epoch=0, progress=0.25)
    assert prepared.doubt == 1.5
    sums = of.loss_sums(prepared)
    step, trust = seen["step"], seen["trust"].numpy()
    persons, others = np.array(PERSONS), step.candidate_ids.numpy()
    sides = {name: getattr(step.candidates, name).double().numpy() for name in ("image", "text")}
    for row in range(5):
        shares = []
        for one, other in (("image", "text"), ("text", "image")):
            scores = sides[one][row] @ sides[other].T
            shares.append((scores[others != persons[row]] < scores[row]).mean())
        assert trust[row] == pytest.approx(min(shares) ** 1.5, rel=1e-5)
    image, text = (getattr(step.features, side).detach() for side in ("image", "text"))
    same = torch.tensor(persons[:, None] == persons[None])
    rows = sdm_rows(image @ text.T, same) + sdm_rows(text @ image.T, same)
    assert sums["sdm"].item() == pytest.approx(float((rows.numpy() * trust).sum()), rel=1e-5)
    plain = task(term=("sdm",)).loss_sums(replace(prepared, doubt=0.0))
    assert plain["itm"].item() > sums["itm"].item()


def test_a_batch_of_one_person_has_nobody_to_be_told_from_and_finite_gradients() -> None:
    of = task(term=("tal",))
    sums = of.loss_sums(of.prepare(tiny.pairs([1, 2], [1, 1]), epoch=0, progress=0.5))
    assert sums["tal"].item() == 0
    sums["tal"].backward()
    assert torch.isfinite(of.model.text_proj.weight.grad).all()


def test_sigmoid_starts_as_the_siglip_model_that_training_starts_from() -> None:
    start = SimpleNamespace(temp=torch.tensor(1 / 112.0), logit_bias=torch.tensor(-16.5))
    (term,) = load_terms(["sigmoid"], [], start)
    assert term.compute.log_scale.exp().item() == pytest.approx(112)
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
