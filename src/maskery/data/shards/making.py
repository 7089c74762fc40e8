"""`maskery tokenize`: pieces of a corpus become shards, in processes and on several machines.

Who does which piece follows from its number alone (`number % shard_count == shard_rank`), and the
content of a shard from the piece alone, so a run that was killed, repeated or spread differently
leaves the same bytes. The rank that finds all pieces finished writes `shards.json`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import vocabulary_size
from maskery.core.errors import DataError
from maskery.core.system import signals_held
from maskery.data.corpus.examples import ReadingReport
from maskery.data.corpus.files import MANIFEST, PLAN
from maskery.data.corpus.formats import is_portable
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.config import ShardingConfig
from maskery.data.shards.manifest import LENGTHS, TOKENIZER, DocumentLengths, FileEntry, Manifest
from maskery.data.shards.piece_work import RECORDS, Encode, Job, do_piece, load_piece, load_shard
from maskery.data.shards.pieces import Piece, plan_fingerprint, plan_pieces
from maskery.data.shards.shard_file import file_sha256, write_bytes, write_first
from maskery.data.tokenise import byte_bar, encoder, plain_backend, tokenizer_fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The result of a call of `make_shards`.

    Attributes:
        pieces: How many the corpus has.
        mine: How many of them belong to this rank.
        tokens_made: Tokens that were made now; what was there before is not among them.
        damaged: Files that were found damaged and made anew.
        missing: Pieces that other ranks have not finished.
        manifest: Once nothing is missing.
    """

    folder: Path
    pieces: int
    mine: int
    tokens_made: int
    damaged: tuple[str, ...]
    missing: int
    manifest: Manifest | None


def make_shards(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    config: ShardingConfig,
    *,
    progress: bool = True,
) -> Made:
    """Make the shards of a corpus that this rank is to make, and the manifest if it is the last.

    Args:
        corpus: Files; a hub dataset cannot be cut.
        tokenizer: Of the model that will be trained.
        folder: Shards of the same corpus and settings that it holds are kept.
        config: Size of the shards, and who makes which.
        progress: Draw a progress bar.

    Raises:
        DataError: The corpus cannot be read, the folder holds shards of something else or cannot
            be written, or a process died.
    """
    if not corpus.files:
        raise DataError(
            "tokenize cuts files, and a dataset has none here; download its Parquet or JSON "
            "lines files and name their folder"
        )
    sizes = corpus.sizes
    pieces = plan_pieces(corpus.files, sizes, corpus.config, config.shard_bytes)
    fingerprint = plan_fingerprint(
        corpus.files,
        sizes,
        corpus.config,
        config.shard_bytes,
        config.held_out_share,
        tokenizer_fingerprint(tokenizer),
    )
    job = Job(
        files=corpus.files,
        sizes=tuple(sizes),
        reading=corpus.config,
        folder=folder,
        fingerprint=fingerprint,
        shard_bytes=config.shard_bytes,
        held_out_share=config.held_out_share,
        vocab_size=vocabulary_size(tokenizer),
    )
    claim_folder(job, tokenizer)
    if config.shard_count == 1:  # nobody else is at work here
        remove_remains(folder)
    mine = pieces[config.shard_rank :: config.shard_count]
    tokens_made, damaged = 0, []
    bar = byte_bar(sum(piece.size for piece in mine), "tokenising", progress, leave=True)
    # Closed whatever ends the loop, since that is what ends the processes.
    with bar, closing(do_pieces(mine, job, tokenizer, config.workers)) as results:
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


