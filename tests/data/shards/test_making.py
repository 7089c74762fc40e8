"""Shards are complete or absent, and the same bytes however and how often they are made."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fork_server import ForkServer
from shard_folders import contents, shard, word_tokenizer
from tiny_text import lines, save_tiny_model

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig, ShardingConfig
from maskery.data.corpus.examples import example_id, is_held_out
from maskery.data.corpus.reader import Corpus
from maskery.data.shards import making, pieces
from maskery.data.shards.manifest import LengthCounts, Manifest, read_shards
from maskery.data.tokenise import encode_texts, tokenizer_fingerprint

SUPPORT = Path(__file__).parents[2] / "support"
TEXTS = lines(150)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("\n".join(TEXTS[:100]), "utf-8")
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS[100:]).encode(), mtime=0))
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "whole"
    made = shard(corpus, folder)
    assert made.manifest is not None
    assert made.tokens_made == made.manifest.tokens + sum(e.tokens for e in made.manifest.held_out)
    return folder


def test_every_text_is_in_one_shard(corpus: Path, undisturbed: Path) -> None:
    manifest = Manifest.from_json((undisturbed / "shards.json").read_bytes(), "")
    assert len(manifest.shards) > 8
    # The archive cannot be cut, and makes several shards one after the other.
    pieces = [entry.file.split("-")[1] for entry in manifest.shards]
    assert pieces.count(pieces[-1]) > 1
    found: dict[int, list[int]] = {}
    held: dict[int, list[int]] = {}
    for entries, into in ((manifest.shards, found), (manifest.held_out, held)):
        for entry in entries:
            opened = read_shards([undisturbed / entry.file], vocab_size=manifest.vocab_size)
            assert (opened.num_documents, opened.num_tokens) == (entry.documents, entry.tokens)
            for n, number in enumerate(opened.ids.tolist()):
                stretch = slice(opened.boundaries[n], opened.boundaries[n + 1])
                into[number] = opened.tokens[stretch].tolist()
                assert opened.word_starts[stretch][0]
    expected = {}
    for text in TEXTS:
        ids, _, _ = encode_texts([text], word_tokenizer())
        expected[example_id(text)] = ids.tolist()
    assert found | held == expected
    ids = np.array(list(expected), np.uint64)
    assert set(held) == set(ids[is_held_out(ids, 0.1)].tolist())
    assert held
    lengths = LengthCounts.open(undisturbed / "lengths.safetensors", manifest)
    values, counts = lengths.of(0)
    opened = read_shards([undisturbed / manifest.shards[0].file], vocab_size=99)
    assert np.repeat(values, counts).tolist() == sorted(np.diff(opened.boundaries).tolist())
    assert manifest.tokenizer_fingerprint == tokenizer_fingerprint(word_tokenizer())


def test_processes_leave_the_same_bytes(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    shard(corpus, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(undisturbed)


def share(corpus: Path, folder: Path, rank: int) -> None:
    """What one of three jobs of an array does."""
    config = ShardingConfig(shard_mb=0.001, held_out_share=0.1, workers=1)
    job = making.plan_job(Corpus.open([str(corpus)]), word_tokenizer(), folder, config)
    making.make_share(job, None, rank, 3)


def test_jobs_that_share_the_pieces_leave_the_same_bytes(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    for rank in (2, 0, 1):
        share(corpus, folder, rank)
        assert (folder / "shards.json").exists() is (rank == 1)
    assert contents(folder) == contents(undisturbed)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from shard_folders import shard
from maskery.data.shards import manifest
left = int(sys.argv[3])
def counted(function):
    def wrapper(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return wrapper
os.fsync = counted(os.fsync)
Path.replace = counted(Path.replace)
shard(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", [0, 31, 121])
def test_a_killed_run_goes_on_and_leaves_the_same_bytes(
    server: ForkServer, corpus: Path, undisturbed: Path, tmp_path: Path, moment: int
) -> None:
    folder = tmp_path / "killed"
    done = server.python("-c", KILLED, corpus, folder, str(moment), SUPPORT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = contents(folder)
    assert "shards.json" not in kept
    assert kept != contents(undisturbed)
    shard(corpus, folder)
    assert contents(folder) == contents(undisturbed)


def test_what_is_complete_is_not_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    shard(corpus, folder)
    before = contents(folder)
    archive = sorted(folder.glob("shard-*.safetensors"))[-2:]
    archive[1].unlink()  # the last of the archive, whose piece must be read again
    calls: list[str] = []
    write = pieces.write_stretch
    monkeypatch.setattr(
        pieces, "write_stretch", lambda name, *rest: (calls.append(name), write(name, *rest))[1]
    )
    made = shard(corpus, folder)
    assert calls == [archive[1].name.removeprefix("shard-").removesuffix(".safetensors")]
    assert made.tokens_made > 0
    assert contents(folder) == before
    assert shard(corpus, folder).tokens_made == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize(
    "pattern",
    ["shard-*", "held-out-*", "records/000002-*", "records/000002.json", "lengths.*", "shards.*"],
)
def test_damage_is_found_and_made_good(
    undisturbed: Path,
    corpus: Path,
    tmp_path: Path,
    pattern: str,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "shards"
    for name, data in contents(undisturbed).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    victim = sorted(folder.glob(pattern))[0]
    data = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        made = shard(corpus, folder)
    if victim.suffix == ".safetensors" and not victim.name.startswith("lengths"):
        assert len(made.made_anew) == 1
        assert victim.name in made.made_anew[0]
        assert f"made anew: {victim.name}" in caplog.text
    assert contents(folder) == contents(undisturbed)


def test_a_folder_of_something_else_is_refused(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="shards of another corpus, tokenizer or setting"):
        shard(corpus, undisturbed, held_out_share=0.2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"holds other things \(thesis.tex\)"):
        shard(corpus, tmp_path / "mine")
    with pytest.raises(DataError, match="cannot be used"):
        shard(corpus, tmp_path / "mine" / "thesis.tex")
    assert contents(tmp_path / "mine") == {"thesis.tex": b"x"}


def test_nothing_of_a_refused_folder_is_removed(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "film.mkv.partial-1").write_text("x")
    with pytest.raises(DataError, match=r"holds other things \(film.mkv.partial-1\)"):
        shard(corpus, tmp_path)
    assert contents(tmp_path) == {"film.mkv.partial-1": b"x"}


def test_what_was_killed_before_its_plan_begins_anew(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "plan.json.partial-12ab34cd").write_text("{")
    shard(corpus, tmp_path)
    assert contents(tmp_path) == contents(undisturbed)


def before(monkeypatch: pytest.MonkeyPatch, method: str, action: Callable[[], object]) -> None:
    """Do something when a method of `Path` is first called, before what it does."""
    real, actions = getattr(Path, method), [action]

    def called(*arguments: Any) -> Any:
        if actions:
            actions.pop()()
        return real(*arguments)

    monkeypatch.setattr(Path, method, called)


@pytest.mark.parametrize("moment", ["iterdir", "read_bytes"])
def test_commands_that_start_together_do_not_refuse_each_other(
    corpus: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    folder = tmp_path / "shards"
    before(monkeypatch, moment, lambda: shard(corpus, folder))
    shard(corpus, folder)
    assert contents(folder) == contents(undisturbed)


def test_of_two_plans_at_once_the_first_stays(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    before(monkeypatch, "iterdir", lambda: shard(corpus, folder, held_out_share=0.2))
    with pytest.raises(DataError, match="shards of another corpus, tokenizer or setting"):
        shard(corpus, folder)
    kept = contents(folder)
    assert shard(corpus, folder, held_out_share=0.2).tokens_made == 0
    assert contents(folder) == kept


def test_a_corpus_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="holds no tokens to train on"):
        shard(tmp_path / "a.txt", tmp_path / "shards")


def test_hub_datasets_are_not_cut(tmp_path: Path) -> None:
    hub = Corpus.of(["a text"])
    with pytest.raises(DataError, match="tokenize cuts files"):
        making.make_shards(hub, word_tokenizer(), tmp_path / "x", ShardingConfig())


def test_bad_text_stops_the_processes_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good line\n" * 300 + b"\xff\n")
    with pytest.raises(DataError, match=r"from byte \d+ on: byte \d+ is not valid utf-8"):
        shard(tmp_path / "a.txt", tmp_path / "shards", workers=2)
    made = shard(tmp_path / "a.txt", tmp_path / "other", reading=CorpusConfig(on_bad_text="skip"))
    record = json.loads((tmp_path / "other/records" / f"{made.pieces - 1:06d}.json").read_text())
    assert record["report"]["skipped"] == 1


def test_encodings_that_were_decided_are_told_over_all_pieces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, text = tmp_path / "mixed", "Grüße aus Köln an die schöne Mühle\n" * 9
    folder.mkdir()
    marked = {"a": "utf-8", "b": "utf-8-sig", "c": "utf-16", "d": "latin-1"}
    for name, encoding in marked.items():
        (folder / f"{name}.txt").write_text(text, encoding)
    reading = CorpusConfig(encoding="auto")
    told = "--encoding auto: 2 as utf-8, 1 as utf-16-le, 1 as cp1252"
    for _ in range(2):  # the second finds all made, and says it again
        caplog.clear()
        made = shard(folder, tmp_path / "shards", reading=reading, workers=2)
        assert made.pieces > 1
        assert [record.message for record in caplog.records] == [told]
    # What an earlier version wrote counts as before.
    path = tmp_path / "shards" / "records" / "000000.json"
    record = json.loads(path.read_text())
    del record["encodings"]
    path.write_text(json.dumps(record))
    assert shard(folder, tmp_path / "shards", reading=reading).tokens_made == 0


def test_a_full_disk_is_one_clear_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(corpus, tmp_path / "shards", 0)
    kept = contents(tmp_path / "shards")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        share(corpus, tmp_path / "shards", 1)
    assert contents(tmp_path / "shards") == kept


def test_a_process_that_dies_is_reported(server: ForkServer, corpus: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from maskery.data.shards import engines as workers\n"
        "if __name__ == '__main__':\n"
        "    from shard_folders import shard\n"
        "    from maskery.core.errors import DataError\n"
        "    try: shard(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)\n"
        "    except DataError as error: print(error)\n"
        "else:\n"  # in the worker, which runs this file again
        "    workers.do_piece = lambda *a: os._exit(9)\n"
    )
    script = tmp_path / "dying.py"
    script.write_text(program)
    done = server.python(script, corpus, tmp_path / "shards", SUPPORT)
    assert "a tokenising process died" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1


PATIENCE = 300.0
"""Seconds after which a command is taken to hang."""
# Workers run this file again. They never get past the moment that is asked for, and tell of it
# through a pipe of the command, which closes with it.
ENDLESS = """
import os, sys, threading
def stay(*arguments):
    with open(f"/proc/{os.getppid()}/fd/{os.environ['PIPE']}", "w") as out:
        print(os.getpid(), file=out)
    threading.Event().wait()
