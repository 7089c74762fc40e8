from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskery.objectives.itc import (
    ALBEF_DIRECTIONS,
    RASA_DIRECTIONS,
    Belief,
    Direction,
    Features,
    itc_loss,
    shares_below,
)

B, K, E = 3, 4, 5
IDS = torch.tensor([7, 8, 7])
CANDIDATES = torch.tensor([7, 8, 7, 8, -100, 9, 7])


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def softmax(scores: np.ndarray) -> np.ndarray:
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return grown / grown.sum(axis=1, keepdims=True)


def shares(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The share of others that are less alike, in plain loops."""
    found = np.ones(scores.shape)
    for row, column in np.ndindex(scores.shape):
        others = scores[row][~same[row]]
        if len(others):
            found[row, column] = (others < scores[row, column]).mean()
    return found


def test_shares_are_of_others_that_are_less_alike() -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    same = torch.randint(0, 3, (4, 30), generator=torch.Generator().manual_seed(1)) == 0
    same[3] = True  # nobody else to compare with
    expected = torch.tensor(shares(scores.numpy(), same.numpy())).float()
    torch.testing.assert_close(shares_below(scores, same)[same], expected[same])


@pytest.mark.parametrize(("prior", "power"), [(0.8, 80.0), (0.5, 20.0), (1.0, 5.0)])
def test_belief_finds_the_mixture_that_shares_were_drawn_from(prior: float, power: float) -> None:
    rng = np.random.default_rng(0)
    count = round(20_000 * prior)
    right, wrong = rng.random(count) ** (1 / power), rng.random(20_000 - count)
    belief = Belief.fitted(torch.tensor(np.concatenate((right, wrong))))
    assert belief.prior.item() == pytest.approx(prior, abs=0.03)
    assert belief.power.item() == pytest.approx(power, rel=0.1)
    # Bayes' rule, with the density of each kind.
    share, found = 0.9, belief.of(torch.tensor(0.9, dtype=torch.float64)).item()
    density = belief.prior.item() * belief.power.item() * share ** (belief.power.item() - 1)
    assert found == pytest.approx(density / (density + 1 - belief.prior.item()), rel=1e-6)


def test_a_twin_that_knows_nothing_believes_all_alike() -> None:
    shares = torch.tensor(np.random.default_rng(0).random(1000))
    believed = Belief.fitted(shares).of(shares)
    assert believed.std().item() < 0.1
    for few in (torch.zeros(3), torch.ones(5)):
        assert torch.isfinite(Belief.fitted(few).of(torch.tensor([0.0, 0.5, 1.0]))).all()


@pytest.mark.parametrize("doubts", [False, True])
@pytest.mark.parametrize("directions", [ALBEF_DIRECTIONS, RASA_DIRECTIONS])
def test_loss_is_the_formula(directions: tuple[Direction, ...], doubts: bool) -> None:
    belief = Belief(power=torch.tensor(2.0), prior=torch.tensor(0.7)) if doubts else None
    student = Features(image=unit(B, E, seed=0), text=unit(B, E, seed=1))
    teacher = Features(image=unit(B, E, seed=2), text=unit(B, E, seed=3))
    candidates = Features(
        image=torch.cat((teacher.image, unit(K, E, seed=4))),
        text=torch.cat((teacher.text, unit(K, E, seed=5))),
    )
    alpha, temperature = 0.3, 0.2
    contrast = itc_loss(
        student,
        teacher,
        candidates,
        ids=IDS,
        candidate_ids=CANDIDATES,
        temperature=torch.tensor(temperature),
        alpha=alpha,
        directions=directions,
        belief=belief,
    )
    same = IDS.numpy()[:, None] == CANDIDATES.numpy()[None, :]
    hard = same / same.sum(axis=1, keepdims=True)
    losses = []
    for side, other in directions:
        keys = getattr(candidates, other).double().numpy().T
        goal = softmax(getattr(teacher, side).double().numpy() @ keys / temperature)
        right = 0.7 * 2 * shares(goal, same)
        trusted = right / (right + 0.3) if doubts else 1.0
        goal = alpha * goal + (1 - alpha) * hard * trusted
        shown = softmax(getattr(student, side).double().numpy() @ keys / temperature)
        losses.append(-(goal * np.log(shown)).sum())
    assert contrast.loss_sum.item() == pytest.approx(np.mean(losses), rel=1e-5)
    expected = student.image @ teacher.text.T / temperature
    torch.testing.assert_close(contrast.image_to_text, expected)
    expected = student.text @ teacher.image.T / temperature
    torch.testing.assert_close(contrast.text_to_image, expected)


def test_gradients_reach_student_and_temperature_alone() -> None:
    image = unit(B, E, seed=0).requires_grad_()
    teacher = Features(
        image=unit(B, E, seed=2).requires_grad_(), text=unit(B, E, seed=3).requires_grad_()
    )
    temperature = torch.tensor(0.1, requires_grad=True)
    detached = Features(image=teacher.image.detach(), text=teacher.text.detach())
    contrast = itc_loss(
        Features(image=image, text=unit(B, E, seed=1)),
        teacher,
        detached,
        ids=torch.arange(B),
        candidate_ids=torch.arange(B),
        temperature=temperature,
        alpha=0.4,
    )
    contrast.loss_sum.backward()
    assert image.grad is not None
    assert temperature.grad is not None
    assert teacher.image.grad is None
    assert not contrast.image_to_text.requires_grad
