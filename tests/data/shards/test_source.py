"""The batches of a run over shards: every window once, the same for any number of processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_folders import shard, word_tokenizer
from tiny_text import lines

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError, DataError
from maskery.core.task import StandIn
from maskery.data.batching import Batching, Template, TextSource
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.places import Place
from maskery.data.shards.source import ShardSource, TokenShards
from maskery.data.tokenise import tokenise

TEMPLATE = Template(prefix=(2,), suffix=(3,))
Token = tuple[int, int, int, bool]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "a.txt"
    path.write_text("\n".join([*lines(400), " ".join(["river stone"] * 60)]), "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "shards"
    shard(corpus, folder)
    return folder


def open_source(folder: Path, **changes: Any) -> ShardSource:
    own = {name: changes.pop(name) for name in ("exclude", "shuffle_shards") if name in changes}
    settings = {"max_length": 24, "batch_tokens": 100, "seed": 5, **changes}
    batching = Batching(template=TEMPLATE, **settings)
    return ShardSource(TokenShards(Place(folder)), batching, **{"shuffle_shards": 3, **own})


def named(batch: TokenBatch) -> list[Token]:
    """Every ordinary token by its permanent name: example, position, token, word start."""
    rows = []
    for b, (first, end) in enumerate(zip(batch.boundaries, batch.boundaries[1:], strict=False)):
        assert (batch.input_ids[first], batch.input_ids[end - 1]) == (2, 3)
        for i in range(first + 1, end - 1):
            position = int(batch.starts[b]) + i - int(first) - 1
            word = bool(batch.word_starts[i])
            rows.append((int(batch.example_ids[b]), position, int(batch.input_ids[i]), word))
    return rows


def steps_of(source: Any, epoch: int, **processes: int) -> list[list[list[Token]]]:
    return [
        [named(micro) for micro in source.micro_batches(epoch, step, **processes)]
        for step in range(source.num_steps(epoch))
    ]


def flat(steps: list[list[list[Token]]]) -> list[Token]:
    return [token for step in steps for micro in step for token in micro]


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"micro_tokens": 60}, {"batch_tokens": 900}])
def test_every_batch_is_within_bounds_that_are_known_before_a_shard_is_read(
    folder: Path, settings: dict[str, int], num_processes: int
) -> None:
    source = open_source(folder, **settings)
    bounds = source.bounds(2, num_processes)
    assert not source._blocks
    batches = [
        batch
        for epoch in (0, 1)
        for step in range(source.num_steps(epoch))
        for rank in range(num_processes)
        for batch in source.micro_batches(epoch, step, rank=rank, world_size=num_processes)
        if isinstance(batch, TokenBatch)
    ]
    assert max(batch.num_tokens for batch in batches) <= bounds.num_tokens
    assert max(int(batch.lengths.max()) for batch in batches) == bounds.longest <= 24
    most = max(len(batch.lengths) for batch in batches)
    assert most <= bounds.num_sequences
    if num_processes == 1 and "micro_tokens" not in settings:
        assert bounds.num_sequences < 2 * most + 10  # not as many as the shortest would be


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_an_epoch_is_the_corpus_once_within_the_budget(
    corpus: Path, folder: Path, tmp_path: Path, layout: str
) -> None:
    source = open_source(folder, layout=layout)
    read = flat(steps_of(source, 0))
    store = tokenise(
        Corpus.open([str(corpus)], CorpusConfig()), word_tokenizer(), tmp_path, progress=False
    )
    held = set(source.shards.held_out(10**9).ids.tolist())
    kept = np.flatnonzero(~np.isin(np.asarray(store.ids), list(held)))
    plain = TextSource(store, kept, Batching(template=TEMPLATE, max_length=24, batch_tokens=100))
    assert 0 < len(kept) < store.num_documents
    assert Counter(read) == Counter(flat(steps_of(plain, 0)))
    for step in range(source.num_steps(0)):
        (batch,) = source.micro_batches(0, step)
        assert isinstance(batch, TokenBatch)
        longest = int(batch.lengths.max())
        assert (batch.num_tokens if layout == "packed" else longest * len(batch.lengths)) <= 100
        if layout == "padded" and step:
            continue
    assert Counter(flat(steps_of(source, 1))) == Counter(read)
    assert flat(steps_of(source, 1)) != read


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_any_step_is_reached_directly_and_reads_its_block_alone(
    folder: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = steps_of(open_source(folder, layout=layout), 1)
    fetched: list[str] = []
    fetch = Place.fetch

    def counted(self: Place, entry: Any, *rest: Any) -> Path:
        fetched.append(entry.file)
        return fetch(self, entry, *rest)

    monkeypatch.setattr(Place, "fetch", counted)
    source = open_source(folder, layout=layout)
    middle = source.num_steps(1) // 2
    assert fetched == ["lengths.safetensors"]
    assert [named(micro) for micro in source.micro_batches(1, middle)] == expected[middle]
    source.close()  # waits for the block that is fetched ahead
    assert len(fetched) <= 1 + 2 * 3


def test_blocks_are_let_go(folder: Path) -> None:
    source = open_source(folder, shuffle_shards=2)
    alive = []
    for step in range(source.num_steps(0)):
        source.micro_batches(0, step)
        blocks = [block.result() for block in source._blocks.values()]
        files = [len(source.epoch(0).blocks[block]) for _, block in source._blocks]
        assert len(files) == len(blocks)
        alive.append(sum(files))
    assert max(alive) == 4  # a block and the next one


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_processes_share_the_steps_of_one(folder: Path, layout: str) -> None:
    whole = steps_of(open_source(folder, layout=layout), 0)
    sources = [open_source(folder, layout=layout) for _ in range(3)]
    for step, alone in enumerate(whole):
        together: list[Token] = []
        for rank, source in enumerate(sources):
            for micro in source.micro_batches(0, step, rank=rank, world_size=3):
                if not isinstance(micro, StandIn):
                    together += named(micro)
        assert Counter(together) == Counter(flat([alone]))


def test_the_order_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    again = flat(steps_of(open_source(folder), 0))
    assert flat(steps_of(open_source(folder), 0)) == again
    assert flat(steps_of(open_source(folder, seed=6), 0)) != again


def test_micro_batches_keep_to_their_budget(folder: Path) -> None:
    source = open_source(folder, micro_tokens=30)
    for step in range(source.num_steps(0)):
        micros = source.micro_batches(0, step)
        assert all(micro.num_tokens <= 30 for micro in micros if isinstance(micro, TokenBatch))


def test_documents_can_be_left_out(folder: Path) -> None:
    everything = open_source(folder)
    read = flat(steps_of(everything, 0))
    left_out = np.array(sorted({token[0] for token in read})[:50], np.uint64)
    source = open_source(folder, exclude=left_out)
    assert source.num_steps(0) == everything.num_steps(0)
    kept = [token for token in read if np.uint64(token[0]) not in left_out]
    assert Counter(flat(steps_of(source, 0))) == Counter(kept)
    nothing = np.array(sorted({token[0] for token in read}), np.uint64)
    with pytest.raises(DataError, match="nearly all of it stands in --eval-data"):
        open_source(folder, exclude=nothing).micro_batches(0, 0)


def test_held_out_text_is_the_same_in_every_run_and_bounded(folder: Path) -> None:
    shards = TokenShards(Place(folder))
    some = shards.held_out(60)
    assert 0 < some.num_tokens <= 60
    assert some.ids.tolist() == TokenShards(Place(folder)).held_out(60).ids.tolist()
    everything = shards.held_out(10**9)
    assert everything.num_tokens == sum(entry.tokens for entry in shards.manifest.held_out)
    assert set(some.ids.tolist()) < set(everything.ids.tolist())
    # A single shard is read whole, however many tokens it has.
    assert shards.held_out(1).num_tokens > 1


def test_nothing_held_out_is_said(corpus: Path, tmp_path: Path) -> None:
    shard(corpus, tmp_path / "shards", held_out_share=1e-9)
    with pytest.raises(DataError, match=r"nothing was held out .* name held-out text with --eval"):
        TokenShards(Place(tmp_path / "shards")).held_out(100)


def test_token_counts_are_those_of_the_shards(folder: Path) -> None:
    shards = TokenShards(Place(folder))
    joined = shards.open(shards.manifest.shards)
    tokens = joined.tokens
    assert joined.token_counts(99).tolist() == np.bincount(tokens, minlength=99).tolist()
    assert joined.num_tokens == len(tokens) == shards.manifest.tokens
    assert joined.num_documents == shards.manifest.documents


def test_bad_settings_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--batch-tokens is 10, less than the longest example"):
        open_source(folder, batch_tokens=10).num_steps(0)
    with pytest.raises(ConfigError, match="raise --max-length"):
        open_source(folder, max_length=2)


def test_a_damaged_shard_stops_the_run_with_one_line(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(corpus, folder)
    for path in folder.glob("shard-*"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    source = open_source(folder)
    with pytest.raises(DataError, match=r"shard-.* is damaged \(it does not match its checksum\)"):
        source.micro_batches(0, 0)
