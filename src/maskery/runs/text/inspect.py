"""Look at a run before it starts: lengths, waste, words, batches, time and memory."""

import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Ints, TokenBatch
from maskery.core.errors import ConfigError
from maskery.data.batching import Plan, TextSource, plan_epoch
from maskery.data.corpus.reader import Corpus
from maskery.data.store import TokenStore
from maskery.evaluation.text.masked import score_examples
from maskery.evaluation.text.words_of_text import TextReader
from maskery.masking.masker import Masker
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
from maskery.tasks.text_mlm import new_parameters
from maskery.training.loop import planned_steps
from maskery.training.stepper import Stepper

# Upper bounds of the histogram of lengths, in tokens; the last bucket has none.
BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
COUNTED_BATCHES = 8  # masks are counted over so many: their number hardly changes
SCORED_BATCHES = 3  # held-out batches that are scored to know how long all of them take
MOST_TOKENS = 20_000_000  # enough to know which words are frequent; more only takes longer
# One token for a word of two pieces saves little; longer runs of pieces are rarely words.
FEWEST_PIECES, MOST_PIECES = 3, 16
UNKNOWN_TEXTS = 500  # texts that are read again to name unknown words
SPELT_TEXTS = 20_000  # texts that are read again for the spelling of broken words, frequent ones


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the examples, special tokens not counted."""

    examples: int
    tokens: int
    median: float
    p95: float
    longest: int
    histogram: tuple[tuple[int | None, int], ...]  # (at most so many tokens or None, examples)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a run; `tokens` and `masked_tokens` are means of a batch."""

    max_length: int
    cut: int  # Examples longer than that, which become several sequences; no token is lost
    truncated_tokens: int  # Tokens that a recipe that cuts them off would lose
    layout: str
    # The share of text in the computed tokens: as planned, if each step were padded to its longest
    # in random order, and if everything were padded to max_length
    real_share: dict[str, float]
    steps: int
    tokens: float
    masked_tokens: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and memory, estimated from a few steps that were taken after a first one."""

    timed_steps: int
    tokens_per_second: float  # Median
    seconds: float  # Of the whole run, its evaluations counted
    evaluations: int  # How often the held-out text is scored
    evaluation_seconds: float  # Of all of them
    peak_megabytes: float  # Of the device's memory, or of this process's on a CPU
    device: str


@dataclass(frozen=True, kw_only=True)
class BrokenWord:
    """A word of several pieces, and the tokens that one token for it would save."""

    word: str  # As the texts most often spell it
    pieces: int  # Tokens of the word
    count: int  # Occurrences in the corpus
    saved: int  # (pieces - 1) * count


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that `maskery inspect` tells."""

    lengths: Lengths
    duplicates: int  # Examples whose text stands in the corpus before
    batches: Batches
    unknown_tokens: int  # Tokens that stand for words which the tokenizer does not know
    unknown: tuple[tuple[str, int], ...]  # Those words, with counts in the texts looked at
    broken_share: float  # The share of words of three pieces or more
    broken: tuple[BrokenWord, ...]  # The words for which one token would save most
    estimate: Estimate | None  # None where no step was timed


def inspect_corpus(
    config: TextRunConfig, *, timed_steps: int = 4, listed: int = 20, progress: bool = True
) -> Inspection:
    """Look at a run before it is started, with so many steps timed and words listed."""
    config = replace(config, training=config.training.for_device())
    run = TextRun(config, progress=progress)
    source = run.train
    if not isinstance(source, TextSource) or not isinstance(source.store, TokenStore):
        problem = "token shards are named, and their texts are no longer there to be looked at"
        raise ConfigError(f"{problem}; inspect the text that they were made from")
    store, tokenizer = source.store, run.loaded.tokenizer
    corpus = Corpus.open(config.corpus, config.reading)
    share, broken = broken_words(store, tokenizer, listed=listed)
    unknown_tokens, unknown = unknown_words(store, corpus, tokenizer, listed=listed)
    return Inspection(
        lengths=describe_lengths(store.lengths()),
        duplicates=store.num_documents - len(np.unique(np.asarray(store.ids))),
        batches=describe_batches(run, source),
        unknown_tokens=unknown_tokens,
        unknown=unknown,
        broken_share=share,
        broken=as_spelt(broken, corpus, tokenizer),
        estimate=time_steps(run, source, timed_steps) if timed_steps else None,
    )


