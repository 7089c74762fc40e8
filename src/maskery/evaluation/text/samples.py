"""Show what training changed: fills of held-out sentences, and the words that changed most.

Shapes: M masked tokens, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Bools, Floats, Ids, Ints, TokenBatch, Vocabulary
from maskery.core.processes import inference
from maskery.evaluation.intervals import Interval, grouped_interval
from maskery.evaluation.text.fill import Candidate, Filler, candidates
from maskery.evaluation.text.masked import FROZEN_EPOCH, true_log_probabilities
from maskery.masking.masker import Masker

# Of masked words (M,) each: their ids, their examples, log-probabilities before and after.
Hidden = tuple[Ints, Ids, Floats, Floats]
Held = list[tuple[TokenBatch, Bools]]  # batches, with True for tokens (T,) that are whole words
LISTED = 10  # words that improved, and as many that worsened
ROUNDS = 6  # times that each example is masked anew, for enough words
MOST_TOKENS = 20_000  # once so many are read, no more are
FEWEST = 5  # words masked less often changed by luck; listed where none was masked so often
CONTEXT_TOKENS = 16  # on each side of the hidden word, so that a fill is read at a glance
FEWEST_WORDS = 4  # whole ones, of examples that fills are drawn from: they give some context
LONGER_WORD = 4  # shorter ones are mostly articles and prepositions, which any model fills


@dataclass(frozen=True, kw_only=True)
class SampleFill:
    """One hidden word of a held-out sentence."""

    left: str  # The text before it
    word: str  # The hidden word
    right: str  # The text after it
    before: tuple[Candidate, ...]  # The likeliest words of the model before training
    after: tuple[Candidate, ...]  # The likeliest words of the model after training
    probability_before: float  # The probability of the hidden word before training
    probability_after: float  # Its probability after training


@dataclass(frozen=True, kw_only=True)
class WordChange:
    """The change in the prediction of one word."""

    word: str  # A word that is one token
    count: int  # Times that it was masked
    before: float  # The mean log-probability before training, in nats
    after: float  # The mean log-probability after training, in nats
    change: Interval  # After minus before, over the examples that have the word


@dataclass(frozen=True, kw_only=True)
class TextSamples:
    """The fills and the words that show what a run changed."""

    fills: tuple[SampleFill, ...]  # Held-out sentences with one word hidden
    improved: tuple[WordChange, ...]  # The words whose prediction improved most, most first
    worsened: tuple[WordChange, ...]  # The words whose prediction worsened most, most first
    masked_words: int  # Masked words that the lists come from


@inference()
def sample_text(
    before: Filler, after: Filler, batches: Iterable[TokenBatch], *, fills: int = 8, top_k: int = 5
) -> TextSamples:
    """Compare two models with one tokenizer word by word on held-out text, and fill sentences."""
    tokenizer, held_out, total = before.tokenizer, [], 0
    vocabulary = Vocabulary.of(tokenizer)
    for batch in batches:
        held_out.append((batch, whole_words(batch, vocabulary)))
        total += batch.num_tokens
        if total >= MOST_TOKENS:
            break
    maskers = [Masker.of(vocabulary, seed=seed) for seed in range(ROUNDS)]
    masked = _changes((before, after), held_out, maskers)
    improved, worsened = rank_changes(masked, tokenizer, LISTED)
    hidden = _hidden_words(held_out, tokenizer)
    count = min(fills, len(hidden))
    spread = [hidden[i * len(hidden) // count] for i in range(count)]
    shown = tuple(_fill(before, after, ids, place, top_k) for ids, place in spread)
    total = len(masked[0])
    return TextSamples(fills=shown, improved=improved, worsened=worsened, masked_words=total)


def whole_words(batch: TokenBatch, vocabulary: Vocabulary) -> Bools:
    """Return True for ordinary tokens that are a word by themselves: (T,) bool."""
    whole: Bools = batch.word_starts & np.append(batch.word_starts[1:], True)
    return whole & ~vocabulary.protected[batch.input_ids]


def rank_changes(
    masked: Hidden, tokenizer: PreTrainedTokenizerBase, listed: int
) -> tuple[tuple[WordChange, ...], tuple[WordChange, ...]]:
    """Return the words whose mean log-probability rose most, and fell most."""
    words, examples, before, after = masked
    unique, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    old, new = (np.bincount(inverse, logs) / counts for logs in (before, after))
    spelled = [tokenizer.decode([token]).strip() for token in unique.tolist()]
    rise, change = after - before, new - old
    letters = np.array([any(map(str.isalpha, word)) for word in spelled], np.bool_)
    most = int(counts[letters].max(initial=1))
    chosen = np.flatnonzero((counts >= min(FEWEST, most)) & letters)
    order = chosen[np.argsort(-change[chosen], kind="stable")]

    def described(indices: Ints) -> tuple[WordChange, ...]:
        return tuple(
            WordChange(
                word=spelled[i],
                count=int(counts[i]),
                before=float(old[i]),
                after=float(new[i]),
                # The changes in one example count as one observation.
                change=grouped_interval(rise[inverse == i], examples[inverse == i], "mean"),
            )
            for i in indices[:listed].tolist()
        )

    return described(order[change[order] > 0]), described(order[change[order] < 0][::-1])


def _changes(models: tuple[Filler, Filler], held_out: Held, maskers: Iterable[Masker]) -> Hidden:
    """Mask words by each masker in turn, and predict them by both models."""
    found: list[Hidden] = [(np.zeros(0, np.int64), np.zeros(0, np.uint64), *np.zeros((2, 0)))]
    for masker, (batch, whole) in product(maskers, held_out):
        masked = masker.mask(batch, epoch=FROZEN_EPOCH)
        keep = whole[masked.positions]
        if keep.any():
            predicted = (model.predict(masked) for model in models)
            old, new = (true_log_probabilities(one, masked.targets)[keep] for one in predicted)
            examples = batch.example_ids[batch.sequences_of(masked.positions[keep])]
            found.append((masked.targets[keep], examples, old, new))
    words, examples, old, new = map(np.concatenate, zip(*found, strict=True))
    return words, examples, old, new


def _hidden_words(held_out: Held, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Ints, int]]:
    """Return the ids of each example and one of its longer words, drawn by a fixed seed."""
    generator, hidden = np.random.default_rng(0), []
    for batch, whole in held_out:
        for first, last in pairwise(batch.boundaries.tolist()):
            ids, places = batch.input_ids[first:last], np.flatnonzero(whole[first:last])
            if len(places) < FEWEST_WORDS:
                continue
            longer = [p for p in places if len(tokenizer.decode([ids[p]]).strip()) >= LONGER_WORD]
            hidden.append((ids, int(generator.choice(longer or places))))
    return hidden


def _fill(before: Filler, after: Filler, ids: Ints, place: int, top_k: int) -> SampleFill:
    tokenizer, word = before.tokenizer, int(ids[place])
    hidden = ids.copy()
    hidden[place] = before.mask_id
    old, new = (model.log_probabilities([hidden])[0, 0] for model in (before, after))
    left, right = context(ids, place, tokenizer)
    return SampleFill(
        left=left,
        word=tokenizer.decode([word]).strip(),
        right=right,
        before=candidates(old, tokenizer, top_k),
        after=candidates(new, tokenizer, top_k),
        probability_before=float(old[word].exp()),
        probability_after=float(new[word].exp()),
    )


def context(ids: Ints, place: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return a few words on both sides of a token of a text (L,)."""
    first, last = max(0, place - CONTEXT_TOKENS), place + 1 + CONTEXT_TOKENS
    left = tokenizer.decode(ids[first:place].tolist(), skip_special_tokens=True)
    right = tokenizer.decode(ids[place + 1 : last].tolist(), skip_special_tokens=True)
    # One token more than the special ones stands outside: the context is cut.
    before, after = "… " if first > 1 else "", " …" if last < len(ids) - 1 else ""
    return before + left.strip(), right.strip() + after
