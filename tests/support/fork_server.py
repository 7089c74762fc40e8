"""Commands and scripts in processes of their own, without waiting for imports each time.

One process imports everything heavy and forks for each run, so that a run can be killed like any
other process and starts in milliseconds. Several ranks meet as under `torchrun`. What is imported
is there already in every run: a test of what a program imports starts an interpreter of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

# What runs import, directly or when they first need it; some are of extras.
WARM = (
    *("torch.distributed.fsdp", "torch.distributed.tensor", "maskery.cli.train"),
    *("maskery.runs.pairs.run", "maskery.runs.person_search.run", "maskery.runs.text.run"),
    *("maskery.runs.text.evaluate", "maskery.report.page", "jinja2", "pandas", "datasketch"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("transformers.models.bert.modeling_bert", "transformers.models.vit.modeling_vit"),
    *("transformers.models.bert.tokenization_bert", "scipy.stats", "scipy.sparse.csgraph"),
)


class Run:
    """A started command, on one or more ranks."""

    def __init__(self, server: ForkServer, pids: list[int], log: Path) -> None:
        self.server, self.pids, self.log = server, pids, log

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send every rank a signal; ranks that have ended are left alone."""
        for pid in self.pids:
            os.kill(pid, number)  # not reaped before `wait`, so the number is still theirs

    def ended(self, within: float = 0.0) -> bool:
        """Whether every rank has ended; one that has not is waited for so many seconds at most."""
        return all(self.server.ask({"ended": pid, "within": within}) for pid in self.pids)

    def wait_for(self, rank: int) -> None:
        """Wait until one rank has ended, however long that takes."""
        self.server.ask({"end of": self.pids[rank]})

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
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment({}),
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
        report: bool = True,
    ) -> Run:
        """Start `maskery ARGUMENTS` in a folder; training may end without drawing its report."""
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        pids = self.ask(
            {
                "arguments": [str(argument) for argument in arguments],
                "folder": str(folder),
                "outputs": [str(log), str(log)],
                "ranks": ranks,
                "environment": _environment(environment or {}),
                "report": report,
            }
        )
        return Run(self, pids, log)

    def run(self, arguments: Sequence[str | Path], folder: Path, **more: Any) -> str:
        """Run to the end and return what was printed; every rank must end well."""
        run = self.start(arguments, folder, **more)
        codes = run.wait()
        assert set(codes) == {0}, f"{codes}: {run.text}"
        return run.text

    def python(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` (FILE ..., -m MODULE ... or -c CODE ...) in this folder."""
        words = [str(argument) for argument in arguments]
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder, name) for name in ("out", "err")]
            request = {
                "python": words,
                "folder": str(Path.cwd()),
                "outputs": [str(path) for path in outputs],
                "ranks": 1,
                "environment": _environment(environment or {}),
            }
            (code,) = self.ask({"wait": self.ask(request)})
            out, err = (path.read_text("utf-8", errors="replace") for path in outputs)
        return subprocess.CompletedProcess(words, code, out, err)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's own as it is now, and its way to modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def _serve() -> None:
    for name in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        from PIL import Image

        Image.init()
    gc.collect()
    gc.freeze()  # pages stay shared with the runs
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # it is waited for
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(request)), flush=True)


def _answer(request: dict[str, Any]) -> Any:
    if "wait" in request:
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
    if "end of" in request:
        os.waitid(os.P_PID, request["end of"], os.WEXITED | os.WNOWAIT)
        return True
    if "ended" in request:
        if not _has_ended(request["ended"]) and request["within"]:
            signal.sigtimedwait({signal.SIGCHLD}, request["within"])
        return _has_ended(request["ended"])
    port = _free_port()
    return [_fork(request, rank, port) for rank in range(request["ranks"])]


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.environ.clear()
        os.environ |= request["environment"]
        if request["ranks"] > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(request["ranks"]),
                "LOCAL_WORLD_SIZE": str(request["ranks"]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        os.chdir(request["folder"])
        for stream, path in enumerate(request["outputs"], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        faulthandler.enable()  # where a library's crash is, which has no traceback of its own
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        if "python" in request:
            code = _run_python(request["python"])
        else:
            import maskery.cli.train
            from maskery.cli.main import main

            if not request["report"]:
                maskery.cli.train.finish_report = lambda folder: None
            code = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_python(words: list[str]) -> int:
    """Do as `python WORDS` does, to the end of its threads and of what it has left for its exit."""
    first = "" if words[0] in ("-m", "-c") else str(Path(words[0]).resolve().parent)
    sys.path[:0] = [first, *os.environ["PYTHONPATH"].split(os.pathsep)]
    code = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


if __name__ == "__main__":
    _serve()
