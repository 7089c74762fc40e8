"""`maskery fill --sample`: step by step as a plain loop does, and the same again for a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import DataError
from maskery.evaluation.text.fill import Filler

TEXT = "the [MASK] stone [MASK] [MASK] ember [MASK]."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=4)


@pytest.fixture(scope="module")
def filler(folder: Path) -> Filler:
    found = Filler.of(folder)
    with torch.no_grad():  # as they are made, all tokens are about as likely
        for parameter in found.model.parameters():
            parameter.mul_(4.0)
    return found


def plain(filler: Filler, text: str, steps: int, block: int) -> tuple[list[int], float]:
    """Fill by the likeliest words, most confident first, with Hugging Face's own forward."""
    ids = filler.encode(text)
    words = filler.reader.offered("the [MASK] stone", (4, 10)).tolist()
    places, total = [i for i, token in enumerate(ids) if token == filler.mask_id], 0.0
    for first in range(0, len(places), block):
        mine = places[first : first + block]
        turns = -(-steps * len(mine) // len(places))
        for turn in range(turns, 0, -1):
            with torch.no_grad():
                logs = filler.model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
            best = {
                place: max((float(logs[place, w]), w) for w, may in enumerate(words) if may)
                for place in mine
                if ids[place] == filler.mask_id
            }
            for place in sorted(best, key=lambda p: -best[p][0])[: -(-len(best) // turn)]:
                total += best[place][0]
                ids[place] = best[place][1]
    return [ids[place] for place in places], total


@pytest.mark.parametrize(("steps", "block"), [(4, 32), (4, 1), (2, 32), (1, 32), (2, 2), (3, 3)])
def test_the_surest_are_filled_first(filler: Filler, steps: int, block: int) -> None:
    expected, total = plain(filler, TEXT, steps, block)
    found = filler.sample(TEXT, steps=steps, block=block)
    assert filler.tokenizer.convert_tokens_to_ids(found.tokens) == expected
    assert found.log_probability == pytest.approx(total, abs=1e-4)
    assert filler.sample(TEXT, steps=steps, block=block, seed=9) == found  # nothing is drawn


def test_draws_follow_the_model_and_repeat(filler: Filler) -> None:
    text, counts = "the [MASK] ember.", np.zeros(len(filler.tokenizer))
    for seed in range(250):
        (token,) = filler.sample(text, temperature=3.0, seed=seed).tokens
        counts[filler.tokenizer.convert_tokens_to_ids(token)] += 1
    logs = filler.log_probabilities([filler.encode(text)])[0, 0].double()
    words = filler.reader.offered(text, (4, 10))
    chances = (logs / 3.0).exp().where(words, 0.0)
    expected = (chances / chances.sum()).numpy()
    assert counts[~words.numpy()].sum() == 0
    error = np.sqrt(expected * (1 - expected) / 250)
    assert (np.abs(counts / 250 - expected) < 4 * error + 2 / 250).all()
    assert np.count_nonzero(counts) > 5

    drawn = [filler.sample("[MASK]*9", temperature=1.5, seed=seed) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(drawn[0].tokens) == 9
    assert filler.sample(TEXT, temperature=1e-320, seed=5).text == filler.sample(TEXT).text


def test_words_in_a_row_are_apart_and_pieces_are_not(filler: Filler) -> None:
    ids = filler.tokenizer.convert_tokens_to_ids(["river", "##s", "cloud"])
    text = "the [MASK][MASK][MASK]."
    assert filler.reader.fill(text, ids) == "the rivers cloud."
    # And a model reads it as it was written.
    again = filler.sample("[MASK]*6", temperature=2.0, seed=3)
    assert filler.tokenizer.tokenize(again.text) == list(again.tokens)


@pytest.mark.parametrize("text", ["no mask", "[MASK]*0", f"[MASK]*{10**9 - 1}"])
def test_texts_that_cannot_be_written(filler: Filler, text: str) -> None:
    with pytest.raises(DataError, match=r"no \[MASK\]|32 positions"):
        filler.sample(text)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["fill", str(folder), "a [MASK]*3", "[MASK]", "--sample", "--temperature", "1"]
    assert main([*typed, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(one["tokens"]) for one in found] == [3, 1]
    assert main(typed) == 0
    assert capsys.readouterr().out.split("\n\n")[0] == found[0]["text"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--sample --temperature -0.1", "temperature is -0.1: it must be 0 or more"),
        ("--sample --temperature nan", "temperature is nan: it must be 0 or more"),
        ("--sample --block 0", "block is 0: it must be at least 1"),
        ("--sample --steps 0", "steps is 0: it must be at least 1"),
        ("--sample --beams 3", "--beams is given: it goes without --sample"),
        ("--temperature 0.5", "--temperature is given: it needs --sample"),
    ],
)
def test_flags_that_do_not_fit(capsys: pytest.CaptureFixture[str], flags: str, told: str) -> None:
    assert main(["fill", "nowhere", "[MASK]", *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"maskery fill: {told}\n")
