"""What is fuzzed: each reader with its files. Bad input gives one line, whatever it is.

A target is a strategy for cases and a function that reads one. It may succeed or raise a
`MaskeryError` of one line; anything else is a fault.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from fuzz_hostile import (
    bomb_cases,
    gallery_cases,
    hostile_json,
    image_text_cases,
    plugin_cases,
    read_bomb,
    read_gallery,
    read_image_text,
    read_plugin,
    read_tar,
    tar_cases,
    write,
)
from fuzz_mutations import (
    JSON_VALUES,
    SENTENCES,
    anything,
    csv_table,
    damaged,
    json_lines,
    packed,
    parquet_table,
    pictures,
    tar_file,
    texts,
)
from hypothesis import strategies as st

from maskery.cli.corpus import Tokenize
from maskery.core.errors import MaskeryError
from maskery.data.batching import Batching, Template
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.images.loading import load_image
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.shards.manifest import FileEntry, LengthCounts, Manifest, write_shard
from maskery.data.shards.pieces import plan_pieces, read_piece
from maskery.data.shards.places import Place
from maskery.data.shards.source import ShardSource, TokenShards
from maskery.data.store import TokenStore, write_store
from maskery.evaluation.retrieval.config import FILE, ModelRetrieval, read_model_retrieval
from maskery.runs.frame.config_file import load_config, to_plain
from maskery.runs.image_text.config import PairsRunConfig
from maskery.runs.text.config import TextRunConfig
from maskery.training.checkpoint import MANIFEST, Checkpoints
from maskery.training.snapshot import Position, SnapshotMaker, restore

# Seconds of processor time that a case may take.
LIMIT = 2.0

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        cases: What is tried.
        read: Reads a case; is given an empty folder.
        share: Of the cases of a soak, beside others; less where a case takes longer.
    """

    cases: st.SearchStrategy[Any]
    read: Callable[[Any, Path], None]
    share: int = 20

    def attempt(self, case: Any) -> bool:
        """Read a case; whether it was accepted.

        Raises:
            AssertionError: The refusal was not one line.
            Exception: A fault.
        """
        with TemporaryDirectory(prefix="fuzz-") as folder, limited():
            try:
                self.read(case, Path(folder))
            except MaskeryError as error:
                message = str(error)
                assert message.strip(), "an empty message"
                assert len(message.splitlines()) == 1, f"more than one line: {message!r}"
                return False
        return True


