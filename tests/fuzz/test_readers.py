"""Whatever a file holds, it is read or refused in one line; `benchmarks/soak.py` tries more."""

from __future__ import annotations

import pytest
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = 40


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_bad_input_gives_one_line_and_no_traceback(name: str) -> None:
    target = TARGETS[name]
    accepted: list[bool] = []
    slow = target.share < 20
    cases = 8 if slow else CASES

    @settings(max_examples=cases, suppress_health_check=list(HealthCheck))
    @given(case=target.cases)
    def attempt(case: object) -> None:
        accepted.append(target.attempt(case))

    attempt()
    # A target that refuses everything, or takes everything, would not be reading what it should.
    assert len(accepted) >= cases
    assert not all(accepted) or name == "galleries"  # they are made again
    assert any(accepted) or name == "sources" or slow


def test_a_fault_is_found() -> None:
    target = TARGETS["text"]

    def faulty(case: bytes, folder: object) -> None:
        raise KeyError(case)

    broken = type(target)(cases=st.binary(), read=faulty)
    with pytest.raises(KeyError):
        broken.attempt(b"x")
