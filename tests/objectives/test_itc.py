from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskery.objectives.itc import (
    ALBEF_DIRECTIONS,
    RASA_DIRECTIONS,
    Direction,
    Features,
    itc_loss,
    trust,
)

B, K, E = 3, 4, 5
IDS = torch.tensor([7, 8, 7])
CANDIDATES = torch.tensor([7, 8, 7, 8, -100, 9, 7])


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def softmax(scores: np.ndarray) -> np.ndarray:
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return grown / grown.sum(axis=1, keepdims=True)


def believed(scores: np.ndarray, same: np.ndarray, doubt: float) -> np.ndarray:
    """The share of others that are less alike, to the power of doubt, in plain loops."""
    found = np.ones(scores.shape)
    for row, column in np.ndindex(scores.shape):
        others = scores[row][~same[row]]
        if len(others):
            found[row, column] = (others < scores[row, column]).mean() ** doubt
    return found


def test_trust_is_the_share_of_others_that_are_less_alike() -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    same = torch.randint(0, 3, (4, 30), generator=torch.Generator().manual_seed(1)) == 0
    same[3] = True  # nobody else to compare with
    expected = believed(scores.numpy(), same.numpy(), 3.0)
    found = trust(scores, same, 3.0)
    torch.testing.assert_close(found[same], torch.tensor(expected[same.numpy()]).float())
    assert found[0][same[0]].min() < 0.2


@pytest.mark.parametrize("doubt", [0.0, 2.0])
@pytest.mark.parametrize("directions", [ALBEF_DIRECTIONS, RASA_DIRECTIONS])
def test_loss_is_the_formula(directions: tuple[Direction, ...], doubt: float) -> None:
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
        doubt=doubt,
    )
    same = IDS.numpy()[:, None] == CANDIDATES.numpy()[None, :]
    hard = same / same.sum(axis=1, keepdims=True)
    by_letter = {"i": "image", "t": "text"}
    losses = []
    for direction in directions:
        side, other = by_letter[direction[0]], by_letter[direction[2]]
        keys = getattr(candidates, other).double().numpy().T
        goal = softmax(getattr(teacher, side).double().numpy() @ keys / temperature)
        trusted = hard * believed(goal, same, doubt)
        goal = alpha * goal + (1 - alpha) * trusted
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
