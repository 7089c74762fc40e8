"""`maskery inspect` and `maskery tokenize`: commands that read a corpus."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from maskery.cli.main import Command
from maskery.cli.output import table
from maskery.core.errors import ConfigError, counted, explained
from maskery.core.ranges import Range
from maskery.core.system import quick_imports, signals_stop
from maskery.data.corpus.config import CorpusConfig, ShardingConfig
from maskery.runs.text.config import TextRunConfig

if TYPE_CHECKING:
    from maskery.data.shards.making import Made
    from maskery.runs.text.inspect import Inspection

BAR = 30  # characters of the longest bar, so that a row with its label fits into 80 columns


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

    def execute(self) -> None:
        """Look at the corpus as the run would."""
        with quick_imports():
            from maskery.runs.text.inspect import inspect_corpus

        steps, listed, progress = self.timed_steps, self.words, not self.json
        found = inspect_corpus(self.run, timed_steps=steps, listed=listed, progress=progress)
        if self.words_out is not None:
            with explained(f"--words-out {self.words_out} cannot be written", "name another file"):
                self.words_out.write_text("".join(f"{w.word}\n" for w in found.broken), "utf-8")
        self.answer(found, describe(found))


def describe(found: "Inspection") -> str:
    """Return an inspection for people."""
    lengths, batches, estimate = found.lengths, found.batches, found.estimate
    most = max(count for _, count in lengths.histogram)
    rows = [["tokens", "examples", ""]]
    for bound, count in lengths.histogram:
        label = "more" if bound is None else f"to {bound:,}"
        if count:
            rows.append([label, f"{count:,}", ("█" * max(1, BAR * count // most)).ljust(BAR)])
    shares = [["text among the computed tokens", ""]]
    shares += [[name, f"{100 * share:.0f}%"] for name, share in batches.real_share.items()]
    parts = [
        f"{counted(lengths.examples, 'example')}, {counted(lengths.tokens, 'token')}; an example "
        f"has {lengths.median:,.0f} (median), 95% have at most {lengths.p95:,.0f}, the longest "
        f"{lengths.longest:,}; {counted(found.duplicates, 'copy', 'copies')} of an earlier one\n"
        f"{table(rows)}",
        f"{counted(batches.steps, 'step')} ({batches.layout}); a batch has {batches.tokens:,.0f} "
        f"tokens and {batches.masked_tokens:,.0f} masked ones\n"
        f"{counted(batches.cut, 'example')} of more than {batches.max_length} tokens, cut into "
        f"several; left at that, {counted(batches.truncated_tokens, 'token')} would be lost\n"
        f"{table(shares)}",
        describe_words(found),
    ]
    if estimate is not None:
        minutes = estimate.seconds / 60
        shown = f"{minutes / 60:,.1f} hours" if minutes >= 120 else f"{minutes:,.1f} minutes"
        parts.append(
            f"about {shown} for {counted(batches.steps, 'step')} at "
            f"{estimate.tokens_per_second:,.0f} tokens/s and {estimate.peak_megabytes:,.0f} MB of "
            f"memory ({estimate.device}; {counted(estimate.timed_steps, 'timed step')}); "
            f"{estimate.evaluation_seconds / 60:,.1f} minutes of it for "
            f"{counted(estimate.evaluations, 'evaluation')}; checkpoints come on top"
        )
    return "\n\n".join(parts)


def describe_words(found: "Inspection") -> str:
    """Return the unknown words, and those worth a token."""
    lines = [counted(found.unknown_tokens, "unknown token")]
    if found.unknown:
        lines[0] += ": " + ", ".join(f"{word} ({count:,})" for word, count in found.unknown)
    lines.append(f"{100 * found.broken_share:.1f}% of the words are of three pieces or more")
    if found.broken:
        lines[-1] += "; candidates for --add-words:"
        rows = [["word", "pieces", "count", "tokens saved"]]
        rows += [[w.word, str(w.pieces), f"{w.count:,}", f"{w.saved:,}"] for w in found.broken]
        lines.append(table(rows))
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Tokenize(Command):
    """Prepare token shards of a corpus, in parallel, for training that streams them.

    Every shard is complete or absent: a run that was killed is simply repeated, does what is
    missing or damaged, and leaves the same bytes, on this machine or a cluster. Last comes
    shards.json, which training looks for.

    Examples:
      maskery tokenize books/ shards --model minilm
      maskery tokenize 'web/*.jsonl.zst' shards --model bert-base-uncased --workers 16
      maskery tokenize s3://bucket/web s3://bucket/shards --executor ray
      maskery tokenize web/ /shared/shards --executor slurm --slurm partition=cpu time=4:00:00
      maskery train text shards --model minilm
      maskery train text s3://bucket/shards --model minilm
    """

    quiet = False
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS ... OUT")]
    """Files, folders and globs (.txt .jsonl .csv .tsv .parquet, also .gz .xz .zst), and last the
    folder of the shards; what is complete there is kept. Each may be an address (s3://)."""
    model: str = "minilm"
    """The model whose tokenizer is used: minilm, a folder or a hub name."""
    sharding: Annotated[ShardingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=ShardingConfig
    )
    reading: Annotated[CorpusConfig, tyro.conf.OmitArgPrefixes] = CorpusConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.paths) < 2:
            corpus, count = "the files, folders or globs of the corpus", len(self.paths)
            fix = f"give {corpus}, and last the folder for the shards"
            raise ConfigError(f"{count} path is named: {fix}")

    def make(self, *, progress: bool = True) -> "Made":
        """Make the shards that are missing, or send the work to Slurm."""
        from maskery.data.corpus.reader import Corpus
        from maskery.data.shards.making import make_shards
        from maskery.data.shards.places import output_folder
        from maskery.models.loading import load_tokenizer

        folder = output_folder(self.paths[-1])
        corpus = Corpus.open(self.paths[:-1], self.reading)
        tokenizer = load_tokenizer(self.model)
        return make_shards(corpus, tokenizer, folder, self.sharding, progress=progress)

    def execute(self) -> None:
        """Tokenise what is missing."""
        with signals_stop("what is complete is kept: repeat the command to go on"):
            from maskery.data.shards.making import summary

            made = self.make(progress=not self.json)
        about = summary(made)
        text = (
            f"job {made.sent} of Slurm makes {counted(made.pieces, 'piece')}, and writes "
            f"shards.json last; the log is in {made.folder}/slurm, and the command, repeated, "
            f"mends what fails"
        )
        if made.sent is None:
            words = {"shards": "shard", "documents": "example", "tokens": "token"}
            shards, examples, tokens = (counted(about[name], word) for name, word in words.items())
            held_out = counted(about["held_out_tokens"], "token")
            text = (
                f"{shards} with {examples} and {tokens}, {held_out} held out; "
                f"{made.tokens_made:,} made now\n"
                f"the shards are in {made.folder}; train on them:\n"
                f"  maskery train text {made.folder} --model {self.model}"
            )
        self.answer(about, text)
