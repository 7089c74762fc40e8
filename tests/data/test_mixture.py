"""Mixtures: shares of tokens in every epoch, streams without repeats, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_runs import die_before
from safetensors.torch import load_file
from shard_folders import shard
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError, DataError
from maskery.data.batching import Batching, Template
from maskery.data.mixture import MixedShards, MixedSource, shares_of
from maskery.data.shards.places import Place
from maskery.data.shards.source import TokenShards
from maskery.data.store import Documents
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sets of shards of about 1,600, 9,000 and 500 tokens."""
    work, texts = tmp_path_factory.mktemp("sets"), lines(620)
    for name, part in (("a", texts[:90]), ("b", texts[90:590]), ("c", texts[590:])):
        (work / f"{name}.txt").write_text("\n".join(part), "utf-8")
        shard(work / f"{name}.txt", work / name)
    return [work / name for name in "abc"]


def mix_shards(folders: list[Path], batch_tokens: int = 300) -> MixedShards:
    template = Template(prefix=(2,), suffix=(3,))
    batching = Batching(template=template, batch_tokens=batch_tokens, max_length=30, seed=3)
    sets = [TokenShards(Place(folder)) for folder in folders]
    return MixedShards(sets, SHARES, batching, shuffle_shards=2)


def of_sets(mixed: MixedShards, epoch: int, step: int, **world: int) -> dict[str, TokenBatch]:
    """The batches of a step by the set that they came from."""
    owners = {}
    for part in mixed.parts:
        entries = part.shards.manifest.shards
        owners |= dict.fromkeys(part.shards.open(entries).ids.tolist(), part.shards.place.name)
    found = mixed.micro_batches(epoch, step, **world)
    batches = [one if isinstance(one, TokenBatch) else one.batch for one in found]
    return {owners[int(batch.example_ids[0])]: batch for batch in batches}


def test_shards_are_mixed_by_tokens_within_the_budget_and_read_to_their_ends(
    folders: list[Path],
) -> None:
    mixed = mix_shards(folders)
    tokens, texts = dict.fromkeys(map(str, folders), 0), {str(one): [] for one in folders}
    for epoch in range(3):
        for step in range(mixed.num_steps(epoch)):
            found = of_sets(mixed, epoch, step)
            assert sum(batch.num_tokens for batch in found.values()) <= 300
            for name, batch in found.items():
                tokens[name] += batch.num_tokens
                texts[name] += zip(batch.example_ids.tolist(), batch.starts.tolist(), strict=True)
    whole = sum(tokens.values())
    # Three steps of a set, at most, are not like their mean.
    for folder, share in zip(folders, SHARES, strict=True):
        assert tokens[str(folder)] == pytest.approx(share * whole, abs=300)
    for read in texts.values():  # none a second time before all were read
        _, counts = np.unique(read, axis=0, return_counts=True)
        assert counts.max() - counts.min() <= 1
    # The set that is scarce for its share is read once an epoch, but for what is left of a step.
    scarce = max(
        folders, key=lambda one: tokens[str(one)] / TokenShards(Place(one)).manifest.tokens
    )
    assert len(texts[str(scarce)]) / len(set(texts[str(scarce)])) == pytest.approx(3, abs=0.35)


def test_every_batch_of_mixed_shards_is_within_their_bounds(folders: list[Path]) -> None:
    mixed = mix_shards(folders)
    bounds = mixed.bounds(1)
    for step in range(mixed.num_steps(0)):
        for batch in of_sets(mixed, 0, step).values():
            assert batch.num_tokens <= bounds.num_tokens < 300
            assert len(batch.lengths) <= bounds.num_sequences
            assert batch.lengths.max() <= bounds.longest


def test_a_mixed_step_is_the_same_wherever_a_run_begins(folders: list[Path]) -> None:
    mixed, place = mix_shards(folders), (4, 1)
    for step in range(3):
        of_sets(mixed, 0, step)
    here, there = of_sets(mixed, *place), of_sets(mix_shards(folders), *place)
    assert {name: batch.input_ids.tolist() for name, batch in here.items()} == {
        name: batch.input_ids.tolist() for name, batch in there.items()
    }
    # Two processes share each set's part of the step.
    halves = [of_sets(mixed, *place, rank=rank, world_size=2) for rank in (0, 1)]
    for name, batch in here.items():
        both = np.concatenate([half[name].example_ids for half in halves])
        assert sorted(both.tolist()) == sorted(batch.example_ids.tolist())


def test_a_budget_needs_room_for_a_sequence_of_each_set(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"--batch-tokens is 89: .* 3 x 30 tokens; raise it"):
        mix_shards(folders, 89)


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


def shards_of(config: TextRunConfig) -> TextRunConfig:
    """The same mixture of the same texts, tokenised into shards."""
    folders = []
    for corpus in config.corpus:
        folders.append(f"{corpus.removesuffix('.txt')}-shards")
        assert main(["tokenize", corpus, folders[-1], "--model", config.model,
                     "--held-out-share", "0.1"]) == 0  # fmt: skip
    mix = [
        f"{Path(folder).name}={share}" for folder, share in zip(folders, (0.6, 0.4), strict=True)
    ]
    return replace(config, corpus=tuple(folders), mix=tuple(mix))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_mixed_run_reads_its_shares_and_goes_on_to_the_bit(
    config: TextRunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sharded: bool
) -> None:
    config = shards_of(config) if sharded else config
    run = TextRun(config, progress=False)
    assert isinstance(run.train, MixedShards if sharded else MixedSource)
    assert 0.8 * run.train.sizes[0] < run.train.taken[0] <= run.train.sizes[0]
    assert run.train.taken[0] / sum(run.train.taken) == pytest.approx(0.6, abs=0.001)
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


def test_names_that_fit_twice_and_sets_that_do_not_fit_are_refused(
    config: TextRunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'books' names several of .* once and as it is given"):
        shares_of(["books=0.5", "x=0.5"], ["a/books.txt", "b/books.jsonl"])
    sharded = shards_of(config)
    books = sharded.corpus[0]
    words = ["train", "text", books, config.corpus[1], "--mix", "books-shards=0.5", "web=0.5"]
    assert main([*words, "--model", config.model]) == 2
    assert "--mix needs each corpus as text of its own" in capsys.readouterr().err
    shard(Path(config.corpus[0]), tmp_path / "other")
    mixed = replace(
        sharded, corpus=(books, str(tmp_path / "other")), mix=("books-shards=.5", "other=.5")
    )
    with pytest.raises(
        DataError, match=r"'.*other' were made with another tokenizer than those of"
    ):
        TextRun(mixed, progress=False)
