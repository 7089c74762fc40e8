"""`maskery tokenize`: plan the pieces of a corpus, have an engine make them, list the shards.

The plan follows from the corpus and the settings, and a shard from the plan and the number of its
piece, so a run that was killed, repeated or spread over other machines leaves the same bytes.
`engines` says who makes which piece; `shards.json` is written when all are finished.
"""

import json
import logging
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from maskery.core.bars import byte_bar
from maskery.core.batch import vocabulary_size
from maskery.core.errors import DataError, explained
from maskery.data.corpus.config import ShardingConfig
from maskery.data.corpus.examples import ReadingReport
from maskery.data.corpus.files import MANIFEST, PLAN
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.engines import in_processes, on_ray, on_slurm, stays_here
from maskery.data.shards.manifest import LENGTHS, TOKENIZER, LengthCounts, Manifest, write_bytes
from maskery.data.shards.pieces import RECORDS, Job, plan_fingerprint, plan_pieces
from maskery.data.tokenise import plain_backend, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The result of a call of `make_shards`."""

    folder: Path
    pieces: int  # of the corpus
    tokens_made: int = 0  # now; those that were there before do not count
    made_anew: tuple[str, ...] = ()  # files that were found damaged
    sent: str | None = None  # the job of Slurm that makes them
    manifest: Manifest | None = None  # unless they were sent


def make_shards(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    config: ShardingConfig,
    *,
    progress: bool = True,
) -> Made:
    """Make what is missing of a corpus's shards, and their manifest; or send the work to Slurm."""
    if not corpus.files:
        fix = "download its Parquet or JSON lines files and name their folder"
        raise DataError(f"tokenize cuts files, and a dataset has none here; {fix}")
    job = plan_job(corpus, tokenizer, folder, config)
    if config.executor != "local" and (what := stays_here(job)):
        problem = f"--executor {config.executor} sends pieces to other machines"
        raise DataError(f"{problem}, and {what} cannot be sent; leave it out")
    if config.executor == "slurm":
        return Made(folder=folder, pieces=len(job.pieces), sent=on_slurm(job, make_share))
    sizes = [sum(span.size for span in piece) for piece in job.pieces]
    engine = on_ray if config.executor == "ray" else in_processes
    bar = byte_bar(sum(sizes), "tokenising", progress, leave=True)
    tokens_made, damaged = 0, list[str]()
    # Closed whatever ends the loop, since that is what ends the processes.
    with bar, closing(engine(job, range(len(sizes)))) as results:
        for number, tokens, broken in results:
            tokens_made += tokens
            damaged += broken
            bar.update(sizes[number])
    for what in damaged:
        log.warning("made anew: %s", what)
    made = Made(folder=folder, pieces=len(sizes), tokens_made=tokens_made, made_anew=(*damaged,))
    return replace(made, manifest=write_manifest(job))


def make_share(job: Job, _data: object, rank: int, world_size: int) -> None:
    """Make the pieces of one of several jobs; the last to end writes the manifest."""
    numbers = range(len(job.pieces))
    for _, _, damaged in in_processes(job, numbers[rank::world_size]):
        for what in damaged:
            log.warning("made anew: %s", what)
    if all(map(job.load_piece, numbers)):
        write_manifest(job)


def plan_job(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", folder: Path, config: ShardingConfig
) -> Job:
    """Plan the pieces, and claim the folder for them."""
    pieces = tuple(plan_pieces(corpus, config.shard_bytes))
    fingerprint = plan_fingerprint(corpus, config, tokenizer_fingerprint(tokenizer))
    claim_folder(folder, fingerprint)
    if config.executor != "slurm":  # else other jobs may be at work here
        for path in folder.glob("**/*.partial-*"):  # left by the killed
            path.unlink()
    return Job(
        corpus=corpus,
        config=config,
        folder=folder,
        pieces=pieces,
        tokenizer=plain_backend(tokenizer) or tokenizer,
        fingerprint=fingerprint,
        vocab_size=vocabulary_size(tokenizer),
        about=about_tokenizer(folder, tokenizer),
    )


