"""Shards made by a Ray cluster, by an array of Slurm's and by datatrove: the bytes of one process.

`make cluster` starts a real Ray cluster and kills a worker of it in the middle of a piece.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from s3_server import s3_server
from shard_folders import contents, shard
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import DataError, MissingExtraError

HEAVY = pytest.mark.skipif("MASKERY_CLUSTER" not in os.environ, reason="`make cluster` tries it")
SLURM = ("partition=cpu", "time=4:00:00", "cpus-per-task=2", "account=text")
# Options that https://slurm.schedmd.com/sbatch.html documents, and the form of their values.
DOCUMENTED = {
    "account": r"\w+",
    "array": r"\d+-\d+(%\d+)?",
    "cpus-per-task": r"\d+",
    "dependency": r"(after|afterany|afterok):\d+",
    "error": r"\S+",
    "job-name": r"\S+",
    "mem-per-cpu": r"\d+[KMGT]?",
    "nodes": r"\d+(-\d+)?",
    "output": r"\S+",
    "partition": r"\w+",
    "requeue": r"",
    "time": r"(\d+-)?\d+(:\d+){0,2}",
}
SBATCH = """#!/bin/sh
for last; do :; done
number=$(ls "$SENT" | wc -l)
cp "$last" "$SENT/$number.sh"
echo "$*" > "$SENT/$number.arguments"
echo "Submitted batch job 4$number"
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, name in enumerate("abcd"):
        (folder / f"{name}.txt").write_text("\n".join(lines(30, seed=number)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("shards") / "whole"
    shard(corpus, folder)
    return contents(folder)


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for sbatch on PATH, and the folder that tells what it was given."""
    pytest.importorskip("datatrove")
    commands, folder = tmp_path / "bin", tmp_path / "sent"
    commands.mkdir()
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", '#!/bin/sh\necho "$3"\n')):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SENT", str(folder))
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return folder


def made_by(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for the engine's own."""
    return {k: data for k, data in contents(folder).items() if not k.startswith("slurm/")}


def test_an_array_of_slurm_leaves_the_same_bytes(
    corpus: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    sent: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "shards"
    made = shard(corpus, folder, executor="slurm", slurm=SLURM, workers=3)
    assert (made.sent, made.manifest) == ("40", None)
    script = (sent / "0.sh").read_text()
    assert script.startswith("#!/bin/bash\n")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))
    assert script.count("#SBATCH") == len(options)
    assert {name: None for name, value in options.items() if not form(name, value)} == {}
    assert options["array"] == "0-2"
    assert [options[o.split("=")[0]] for o in SLURM] == [o.split("=")[1] for o in SLURM]
    command = script.splitlines()[-1].split()
    assert command[0] == "srun"
    assert command[-2:] == ["launch_pickled_pipeline", str(folder / "slurm" / "executor.pik")]
    assert f"export PATH={Path(sys.executable).parent}:$PATH\n" in script
    # What each job of the array does, in any order; one that is killed is sent again.
    import dill

    monkeypatch.setenv("SLURM_NODELIST", "node1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    before = signal.getsignal(signal.SIGUSR1)
    try:
        for number in (2, 0, 0, 1):
            assert not (folder / "shards.json").exists()
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
            with (folder / "slurm" / "executor.pik").open("rb") as stream:
                dill.load(stream).run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert made_by(folder) == undisturbed


def form(name: str, value: str) -> bool:
    """Whether an option is one that sbatch knows, in its form."""
    return bool(re.fullmatch(DOCUMENTED[name], value))


def test_sending_is_told_in_one_line(
    corpus: Path, tmp_path: Path, sent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(save_tiny_model(tmp_path / "model"))
    command = ["tokenize", str(corpus), str(tmp_path / "out"), "--model", model]
    command += ["--executor", "slurm", "--slurm", *SLURM]
    capfd.readouterr()
    assert main(command) == 0
    said = capfd.readouterr()
    assert said.out.startswith("job 40 of Slurm makes 1 piece, and writes shards.json last")
    assert said.err == ""
    (sent.parent / "bin" / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    assert main(command) == 2
    said = capfd.readouterr()
    assert "sbatch cannot be run (Command '['sbatch'" in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "datatrove")])
def test_what_is_not_installed_or_reached_is_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, package: str
) -> None:
    settings: dict[str, Any] = {"executor": executor, "slurm": SLURM if executor == "slurm" else ()}
    monkeypatch.setenv("PATH", str(tmp_path))
    if executor == "slurm" and "datatrove" in sys.modules:
        with pytest.raises(DataError, match=r"sbatch cannot be run \(.*No such file"):
            shard(corpus, tmp_path / "out", **settings)
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is needed .* 'maskery\[cluster\]'"):
        shard(corpus, tmp_path / "out", **settings)


def test_a_cluster_that_does_not_answer_is_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")

    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nStart one.")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(DataError, match=r"no Ray cluster can be reached \(.*\); start one"):
        shard(corpus, tmp_path / "out", executor="ray")


