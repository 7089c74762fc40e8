"""Addresses (`s3://`, `memory://`, `file://`) as inputs and outputs of the commands.

The S3 server is moto's, on this machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3_server import refuse_credentials, s3_server
from shard_folders import contents
from tiny_text import WORDS, lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError, DataError
from maskery.data.corpus.config import ShardingConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.making import make_share, plan_job
from maskery.data.shards.places import RemoteFolder, open_place, output_folder
from maskery.models.loading import load_tokenizer
from maskery.runs.text.config import TextRunConfig

BUCKET = "bucket"
TEXT = "\n".join(lines(60)) + "\n"
LABELS = "".join(f"{WORDS[n % 12]} {WORDS[(n + 5) % 12]} {n}\t{'ab'[n % 2]}\n" for n in range(40))


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[dict[str, str], Any]]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with s3_server(BUCKET) as (access, system):
        for name in ("text/a.txt", "text/deep/b.txt", "text/.hidden/c.txt", "text/d.png"):
            system.pipe(f"{BUCKET}/{name}", TEXT.encode())
        system.pipe(f"{BUCKET}/labels.tsv", f"text\tlabel\n{LABELS}".encode())
        yield access, system


@pytest.fixture
def s3(server: tuple[dict[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of the bucket, whose address and key the environment names."""
    import s3fs

    access, system = server
    for name, value in access.items():
        monkeypatch.setenv(name, value)
    yield system
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "model"))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("text", ["text/a.txt", "text/deep/b.txt"]),
        ("text/", ["text/a.txt", "text/deep/b.txt"]),
        ("text/a.txt", ["text/a.txt"]),
        ("text/*.txt", ["text/a.txt"]),
        ("text/**/*.txt", ["text/a.txt", "text/deep/b.txt"]),
        ("te[x]t/?.txt", ["text/a.txt"]),
    ],
)
def test_a_bucket_is_read_as_a_folder(s3: Any, source: str, names: list[str]) -> None:
    corpus = Corpus.open([f"s3://{BUCKET}/{source}"])
    assert [str(file) for file in corpus.files] == [f"s3://{BUCKET}/{name}" for name in names]
    assert corpus.num_bytes == len(TEXT) * len(names)
    assert [example.text for example in corpus] == TEXT.splitlines() * len(names)


