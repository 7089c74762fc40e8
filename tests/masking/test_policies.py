from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.errors import ConfigError, PluginError
from maskery.core.random import Stream, random_words
from maskery.core.registry import FromFile
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.masking.policies import Draws, Selection, WordPolicy, span_lengths, walk_spans

MakeBatch = Callable[..., TokenBatch]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of four words."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[MASK]": 0, "a": 1, "b": 2, "[UNK]": 3}, "[UNK]")),
        mask_token="[MASK]",
        unk_token="[UNK]",
    )


CONFIG = MaskingConfig()
POLICIES = ("token", "word", "span")
DRAWS = Draws(seed=0, epoch=0)
LENGTHS = st.lists(st.integers(-1, 30), max_size=12)


def choose(
    policy: str,
    batch: TokenBatch,
    vocabulary: Vocabulary,
    rate: float,
    config: MaskingConfig = CONFIG,
) -> np.ndarray:
    """The selection of a policy: (T,) bool."""
    masker = Masker.of(vocabulary, config, policy=policy, rate=rate)
    return masker.select(batch, epoch=0).selected


def words_of(batch: TokenBatch) -> list[list[int]]:
    """The tokens of each word, by a plain loop."""
    words: list[list[int]] = []
    firsts = set(batch.boundaries.tolist())
    for token in range(batch.num_tokens):
        if batch.word_starts[token] or token in firsts:
            words.append([])
        words[-1].append(token)
    return words


def rows_of(batch: TokenBatch) -> list[range]:
    edges = batch.boundaries.tolist()
    return [range(a, b) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_token_rate(make_batch: MakeBatch, vocabulary: Vocabulary, rate: float) -> None:
    batch = make_batch([500] * 400)
    share = choose("token", batch, vocabulary, rate).sum() / 200_000
    # A binomial share of 200,000: five standard errors.
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / 200_000)


