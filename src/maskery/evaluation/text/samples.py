"""Show what training changed: fills of held-out sentences, and the words that changed most.

Shapes: M masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import MaskedTokens, TokenBatch, Vocabulary
from maskery.evaluation.text.fill import Candidate, candidates
from maskery.evaluation.text.masked import FROZEN_EPOCH
from maskery.evaluation.text.pseudo_likelihood import Copy, masked_tokens
from maskery.masking.masker import Masker
from maskery.models.masked_lm import MaskedLanguageModel

# A word is listed if it was predicted at least so often; where none was, once is enough.
FEWEST = 3
# Shown on each side of the hidden word, so that a fill is read at a glance.
CONTEXT_TOKENS = 16
# Fills are drawn from examples with at least so many whole words, which give some context.
FEWEST_WORDS = 4
# Short words are mostly articles and prepositions, which any model fills.
LONGER_WORD = 4


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


@dataclass(frozen=True, kw_only=True)
class TextSamples:
    """The fills and the words that show what a run changed."""

    fills: tuple[SampleFill, ...]  # Held-out sentences with one word hidden
    improved: tuple[WordChange, ...]  # The words whose prediction improved most, most first
    worsened: tuple[WordChange, ...]  # The words whose prediction worsened most, most first
    masked_words: int  # Masked words that the lists come from


@torch.no_grad()
def sample_text(
    before: MaskedLanguageModel,
    after: MaskedLanguageModel,
    batches: Iterable[TokenBatch],
    tokenizer: PreTrainedTokenizerBase,
    *,
    fills: int = 8,
    top_k: int = 5,
    listed: int = 10,
    rounds: int = 6,
    most_tokens: int = 20_000,
) -> TextSamples:
    """Compare two models word by word on held-out text.

    Args:
        before: A model, in evaluation mode while it runs.
        after: Another with the same tokenizer.
        batches: Held-out examples; no more than `most_tokens` of them are read.
        fills: Sentences to show.
        rounds: Times that each example is masked anew, for enough words.
        most_tokens: Limits the time this takes.
    """
    held_out = list(_take(batches, most_tokens))
    vocabulary = Vocabulary.of(tokenizer)
    whole = [whole_words(batch, vocabulary) for batch in held_out]
    changes = _changes(before.eval(), after.eval(), held_out, whole, vocabulary, rounds)
    words, old, new = (np.concatenate(parts) for parts in zip(*changes, strict=True))
    improved, worsened = rank_changes(words, old, new, tokenizer, listed)
    return TextSamples(
        fills=_fills(before, after, held_out, whole, tokenizer, fills, top_k),
        improved=improved,
        worsened=worsened,
        masked_words=len(words),
    )


def whole_words(batch: TokenBatch, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Return True for ordinary tokens that are a word by themselves: (T,) bool."""
    last = np.append(batch.word_starts[1:], True)
    whole: npt.NDArray[np.bool_] = batch.word_starts & last
    return whole & ~vocabulary.protected[batch.input_ids]


def rank_changes(
    words: npt.NDArray[np.int64],
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    tokenizer: PreTrainedTokenizerBase,
    listed: int,
) -> tuple[tuple[WordChange, ...], tuple[WordChange, ...]]:
    """Return the words whose mean log-probability rose most, and those whose fell most.

    Args:
        words: (M,) token ids.
        before: (M,) log-probabilities under the first model.
        after: (M,) under the other.
    """
    unique, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    old = np.bincount(inverse, before) / counts
    new = np.bincount(inverse, after) / counts
    enough = counts >= min(FEWEST, int(counts.max(initial=1)))
    spelled = [tokenizer.decode([token]).strip() for token in unique.tolist()]
    letters = np.array([any(map(str.isalpha, word)) for word in spelled], np.bool_)
    chosen = np.flatnonzero(enough & letters)
    order = chosen[np.argsort(-(new - old)[chosen], kind="stable")]

    def described(indices: npt.NDArray[np.int64]) -> tuple[WordChange, ...]:
        return tuple(
            WordChange(
                word=spelled[i], count=int(counts[i]), before=float(old[i]), after=float(new[i])
            )
            for i in indices.tolist()
        )

    gained = order[(new - old)[order] > 0]
    lost = order[(new - old)[order] < 0][::-1]
    return described(gained[:listed]), described(lost[:listed])


def _take(batches: Iterable[TokenBatch], most_tokens: int) -> Iterable[TokenBatch]:
    total = 0
    for batch in batches:
        yield batch
        total += batch.num_tokens
        if total >= most_tokens:
            return


