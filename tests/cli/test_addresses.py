"""Addresses (`s3://`, `memory://`, `file://`) as inputs and outputs of the commands.

The S3 server is moto's, on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3_server import refuse_credentials, s3_server
from tiny_text import WORDS, lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.data.corpus.reader import Corpus
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
    s3: Any, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = f"s3://{BUCKET}/text/a.txt", str(tmp_path / "run")
    flags = ["--max-steps", "2", "--batch-tokens", "256", "--precision", "fp32", "--json"]
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
