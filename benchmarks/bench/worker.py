"""A contender in a process of its own, so that none has another's memory or warmth.

The parent writes a number of tokens on a line and reads the turn as JSON from the next. What a
contender prints goes to standard error, away from the answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.config import BenchConfig
from bench.contenders import Turn, build
from maskery.core.errors import MaskeryError
from maskery.runs.frame.config_file import from_plain, to_plain


class Worker:
    """Runs a contender's turns; a context manager that ends its process.

    Attributes:
        flops_per_token: Of its first step, for each real token: matrix products and attention.
    """

    def __init__(self, name: str, config: BenchConfig) -> None:
        self.name, self.config = name, config
        self.flops_per_token = 0.0

    def __enter__(self) -> Worker:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": module_path()},
        )
        try:
            self._write(json.dumps({"name": self.name, "config": to_plain(self.config)}))
            self.flops_per_token = float(self._read()["flops_per_token"])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def take(self, tokens: int) -> Turn:
        """Let it train on at least so many real tokens."""
        self._write(str(tokens))
        return Turn(**self._read()["turn"])

    def peak_memory_mb(self) -> float:
        """Of its process so far."""
        self._write("memory")
        return float(self._read()["peak_memory_mb"])

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed() from error

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> MaskeryError:
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["it said nothing"]
        return MaskeryError(f"the contender {self.name} failed: {said[-1][-300:]}")


def module_path() -> str:
    """Return PYTHONPATH with the folder of `bench` in front: it is not installed."""
    folder = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))


def serve() -> None:
    """Take turns until the parent closes the pipe."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    request = json.loads(sys.stdin.readline())
    config = from_plain(request["config"], BenchConfig, "request")
    take = build(request["name"], config)
    # Nothing is compiled while operations are counted, so that they can be.
    with FlopCounterMode(display=False) as counter:
        turn = take(1)
    take(config.tokens)  # whatever is set up or compiled in first steps
    answer(flops_per_token=counter.get_total_flops() / turn.real_tokens)
    for line in sys.stdin:
        if line.strip() == "memory":
            answer(peak_memory_mb=peak_memory_mb())
        else:
            answer(turn=asdict(take(int(line))))


def peak_memory_mb() -> float:
    """Of this process: on the GPU where there is one, else resident.

    `ru_maxrss` would also count what its parent had before the fork.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    serve()