def describe_lengths(lengths: Ints) -> Lengths:
    """Return figures and histogram of (N,) lengths, one an example."""
    counts = np.bincount(np.searchsorted(BUCKETS, lengths), minlength=len(BUCKETS) + 1)
    bounds: tuple[int | None, ...] = (*BUCKETS, None)
    return Lengths(
        examples=len(lengths),
        tokens=int(lengths.sum()),
        median=float(np.median(lengths)),
        p95=float(np.percentile(lengths, 95)),
        longest=int(lengths.max()),
        histogram=tuple(zip(bounds, counts.tolist(), strict=True)),
    )


def describe_batches(run: TextRun, source: TextSource) -> Batches:
    """Return what the steps of a run compute, and what other ways of batching would."""
    config, limit = run.config, source.batching.max_length
    documents = source.store.lengths() + source.batching.template.num_special
    task: Any = run.task  # of diffusion has a masker of its own; one of a plug-in may have none
    masker = getattr(task, "masker", None) or Masker.of(run.loaded.tokenizer, config.masking)
    masked = []
    for step in range(min(COUNTED_BATCHES, source.num_steps(0))):
        micro = source.micro_batches(0, step, rank=0, world_size=1)
        parts = [part for part in micro if isinstance(part, TokenBatch)]
        masked.append(sum(len(masker.mask(part, epoch=0).positions) for part in parts))
    return Batches(
        max_length=limit,
        cut=int((documents > limit).sum()),
        truncated_tokens=int(np.maximum(documents - limit, 0).sum()),
        layout=source.layout,
        real_share=real_shares(source, limit),
        steps=planned_steps(source, config.training)[1],
        tokens=source.num_tokens() / max(1, source.num_steps(0)),
        masked_tokens=statistics.fmean(masked) if masked else 0.0,
    )


def real_shares(source: TextSource, limit: int) -> dict[str, float]:
    """Return the share of text in the computed tokens, of this run and of two usual ways."""
    lengths = source.lengths[source.plan(0).order]
    total = float(lengths.sum())
    # Random batches of about as many sequences, each padded to its longest.
    mixed = plan_epoch(lengths, seed=source.seed, epoch=0, batch_tokens=source.step_size)

    def padded(plan: Plan, known: Ints) -> float:
        steps = (known[plan.step(step)] for step in range(plan.num_steps))
        return sum(float(members.max() * len(members)) for members in steps)

    own = 1.0 if source.layout == "packed" else total / padded(source.plan(0), source.lengths)
    return {
        "this run": own,
        "random batches padded to their longest": total / padded(mixed, lengths),
        "everything padded to max_length": total / (limit * len(lengths)),
    }


