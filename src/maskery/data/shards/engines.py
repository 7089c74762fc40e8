"""Engines that make the pieces of a job: processes of this machine, a Ray cluster, a Slurm array.

An engine only calls `do_piece` for numbers, which may be repeated, lost and done twice.
docs/corpora.md says why Ray's own tasks are used, and datatrove for Slurm alone.
"""

import multiprocessing
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

from tokenizers import Tokenizer

from maskery.core.errors import DataError, explained, reason_of
from maskery.core.registry import require
from maskery.core.system import signals_held
from maskery.data.corpus.formats import is_portable
from maskery.data.shards.pieces import Done, Job, do_piece

# Pieces that Ray knows of at once: it starts machines for what waits, and is slow with millions.
RAY_PIECES = 1000
RAY_RETRIES = 3  # of a piece whose process died; one that needs too much memory dies each time
SLURM_JOBS = 64
DIED = "a tokenising process died (out of memory, or killed); what is complete is kept: "
DIED += "repeat the command, with fewer --workers or a smaller --shard-mb"


def in_processes(job: Job, numbers: Sequence[int]) -> Generator[Done]:
    """Make pieces here, or in processes; yields what `do_piece` returns, as each is finished.

    Close it where it is not used up: that ends the processes in the middle of their pieces.
    """
    available = os.environ.get("SLURM_CPUS_PER_TASK") or len(os.sched_getaffinity(0))
    wanted = job.config.workers if job.config.executor == "local" else None
    count = min(wanted or int(available), len(numbers))
    if count <= 1 or stays_here(job):
        yield from (do_piece(number, job) for number in numbers)
        return
    # A forked process would inherit the tokenizer's threads in the middle of their work.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, spawn, initializer=_start_worker, initargs=(job,))
    try:
        with signals_held():
            futures = [pool.submit(_work, number) for number in numbers]
        for future in as_completed(futures):
            yield future.result()
    except BaseException as error:  # Ctrl-C and `close` among them
        # No other piece is waited for: one may take hours, and what is complete of it is kept.
        for process in pool._processes.values():  # `pool.kill_workers()` from Python 3.14 on
            process.kill()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise DataError(DIED) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def stays_here(job: Job) -> str:
    """Return what of a job no other process has, or ""."""
    files = job.corpus.files
    if not isinstance(job.tokenizer, Tokenizer):
        return "a tokenizer written in Python"
    if not all(is_portable(path, job.corpus.config) for path in files):
        return "a reader that was registered in Python"
    in_memory = any(str(path).startswith("memory://") for path in (*files, job.folder))
    return "what lies in memory://" if in_memory else ""


_worker: Job | None = None


def _start_worker(job: Job) -> None:
    global _worker
    # One process, one thread; and none outlives the command, were it killed.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None
    ended = partial(wait, [parent.sentinel])
    threading.Thread(target=lambda: ended() and os._exit(1), daemon=True).start()
    _worker = job


def _work(number: int) -> Done:
    assert _worker is not None
    return do_piece(number, _worker)


def _on_any_machine(number: int, job: Job, here: str) -> Done:
    with suppress(OSError):  # where all is at addresses, no machine needs the folder
        os.chdir(here)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return do_piece(number, job)


def on_ray(job: Job, numbers: Sequence[int]) -> Generator[Done]:
    """Make pieces as tasks of a Ray cluster, which repeats those whose process or machine dies."""
    ray = require("ray", extra="cluster", purpose="make shards on a Ray cluster")
    problem, fix = "no Ray cluster can be reached", "start one with ray start --head, or name its "
    fix += "address in RAY_ADDRESS (pip install 'maskery[cluster]')"
    with explained(problem, fix, ConnectionError, ValueError, RuntimeError):
        connection = ray.init(address="auto", log_to_driver=False, logging_level="error")
    # What Ray says of a process that died is a message, and standard output may be read as JSON.
    with connection, redirect_stdout(sys.stderr):
        task = ray.remote(_on_any_machine).options(max_retries=RAY_RETRIES)
        job_there, here = ray.put(job), str(Path.cwd())
        tasks = (task.remote(number, job_there, here) for number in numbers)
        running = list(islice(tasks, job.config.workers or RAY_PIECES))
        while running:
            (done,), running = ray.wait(running)
            running += islice(tasks, 1)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise DataError(DIED) from error


def on_slurm(job: Job, share: Callable[..., None]) -> str:
    """Send an array of jobs that share the pieces; returns the number that Slurm gave it."""
    executors = require("datatrove.executor", extra="cluster", purpose="send jobs to Slurm")
    executors.slurm.logger.disable("datatrove")
    options = job.config.sbatch
    executor = executors.SlurmPipelineExecutor(
        [partial(share, job)],
        tasks=min(job.config.workers or SLURM_JOBS, len(job.pieces)),
        time=options.pop("time"),
        partition=options.pop("partition"),
        job_name="maskery-tokenize",
        qos=None,  # its own default names one that not every cluster has
        # The jobs find this Python's commands, whatever a login there would.
        env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        sbatch_args=options,
        logging_dir=str(job.folder / "slurm"),
        skip_completed=False,  # records tell, and damage is found
    )
    try:
        executor.run()
    except (OSError, subprocess.CalledProcessError) as error:
        fix = "--executor slurm sends jobs from a machine of the cluster that has it"
        raise DataError(f"sbatch cannot be run ({reason_of(error)}); {fix}") from error
    return str(executor.job_id)