def test_a_long_listing_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page is asked for while files of the last one are still to come."""
    from maskery.data.corpus.files import _found

    asked: list[str] = []

    class Pages:
        protocol = ("s3", "s3a")

        def call_s3(self, method: str, **asks: str) -> Any:
            number, prefix = int(asks.get("ContinuationToken", "0")), asks["Prefix"]
            asked.append(f"{asks['Bucket']} {prefix} {number}")
            keys = [f"{prefix}{number}-{n}.txt" for n in range(3)]
            contents = [{"Key": key, "Size": 1, "ETag": '"x"'} for key in [*keys, f"{prefix}x/"]]
            following = {"NextContinuationToken": str(number + 1)}
            return {"IsTruncated": number < 4, "Contents": contents, **following}

    found = _found(Pages(), "bucket/web", "bucket/web/")
    names = [name for (name, _), _ in zip(found, range(4), strict=False)]
    assert names == [f"bucket/web/{name}.txt" for name in ("0-0", "0-1", "0-2", "1-0")]
    assert asked == ["bucket web/ 0", "bucket web/ 1"]
    found = _found(Pages(), "bucket/web/part-*-2.txt", "bucket/web/part-")
    assert [name for name, _ in found] == [f"bucket/web/part-{n}-2.txt" for n in range(5)]
    assert asked[2] == "bucket web/part- 0"


def test_the_commands_read_addresses(
    s3: Any,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, output = f"s3://{BUCKET}/text/a.txt", str(tmp_path / "run")
    flags = ["--max-steps", "2", "--batch-tokens", "256", "--precision", "fp32", "--json"]
    monkeypatch.setattr("maskery.cli.train.finish_report", lambda folder: None)
    held, other = (f"s3://{BUCKET}/held/{name}.txt" for name in ("a", "b"))
    s3.pipe(held, "\n".join(lines(30, seed=1)).encode())
    s3.pipe(other, "\n".join(lines(30, seed=2)).encode())
    named = ["--eval-data", held, f"other={other}"]
    command = ["train", "text", text, "--model", model, "--output", output, *named]
    (tmp_path / "b.txt").write_text(TEXT)
    assert main([*command, *flags]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    capsys.readouterr()
    assert main(["evaluate", output, "--data", text, "--json"]) == 0
    there = capsys.readouterr().out
    assert main(["evaluate", output, "--data", str(tmp_path / "b.txt"), "--json"]) == 0
    assert capsys.readouterr().out == there.replace(text, str(tmp_path / "b.txt"))
    assert main(["inspect", text, "--model", model, "--timed-steps", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"]["examples"] == 60
    assert main(["score", model, text, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 60
    assert main(["probe", model, "--labels", f"s3://{BUCKET}/labels.tsv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 40


def test_refused_credentials_are_one_line(
    server: tuple[dict[str, str], Any], s3: Any, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_credentials(server[0], after=0)
    try:
        for source in (f"s3://{BUCKET}/text", f"s3://{BUCKET}/text/*.txt"):
            assert main(["train", "text", source, "--model", model]) == 2
            said = capsys.readouterr().err
            assert "check the credentials, and what they allow" in said
            assert said.count("\n") == 1
    finally:
        refuse_credentials(server[0], after=float("inf"))


def test_no_credentials_are_one_line(
    s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    assert main(["score", "minilm", f"s3://{BUCKET}/text/a.txt"]) == 2
    said = capsys.readouterr().err
    assert "(Unable to locate credentials); check the credentials" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "text", "{text}", "--output", "{address}"],
        ["train", "text", "{text}", "--cache-dir", "{address}"],
        ["train", "pairs", "{text}", "--output", "{address}"],
        ["train", "person-search", "--dataset", "jsonl", "--root", "x", "--output", "{address}"],
        ["inspect", "{text}", "--words-out", "{address}"],
        ["compare", "runs/a", "--csv", "{address}"],
        ["compare", "runs/a", "--page", "{address}"],
        ["sweep", "config.yaml", "--over", "seed=1", "--output", "{address}"],
        ["search", "runs/a", "--gallery", "x", "a red coat", "--sheet", "{address}.png"],
        ["search", "runs/a", "--gallery", "{address}", "a red coat"],
        ["explain", "runs/a", "--image", "x.png", "a coat", "--output", "{address}.png"],
        ["convert", "x.pth", "{address}"],
        ["data", "draw-people", "{address}"],
        ["quickstart", "--output", "{address}"],
        ["quickstart", "person-search", "--output", "{address}"],
        ["report", "{address}"],
    ],
)
def test_no_folder_is_named_after_an_address(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    names = {"text": "a.txt", "address": "s3://bucket/out"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "is the address 's3://bucket/out" in said
    assert "it must be a path on this machine" in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("output", ["memory://runs/a", Path("gs://runs/a")])
def test_in_python_too(output: Any) -> None:
    with pytest.raises(ConfigError, match=r"output is the address '\w+://runs/a'"):
        TextRunConfig(corpus=("a.txt",), output=output)


def test_the_cache_may_not_be_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASKERY_CACHE", "s3://bucket/cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    assert main(["train", "text", "a.txt", "--model", "scratch:tiny"]) == 2
    assert "MASKERY_CACHE is the address 's3://bucket/cache'" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()


def test_an_address_of_this_machine_is_a_path(tmp_path: Path) -> None:
    config = TextRunConfig(corpus=("a.txt",), output=f"file://{tmp_path}/run")  # type: ignore[arg-type]
    assert config.output == tmp_path / "run"
    # A drive, and a name with a colon
    for name in ("C:/runs/a", "a:b/c", "runs/s3:/a"):
        assert TextRunConfig(corpus=("a",), output=Path(name)).output == Path(name)


@pytest.mark.parametrize("protocol", ["gs", "abfs"])
def test_a_missing_package_is_named(
    protocol: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
        pytest.skip("its package is installed")
    except ImportError:
        pass
    for command in (["train", "text"], ["tokenize"], ["inspect"]):
        rest = ["out"] if command == ["tokenize"] else []
        assert main([*command, f"{protocol}://b/a.txt", *rest, "--model", model]) == 2
        said = capsys.readouterr().err
        assert "needs a package that is not installed" in said
        assert said.count("\n") == 1


def test_labels_and_sentences_of_memory(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/mine/labels.csv", b"text,label\n" + LABELS.replace("\t", ",").encode())
    system.pipe("/mine/a.txt", TEXT.encode())
    try:
        assert main(["probe", model, "--labels", "memory://mine/labels.csv", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["examples"] == 40
        assert main(["score", model, "memory://mine/a.txt", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 60
        for command in (["probe", model, "--labels"], ["score", model]):
            assert main([*command, "memory://mine/b.txt"]) == 2
            assert "'memory://mine/b.txt' does not exist; check" in capsys.readouterr().err
            assert main([*command, "memory://mine"]) == 2
            assert "'memory://mine' is a folder; name a file with" in capsys.readouterr().err
    finally:
        system.rm("/mine", recursive=True)


SHARDING = ["--shard-mb", "0.001", "--held-out-share", "0.1", "--workers", "1", "--json"]


def stored(system: Any, folder: str) -> dict[str, bytes]:
    """Every file below an address by its name."""
    system.invalidate_cache()
    return {name.removeprefix(f"{folder}/"): system.cat_file(name) for name in system.find(folder)}


@pytest.fixture(scope="module")
def shards(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of shards that were made here."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "a.txt").write_text(TEXT)
    command = ["tokenize", str(folder / "a.txt"), str(folder / "shards"), "--model", model]
    assert main([*command, *SHARDING]) == 0
    return contents(folder / "shards")


def test_shards_are_written_to_a_bucket_and_trained_on(
    s3: Any,
    shards: dict[str, bytes],
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maskery.cli.train.finish_report", lambda folder: None)
    target = f"s3://{BUCKET}/shards"
    command = ["tokenize", f"s3://{BUCKET}/text/a.txt", target, "--model", model, *SHARDING]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == target
    assert stored(s3, f"{BUCKET}/shards") == shards
    # What is complete is kept, what is damaged is made anew.
    damaged = next(name for name in shards if name.startswith("shard-"))
    s3.pipe_file(f"{BUCKET}/shards/{damaged}", b"cut")
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["made_anew"] == [f"{damaged}: it has 3 of {len(shards[damaged])} bytes"]
    assert stored(s3, f"{BUCKET}/shards") == shards
    assert main([*command, "--held-out-share", "0.2"]) == 2
    assert "holds shards of another corpus, tokenizer or setting" in capsys.readouterr().err
    run = ["--max-steps", "2", "--batch-tokens", "256", "--precision", "fp32", "--output", "run"]
    assert main(["train", "text", target, "--model", model, *run]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert not (tmp_path / "s3:").exists()


def test_jobs_on_several_machines_share_a_bucket(
    s3: Any, shards: dict[str, bytes], model: str
) -> None:
    config = ShardingConfig(shard_mb=0.001, held_out_share=0.1, workers=1)
    corpus, folder = Corpus.open([f"s3://{BUCKET}/text/a.txt"]), f"s3://{BUCKET}/parts"
    job = plan_job(corpus, load_tokenizer(model), output_folder(folder), config)
    for rank in (1, 0):
        make_share(job, None, rank, 2)
        assert ("shards.json" in stored(s3, f"{BUCKET}/parts")) is (rank == 0)
    assert stored(s3, f"{BUCKET}/parts") == shards


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("moment", [0, 1, 4, 11, -2, -1])
def test_a_killed_writer_leaves_nothing_that_looks_finished(
    shards: dict[str, bytes],
    model: str,
    moment: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    system, target = fsspec.filesystem("memory"), "memory://killed/shards"
    moment = moment if moment >= 0 else len(shards) + moment
    left, write = moment, RemoteFolder.write_bytes

    def counted(*arguments: Any) -> None:
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1
        write(*arguments)

    command = ["tokenize", str(tmp_path / "a.txt"), target, "--model", model, *SHARDING]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(RemoteFolder, "write_bytes", counted)
            with pytest.raises(KilledError):
                main(command)
        kept = stored(system, "/killed/shards") if moment else {}
        assert len(kept) == moment
        assert all(shards[name] == data for name, data in kept.items())
        with pytest.raises(DataError, match="there are no complete shards of maskery tokenize"):
            open_place(target, tmp_path / "cache").manifest()
        assert main(command) == 0
        assert stored(system, "/killed/shards") == shards
    finally:
        system.rm("/killed", recursive=True)


KILLED = """
import os, signal, sys
from maskery.cli.main import main
import s3fs
write = s3fs.S3FileSystem.pipe_file
count = 0
def counted(self, path, data):
    global count
    count += 1
    if count == 5:
        # Half of a request, and no more
        import socket, urllib.parse
        host = urllib.parse.urlparse(os.environ["AWS_ENDPOINT_URL"])
        sender = socket.create_connection((host.hostname, host.port))
        head = f"PUT /{path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(data)}\\r\\n\\r\\n"
        sender.sendall(head.encode() + data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, path, data)
