"""`maskery inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from maskery.cli.main import Command, table
from maskery.core.errors import DataError, reason_of
from maskery.core.ranges import Range, check_ranges
from maskery.core.system import quick_imports
from maskery.runs.text.config import TextRunConfig

if TYPE_CHECKING:
    from maskery.runs.text.inspect import Batches, Estimate, Inspection, Lengths

BAR = 30


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Look before a long run: lengths, waste, broken words, batches, time and memory.

    Takes the flags of maskery train text, and tells what that run would meet. Trains a few steps to
    time them; keeps nothing but the token cache.

    Examples:
      maskery inspect notes.txt --model bert-base-uncased
      maskery inspect notes.txt --timed-steps 0
      maskery inspect notes.txt --json
    """

    run: Annotated[TextRunConfig, tyro.conf.OmitArgPrefixes]
    timed_steps: Annotated[int, Range(0)] = 4
    """Steps to time for the estimate; 0 for none."""
    words: Annotated[int, Range(0)] = 15
    """Words on each list."""
    words_out: Path | None = None
    """Write the candidates for --add-words to this file, one a line, as the texts spell them."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def execute(self) -> None:
        """Look at the corpus as the run would."""
        with quick_imports():
            from maskery.runs.text.inspect import inspect_corpus

        found = inspect_corpus(
            self.run, timed_steps=self.timed_steps, listed=self.words, progress=not self.json
        )
        if self.words_out is not None:
            write_words(self.words_out, [word.word for word in found.broken])
        self.answer(found, describe(found))


def write_words(path: Path, words: Sequence[str]) -> None:
    """Write a list of words, one a line."""
    try:
        path.write_text("".join(f"{word}\n" for word in words), "utf-8")
    except OSError as error:
        raise DataError(f"--words-out {path} cannot be written ({reason_of(error)})") from error


def describe(found: Inspection) -> str:
    """Return an inspection for people."""
    parts = [describe_lengths(found.lengths, found.duplicates), describe_batches(found.batches)]
    parts.append(describe_words(found))
    if found.estimate is not None:
        parts.append(describe_estimate(found.estimate, found.batches.steps))
    return "\n\n".join(parts)


def describe_lengths(lengths: Lengths, duplicates: int) -> str:
    """Return the figures of the lengths, and their histogram."""
    most = max(count for _, count in lengths.histogram)
    rows = [["tokens", "examples", ""]]
    for bound, count in lengths.histogram:
        label = "more" if bound is None else f"to {bound:,}"
        if count:
            rows.append([label, f"{count:,}", ("█" * max(1, BAR * count // most)).ljust(BAR)])
    return (
        f"{lengths.examples:,} examples, {lengths.tokens:,} tokens; an example has "
        f"{lengths.median:,.0f} (median), 95% have at most {lengths.p95:,.0f}, the longest "
        f"{lengths.longest:,}; {duplicates:,} examples repeat an earlier one\n{table(rows)}"
    )


def describe_batches(batches: Batches) -> str:
    """Return what the steps compute, and what other ways of batching would waste."""
    rows = [["text among the computed tokens", ""]]
    rows += [[name, f"{100 * share:.0f}%"] for name, share in batches.real_share.items()]
    return (
        f"{batches.steps:,} steps ({batches.layout}); a batch has {batches.tokens:,.0f} tokens and "
        f"{batches.masked_tokens:,.0f} masked ones\n"
        f"{batches.cut:,} examples exceed {batches.max_length} tokens and become several; cutting "
        f"them off would lose {batches.truncated_tokens:,} tokens\n{table(rows)}"
    )


def describe_words(found: Inspection) -> str:
    """Return the unknown words, and those worth a token."""
    lines = [f"{found.unknown_tokens:,} unknown tokens"]
    if found.unknown:
        lines[0] += ": " + ", ".join(f"{word} ({count:,})" for word, count in found.unknown)
    lines.append(
        f"{100 * found.broken_share:.1f}% of the words are of three pieces or more"
        + ("; candidates for --add-words:" if found.broken else "")
    )
    if found.broken:
        rows = [["word", "pieces", "count", "tokens saved"]]
        rows += [
            [word.word, str(word.pieces), f"{word.count:,}", f"{word.saved:,}"]
            for word in found.broken
        ]
        lines.append(table(rows))
    return "\n".join(lines)


def describe_estimate(estimate: Estimate, steps: int) -> str:
    """Return time and memory of the whole run."""
    minutes = estimate.seconds / 60
    shown = f"{minutes / 60:,.1f} hours" if minutes >= 120 else f"{minutes:,.1f} minutes"
    return (
        f"about {shown} for {steps:,} steps at {estimate.tokens_per_second:,.0f} tokens/s and "
        f"{estimate.peak_megabytes:,.0f} MB of memory ({estimate.device}; "
        f"{estimate.timed_steps} timed steps); {estimate.evaluation_seconds / 60:,.1f} minutes of "
        f"it for {estimate.evaluations:,} evaluations; checkpoints come on top"
    )