@contextmanager
def limited() -> Iterator[None]:
    """Raise where processor time runs out: a hang."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"more than {LIMIT} seconds of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


# Text.


@st.composite
def text_cases(draw: st.DrawFn) -> tuple[str, bytes, dict[str, Any]]:
    """A file name, its content and how it is read."""
    suffix = draw(st.sampled_from(sorted(texts())))
    data = draw(anything(lambda: texts()[suffix]))
    compression = draw(st.sampled_from(["", "", "", ".gz", ".bz2", ".xz", ".zst"]))
    if compression:
        whole = packed(data, compression)
        data = draw(st.one_of(st.just(whole), damaged(lambda: [whole])))
    encodings = ["utf-8", "utf-8", "utf-8", "utf-16", "latin-1", "shift_jis", "utf-7", "cp1252"]
    settings = {
        "unit": draw(st.sampled_from(["line", "paragraph", "document"])),
        "encoding": draw(st.sampled_from(encodings)),
        "on_bad_text": draw(st.sampled_from(["fail", "skip", "replace"])),
        "max_example_chars": draw(st.sampled_from([1, 7, 1_000_000])),
    }
    return f"a{suffix}{compression}", data, settings


def read_text(case: tuple[str, bytes, dict[str, Any]], folder: Path) -> None:
    """Read a corpus file, and in pieces: they give the same texts."""
    name, data, settings = case
    write(folder, {name: data})
    config = CorpusConfig(**settings)
    corpus = Corpus.open([str(folder / name)], config)
    whole = [example.id for example in corpus]
    assert whole
    readers = (read_piece(piece, corpus) for piece in plan_pieces(corpus, 50))
    assert [example.id for example in chain.from_iterable(readers)] == whole


def read_source(case: str, folder: Path) -> None:
    """Open whatever a user may name as a corpus, short of a hub dataset."""
    folder = folder / "1/2/3"  # `..` is a folder of this case, not all that /tmp holds
    write(folder, {"a.txt": b"text", "b/c.jsonl": b'{"text": "x"}', "d.bin": b"x"})
    list(Corpus.open([f"{folder}/{case}"]))


# Pairs.


@lru_cache(maxsize=1)
def pair_files() -> dict[str, list[bytes]]:
    """Whole files of pairs by name."""
    png = pictures()["png"]
    records = [
        {"image": "0.png", "caption": SENTENCES[0], "person": 3, "split": "train"},
        {"image": "0.png", "caption": [SENTENCES[1], SENTENCES[2]], "person": "x"},
        {"image": "0.png", "caption": "third", "person": None},
    ]
    rows = [["image", "caption", "person"], ["0.png", "one", "1"], ["0.png", "two", "2"]]
    images = [{"bytes": png, "path": "0.png"}] * 3
    members = {"a.png": png, "a.txt": b"one", "b.png": png, "b.json": b'{"caption": "two"}'}
    return {
        "a.json": [json.dumps(records).encode()],
        "a.jsonl": [json_lines(records)],
        "a.csv": [csv_table(rows)],
        "a.tsv": [csv_table(rows, "\t")],
        "a.parquet": [parquet_table({"image": images, "caption": ["one", "two", "three"]})],
        "a.tar": [tar_file(members)],
        "folder/metadata.jsonl": [json_lines([{"file_name": "0.png", "text": "one"}])],
    }


@st.composite
def pair_cases(draw: st.DrawFn) -> tuple[str, bytes, dict[str, Any]]:
    """A file of pairs and how it is read."""
    name = draw(st.sampled_from(sorted(pair_files())))
    data = draw(anything(lambda: pair_files()[name]))
    if name.endswith(".jsonl") and draw(st.booleans()):
        keys = st.sampled_from(["image", "file_name", "caption", "text", "person", "split", "x"])
        rows = draw(st.lists(st.dictionaries(keys, JSON_VALUES, max_size=4), max_size=4))
        data = json_lines(rows)
    settings = {
        "on_bad_caption": draw(st.sampled_from(["fail", "skip"])),
        "caption_column": draw(st.sampled_from([None, "caption"])),
        "image_column": draw(st.sampled_from([None, "image"])),
        "split": draw(st.sampled_from([None, "train"])),
        "max_caption_chars": draw(st.sampled_from([3, 10_000])),
    }
    return name, data, settings


def read_pairs(case: tuple[str, bytes, dict[str, Any]], folder: Path) -> None:
    """Read pairs and their pictures."""
    name, data, settings = case
    place = folder / Path(name).parent
    write(folder, {name: data})
    write(place, {"0.png": pictures()["png"]})
    source = place if place != folder else folder / name
    pairs = Pairs.open(source, PairsConfig(**settings))
    faults = []
    for pair in pairs:
        try:
            assert pair.image.load().mode == "RGB"
        except MaskeryError as error:
            faults.append(error)
    if faults:
        raise faults[0]


def read_picture(case: bytes, folder: Path) -> None:
    """Decode a picture."""
    picture = load_image(BytesIO(case), name="a picture", max_pixels=100_000, near=(4, 4))
    assert picture.mode == "RGB"


# Configurations.

CONFIGS: list[Any] = [
    TextRunConfig(corpus=("a.txt",), output=Path("run")),
    PairsRunConfig(pairs="a.json"),
    Tokenize(paths=("a.txt", "out")),
]


@st.composite
def config_cases(draw: st.DrawFn) -> tuple[int, bytes]:
    """A configuration file: damaged as text, or with other values in it."""
    number = draw(st.integers(0, len(CONFIGS) - 1))
    plain = to_plain(CONFIGS[number])
    if draw(st.booleans()):
        return number, draw(anything(lambda: [yaml.safe_dump(plain).encode()]))
    for _ in range(draw(st.integers(0, 3))):  # the first case, the simplest, is sound
        at = plain
        while True:
            key = draw(st.sampled_from(sorted(at)))
            inner = at[key]
            if not isinstance(inner, dict) or not inner or draw(st.integers(0, 3)) == 0:
                break
            at = inner
        at[key] = draw(JSON_VALUES)
        if draw(st.integers(0, 5)) == 0:
            at[draw(st.text(max_size=5))] = draw(JSON_VALUES)
    return number, yaml.safe_dump(plain, allow_unicode=draw(st.booleans())).encode()


def read_config(case: tuple[int, bytes], folder: Path) -> None:
    """Load a configuration."""
    number, data = case
    write(folder, {"config.yaml": data})
    kind = type(CONFIGS[number])
    assert isinstance(load_config(folder / "config.yaml", kind), kind)


@st.composite
def model_cases(draw: st.DrawFn) -> bytes:
    """What a model says of itself: damaged as text, or with other values in it."""
    words, rerank = draw(st.integers(1, 99)), draw(st.integers(0, 999))
    sound = ModelRetrieval(max_words=words, rerank=rerank, trained=("itc", "itm"))
    plain: dict[str, Any] = asdict(sound)
    if draw(st.booleans()):
        return draw(anything(lambda: [json.dumps(plain).encode()]))
    for _ in range(draw(st.integers(0, 3))):
        plain[draw(st.sampled_from(sorted(plain)))] = draw(JSON_VALUES)
    return json.dumps(plain).encode()


def read_model(case: bytes, folder: Path) -> None:
    """Read how a model is to be asked."""
    write(folder, {"config.json": b"{}", FILE: case})
    found = read_model_retrieval(str(folder))
    assert found is not None
    assert found.prepare("a man") in ("a man", "a")


# What runs leave on the disk.


def files_of(folder: Path) -> Files:
    """Every file of a folder by its name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@lru_cache(maxsize=1)
