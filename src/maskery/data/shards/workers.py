"""The processes of `maskery tokenize`: each does one piece after the other."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import DataError
from maskery.core.stopping import signals_held
from maskery.data.corpus.formats import is_portable
from maskery.data.shards.piece_work import Encode, Job, do_piece
from maskery.data.shards.pieces import Piece
from maskery.data.tokenise import encoder, plain_backend

Done = tuple[int, int, list[str]]


def do_pieces(
    pieces: Sequence[Piece], job: Job, tokenizer: PreTrainedTokenizerBase, workers: int | None
) -> Generator[Done]:
    """Do pieces here, or in processes; what `do_piece` returns, as each is finished.

    Close it where it is not used up: that ends the processes in the middle of their pieces.

    Raises:
        DataError: As `do_piece`, or a process died.
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
    """What each process does first."""
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
