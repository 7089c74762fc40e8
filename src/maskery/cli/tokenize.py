"""`maskery tokenize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from maskery.cli.main import parse, print_json, set_up_logging
from maskery.core.system import signals_stop
from maskery.runs.text.tokenize import TokenizeConfig, tokenize_corpus


@dataclass(frozen=True, kw_only=True)
class Tokenize:
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

    run: Annotated[TokenizeConfig, tyro.conf.OmitArgPrefixes]
    json: bool = False
    """Print the result as JSON on standard output."""


def main(arguments: Sequence[str]) -> int:
    """Parse, tokenise, report."""
    wanted = parse(Tokenize, "tokenize", arguments)
    set_up_logging(quiet=wanted.json)
    with signals_stop("what is complete is kept: repeat the command to go on"):
        from maskery.data.shards.making import summary

        made = tokenize_corpus(wanted.run, progress=not wanted.json)
        about = summary(made)
    if wanted.json:
        print_json(about)
        return 0
    if made.manifest is None:
        print(
            f"this part is done: {made.mine} of {made.pieces} pieces, {made.tokens_made:,} tokens "
            f"made now; {made.missing} pieces are still to come from the other parts. If none is "
            "at work any more, repeat the command without --shard-rank to finish"
        )
        return 0
    print(
        f"{about['shards']:,} shards with {about['documents']:,} examples and {about['tokens']:,} "
        f"tokens, {about['held_out_tokens']:,} tokens held out; {made.tokens_made:,} made now"
    )
    print(f"the shards are in {made.folder}; train on them:")
    print(f"  maskery train text {made.folder} --model {wanted.run.model}")
    return 0
