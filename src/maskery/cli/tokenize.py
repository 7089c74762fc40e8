"""`maskery tokenize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from maskery.cli.main import Command
from maskery.core.system import signals_stop
from maskery.runs.text.tokenize import TokenizeConfig, tokenize_corpus


@dataclass(frozen=True, kw_only=True)
class Tokenize(Command):
    """Prepare token shards of a corpus, in parallel, for training that streams them.

    Every shard is complete or absent: a run that was killed is simply repeated, does what is
    missing or damaged, and leaves the same bytes. On several machines, each does its part; the one
    that finds all parts done writes shards.json, which training looks for.

    Examples:
      maskery tokenize books/ shards --model minilm
      maskery tokenize 'web/*.jsonl.zst' shards --model bert-base-uncased --workers 16
      maskery tokenize web.txt shards --shard-rank 3 --shard-count 8
      srun maskery tokenize web/ /shared/shards --ranks-from slurm-array
      maskery train text shards --model minilm
      maskery train text s3://bucket/shards --model minilm
    """

    quiet = False
    run: Annotated[TokenizeConfig, tyro.conf.OmitArgPrefixes]

    def execute(self) -> None:
        """Tokenise what is missing."""
        with signals_stop("what is complete is kept: repeat the command to go on"):
            from maskery.data.shards.making import summary

            made = tokenize_corpus(self.run, progress=not self.json)
            about = summary(made)
        if made.manifest is None:
            text = (
                f"this part is done: {made.mine} of {made.pieces} pieces, {made.tokens_made:,} "
                f"tokens made now; {made.missing} pieces are still to come from the other parts. "
                f"If none is at work any more, repeat the command without --shard-rank to finish"
            )
        else:
            text = (
                f"{about['shards']:,} shards with {about['documents']:,} examples and "
                f"{about['tokens']:,} tokens, {about['held_out_tokens']:,} tokens held out; "
                f"{made.tokens_made:,} made now\n"
                f"the shards are in {made.folder}; train on them:\n"
                f"  maskery train text {made.folder} --model {self.run.model}"
            )
        self.answer(about, text)
