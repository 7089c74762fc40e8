"""`maskery tokenize`: pieces of a corpus become shards, in processes and on several machines.

Who does which piece follows from its number alone (`number % shard_count == shard_rank`), and the
content of a shard from the piece alone, so a run that was killed, repeated or spread differently
leaves the same bytes. The rank that finds all pieces finished writes `shards.json`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from maskery.core.batch import vocabulary_size
from maskery.core.errors import DataError, os_errors
from maskery.core.system import signals_held
from maskery.data.corpus.examples import ReadingReport
from maskery.data.corpus.files import MANIFEST, PLAN
from maskery.data.corpus.formats import is_portable
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.config import ShardingConfig
from maskery.data.shards.manifest import (
    LENGTHS,
    TOKENIZER,
    DocumentLengths,
    FileEntry,
    Manifest,
    write_bytes,
)
from maskery.data.shards.pieces import (
    RECORDS,
    Job,
    Piece,
    do_piece,
    load_piece,
    load_shard,
    plan_fingerprint,
    plan_pieces,
)
from maskery.data.tokenise import (
    Encode,
    byte_bar,
    encoder,
    encoder_of,
    plain_backend,
    tokenizer_fingerprint,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The result of a call of `make_shards`."""

    folder: Path
    pieces: int  # of the corpus
    mine: int  # that belong to this rank
    tokens_made: int  # now; those that were there before do not count
    damaged: tuple[str, ...]  # files that were found damaged and made anew
    missing: int  # pieces that other ranks have not finished
    manifest: Manifest | None  # once nothing is missing


def make_shards(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    config: ShardingConfig,
    *,
    progress: bool = True,
) -> Made:
    """Make the shards of a corpus that this rank is to make, and the manifest if it is the last.

    Shards of the same corpus and settings that the folder holds are kept.
    """
    if not corpus.files:
        raise DataError(
            "tokenize cuts files, and a dataset has none here; download its Parquet or JSON "
            "lines files and name their folder"
        )
    # By the sizes of the files alone, so every rank plans the same pieces without asking others.
    pieces = plan_pieces(corpus, config.shard_bytes)
    job = Job(
        corpus=corpus,
        config=config,
        folder=folder,
        fingerprint=plan_fingerprint(corpus, config, tokenizer_fingerprint(tokenizer)),
        vocab_size=vocabulary_size(tokenizer),
    )
    claim_folder(job)
    mine = pieces[config.shard_rank :: config.shard_count]
    tokens_made, damaged = 0, []
    bar = byte_bar(sum(piece.size for piece in mine), "tokenising", progress, leave=True)
    # Closed whatever ends the loop, since that is what ends the processes.
    with bar, closing(do_pieces(mine, job, tokenizer)) as results:
        for number, tokens, broken in results:
            tokens_made += tokens
            damaged += broken
            bar.update(pieces[number].size)
    for what in damaged:
        log.warning("made anew: %s", what)
    missing = sum(load_piece(piece.number, job) is None for piece in pieces)
    return Made(
        folder=folder,
        pieces=len(pieces),
        mine=len(mine),
        tokens_made=tokens_made,
        damaged=tuple(damaged),
        missing=missing,
        manifest=None if missing else write_manifest(pieces, job, tokenizer),
    )