def test_what_no_other_machine_has_is_not_sent(corpus: Path) -> None:
    from maskery.data.shards.places import output_folder

    with pytest.raises(DataError, match=r"--executor ray sends .* what lies in memory:// cannot"):
        shard(corpus, output_folder("memory://x"), executor="ray")  # type: ignore[arg-type]


READER = """
import os, signal
from pathlib import Path
def read(file):
    mark = Path("MARK")
    if file.path.name == "b.txt" and not mark.exists():
        mark.write_text(str(os.getpid()))
        signal.pause()
    yield from file
"""


@pytest.fixture
def reader(tmp_path: Path) -> tuple[str, Path]:
    """A reader of lines that waits in the second file until it is killed; where it tells its id."""
    mark = tmp_path / "mark"
    (tmp_path / "reader.py").write_text(READER.replace("MARK", str(mark)))
    return f"{tmp_path / 'reader.py'}:read", mark


@pytest.fixture
def s3(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("s3fs")
    with s3_server("bucket") as (access, system):
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        for path in corpus.iterdir():
            system.pipe(f"bucket/text/{path.name}", path.read_bytes())
        yield system


def stored(system: Any, folder: str) -> dict[str, bytes]:
    """The files of a folder of the bucket, but for the engine's own."""
    return {
        name.removeprefix(f"{folder}/"): system.cat_file(name)
        for name in system.find(folder)
        if "/slurm/" not in name
    }


def killed_at(mark: Path, running: subprocess.Popen[str]) -> None:
    """Kill the process that has come to the mark."""
    while not (mark.exists() and mark.read_text()):
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    os.kill(int(mark.read_text()), signal.SIGKILL)


def command(reader: str, model: Path, out: str, *more: str) -> list[str]:
    """Tokenise what lies in the bucket."""
    words = [sys.executable, "-m", "maskery", "tokenize", "s3://bucket/text", out, "--json"]
    words += ["--reader", reader, "--model", str(model), "--shard-mb", "0.001"]
    return [*words, "--held-out-share", "0.1", *more]


# In a process of its own, since it takes the signals of the one that it runs in.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def ray_cluster() -> Iterator[str]:
    """A cluster of two workers on this machine; yields its address."""
    nodes = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert nodes.stdout is not None
        yield next(line.split()[1] for line in nodes.stdout if line.startswith("address"))
    finally:
        nodes.communicate()


@HEAVY
def test_a_ray_cluster_of_which_a_worker_is_killed(
    s3: Any, reader: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    model = save_tiny_model(tmp_path / "model")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for name in ("RAY_agent_register_timeout_ms", "RAY_raylet_start_wait_time_s"):
        monkeypatch.setenv(name, "300000")  # a machine that does other work starts it slowly
    with ray_cluster() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        ray = command(reader[0], model, "s3://bucket/ray", "--executor", "ray")
        started = subprocess.Popen(ray, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        killed_at(reader[1], started)
        out, err = started.communicate()
    assert started.returncode == 0, err
    assert json.loads(out)["complete"]
    alone = command(reader[0], model, "s3://bucket/one", "--workers", "1")
    subprocess.run(alone, check=True, capture_output=True)
    assert len(stored(s3, "bucket/one")) > 12
    assert stored(s3, "bucket/ray") == stored(s3, "bucket/one")


DATATROVE = """
import sys
from functools import partial
sys.path.insert(0, sys.argv[4])
from shard_folders import word_tokenizer
from datatrove.executor import LocalPipelineExecutor
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.corpus.config import ShardingConfig
from maskery.data.shards.making import make_share, plan_job
from maskery.data.shards.places import output_folder
if __name__ == "__main__":
    job = plan_job(
        Corpus.open(["s3://bucket/text"], CorpusConfig(reader=sys.argv[1])),
        word_tokenizer(),
        output_folder(sys.argv[2]),
        ShardingConfig(shard_mb=0.001, held_out_share=0.1, workers=1),
    )
    pipeline, settings = [partial(make_share, job)], dict(tasks=3, workers=2, skip_completed=False)
    LocalPipelineExecutor(pipeline, logging_dir=sys.argv[3], **settings).run()
"""


@HEAVY
def test_datatrove_here_of_which_a_worker_is_killed(
    s3: Any, reader: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    (tmp_path / "run.py").write_text(DATATROVE)
    support = str(Path(__file__).parents[2] / "support")

    def started(out: str) -> subprocess.Popen[str]:
        words = [str(tmp_path / "run.py"), reader[0], out, str(tmp_path / "logs"), support]
        return subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)

    first = started("s3://bucket/datatrove")
    killed_at(reader[1], first)
    # It waits for the killed one without end (datatrove 0.10.1), so it is ended and repeated.
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.kill()
    first.communicate()
    assert "shards.json" not in stored(s3, "bucket/datatrove")
    for name in ("datatrove", "one"):
        again = started(f"s3://bucket/{name}")
        _, said = again.communicate()
        assert again.returncode == 0, said
    assert stored(s3, "bucket/datatrove") == stored(s3, "bucket/one")