def _changes(
    before: MaskedLanguageModel,
    after: MaskedLanguageModel,
    batches: Sequence[TokenBatch],
    whole: Sequence[npt.NDArray[np.bool_]],
    vocabulary: Vocabulary,
    rounds: int,
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Return ids of masked whole words with their log-probabilities under both models."""
    changes = []
    for seed in range(rounds):
        masker = Masker.of(vocabulary, seed=seed)
        for batch, alone in zip(batches, whole, strict=True):
            masked = masker.mask(batch, epoch=FROZEN_EPOCH)
            if not len(masked.positions):
                continue
            keep = alone[masked.positions]
            old, new = (_log_probabilities(model, masked)[0] for model in (before, after))
            changes.append((masked.targets[keep], old[keep], new[keep]))
    none = np.zeros(0)
    return changes or [(none.astype(np.int64), none, none)]


def _log_probabilities(
    model: MaskedLanguageModel, masked: MaskedTokens
) -> tuple[npt.NDArray[np.float64], torch.Tensor]:
    """Return log-probabilities of the true tokens (M,) and of the whole vocabulary (M, V)."""
    logits: torch.Tensor = model(model.lay_out(masked).to(model.hf.device))
    logs = logits.float().log_softmax(dim=-1).cpu()
    targets = torch.from_numpy(masked.targets)
    return logs.gather(1, targets[:, None]).squeeze(1).double().numpy(), logs


def _fills(
    before: MaskedLanguageModel,
    after: MaskedLanguageModel,
    batches: Sequence[TokenBatch],
    whole: Sequence[npt.NDArray[np.bool_]],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    top_k: int,
) -> tuple[SampleFill, ...]:
    copies = list(islice(_spread(_copies(batches, whole, tokenizer), count), count))
    if not copies:
        return ()
    masked = masked_tokens(copies)
    (old, old_logs), (new, new_logs) = (
        _log_probabilities(model, masked) for model in (before, after)
    )
    rows = []
    for index, copy in enumerate(copies):
        left, right = context(copy, tokenizer)
        rows.append(
            SampleFill(
                left=left,
                word=tokenizer.decode([copy.target]).strip(),
                right=right,
                before=candidates(old_logs[index], tokenizer, top_k),
                after=candidates(new_logs[index], tokenizer, top_k),
                probability_before=float(np.exp(old[index])),
                probability_after=float(np.exp(new[index])),
            )
        )
    return tuple(rows)


def context(copy: Copy, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return a few words on both sides of the hidden one."""
    first, last = max(0, copy.position - CONTEXT_TOKENS), copy.position + 1 + CONTEXT_TOKENS
    left = tokenizer.decode(copy.ids[first : copy.position].tolist(), skip_special_tokens=True)
    right = tokenizer.decode(copy.ids[copy.position + 1 : last].tolist(), skip_special_tokens=True)
    # One token more than the special ones stands outside: the context is cut.
    cut_left, cut_right = first > 1, last < len(copy.ids) - 1
    return ("… " if cut_left else "") + left.strip(), right.strip() + (" …" if cut_right else "")


def _copies(
    batches: Sequence[TokenBatch],
    whole: Sequence[npt.NDArray[np.bool_]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Copy]:
    """Hide one of the longer words of each example, drawn by a fixed seed."""
    generator = np.random.default_rng(0)
    copies: list[Copy] = []
    for batch, alone in zip(batches, whole, strict=True):
        for sequence in range(len(batch.lengths)):
            first, last = batch.boundaries[sequence], batch.boundaries[sequence + 1]
            ids = batch.input_ids[first:last]
            places = np.flatnonzero(alone[first:last])
            if len(places) < FEWEST_WORDS:
                continue
            words = [tokenizer.decode([int(ids[place])]).strip() for place in places]
            longer = [
                place for place, word in zip(places, words, strict=True) if len(word) >= LONGER_WORD
            ]
            position = int(generator.choice(longer if longer else places))
            hidden = ids.copy()
            hidden[position] = int(tokenizer.mask_token_id)
            copies.append(
                Copy(text=len(copies), position=position, ids=hidden, target=int(ids[position]))
            )
    return copies


def _spread(copies: Sequence[Copy], count: int) -> list[Copy]:
    """Return `count` of them, evenly spaced."""
    count = min(count, len(copies))
    return [copies[i * len(copies) // count] for i in range(count)]