if __name__ == "__main__":
    from maskery.cli.main import main
    sys.exit(main(sys.argv[1:]))
if os.environ["MOMENT"] == "importing":
    stay()
from maskery.data.shards import engines as workers
workers.do_piece = stay
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "corpus.txt").write_text("\n".join(lines(100)))
    (folder / "endless.py").write_text(ENDLESS)
    save_tiny_model(folder / "model")
    return folder


@contextmanager
def endless(home: Path, moment: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A command in a process group of its own, and the two workers that have come to a moment."""
    told, tells = os.pipe()
    command = [sys.executable, str(home / "endless.py"), "tokenize", str(home / "corpus.txt")]
    command += [str(home / "shards"), "--model", str(home / "model"), "--workers", "2"]
    more = {"PYTHONPATH": os.pathsep.join(sys.path), "MOMENT": moment, "PIPE": str(tells)}
    started = subprocess.Popen(
        [*command, "--shard-mb", "0.001"],
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        pass_fds=(tells,),
    )
    os.close(tells)
    try:
        with os.fdopen(told) as pipe:
            workers = [int(pipe.readline() or -1) for _ in range(2)]
            assert -1 not in workers, started.communicate()[0]
            yield started, workers
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()


def is_deaf(process: int, number: signal.Signals) -> bool:
    """Whether a process blocks a signal."""
    fields = dict(x.split(":\t") for x in Path(f"/proc/{process}/status").read_text().splitlines())
    return bool(int(fields["SigBlk"], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("moment", "number"), [("importing", signal.SIGINT), ("working", signal.SIGTERM)]
)
def test_a_signal_ends_command_and_workers_with_one_line(
    home: Path, moment: str, number: signal.Signals
) -> None:
    with endless(home, moment) as (started, workers):
        # Else it depends on who is faster, the worker with its traceback or the command.
        assert all(is_deaf(worker, number) for worker in workers)
        # A terminal and Slurm send it to everyone, `kill` to the command alone.
        everyone = (moment == "importing") == (number == signal.SIGINT)
        (os.killpg if everyone else os.kill)(started.pid, number)
        printed, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 128 + number
    # The progress bar overwrites itself, and is no line.
    said = [line for line in printed.splitlines() if line and not line.startswith("tokenising:")]
    assert said == [
        f"maskery tokenize: stopped by {number.name}; what is complete is kept: repeat the command "
        "to go on"
    ]
    assert not any(psutil.pid_exists(worker) for worker in workers)


def test_a_failure_does_not_wait_for_other_pieces(home: Path) -> None:
    with endless(home, "working") as (started, workers):
        os.kill(workers[0], signal.SIGKILL)
        printed, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 2
    assert printed.splitlines()[-1].startswith("maskery tokenize: a tokenising process died")
    assert not psutil.pid_exists(workers[1])


def test_a_worker_needs_neither_torch_nor_transformers() -> None:
    """Each would take seconds and 200 MB to import, in every process."""
    heavy = "{'torch', 'transformers'}"
    code = f"import sys, maskery.data.shards.making; print({heavy} & set(sys.modules) or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"
