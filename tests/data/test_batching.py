from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError
from maskery.core.task import StandIn
from maskery.data.batching import Batching, Layout, Template, TextSource, assemble, cut_windows
from maskery.data.store import TokenStore, write_store

BERT = Template(prefix=(1,), suffix=(2,))
TEMPLATES = [BERT, Template(prefix=(), suffix=()), Template(prefix=(1, 3), suffix=(2, 2, 4))]
LAYOUTS: list[Layout] = ["packed", "padded"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """60 documents of 1 to 90 tokens; no token stands twice in the corpus."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 90, 60)
    total = int(lengths.sum())
    folder = tmp_path_factory.mktemp("source") / "store"
    ids = generator.integers(0, 2**63, 60).astype(np.uint64) * np.uint64(2)
    part = np.arange(10, 10 + total), generator.random(total) < 0.7, lengths, ids
    write_store(folder, [part], vocab_size=100_000, about={})
    return TokenStore.open(folder)


def batching(**settings: Any) -> Batching:
    return Batching(template=BERT, **settings)


def everything(store: TokenStore) -> np.ndarray:
    return np.arange(store.num_documents)


@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=8),
    template=st.sampled_from(TEMPLATES),
)
def test_assembling_against_a_plain_loop(pieces: list[tuple[int, int]], template: Template) -> None:
    tokens = np.arange(100, 160, dtype=np.uint16)
    word_starts = np.random.default_rng(0).random(60) < 0.5
    batch = assemble(
        tokens,
        word_starts,
        np.array([first for first, _ in pieces], np.int64),
        np.array([length for _, length in pieces], np.int64),
        np.arange(len(pieces), dtype=np.uint64),
        np.zeros(len(pieces), np.int64),
        template,
    )
    ids: list[int] = []
    words: list[bool] = []
    boundaries = [0]
    for first, length in pieces:
        inner = word_starts[first : first + length].tolist()
        # A window may start inside a word; what it holds of the word is a word there.
        inner[:1] = [True] * len(inner[:1])
        ids += [*template.prefix, *range(100 + first, 100 + first + length), *template.suffix]
        words += [True] * len(template.prefix) + inner + [True] * len(template.suffix)
        boundaries.append(len(ids))
    assert batch.input_ids.tolist() == ids
    assert batch.input_ids.dtype == np.int64
    assert batch.word_starts.tolist() == words
    assert batch.boundaries.tolist() == boundaries


def read(batches: list[TokenBatch]) -> Counter[int]:
    return Counter(int(token) for batch in batches for token in batch.input_ids if token >= 10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_tokens_of_an_epoch_are_the_corpus(
    store: TokenStore, layout: Layout, world_size: int
) -> None:
    source = TextSource(
        store,
        everything(store),
        batching(max_length=24, batch_tokens=100, micro_tokens=50, layout=layout),
    )
    for epoch in (0, 1):
        batches = []
        for step in range(source.num_steps(epoch)):
            shares = [
                source.micro_batches(epoch, step, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            assert len({len(share) for share in shares}) == 1
            micro = [b for share in shares for b in share if not isinstance(b, StandIn)]
            assert sum(batch.num_tokens for batch in micro) <= 100
            assert all(batch.num_tokens <= 50 for batch in micro)
            batches += micro
        assert read(batches) == Counter(store.tokens.tolist())


def test_a_token_of_a_window_keeps_its_document_and_position(store: TokenStore) -> None:
    source = TextSource(store, everything(store), batching(max_length=16, batch_tokens=64))
    edges = store.boundaries.tolist()
    names = {
        int(store.tokens[edges[document] + place]): (int(store.ids[document]), place)
        for document in range(store.num_documents)
        for place in range(edges[document + 1] - edges[document])
    }
    for batch in source.in_order():
        for row in range(len(batch.lengths)):
            tokens = batch.input_ids[batch.boundaries[row] : batch.boundaries[row + 1]]
            assert (tokens[0], tokens[-1]) == (1, 2)
            for place, token in enumerate(tokens[1:-1].tolist()):
                name = (int(batch.example_ids[row]), int(batch.starts[row]) + place)
                assert names[token] == name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_tokens", [100, 8])
def test_in_order_reads_every_window_once_within_the_budget(
    store: TokenStore, layout: Layout, batch_tokens: int
) -> None:
    source = TextSource(
        store, everything(store), batching(max_length=24, batch_tokens=batch_tokens, layout=layout)
    )
    batches = list(source.in_order())
    assert read(batches) == Counter(store.tokens.tolist())
    lengths = np.concatenate([batch.lengths for batch in batches])
    assert (np.diff(lengths) >= 0).all()
    for batch in batches:
        cost = batch.num_tokens if layout == "packed" else batch.lengths.max() * len(batch.lengths)
        # A window longer than the budget is read by itself.
        assert cost <= batch_tokens or len(batch.lengths) == 1


def test_chosen_documents_alone_are_read(store: TokenStore) -> None:
    source = TextSource(store, np.array([7, 2]), batching(max_length=512, batch_tokens=1024))
    edges = store.boundaries
    expected = [*store.tokens[edges[2] : edges[3]], *store.tokens[edges[7] : edges[8]]]
    assert read(list(source.in_order())) == Counter(int(token) for token in expected)


def test_no_documents(store: TokenStore) -> None:
    source = TextSource(store, np.zeros(0, np.int64), batching(max_length=24, batch_tokens=100))
    assert source.num_steps(0) == 0
    assert list(source.in_order()) == []


def test_more_processes_than_examples(store: TokenStore) -> None:
    source = TextSource(store, np.array([0]), batching(max_length=512, batch_tokens=1024))
    shares = [source.micro_batches(0, 0, rank=rank, world_size=4) for rank in range(4)]
    assert [len(share) for share in shares] == [1, 1, 1, 1]
    assert sum(isinstance(share[0], StandIn) for share in shares) == 3


def test_no_room_for_a_token(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match=r"raise --max-length"):
        TextSource(store, everything(store), batching(max_length=2, batch_tokens=100))


def tokenizer(processor: object | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if processor is not None:
        backend.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ("<s> $A </s>", Template(prefix=(1,), suffix=(2,))),
        ("$A </s>", Template(prefix=(), suffix=(2,))),
        ("<s> <s> $A", Template(prefix=(1, 1), suffix=())),
    ],
)
def test_the_template_is_read_off_the_tokenizer(single: str, expected: Template) -> None:
    processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert Template.of(tokenizer(processor)) == expected


def test_a_tokenizer_without_special_tokens() -> None:
    assert Template.of(tokenizer(None)) == Template(prefix=(), suffix=())


def test_a_tokenizer_that_knows_no_latin_letter_is_not_misread() -> None:
    # Without an unknown token, a letter outside the vocabulary becomes nothing at all.
    backend = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "я": 2}, []))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert fast("a", add_special_tokens=False)["input_ids"] == []
    assert Template.of(fast) == Template(prefix=(0,), suffix=(1,))


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 80), st.data())
def test_windows_tile_their_documents(
    lengths: list[int], max_tokens: int, data: st.DataObject
) -> None:
    chosen = [n for n in range(len(lengths)) if data.draw(st.booleans())]
    windows = cut_windows(np.array(lengths, np.int64), np.array(chosen, np.int64), max_tokens)
    expected_documents = [n for n in chosen for _ in range(-(-lengths[n] // max_tokens))]
    assert windows.documents.tolist() == expected_documents
    assert len(windows.lengths) == len(expected_documents)
    for document in chosen:
        own = windows.documents == document
        pieces = [
            range(start, start + length)
            for start, length in zip(windows.starts[own], windows.lengths[own], strict=True)
        ]
        assert [token for piece in pieces for token in piece] == list(range(lengths[document]))
        sizes = [len(piece) for piece in pieces]
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
        assert max(sizes, default=0) <= max_tokens


def test_the_order_of_the_chosen_documents_is_kept() -> None:
    windows = cut_windows(np.array([5, 0, 3]), np.array([2, 1, 0]), 4)
    assert windows.documents.tolist() == [2, 0, 0]
    assert windows.starts.tolist() == [0, 0, 3]
    assert windows.lengths.tolist() == [3, 3, 2]


@pytest.mark.parametrize("max_tokens", [0, -2])
def test_windows_need_room(max_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"would hold {max_tokens} tokens.*--max-length"):
        _ = batching(max_length=max_tokens + BERT.num_special, batch_tokens=100).room