def claim_folder(job: Job) -> None:
    """Make the folder, or see that it belongs to the same corpus, tokenizer and settings.

    Any number of ranks may do this at once: the first plan stays, and each goes by what it reads.
    """
    plan = job.folder / PLAN
    with os_errors(f"the folder '{job.folder}' cannot be used", "name another"):
        job.folder.mkdir(parents=True, exist_ok=True)
        # Listed before the plan is read: where there is no plan then, no rank had got further.
        names = [path.name for path in job.folder.iterdir()]
        if not plan.is_file():
            others = [n for n in names if n != PLAN and not n.startswith(f"{PLAN}.partial-")]
            if others:
                raise DataError(
                    f"the folder '{job.folder}' holds other things ({min(others)}); name an empty "
                    "or new one"
                )
            write_first(plan, (json.dumps({"fingerprint": job.fingerprint}) + "\n").encode())
        if job.fingerprint.encode() not in plan.read_bytes():
            raise DataError(
                f"the folder '{job.folder}' holds shards of another corpus, tokenizer or setting; "
                "repeat the command that began it, or name another folder"
            )
        (job.folder / RECORDS).mkdir(exist_ok=True)
    if job.config.shard_count == 1:  # nobody else is at work here, so these were left by the killed
        for path in job.folder.glob("*.partial-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_first(path: Path, data: bytes) -> None:
    """Write a file whole unless there is one: the first is never replaced."""
    if not isinstance(path, Path):  # an address, where of two at the same instant the last stays
        if not path.is_file():
            write_bytes(path, data)
        return
    aside = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    write_bytes(aside, data)
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: between these two another may be first
        if not path.exists():
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[FileEntry, ...]:
    """Keep the tokenizer with the shards: models from scratch take it from there."""
    final = folder / TOKENIZER
    with os_errors(f"the tokenizer cannot be written to '{final}'", "free some space"):
        final.mkdir(exist_ok=True)
        with TemporaryDirectory() as here:
            tokenizer.save_pretrained(here)
            files = sorted(Path(here).iterdir())
            return tuple(write_bytes(final / path.name, path.read_bytes()) for path in files)


def write_manifest(
    pieces: Sequence[Piece], job: Job, tokenizer: PreTrainedTokenizerBase
) -> Manifest:
    """List all shards, now that every piece is finished."""
    records, total, encodings = [], Counter[str](), Counter[str]()
    for piece in pieces:
        finished = load_piece(piece.number, job)
        assert finished is not None
        total.update(finished.report)
        encodings.update(finished.encodings)
        records += [load_shard(piece.number, number, job) for number in range(finished.shards)]
    sound = [record for record in records if record is not None]
    if len(sound) < len(records):
        raise DataError(
            f"a record of '{job.folder}' is damaged; repeat maskery tokenize without "
            f"--shard-rank to mend it"
        )
    if not any(record.train for record in sound):
        raise DataError(
            "the corpus holds no tokens to train on; name a corpus with text in a script that the "
            "tokenizer knows"
        )
    report = ReadingReport(**total)
    report.encodings = encodings
    if unusual := report.describe():
        log.warning("%s", unusual)
    lengths = DocumentLengths.gather([record.lengths for record in sound if record.train])
    manifest = Manifest(
        fingerprint=job.fingerprint,
        tokenizer=tokenizer.name_or_path,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        tokenizer_files=save_tokenizer(job.folder, tokenizer),
        vocab_size=job.vocab_size,
        held_out_share=job.config.held_out_share,
        lengths=write_bytes(job.folder / LENGTHS, lengths.to_bytes()),
        shards=tuple(record.train for record in sound if record.train),
        held_out=tuple(record.held_out for record in sound if record.held_out),
    )
    write_bytes(job.folder / MANIFEST, manifest.to_json())
    return manifest


def summary(made: Made) -> dict[str, object]:
    """Return the result as `--json` prints it."""
    manifest = made.manifest
    about: dict[str, object] = {
        "folder": str(made.folder),
        "pieces": made.pieces,
        "mine": made.mine,
        "tokens_made": made.tokens_made,
        "made_anew": list(made.damaged),
        "missing_pieces": made.missing,
        "complete": manifest is not None,
    }
    return (
        about
        if manifest is None
        else about
        | {
            "shards": len(manifest.shards),
            "documents": manifest.documents,
            "tokens": manifest.tokens,
            "held_out_documents": sum(entry.documents for entry in manifest.held_out),
            "held_out_tokens": sum(entry.tokens for entry in manifest.held_out),
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        }
    )


Done = tuple[int, int, list[str]]


def do_pieces(
    pieces: Sequence[Piece], job: Job, tokenizer: PreTrainedTokenizerBase
) -> Generator[Done]:
    """Do pieces here, or in processes; yields what `do_piece` returns, as each is finished.

    Close it where it is not used up: that ends the processes in the middle of their pieces.
    """
    backend = plain_backend(tokenizer)
    count = min(job.config.workers or len(os.sched_getaffinity(0)), len(pieces))
    # A tokenizer in Python is not sent to other processes, nor is a reader that was registered.
    files = job.corpus.files
    portable = all(is_portable(path, job.corpus.config) for path in files)
    in_memory = any(getattr(path, "in_memory", False) for path in (*files, job.folder))
    if count <= 1 or backend is None or in_memory or not portable:
        encode = encoder(tokenizer)
        for piece in pieces:
            yield do_piece(piece, job, encode)
        return
    pool = ProcessPoolExecutor(
        count,
        # A forked process would inherit the tokenizer's threads in the middle of their work.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(job, backend.to_str()),
    )
    try:
        with signals_held():
            futures = [pool.submit(_work, piece) for piece in pieces]
        for future in as_completed(futures):
            yield future.result()
    except BaseException as error:  # Ctrl-C and `close` among them
        # No other piece is waited for: one may take hours, and what is complete of it is kept.
        for process in pool._processes.values():  # `pool.kill_workers()` from Python 3.14 on
            process.kill()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise DataError(
            "a tokenising process died (out of memory, or killed); what is complete is kept: "
            "repeat the command, with fewer --workers or a smaller --shard-mb"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Job, Encode] | None = None


def _start_worker(job: Job, backend: str) -> None:
    """Prepare a process for its pieces."""
    global _worker
    # One process, one thread; and none outlives the command, were it killed.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    threading.Thread(target=lambda: wait([sentinel]) and os._exit(1), daemon=True).start()
    _worker = job, encoder_of(Tokenizer.from_str(backend))


def _work(piece: Piece) -> Done:
    assert _worker is not None
    return do_piece(piece, *_worker)