def claim_folder(folder: Path, fingerprint: str) -> None:
    """Make the folder, or see that it belongs to the same corpus, tokenizer and settings."""
    plan = folder / PLAN
    with explained(f"the folder '{folder}' cannot be used", "name another"):
        folder.mkdir(parents=True, exist_ok=True)
        # Listed before the plan is read: another command may begin at the same instant.
        names = [path.name for path in folder.iterdir()]
        if not plan.is_file():
            if others := [name for name in names if not name.startswith(PLAN)]:
                fix = "name an empty or new one"
                raise DataError(f"the folder '{folder}' holds other things ({min(others)}); {fix}")
            write_bytes(plan, (json.dumps({"fingerprint": fingerprint}) + "\n").encode())
        if fingerprint.encode() not in plan.read_bytes():
            problem = f"the folder '{folder}' holds shards of another corpus, tokenizer or setting"
            raise DataError(f"{problem}; repeat the command that began it, or name another folder")
        (folder / RECORDS).mkdir(exist_ok=True)


def about_tokenizer(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Keep the tokenizer with the shards, for models from scratch; returns its manifest entries."""
    final = folder / TOKENIZER
    with explained(f"the tokenizer cannot be written to '{final}'", "free some space"):
        final.mkdir(exist_ok=True)
        with TemporaryDirectory() as here:
            tokenizer.save_pretrained(here)
            files = sorted(Path(here).iterdir())
            kept = tuple(write_bytes(final / path.name, path.read_bytes()) for path in files)
    return {
        "tokenizer": tokenizer.name_or_path,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "tokenizer_files": kept,
    }


def write_manifest(job: Job) -> Manifest:
    """List all shards, now that every piece is finished."""
    loaded = [job.load_piece(number) for number in range(len(job.pieces))]
    pieces = [piece for piece in loaded if piece is not None]
    # Numbered among all, or records of other pieces would be read where one is missing.
    shards = ((n, i) for n, piece in enumerate(loaded) if piece for i in range(piece.shards))
    found = [job.load_shard(number, index) for number, index in shards]
    records = [record for record in found if record is not None]
    if len(pieces) < len(loaded) or len(records) < len(found):
        fix = "repeat maskery tokenize with a folder that all its machines share"
        raise DataError(f"records of '{job.folder}' are damaged, or not seen from here; {fix}")
    if not any(record.train for record in records):
        fix = "name a corpus with text in a script that the tokenizer knows"
        raise DataError(f"the corpus holds no tokens to train on; {fix}")
    total, encodings = Counter[str](), Counter[str]()
    for piece in pieces:
        total.update(piece.report)
        encodings.update(piece.encodings)
    report = ReadingReport(**total)
    report.encodings = encodings
    if unusual := report.describe():
        log.warning("%s", unusual)
    lengths = LengthCounts.gather([record.lengths for record in records if record.train])
    manifest = Manifest(
        fingerprint=job.fingerprint,
        vocab_size=job.vocab_size,
        held_out_share=job.config.held_out_share,
        lengths=write_bytes(job.folder / LENGTHS, lengths.to_bytes()),
        shards=tuple(record.train for record in records if record.train),
        held_out=tuple(record.held_out for record in records if record.held_out),
        **job.about,
    )
    write_bytes(job.folder / MANIFEST, manifest.to_json())
    return manifest


def summary(made: Made) -> dict[str, Any]:
    """Return the result as `--json` prints it."""
    about = {**vars(made), "folder": str(made.folder), "complete": made.manifest is not None}
    manifest: Manifest | None = about.pop("manifest")
    if manifest is not None:
        about |= {
            "shards": len(manifest.shards),
            "documents": manifest.documents,
            "tokens": manifest.tokens,
            "held_out_documents": sum(entry.documents for entry in manifest.held_out),
            "held_out_tokens": sum(entry.tokens for entry in manifest.held_out),
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        }
    return about
