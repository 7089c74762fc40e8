"""The processes of a run, as `torchrun` or `accelerate launch` started them; often there is one.

Messages here are small and rare (counts, flags, folder names) and go through the CPU's memory, so
that no device is waited for. With one process nothing is sent. At the end: the precision of what
this process computes without gradients on a GPU (training's is the stepper's).
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState
from torch import nn

from maskery.core.errors import ConfigError, MaskeryError, OtherProcessError, reason_of
from maskery.core.system import launched_world_size

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ResultT = TypeVar("ResultT")

PATIENCE = timedelta(days=14)  # The main process may tokenise for hours while the others wait
SILENCE = "1800"  # Seconds, after that: all work alike, so a silent one has ended or is stopped
# Words of backends' errors when a connection is gone; gloo's have no type of their own.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of its run."""

    rank: int = 0  # From 0; the process of rank 0 is the main one, which writes
    world_size: int = 1  # How many processes there are
    group: Any = None  # The group of `torch.distributed` for messages; None with one process
    patient: Any = None  # The same for what the main process does first

    @property
    def is_main(self) -> bool:
        """Return True in the process that writes files and draws progress bars."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum a few numbers over all processes, each by itself, in float64."""
        return self.add(torch.tensor(values, dtype=torch.float64)).tolist()

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return the numbers of each process, equally many, by rank; in float64."""
        return [row.tolist() for row in self._each(torch.tensor(values, dtype=torch.float64))]

    def add(self, part: torch.Tensor) -> torch.Tensor:
        """Sum a tensor on the CPU over all processes; all of one shape and type."""
        return self._sent(torch.distributed.all_reduce, part, self.group)

    def agree(self, mine: torch.Tensor, *, patient: bool = False) -> torch.Tensor:
        """Return the main process's tensor on every process; on the CPU, of one shape and type."""
        group = self.patient if patient else self.group
        return self._sent(partial(torch.distributed.broadcast, src=0), mine, group)

    def _sent(self, send: Callable[..., Any], mine: torch.Tensor, group: Any) -> torch.Tensor:
        """Return the tensor that a function of `torch.distributed` makes of each process's."""
        if self.world_size == 1:
            return mine
        found = mine.clone()
        with _other_processes():
            send(found, group=group)
        return found

    def join(self, part: torch.Tensor) -> torch.Tensor:
        """Concatenate every process's tensor (n, ...), on the CPU, by rank; n may differ."""
        sizes = [int(size) for size in self._each(torch.tensor(len(part)))]
        # Collectives want equal shapes, so all send as many rows as the largest has.
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        parts = zip(self._each(padded), sizes, strict=True)
        return torch.cat([rows[:size] for rows, size in parts])

    def _each(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensor of each process, by rank; all of one shape and type."""
        if self.world_size == 1:
            return [mine]
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        with _other_processes():
            torch.distributed.all_gather(parts, mine, group=self.group)
        return parts

    def on_main(self, work: Callable[[], str | None], *, patient: bool = False) -> str | None:
        """Run a function in the main process; every process gets its result, or fails with it."""
        message: tuple[bool, str | None] = False, None
        try:
            if self.is_main:
                message = True, work()
        finally:
            # As JSON: PyTorch's own call for objects would unpickle what another process sends.
            data = bytearray(json.dumps(message).encode())
            length = int(self.agree(torch.tensor(len(data)), patient=patient))
            box = torch.frombuffer(data if self.is_main else bytearray(length), dtype=torch.uint8)
            message = json.loads(bytes(self.agree(box, patient=patient).tolist()))
        if not message[0]:
            raise OtherProcessError("the main process has stopped")
        return message[1]

    def main_first(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a function in the main process, then in all others, which find what it wrote."""
        found: list[ResultT] = []
        self.on_main(lambda: found.append(work()), patient=True)
        return found[0] if self.is_main else work()


@cache
def join_processes() -> Processes:
    """Meet the other processes that the launcher started; later calls return the first result."""
    if launched_world_size() == 1:
        return Processes()
    seconds = os.environ.get("MASKERY_TIMEOUT", SILENCE)
    if not seconds.isdecimal() or int(seconds) == 0:
        raise ConfigError(f"MASKERY_TIMEOUT is '{seconds}': it must be seconds, such as {SILENCE}")
    silence = timedelta(seconds=int(seconds))
    # Accelerate takes a launch without a GPU for several runs of one process, unless told.
    PartialState(cpu=not torch.accelerator.is_available(), timeout=silence)
    return Processes(
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        group=torch.distributed.new_group(backend="gloo", timeout=silence),
        patient=torch.distributed.new_group(backend="gloo", timeout=PATIENCE),
    )


def launch(processes: int | None, arguments: Sequence[str]) -> int | None:
    """Run a command in processes of this machine; returns its exit code, None to run it here."""
    launched = launched_world_size()
    if "RANK" in os.environ and processes not in (None, launched):
        started = f"the launcher has started {launched}"
        raise ConfigError(f"--processes is {processes}, and {started}; leave it out")
    count = processes or torch.accelerator.device_count()
    # A launcher has started this process already, or there is nothing to share.
    if "RANK" in os.environ or count <= 1:
        return None
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The launcher's default is one thread a process, however few there are.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    command = ["--standalone", f"--nproc-per-node={count}", "-m", "maskery", *arguments]
    logging.disable(logging.ERROR)  # the process that failed has said why
    try:
        run(parse_args(command))
    except ChildFailedError as error:
        code: int = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        logging.disable(logging.NOTSET)
    return 0


def lost_process(error: BaseException) -> MaskeryError | None:
    """Return our error if PyTorch's means that another process has ended, else None."""
    lost = isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in LOST)
    )
    return _ended(error) if lost else None


@contextlib.contextmanager
def _other_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _ended(error) from error


def _ended(error: BaseException) -> MaskeryError:
    problem = f"another process of the run has ended, or is silent ({reason_of(error, most=200)})"
    fix = "its own message says why; mend that and repeat the command with --resume auto"
    return MaskeryError(f"{problem}; {fix}")


def allow_half(allowed: bool = True) -> None:
    """Let this process use TF32, and bfloat16 in `inference`, on a GPU that has them, or not."""
    # Not is said, too: an earlier run of the process, or a model that it opened, may have allowed.
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        torch.set_float32_matmul_precision("high" if allowed else "highest")


@contextlib.contextmanager
def inference() -> Iterator[None]:
    """Compute without gradients and, after `allow_half`, in bfloat16 on a GPU."""
    # PyTorch's own setting is the switch: a run with --precision fp32 leaves it at "highest".
    half = torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"
    precision = torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext()
    with torch.no_grad(), precision:
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while; its mode is restored, after an error too."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def to_gpu(model: ModuleT) -> ModuleT:
    """Move an opened model to the GPU, where there is one."""
    if torch.cuda.is_available():
        allow_half()
        model.cuda()
    return model
