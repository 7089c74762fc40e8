"""A newcomer's masking policy: PMI phrases from one file, on the command line and in Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_text import WORDS, save_tiny_model
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maskery.cli.main import main
from maskery.core.errors import PluginError
from maskery.core.registry import load_plugin
from maskery.data.rows import flatten, tokenise_rows
from maskery.masking.masker import Masker

SCRIPT = Path(__file__).parents[2] / "examples" / "plugins" / "pmi_policy.py"
POLICY = f"{SCRIPT}:policy"


def text_of(count: int) -> str:
    """Lines of random words, in which "new york" and "copper violet" always stand together."""
    generator = np.random.default_rng(0)
    units = [*(w for w in WORDS if w not in ("copper", "violet")), "copper violet", "new york"]
    return "\n".join(" ".join(generator.choice(units, 9)) for _ in range(count))


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "tiny"))


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(text_of(400), "utf-8")
    monkeypatch.setenv("PMI_TEXT", str(path))
    return path


def test_it_is_a_short_file() -> None:
    assert len(SCRIPT.read_text("utf-8").splitlines()) <= 70


def test_phrases_are_masked_together_and_the_rate_is_kept(
    tokenizer: PreTrainedTokenizerBase, text: Path
) -> None:
    lines = text.read_text("utf-8").splitlines()
    rows = flatten(tokenise_rows(lines, tokenizer, max_length=64))
    masker = Masker.of(tokenizer, policy=POLICY, rate=0.15, seed=1)
    tokens = tokenizer.convert_ids_to_tokens(rows.input_ids)
    maskable = ~masker.vocabulary.protected[rows.input_ids]
    joined, seen, counts = {"copper": 2, "n": 7}, 0, []
    for epoch in range(20):
        chosen = masker.select(rows, epoch=epoch).selected
        counts.append(chosen.sum() / maskable.sum())
        for place in np.flatnonzero(np.isin(tokens, list(joined))):
            stretch = chosen[place : place + joined[tokens[place]]]
            assert stretch.all() or not stretch.any()
            seen += stretch.all()
    assert seen > 500
    # One word or phrase in 7.7 of a line of 9 is forced with 0.85 ** 9 = 23%; without that, 0.15.
    own = [
        masker.policy.select(rows, maskable, 0.15, masker._draws(epoch)).selected.sum()
        / maskable.sum()
        for epoch in range(20)
    ]
    assert abs(np.mean(own) - 0.15) < 5 * np.std(own) / np.sqrt(20)
    assert np.mean(counts) > np.mean(own)


def test_a_phrase_ends_with_a_word_and_longer_ones_go_first(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    kind = load_plugin(f"{SCRIPT}:PMIPolicy", flag="--policy", contract="a policy")
    phrases = tokenizer(["river st", "stone cloud", "stone cloud ember"], add_special_tokens=False)
    masker = Masker.of(tokenizer, policy=kind(phrases["input_ids"]), rate=0.5)
    rows = flatten(tokenise_rows(["river stx stone cloud ember"], tokenizer, max_length=64))
    anchors = masker.select(rows, epoch=0).anchors
    assert anchors is not None
    # [CLS] river s ##t ##x stone cloud ember [SEP]
    assert anchors.tolist() == [0, 1, 2, 2, 2, 5, 5, 5, 8]


def test_a_run_of_the_command_line(tmp_path: Path, text: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    run = tmp_path / "run"
    arguments = ["--model", str(folder), "--max-length", "32", "--max-steps", "2"]
    arguments += ["--output", str(run), "--cache-dir", str(tmp_path / "cache")]
    assert main(["train", "text", str(text), "--policy", POLICY, *arguments]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert any("loss" in row for row in rows)
    assert POLICY in (run / "config.yaml").read_text("utf-8")


def test_without_a_text_one_line_says_so(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PMI_TEXT", raising=False)
    with pytest.raises(PluginError, match=r"pmi_policy.py:policy: .*KeyError: 'PMI_TEXT'"):
        Masker.of(tokenizer, policy=POLICY)
