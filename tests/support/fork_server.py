"""Commands in processes of their own, without waiting for imports each time.

One process imports everything heavy and forks for each run, so that a run can be killed like any
other process and starts in milliseconds. Several ranks meet as under `torchrun`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self


class Run:
    """A started command, on one or more ranks."""

    def __init__(self, server: ForkServer, pids: list[int], log: Path) -> None:
        self.server, self.pids, self.log = server, pids, log

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send every rank a signal; ranks that have ended are left alone."""
        for pid in self.pids:
            os.kill(pid, number)  # not reaped before `wait`, so the number is still theirs

    def ended(self) -> bool:
        """Whether every rank has ended; does not wait."""
        return all(self.server.ask({"ended": pid}) for pid in self.pids)

    def wait(self) -> list[int]:
        """The exit codes by rank; minus the signal's number where one ended it."""
        codes: list[int] = self.server.ask({"wait": self.pids})
        return codes

    @property
    def text(self) -> str:
        """What the ranks have printed."""
        return self.log.read_text("utf-8", errors="replace")


class ForkServer:
    """The process that forks; use as a context manager."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send one request and read its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        *,
        ranks: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> Run:
        """Start `maskery ARGUMENTS` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        pids = self.ask(
            {
                "arguments": [str(argument) for argument in arguments],
                "folder": str(folder),
                "log": str(log),
                "ranks": ranks,
                "environment": dict(environment or {}),
            }
        )
        return Run(self, pids, log)

    def run(self, arguments: Sequence[str | Path], folder: Path, **more: Any) -> str:
        """Run to the end and return what was printed; every rank must end well."""
        run = self.start(arguments, folder, **more)
        codes = run.wait()
        assert set(codes) == {0}, f"{codes}: {run.text}"
        return run.text


def _serve() -> None:
    import torch
    import torch.distributed.fsdp
    import torch.distributed.tensor

    import maskery.runs.pairs.run
    import maskery.runs.person_search.run
    import maskery.runs.text.run

    del maskery, torch
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(request)), flush=True)


def _answer(request: dict[str, Any]) -> Any:
    if "wait" in request:
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
    if "ended" in request:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, request["ended"], flags) is not None
    port = _free_port()
    return [_fork(request, rank, port) for rank in range(request["ranks"])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fork(request: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if request["ranks"] > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(request["ranks"]),
                "LOCAL_WORLD_SIZE": str(request["ranks"]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        os.environ |= request["environment"]
        os.chdir(request["folder"])
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.enable()  # where a library's crash is, which has no traceback of its own
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        from maskery.cli.main import main

        code = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
