"""Mixtures: shares of tokens in every epoch, streams without repeats, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.data.batching import Batching, Template
from maskery.data.mixture import MixedSource, shares_of
from maskery.data.store import Documents
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import prepare_text
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig

SHARES = [0.5, 0.3, 0.2]


@pytest.fixture(scope="module")
def mixed() -> MixedSource:
    """Three corpora of about 2,000, 8,000 and 1,000 tokens."""
    generator = np.random.default_rng(0)
    owners = np.repeat([0, 1, 2], [100, 400, 50])
    lengths = generator.integers(1, 40, len(owners))
    part = (
        np.arange(lengths.sum()),
        np.ones(lengths.sum(), bool),
        lengths,
        generator.integers(0, 2**63, len(owners)).astype(np.uint64),
    )
    batching = Batching(
        template=Template(prefix=(1,), suffix=(2,)), batch_tokens=300, max_length=30, seed=3
    )
    return MixedSource(
        Documents.gather([part]), np.arange(len(owners)), batching, owners, SHARES
    )  # fmt: skip


def test_every_epoch_has_its_shares_and_streams_do_not_repeat(mixed: MixedSource) -> None:
    seen = [np.zeros(0, int) for _ in SHARES]
    for epoch in range(4):
        order = mixed.plan(epoch).order
        parts = [order[np.isin(order, own)] for own in mixed.members]
        tokens = [mixed.lengths[part].sum() for part in parts]
        # To a window at either end of a part.
        whole = mixed.num_tokens(epoch)
        for found, share in zip(tokens, SHARES, strict=True):
            assert abs(found - share * whole) <= 2 * 30
        seen = [np.concatenate(both) for both in zip(seen, parts, strict=True)]
    # The first is scarce: all of it is in every epoch.
    for number in (0, 1, 2):
        each = SHARES[number] / SHARES[0] * mixed.sizes[0]
        counts = np.bincount(seen[number], minlength=len(mixed.lengths))[mixed.members[number]]
        turns = 4 * each / mixed.sizes[number]
        assert counts.min() >= int(turns)
        assert counts.max() <= int(turns) + 1


def test_plans_are_pure_and_differ_by_seed(mixed: MixedSource) -> None:
    again = MixedSource(
        mixed.store,
        np.arange(mixed.store.num_documents),
        replace(mixed.batching, seed=4),
        np.repeat([0, 1, 2], [100, 400, 50]),
        SHARES,
    )
    plans = [mixed.plan(epoch).order.tolist() for epoch in (2, 0, 2)]
    assert plans[0] == plans[2]
    assert len({*map(tuple, plans), tuple(again.plan(2).order.tolist())}) == 3


@pytest.fixture
def config(tmp_path: Path) -> TextRunConfig:
    texts = lines(120)
    (tmp_path / "books.txt").write_text("\n".join(texts[:40]), "utf-8")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.txt").write_text("\n".join(texts[40:90]), "utf-8")
    (tmp_path / "web" / "b.txt").write_text("\n".join(texts[90:]), "utf-8")
    training = TrainingConfig(
        batch_tokens=256, epochs=3, learning_rate=3e-3, checkpoint_every=1, precision="fp32"
    )
    return TextRunConfig(
        corpus=(str(tmp_path / "books.txt"), str(tmp_path / "web")),
        model=str(save_tiny_model(tmp_path / "model")),
        output=tmp_path / "run",
        mix=("books=0.6", "web=0.4"),
        training=training,
    )


def test_a_mixed_run_reads_its_shares_and_goes_on_to_the_bit(
    config: TextRunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = prepare_text(config, progress=False)
    assert isinstance(run.train, MixedSource)
    assert run.train.taken[0] == run.train.sizes[0] < run.train.taken[1] * 2
    whole = train_text(config, progress=False)
    cut = replace(config, output=tmp_path / "cut")
    die_before(whole.summary.steps // 2, train_text, cut, monkeypatch)
    train_text(replace(cut, resume="auto"), progress=False)
    one, other = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (whole.folder, tmp_path / "cut")
    )
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_a_saved_mixture_names_its_corpora_from_any_folder(
    config: TextRunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = replace(config, corpus=("books.txt", "web/*.txt"), mix=("web/*.txt=.4", "books=.6"))
    held = relative.anchored()
    assert held.mix == (f"{tmp_path / 'books.txt'}=0.6", f"{tmp_path / 'web/*.txt'}=0.4")
    assert held.shares == relative.shares == [0.6, 0.4]


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (("books=0.3", "web=0.6"), r"--mix: they sum to 0.9; give each corpus its share, 1 in all"),
        (("books=0.3", "books=0.7"), "--mix books=0.7: it is there twice"),
        (("books=1",), r"--mix: b/web has no share"),
        (("boks=0.3", "web=0.7"), r"'boks' names none of the corpora \(books.txt, web\)"),
        (("books", "web=1"), "--mix books: '' names none"),
        (("books=x", "web=1"), "--mix books=x: its share must be a number above 0"),
        (("books=-1", "web=2"), "--mix books=-1: its share must be a number above 0"),
        (("books=nan", "web=1"), "--mix books=nan: its share must be"),
    ],
)
def test_what_is_no_mixture_is_one_line(mix: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        shares_of(mix, ["a/books.txt", "b/web"])
    assert "\n" not in str(caught.value)


def test_names_that_fit_twice_and_shards_are_refused(
    config: TextRunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'books' names several of the corpora"):
        shares_of(["books=0.5", "x=0.5"], ["a/books.txt", "b/books.jsonl"])
    shards = str(tmp_path / "shards")
    words = ["tokenize", config.corpus[0], shards, "--model", config.model]
    assert main(words) == 0
    assert main(["train", "text", shards, "--mix", "shards=1", "--model", config.model]) == 2
    assert "--mix needs each corpus as text of its own" in capsys.readouterr().err