def store_files() -> Files:
    """A sound token store."""
    with TemporaryDirectory() as folder:
        about = {"tokenizer": "t", "vocab_size": 50}
        lengths, ids = np.array([3, 1]), np.array([7, 8], np.uint64)
        part = np.arange(5, 9), np.ones(4, np.bool_), lengths, ids
        write_store(Path(folder) / "s", [part], vocab_size=50, about=about)
        return files_of(Path(folder) / "s")


@lru_cache(maxsize=1)
def shard_files() -> Files:
    """A sound folder of one shard."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        ids = np.array([7, 8], np.uint64)
        part = np.arange(5, 11), np.ones(6, np.bool_), np.array([2, 4]), ids
        entry = write_shard(folder / "shard", part, vocab_size=50)
        lengths = LengthCounts.gather([[[2, 1], [4, 1]]]).to_bytes()
        (folder / "lengths.safetensors").write_bytes(lengths)
        manifest = Manifest(
            fingerprint="0" * 32,
            tokenizer="t",
            tokenizer_fingerprint="0" * 32,
            tokenizer_files=(),
            vocab_size=50,
            held_out_share=0.1,
            lengths=FileEntry(
                file="lengths.safetensors",
                bytes=len(lengths),
                sha256=hashlib.sha256(lengths).hexdigest(),
            ),
            shards=(entry,),
            held_out=(entry,),
        )
        (folder / "shards.json").write_bytes(manifest.to_json())
        return files_of(folder)


class StubTask:
    """The least that a checkpoint holds."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2)
        self.extra = {"queue": torch.zeros(3)}

    def extra_state(self) -> dict[str, torch.Tensor]:
        """A queue."""
        return self.extra

    def load_extra_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take it back."""
        self.extra = {name: state[name] for name in self.extra}


def new_task() -> tuple[Any, torch.optim.Optimizer]:
    """A stub and its optimiser."""
    task = StubTask()
    return task, torch.optim.AdamW(task.model.parameters())


@lru_cache(maxsize=1)
def checkpoint_files() -> Files:
    """A sound checkpoint."""
    task, optimiser = new_task()
    task.model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    with TemporaryDirectory() as folder:
        position = Position(step=1, epoch=0, epoch_step=1, identity="i")
        Checkpoints(Path(folder)).write(SnapshotMaker().take(task, optimiser, position))
        return files_of(Path(folder))


def folder_cases(files: Callable[[], Files]) -> st.SearchStrategy[tuple[str, bytes, bool]]:
    """One file of a folder damaged; and whether its checksum is made to fit all the same."""

    @st.composite
    def cases(draw: st.DrawFn) -> tuple[str, bytes, bool]:
        name = draw(st.sampled_from(sorted(files())))
        return name, draw(anything(lambda: [files()[name]])), draw(st.booleans())

    return cases()


def read_store(case: tuple[str, bytes, bool], folder: Path) -> None:
    """Open a token store."""
    name, data, fits = case
    write(folder, store_files() | {name: data})
    stem = name.removesuffix(".bin")
    if fits and stem != name:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        entry = manifest["files"][stem]
        entry["crc32"] = zlib.crc32(data)
        entry["items"] = len(data) // np.dtype(entry["dtype"]).itemsize
        (folder / "manifest.json").write_text(json.dumps(manifest))
    store = TokenStore.open(folder)
    assert store.token_counts(50).sum() <= store.num_tokens


def manifest_cases() -> st.SearchStrategy[tuple[str, bytes, bool]]:
    """The list of the shards with other values in it; the first case, the simplest, is sound.

    Nearly all changes are refused.
    """
    hostile = hostile_json(lambda: shard_files()["shards.json"])
    sound = st.builds(lambda: shard_files()["shards.json"])
    whole = st.integers(0, 3).flatmap(lambda number: hostile if number else sound)
    return whole.map(lambda data: ("shards.json", data, False))


def read_shards(case: tuple[str, bytes, bool], folder: Path) -> None:
    """Open a folder of shards and read all batches of an epoch."""
    name, data, fits = case
    write(folder, shard_files() | {name: data})
    if fits and name != "shards.json":
        manifest = json.loads((folder / "shards.json").read_bytes())
        for entry in (manifest["lengths"], *manifest["shards"], *manifest["held_out"]):
            if entry["file"] == name:
                entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        (folder / "shards.json").write_text(json.dumps(manifest))
    shards = TokenShards(Place(folder))
    template = Template(prefix=(2,), suffix=(3,))
    source = ShardSource(shards, Batching(template=template, max_length=5, batch_tokens=8))
    try:
        for step in range(source.num_steps(0)):
            source.micro_batches(0, step)
        shards.held_out(100)
    finally:
        source.close()


def read_checkpoint(case: tuple[str, bytes, bool], folder: Path) -> None:
    """Find the newest sound checkpoint, and load it into a task."""
    name, data, fits = case
    write(folder, checkpoint_files() | {name: data})
    path = folder / name
    if fits and path.name != MANIFEST:
        manifest = json.loads((path.parent / MANIFEST).read_bytes())
        manifest[path.name] = hashlib.sha256(data).hexdigest()
        (path.parent / MANIFEST).write_text(json.dumps(manifest))
    newest = Checkpoints(folder).newest_sound()
    if newest is not None:
        restore(newest, *new_task(), "i")
    else:
        assert data != checkpoint_files()[name]


# Person search.

ANNOTATIONS = {
    "cuhk-pedes": "reid_raw.json",
    "icfg-pedes": "ICFG-PEDES.json",
    "rstpreid": "data_captions.json",
    "rasa": "train.json",
    "jsonl": "train.jsonl",
}


@lru_cache(maxsize=1)
def annotation_files() -> dict[str, list[bytes]]:
    """Sound annotations by dataset."""
    found = {}
    for dataset in ANNOTATIONS:
        image = {"rstpreid": "img_path", "jsonl": "image"}.get(dataset, "file_path")
        caption = "caption" if dataset == "jsonl" else "captions"
        person = "person" if dataset == "jsonl" else "id"
        records = [
            {"split": split, caption: [f"a {n}", "man"], image: f"{n}.png", person: n}
            for n, split in enumerate(["train"] * 6 + ["val", "val", "test", "test"])
        ]
        if dataset in ("jsonl", "rasa"):
            records = [{k: v for k, v in r.items() if k != "split"} for r in records]
        whole = json_lines(records) if dataset == "jsonl" else json.dumps(records).encode()
        found[dataset] = [whole]
    return found


@st.composite
def annotation_cases(draw: st.DrawFn) -> tuple[str, bytes, dict[str, Any]]:
    """A dataset's annotations and how they are read."""
    dataset = draw(st.sampled_from(sorted(ANNOTATIONS)))
    settings = {
        "missing_images": draw(st.sampled_from(["fail", "skip"])),
        "on_bad_caption": draw(st.sampled_from(["fail", "skip"])),
        "clean_captions": draw(st.booleans()),
    }
    return dataset, draw(anything(lambda: annotation_files()[dataset])), settings