s3fs.S3FileSystem.pipe_file = counted
main(sys.argv[1:])
"""


def test_half_a_request_is_no_file(s3: Any, shards: dict[str, bytes], model: str) -> None:
    target = f"{BUCKET}/half"
    command = ["tokenize", f"s3://{BUCKET}/text/a.txt", f"s3://{target}", "--model", model]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *command, *SHARDING],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = stored(s3, target)
    assert len(kept) == 4
    assert all(shards[name] == data for name, data in kept.items())
    assert main([*command, *SHARDING]) == 0
    assert stored(s3, target) == shards


def test_shards_of_memory_and_of_file_addresses(
    shards: dict[str, bytes], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    command = ["tokenize", f"file://{tmp_path}/a.txt", f"file://{tmp_path}/out", "--model", model]
    assert main([*command, *SHARDING]) == 0
    assert contents(tmp_path / "out") == shards
    system = fsspec.filesystem("memory")
    system.pipe("/texts/a.txt", TEXT.encode())
    try:
        command = ["tokenize", "memory://texts/a.txt", "memory://texts/out", "--model", model]
        assert main([*command, *SHARDING[:-3], "--workers", "2"]) == 0
        assert "maskery train text memory:///texts/out" in capsys.readouterr().out
        assert stored(system, "/texts/out") == shards
        command[2] = "memory://texts"
        assert main([*command, *SHARDING]) == 2
        assert "'memory:///texts' holds other things (a.txt)" in capsys.readouterr().err
    finally:
        system.rm("/texts", recursive=True)


def test_an_output_that_cannot_be_written_is_one_line(
    server: tuple[dict[str, str], Any],
    s3: Any,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    for address, message in (
        ("s3://no-such-bucket/shards", "does not exist; check the address"),
        ("https://127.0.0.1:9/shards", "cannot be"),
        ("gs://bucket/shards", "needs a package that is not installed"),
    ):
        assert main(["tokenize", str(tmp_path / "a.txt"), address, "--model", model]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert address.partition("://")[2] in said
        assert message in said
    assert not s3.exists("no-such-bucket")
    refuse_credentials(server[0], after=0)
    try:
        target = f"s3://{BUCKET}/refused"
        assert main(["tokenize", str(tmp_path / "a.txt"), target, "--model", model]) == 2
        assert "check the credentials, and what they allow" in capsys.readouterr().err
    finally:
        refuse_credentials(server[0], after=float("inf"))