def remove_remains(folder: Path) -> None:
    """Remove what a process that was killed had begun to write."""
    for path in folder.glob("*.partial-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def claim_folder(job: Job, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the folder, or see that it belongs to the same corpus, tokenizer and settings.

    Any number of ranks may do this at once: the first plan stays, and each goes by what it reads.
    """
    plan = job.folder / PLAN
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        # Listed before the plan is read: where there is no plan then, no rank had got further.
        names = [path.name for path in job.folder.iterdir()]
        if not plan.is_file():
            refuse_others(job.folder, names)
            write_first(plan, (json.dumps({"fingerprint": job.fingerprint}) + "\n").encode())
        if job.fingerprint.encode() not in plan.read_bytes():
            raise DataError(
                f"the folder '{job.folder}' holds shards of another corpus, tokenizer or setting; "
                "repeat the command that began it, or name another folder"
            )
        (job.folder / RECORDS).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the folder '{job.folder}' cannot be used ({error.strerror}); name another"
        ) from error
    save_tokenizer(job.folder, tokenizer)


def refuse_others(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder without a plan that is not empty."""
    others = [name for name in names if name != PLAN and not name.startswith(f"{PLAN}.partial-")]
    if others:
        raise DataError(
            f"the folder '{folder}' holds other things ({min(others)}); name an empty or new one"
        )


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep the tokenizer with the shards: models from scratch take it from there."""
    final = folder / TOKENIZER
    if final.is_dir():
        return
    partial = folder / f"{TOKENIZER}.partial-{secrets.token_hex(4)}"
    try:
        tokenizer.save_pretrained(partial)
        partial.rename(final)
    except OSError as error:
        if final.is_dir():  # another rank was first
            shutil.rmtree(partial, ignore_errors=True)
            return
        raise DataError(
            f"the tokenizer cannot be written to '{final}' ({error.strerror}); free some space"
        ) from error


def write_manifest(
    pieces: Sequence[Piece], job: Job, tokenizer: PreTrainedTokenizerBase
) -> Manifest:
    """List all shards, now that every piece is finished."""
    shards, held_out, histograms = [], [], []
    total = ReadingReport()
    for piece in pieces:
        finished = load_piece(piece.number, job)
        assert finished is not None
        for name, value in finished.report.items():
            setattr(total, name, getattr(total, name) + value)
        for number in range(finished.shards):
            record = load_shard(piece.number, number, job)
            if record is None:
                raise DataError(
                    f"a record of '{job.folder}' is damaged; repeat maskery tokenize without "
                    f"--shard-rank to mend it"
                )
            if record.train is not None:
                shards.append(record.train)
                histograms.append(record.lengths)
            if record.held_out is not None:
                held_out.append(record.held_out)
    if not shards:
        raise DataError(
            "the corpus holds no tokens to train on; name a corpus with text in a script that the "
            "tokenizer knows"
        )
    unusual = total.describe()
    if unusual:
        log.warning("%s", unusual)
    data = DocumentLengths.gather(histograms).to_bytes()
    write_bytes(job.folder / LENGTHS, data)
    folder = job.folder / TOKENIZER
    manifest = Manifest(
        fingerprint=job.fingerprint,
        tokenizer=tokenizer.name_or_path,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        tokenizer_files=tuple(
            FileEntry(file=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))
            for path in sorted(folder.iterdir())
        ),
        vocab_size=job.vocab_size,
        held_out_share=job.held_out_share,
        lengths=FileEntry(file=LENGTHS, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),
        shards=tuple(shards),
        held_out=tuple(held_out),
    )
    write_bytes(job.folder / MANIFEST, manifest.to_json())
    return manifest


def summary(made: Made) -> dict[str, object]:
    """Return the result as `--json` prints it."""
    about: dict[str, object] = {
        "folder": str(made.folder),
        "pieces": made.pieces,
        "mine": made.mine,
        "tokens_made": made.tokens_made,
        "made_anew": list(made.damaged),
        "missing_pieces": made.missing,
        "complete": made.manifest is not None,
    }
    if made.manifest is not None:
        listed = asdict(made.manifest)
        about |= {
            "shards": len(made.manifest.shards),
            "documents": made.manifest.documents,
            "tokens": made.manifest.tokens,
            "held_out_documents": sum(e["documents"] for e in listed["held_out"]),
            "held_out_tokens": sum(e["tokens"] for e in listed["held_out"]),
            "tokenizer_fingerprint": made.manifest.tokenizer_fingerprint,
        }
    return about


Done = tuple[int, int, list[str]]


def do_pieces(
    pieces: Sequence[Piece], job: Job, tokenizer: PreTrainedTokenizerBase, workers: int | None
) -> Generator[Done]:
    """Do pieces here, or in processes; what `do_piece` returns, as each is finished.

    Close it where it is not used up: that ends the processes in the middle of their pieces.
    """
    backend = plain_backend(tokenizer)
    count = min(workers or len(os.sched_getaffinity(0)), len(pieces))
    # A tokenizer in Python is not sent to other processes, nor is a reader that was registered.
    portable = all(
        is_portable(path, job.reading) and not getattr(path, "in_memory", False)
        for path in job.files
    )
    if count <= 1 or backend is None or not portable:
        encode = encoder(tokenizer, backend)
        for piece in pieces:
            yield do_piece(piece, job, encode)
        return
    pool = ProcessPoolExecutor(
        count,
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
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    # With a backend, the encoder asks nothing of the tokenizer itself.
    _worker = job, encoder(None, Tokenizer.from_str(backend))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _work(piece: Piece) -> Done:
    assert _worker is not None
    return do_piece(piece, *_worker)