def test_a_token_is_masked_where_its_own_draw_is_below_the_rate(
    make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    batch = make_batch([40, 25], ids=[2**63, 17], starts=[0, 1003])
    selected = choose("token", batch, vocabulary, 0.5)
    for row, tokens in enumerate(rows_of(batch)):
        for place, token in enumerate(tokens):
            word = random_words(
                0,
                Stream.SELECT,
                0,
                batch.example_ids[row : row + 1],
                np.array([batch.starts[row] + place]),
            )
            drawn = (int(word[0]) >> 8) / 2**24 < 0.5
            assert selected[token] == (drawn and 0 < place < len(tokens) - 1)


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_word_rate_in_tokens(make_batch: MakeBatch, vocabulary: Vocabulary, rate: float) -> None:
    batch = make_batch([500] * 400, continues=0.4)
    sizes = np.array([len(word) for word in words_of(batch)])
    share = choose("word", batch, vocabulary, rate).sum() / 200_000
    # Words are drawn one by one, and a word of n tokens counts n times.
    error = np.sqrt(rate * (1 - rate) * (sizes**2).sum()) / 200_000
    assert abs(share - rate) < 5 * error


@pytest.mark.parametrize("policy", ["word", "span"])
@given(lengths=LENGTHS, seed=st.integers(0, 1000), rate=st.sampled_from([1e-6, 0.15, 0.5]))
def test_words_are_masked_wholly(
    make_batch: MakeBatch,
    vocabulary: Vocabulary,
    policy: str,
    lengths: list[int],
    seed: int,
    rate: float,
) -> None:
    batch = make_batch(lengths, seed=seed, continues=0.5)
    selected = choose(policy, batch, vocabulary, rate)
    special = vocabulary.protected[batch.input_ids]
    assert not (selected & special).any()
    for word in words_of(batch):
        states = {bool(selected[token]) for token in word if not special[token]}
        assert len(states) <= 1


@pytest.mark.parametrize("policy", POLICIES)
@given(lengths=LENGTHS, seed=st.integers(0, 1000), rate=st.sampled_from([1e-300, 1e-6, 0.15]))
def test_every_sequence_with_a_maskable_token_has_a_mask(
    make_batch: MakeBatch,
    vocabulary: Vocabulary,
    policy: str,
    lengths: list[int],
    seed: int,
    rate: float,
) -> None:
    batch = make_batch(lengths, seed=seed, continues=0.3)
    selected = choose(policy, batch, vocabulary, rate)
    for length, tokens in zip(lengths, rows_of(batch), strict=True):
        assert selected[tokens].any() == (length > 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_forced_mask_is_one_token_or_one_word_anywhere(
    make_batch: MakeBatch, vocabulary: Vocabulary, policy: str
) -> None:
    batch = make_batch([10] * 2000)
    selected = choose(policy, batch, vocabulary, 1e-6)
    assert selected.sum() == 2000
    places = np.flatnonzero(selected) - batch.boundaries[:-1] - 1
    seen = np.bincount(places, minlength=10)
    # Every place alike: chi-square with 9 degrees of freedom, mean 9, five deviations sqrt(18).
    assert ((seen - 200) ** 2 / 200).sum() < 9 + 5 * np.sqrt(18)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_sequences_and_no_tokens(
    make_batch: MakeBatch, vocabulary: Vocabulary, policy: str
) -> None:
    assert choose(policy, make_batch([]), vocabulary, 0.15).shape == (0,)
    assert choose(policy, make_batch([-1, -1]), vocabulary, 0.15).shape == (0,)
    assert choose(policy, make_batch([0, -1, 0]), vocabulary, 0.15).tolist() == [False] * 4


def runs(selected: np.ndarray) -> list[tuple[int, int]]:
    """Each stretch of True: (first, length)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], selected.astype(np.int8), [0]))))
    return [(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize(("p", "longest"), [(0.2, 10), (0.5, 4)])
def test_span_lengths_are_spanberts(
    make_batch: MakeBatch, vocabulary: Vocabulary, p: float, longest: int
) -> None:
    # One sequence, so that only the first and the last span can be cut; spans never touch, so
    # each stretch of masked words is one span.
    config = MaskingConfig(policy="span", span_p=p, span_max=longest)
    found = runs(choose("span", make_batch([300_000]), vocabulary, 0.15, config))[1:-1]
    lengths = np.array([length for _, length in found])
    assert lengths.max() <= longest
    # SpanBERT, section 3.1: l ~ Geo(p), redrawn (that is, renormalised) above the longest.
    weights = np.array([p * (1 - p) ** (k - 1) for k in range(1, longest + 1)])
    expected = weights / weights.sum() * len(lengths)
    seen = np.bincount(lengths, minlength=longest + 1)[1:]
    freedom = longest - 1
    assert ((seen - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)
    assert len(lengths) > 5000


def test_the_mean_span_of_spanbert_is_3_8() -> None:
    # "This gives a mean span length of l = 3.8", section 3.1.
    assert span_lengths(0.2, 10) @ np.arange(1, 11) == pytest.approx(3.8, abs=0.01)
    assert MaskingConfig().mean_span == pytest.approx(span_lengths(0.2, 10) @ np.arange(1, 11))


@pytest.mark.parametrize("rate", [0.15, 0.4, 0.75])
def test_span_rate(make_batch: MakeBatch, vocabulary: Vocabulary, rate: float) -> None:
    batch = make_batch([998] * 300, continues=0.3)
    maskable = ~vocabulary.protected[batch.input_ids]
    selected = choose("span", batch, vocabulary, rate, MaskingConfig(policy="span"))
    shares = np.array([selected[r].sum() / maskable[r].sum() for r in rows_of(batch)])
    # Sequences are independent, so their spread gives the standard error; five of them.
    assert abs(shares.mean() - rate) < 5 * shares.std() / np.sqrt(len(shares))


def walk(batch: TokenBatch, rate: float, p: float = 0.2, longest: int = 10) -> np.ndarray:
    """The span of each token or -1, where each token is a word: (B, L)."""
    span_of_word = walk_spans(batch, np.arange(batch.num_tokens), rate, DRAWS, p, longest)
    return span_of_word.reshape(len(batch.lengths), -1)


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_spans_cover_every_place_of_a_sequence_alike(make_batch: MakeBatch, rate: float) -> None:
    covered = (walk(make_batch([10] * 20_000), rate) >= 0).mean(axis=0)
    error = np.sqrt(rate * (1 - rate) / 20_000)
    assert np.abs(covered - rate).max() < 5 * error


@given(
    st.integers(0, 1000),
    st.floats(0.01, 0.49),
    st.floats(0.05, 0.95),
    st.integers(1, 12),
    st.integers(0, 20),
)
def test_spans_never_touch_and_never_exceed_the_longest(
    make_batch: MakeBatch, seed: int, rate: float, p: float, longest: int, length: int
) -> None:
    for row in walk(make_batch([length] * 20, ids=range(seed, seed + 20)), rate, p, longest):
        for left, right in itertools.pairwise(row):
            assert left == right or -1 in (left, right)
        spans = row[row >= 0]
        assert all((spans == span).sum() <= longest for span in set(spans.tolist()))


def test_spans_at_the_highest_rate_reach_it(make_batch: MakeBatch) -> None:
    config = MaskingConfig(policy="span", mask_rate=0.79)
    assert config.span_rate_limit == pytest.approx(3.797 / 4.797, abs=1e-3)
    shares = (walk(make_batch([998] * 300), 0.79) >= 0).mean(axis=1)
    assert abs(shares.mean() - 0.79) < 5 * shares.std() / np.sqrt(300)


def test_tokens_of_a_span_share_an_anchor_and_no_two_spans_do(
    make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    batch = make_batch([200] * 20 + [3] * 20, continues=0.4)
    selection = Masker.of(vocabulary, policy="span", rate=0.3).select(batch, epoch=0)
    assert selection.anchors is not None
    seen: set[int] = set()
    for tokens in rows_of(batch):
        for first, length in runs(selection.selected[tokens]):
            anchors = set(selection.anchors[tokens][first : first + length].tolist())
            # A span that begins at [CLS] is named by it; none is named by another sequence's token.
            assert len(anchors) == 1
            assert anchors <= set(tokens)
            assert not anchors & seen
            seen |= anchors


class EveryThird:
    """Mask each third token together with the next, by a stream of its own."""

    def select(
        self, batch: TokenBatch, maskable: np.ndarray, rate: float, draws: Draws
    ) -> Selection:
        uniforms = draws.uniforms("thirds", batch)
        return Selection(selected=(uniforms < rate) & maskable)


def test_a_policy_may_be_an_object_a_maker_or_a_name_of_a_file(
    make_batch: MakeBatch, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from maskery.masking.policies import WordPolicy\n"
        "policy = WordPolicy()\n"
        "class Made:\n"
        "    def __init__(self, tokenizer):\n"
        "        self.select = WordPolicy().select\n"
    )
    batch = make_batch([80] * 20, continues=0.4)
    expected = Masker.of(vocabulary, policy="word", seed=3).mask(batch, epoch=1)
    tokenizer = word_tokenizer()
    for choice in (WordPolicy(), f"{file}:policy", f"{file}:Made", lambda _: WordPolicy()):
        masker = replace(Masker.of(tokenizer, policy=choice, seed=3), vocabulary=vocabulary)
        masked = masker.mask(batch, epoch=1)
        assert np.array_equal(masked.input_ids, expected.input_ids)
    with pytest.raises(ConfigError, match=r"made from the tokenizer.*pass the tokenizer"):
        Masker.of(vocabulary, policy=f"{file}:Made")


def test_a_policy_of_ones_own_is_repeated_and_every_example_has_a_mask(
    make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    batch = make_batch([10] * 300)
    masker = Masker.of(vocabulary, policy=EveryThird(), rate=0.05, seed=2)
    chosen = masker.select(batch, epoch=0).selected
    assert np.array_equal(chosen, masker.select(batch, epoch=0).selected)
    assert not np.array_equal(chosen, masker.select(batch, epoch=1).selected)
    own = EveryThird().select(
        batch, ~vocabulary.protected[batch.input_ids], 0.05, Draws(seed=2, epoch=0)
    )
    for tokens in rows_of(batch):
        assert chosen[tokens].sum() == max(1, own.selected[tokens].sum())
    assert (own.selected <= chosen).all()


def test_streams_are_independent_and_named_ones_follow_seed_and_epoch(
    make_batch: MakeBatch,
) -> None:
    batch = make_batch([20_000])
    streams = [
        Draws(seed=seed, epoch=epoch).uniforms(stream, batch)
        for seed, epoch, stream in (
            (0, 0, Stream.SELECT), (0, 0, "a"), (0, 0, "b"), (1, 0, "a"), (0, 1, "a"),
        )
    ]  # fmt: skip
    correlations = np.corrcoef(streams) - np.eye(5)
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)
    positions = np.arange(7, 12)
    names = np.repeat(batch.example_ids, 5)
    words = Draws(seed=0, epoch=0).at("a", names, positions)
    assert words.tolist() == Draws(seed=0, epoch=0).rows("a", batch)[7:12].tolist()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return [True]", "select returned a list"),
        ("return Selection(selected=[True])", "returned a list as selected, for 12 tokens"),
        ("return Selection(selected=maskable[:-1])", r"bool of shape \(11,\) as selected"),
        ("return Selection(selected=maskable * 1)", r"int64 of shape \(12,\) as selected"),
        ("return Selection(selected=~maskable)", "select chose 2 special tokens"),
        ("return Selection(selected=maskable, anchors=maskable * 1.0)", "float64.*as anchors"),
        ("return Selection(selected=maskable, anchors=maskable * 12)", "anchors outside the 12"),
        ("return Selection(selected=maskable, values=batch.input_ids)", "int64.*as values"),
        ("return 1 / 0", r"select fails \(mine.py, line 4\): ZeroDivisionError"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_refused_in_one_line(
    make_batch: MakeBatch, vocabulary: Vocabulary, tmp_path: Path, body: str, says: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from maskery.masking.policies import Selection\n"
        "class Mine:\n"
        "    def select(self, batch, maskable, rate, draws):\n"
        f"        {body}\n"
        "mine = Mine()\n"
    )
    masker = Masker.of(vocabulary, policy=f"{file}:mine")
    with pytest.raises(PluginError, match=says) as caught:
        masker.mask(make_batch([10]), epoch=0)
    message = str(caught.value)
    assert message.startswith(f"--policy {file}:mine: ")
    assert "it must be a policy: an object with select(" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("3", "it is of type int; it must be"),
        ("lambda tokenizer: 3", "it made a int, without select"),
        ("lambda: 3", "called with the tokenizer it fails: TypeError"),
    ],
)
def test_a_file_without_a_policy_is_refused(tmp_path: Path, made: str, says: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"mine = {made}\n")
    with pytest.raises(PluginError, match=says):
        Masker.of(word_tokenizer(), policy=f"{file}:mine")


def test_a_plug_in_that_a_file_names_is_not_loaded(tmp_path: Path, vocabulary: Vocabulary) -> None:
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit('loaded')")
    config = MaskingConfig(policy=FromFile(f"{file}:mine"))
    with pytest.raises(PluginError, match=f"never loads code by itself.*--policy {file}:mine"):
        Masker.of(vocabulary, config)


def test_a_plug_in_is_known_by_its_content_and_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text("a = 1")
    config = MaskingConfig(policy="mine.py:policy")
    first = config.described()
    assert config.anchored().policy == f"{file}:policy"
    assert config.anchored().described() == first
    file.write_text("a = 2")
    assert config.described() != first
    assert MaskingConfig().described() == asdict(MaskingConfig())


def test_windows_of_other_lengths_have_the_same_spans(
    make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    masker = Masker.of(vocabulary, policy="span")
    seen = []
    for size in (128, 512):
        cuts = np.arange(0, 20_480, size)
        batch = make_batch([size] * len(cuts), ids=[9] * len(cuts), starts=cuts.tolist())
        inner = ~vocabulary.protected[batch.input_ids]
        seen.append(masker.select(batch, epoch=0).selected[inner])
    short, long = seen
    assert abs(long.mean() - 0.15) < 0.02
    # 120 windows start in one alone, with 2 * 0.15 * 0.85 of their first words unlike and others
    # until both walks are in a gap.
    assert (short != long).sum() < 0.03 * long.sum() + 2 * 120
    after = np.arange(20_480) % 128 >= 64
    assert (short == long)[after].mean() > 0.999
