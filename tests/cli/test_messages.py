"""What is printed at the end of a run, and before one that cannot begin."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskery.cli import quickstart
from maskery.cli.main import main
from maskery.cli.train import describe
from maskery.evaluation.tables import scores_table
from maskery.training.loop import Summary


def last_line(**summary: Any) -> str:
    """Return the first line that is printed of a run with a summary."""
    ran = Summary(**{"tokens": 2000, "seconds": 10.0, "resumed_from": 0, **summary})
    result = SimpleNamespace(folder=Path("runs/a"), summary=ran, to_json=lambda: {}, verdict="")
    return describe("pairs", result).splitlines()[0]


def test_a_run_says_its_length_and_speed_in_tokens_and_pairs() -> None:
    assert last_line(steps=5) == "5 steps; 2,000 tokens in 10 s, 200 tokens/s"
    pairs = "1 step; 320 pairs, 2,000 tokens in 10 s, 32 pairs/s, 200 tokens/s"
    assert last_line(steps=1, pairs=320) == pairs
    assert last_line(steps=1, resumed_from=1) == "the run was already finished: 1 step"


def scores(loss: float, perplexity: tuple[float, float, float]) -> dict[str, Any]:
    shares = dict.fromkeys(("top1", "top5"), (0.5, 0.4, 0.6))
    counts = {"masked_tokens": 100, "examples": 20}
    return {"loss": (loss, 4.0, 5.0), "perplexity": perplexity, **shares, **counts}


def test_the_numbers_of_a_row_have_as_many_digits() -> None:
    before, after = (97.019, 89.3, 105.3), (101.4, 90.0, 111.0)
    table = scores_table({"before": scores(4.575, before), "after": scores(4.619, after)})
    rows = {row[0]: row[1:] for row in table.lines()}
    assert rows["perplexity"][:2] == ["97.0 [89.3, 105.3]", "101.4 [90.0, 111.0]"]
    assert rows["loss (nats)"][:2] == ["4.575 [4.000, 5.000]", "4.619 [4.000, 5.000]"]


@pytest.mark.parametrize(
    ("command", "kind", "extra"),
    [("quickstart", "Text", "quickstart"), ("quickstart person-search", "People", "vision")],
)
def test_a_quickstart_without_its_package_says_so_and_makes_nothing(
    command: str,
    kind: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # An entry of None is a module that cannot be imported.
    monkeypatch.setitem(sys.modules, getattr(quickstart, kind).needs[0], None)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"pip install 'maskery[{extra}]'" in err
    assert list(tmp_path.iterdir()) == []