def time_steps(run: TextRun, source: TextSource, count: int) -> Estimate:
    """Take a few steps, and say what all of them would cost; the model is changed by them."""
    training = run.config.training
    new = new_parameters(run.task, run.model, run.loaded.new_parameters)
    steps, total = planned_steps(source, training)
    stepper = Stepper(run.task, training, total_steps=total, new_parameters=new)
    cuda = torch.cuda.is_available()
    speeds = []
    # One more than asked for: the first step allocates memory and is not counted.
    places = [(epoch, index) for epoch, length in enumerate(steps) for index in range(length)]
    for number, (epoch, index) in enumerate(places[: min(count + 1, total)]):
        batches = source.micro_batches(epoch, index, rank=0, world_size=1)
        prepared = stepper.prepare(number, batches, epoch=epoch)
        began = time.perf_counter()
        stepper.step(number, prepared)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        speeds.append(sum(micro.num_tokens for micro in prepared) / seconds)
    rate = statistics.median(speeds[1:] or speeds)
    epochs = total / max(1, steps[0])
    # At both ends, where the head has been trained alone, and every so often between.
    evaluations = 2 + (run.head_steps > 0) + (total - 1) // (training.eval_every or total)
    # Held-out batches come by length, so those at the ends are not like the others.
    held = list(run.held_out.in_order())
    middle = held[len(held) // 2 :][:SCORED_BATCHES]
    began = time.perf_counter()
    score_examples(run.model, middle, run.frozen_masker)
    passed = (time.perf_counter() - began) / sum(batch.num_tokens for batch in middle)
    texts = (run.held_out, *run.others.values())
    scored = evaluations * passed * sum(float(text.lengths.sum()) for text in texts)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, other systems in KiB
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = torch.cuda.max_memory_allocated() if cuda else own
    return Estimate(
        timed_steps=max(1, len(speeds) - 1),
        tokens_per_second=rate,
        seconds=epochs * source.num_tokens() / rate + scored,
        evaluations=evaluations,
        evaluation_seconds=scored,
        peak_megabytes=peak / 2**20,
        device=torch.cuda.get_device_name() if cuda else "CPU",
    )


def broken_words(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, *, listed: int
) -> tuple[float, list[BrokenWord]]:
    """Return the share of words of three pieces or more, and those that cost the most tokens."""
    ids = np.asarray(store.tokens[:MOST_TOKENS]).astype(np.int64)
    starts = np.flatnonzero(np.asarray(store.word_starts[:MOST_TOKENS]))
    sizes = np.diff(np.append(starts, len(ids)))
    found: dict[str, BrokenWord] = {}  # at the start of a text it may have other pieces
    for pieces in range(FEWEST_PIECES, MOST_PIECES + 1):
        firsts = starts[sizes == pieces]
        rows = ids[firsts[:, None] + np.arange(pieces)]
        unique, counts = np.unique(rows, axis=0, return_counts=True)
        # More than are listed: signs in a row (rules, ellipses), which are no words, go below.
        for index in np.argsort(-counts, kind="stable")[: 4 * listed].tolist():
            word, count = tokenizer.decode(unique[index].tolist()).strip(), int(counts[index])
            if any(map(str.isalpha, word)):
                other = found.get(word, BrokenWord(word=word, pieces=pieces, count=0, saved=0))
                saved = other.saved + (pieces - 1) * count
                found[word] = replace(other, count=other.count + count, saved=saved)
    share = float((sizes >= FEWEST_PIECES).mean()) if len(sizes) else 0.0
    return share, sorted(found.values(), key=lambda w: (-w.saved, w.word))[:listed]


def as_spelt(
    words: Sequence[BrokenWord], examples: Iterable[Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[BrokenWord, ...]:
    """Return words as the texts spell them, with the accents and case that a tokenizer drops."""
    reader = TextReader(tokenizer)
    keys = [tuple(reader.tokens(f" {word.word}")[0].tolist()) for word in words]
    spelt: dict[tuple[int, ...], Counter[str]] = {key: Counter() for key in keys}
    for example in islice(examples, SPELT_TEXTS if words else 0):
        encoded = reader.read(example.text)
        for word in encoded.words:
            counts = spelt.get(tuple(encoded.ids[word.first : word.last].tolist()))
            if counts is not None:
                counts[word.text] += 1
    return tuple(
        replace(word, word=spelt[key].most_common(1)[0][0]) if spelt[key] else word
        for word, key in zip(words, keys, strict=True)
    )


def unknown_words(
    store: TokenStore, examples: Iterable[Any], tokenizer: PreTrainedTokenizerBase, *, listed: int
) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Count unknown tokens, and return the words of the corpus that they most often stand for."""
    unknown = tokenizer.unk_token_id
    total = 0 if unknown is None else int(store.token_counts(unknown + 1)[unknown])
    reader, counts, texts = TextReader(tokenizer), Counter[str](), 0
    for example in examples if total else ():
        encoded = reader.read(example.text)
        words = [w for w in encoded.words if (encoded.ids[w.first : w.last] == unknown).any()]
        counts.update(word.text for word in words)
        texts += bool(words)
        if texts == UNKNOWN_TEXTS:
            break
    return total, tuple(counts.most_common(listed))
