"""What a refusal says about settings that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskery.core.errors import CheckpointError
from maskery.training.identity import differences, require_same_run

RUN: dict[str, Any] = {
    "model": "bert",
    "dropout": [0.1, 0.2],
    "training": {"seed": 0, "max_steps": None},
    "masking": {"policy": "word"},
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": "roberta"}, ["model is 'roberta' here and 'bert' in the run"]),
        ({"dropout": [0.1, 0]}, ["dropout is [0.1, 0] here and [0.1, 0.2] in the run"]),
        (
            {"training": {"seed": 3, "max_steps": 9}},
            [
                "max_steps is 9 here and not set in the run",
                "seed is 3 here and 0 in the run",
            ],
        ),
        ({"masking": {}}, ["policy is not set here and 'word' in the run"]),
        ({"layout": "padded"}, ["layout is 'padded' here and not set in the run"]),
        ({}, []),
    ],
)
def test_every_difference_is_named(changed: dict[str, Any], told: list[str]) -> None:
    assert differences(json.dumps(RUN), json.dumps({**RUN, **changed})) == told


def test_the_same_run_is_let_through() -> None:
    require_same_run(Path("x"), json.dumps(RUN), json.dumps(RUN))


def test_a_refusal_is_one_line_and_tells_three_differences() -> None:
    own = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    with pytest.raises(CheckpointError) as caught:
        require_same_run(Path("run/checkpoints/step-1"), "{}", json.dumps(own))
    message = str(caught.value)
    assert "\n" not in message
    assert "c is 3 here and not set in the run and 2 more; repeat" in message
    assert "d is" not in message


@pytest.mark.parametrize("stored", ["a" * 64, "[1]", "7", ""])
def test_an_identity_that_is_no_settings_is_refused_all_the_same(stored: str) -> None:
    with pytest.raises(CheckpointError, match="corpus or setting; repeat"):
        require_same_run(Path("x"), stored, json.dumps(RUN))