def read_annotations(case: tuple[str, bytes, dict[str, Any]], folder: Path) -> None:
    """Read a person-search dataset."""
    from maskery.data.person_search.config import PersonSearchDataConfig
    from maskery.data.person_search.dataset import open_person_search

    dataset, data, settings = case
    images = "" if dataset == "jsonl" else "imgs/"
    # What follows a picture's end is not read: ten pictures, none a copy of another.
    pngs = {f"{images}{n}.png": pictures()["png"] + bytes([n]) for n in range(10)}
    write(folder, pngs)
    write(folder, {ANNOTATIONS[dataset]: data})
    found = open_person_search(
        PersonSearchDataConfig(dataset=dataset, root=folder, **settings)  # type: ignore[arg-type]
    )
    assert len(found.train)


TARGETS: dict[str, Target] = {
    "text": Target(cases=text_cases(), read=read_text),
    "sources": Target(cases=st.text(max_size=30), read=read_source),
    "pairs": Target(cases=pair_cases(), read=read_pairs),
    "pictures": Target(cases=anything(lambda: list(pictures().values())), read=read_picture),
    "configs": Target(cases=config_cases(), read=read_config),
    "models": Target(cases=model_cases(), read=read_model),
    "stores": Target(cases=folder_cases(store_files), read=read_store),
    "shards": Target(cases=folder_cases(shard_files), read=read_shards),
    "checkpoints": Target(cases=folder_cases(checkpoint_files), read=read_checkpoint),
}
TARGETS |= {
    "tars": Target(cases=tar_cases(), read=read_tar),
    "bombs": Target(cases=bomb_cases(), read=read_bomb, share=1),
    "manifests": Target(cases=manifest_cases(), read=read_shards),
    "galleries": Target(cases=gallery_cases(), read=read_gallery),
    "image-text": Target(cases=image_text_cases(), read=read_image_text, share=4),
    "plug-ins": Target(cases=plugin_cases(), read=read_plugin),
}
if importlib.util.find_spec("maskery.data.person_search") is not None:
    TARGETS["person-search"] = Target(cases=annotation_cases(), read=read_annotations)

__all__ = ["TARGETS", "Target", "asdict"]
