"""Fuzz targets whose cases are made to harm: archives, bombs, indices, checkpoints, plug-ins."""

from __future__ import annotations

import copy
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fuzz_mutations import JSON_VALUES, anything, damaged, packed, pictures, tar_file
from hypothesis import strategies as st
from PIL import Image
from tiny_image_text import save_tiny_image_text

from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.gallery import DamagedIndex, GalleryStore, Stamp, open_store, renewed
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.evaluation.image_text.opening import open_image_text
from maskery.masking.config import POLICIES
from maskery.models.checkpoint_import.convert import import_state
from maskery.models.checkpoint_import.state_dict import Given, read_described, read_state_dict

Files = dict[str, bytes]
HOSTILE_VALUES = st.one_of(
    JSON_VALUES,
    st.sampled_from(
        [2**31, 2**40, 2**63, 10**400, -1, 1e308, "../../etc/passwd", "/dev/zero", "a" * 10_000]
    ),
    st.builds(lambda: json.loads("[" * 200 + "]" * 200)),  # one of its own for each case
)


def write(folder: Path, files: Files) -> None:
    """Put files into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@st.composite
def hostile_json(draw: st.DrawFn, whole: Callable[[], bytes]) -> bytes:
    """A JSON document with some values, at any depth, that do not belong there."""
    document = copy.deepcopy(json.loads(whole()))
    for _ in range(draw(st.integers(1, 3))):
        at: Any = document
        while True:
            keys = sorted(at) if isinstance(at, dict) else range(len(at))
            key = draw(st.sampled_from(list(keys)))
            if not isinstance(at[key], dict | list) or not at[key] or draw(st.integers(0, 3)) == 0:
                break
            at = at[key]
        if draw(st.integers(0, 6)) == 0:
            del at[key]
        else:
            at[key] = draw(HOSTILE_VALUES)
        if not document:
            break
    return json.dumps(document).encode()


# Archives.

KINDS = [
    *(tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE),
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
    *(tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, b"Z"),
]
NAMES = [
    *("a.png", "a.txt", "a.json", "b.jpg", "b.txt", "../a.png", "/etc/passwd", "a/../../b.png"),
    *("a" * 300 + ".png", "\x1b[2J.txt", "é.png", ".txt", "a.png.txt", "c:\\a.png", "", "/", "a."),
]


@st.composite
def tar_cases(draw: st.DrawFn) -> bytes:
    """An archive with members of every kind, name and size, damaged now and then."""
    stream = io.BytesIO()
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    if draw(st.sampled_from([True, False])):  # the first case, always the simplest, is sound
        stream.write(tar_file({"0.png": pictures()["png"], "0.txt": b"one"})[:2048])
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3, 5]))):
        member = tarfile.TarInfo(draw(st.sampled_from(NAMES)))
        member.type = draw(st.sampled_from(KINDS))
        member.linkname = draw(st.sampled_from(["", "a.png", "../a.png", "/dev/zero"]))
        data = draw(st.sampled_from([b"", b"a man", b'{"caption": "x"}', pictures()["png"]]))
        member.size = len(data) if draw(st.integers(0, 5)) else draw(st.integers(0, 2**33))
        try:
            stream.write(member.tobuf(form, "utf-8", "surrogateescape"))
        except ValueError:
            continue  # no header can hold it
        stream.write(data + b"\0" * (-len(data) % 512))
    whole = stream.getvalue() + b"\0" * 1024
    return draw(st.one_of(st.just(whole), damaged(lambda: [whole])))


def read_tar(case: bytes, folder: Path) -> None:
    """Read the pairs of an archive; nothing of it is unpacked."""
    write(folder, {"a.tar": case})
    for pair in Pairs.open(folder / "a.tar", PairsConfig(on_bad_caption="skip")):
        assert pair.image.load().mode == "RGB"
    assert [path.name for path in folder.iterdir()] == ["a.tar"]


# Bombs.


def png_of(width: int, height: int, *, text: bool = False) -> bytes:
    """A PNG of nothing but its size, and a comment of many megabytes where wanted."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    comment = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 20_000_000)) if text else b""
    rows = chunk(b"IDAT", zlib.compress(b"\0" * min(height * (3 * width + 1), 10_000_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + comment + rows + chunk(b"IEND", b"")


@lru_cache(maxsize=1)
def bombs() -> dict[str, bytes]:
    """Small files that are large once they are read, by their names."""
    found = {
        "size.png": png_of(60_000, 60_000),
        "thin.png": png_of(2**31 - 1, 1),
        "comment.png": png_of(4, 4, text=True),
    }
    for form in ("GIF", "TIFF", "WEBP"):
        stream = io.BytesIO()
        frames = [Image.new("L", (64, 64), n % 255) for n in range(300)]
        frames[0].save(stream, form, save_all=True, append_images=frames[1:])
        found[f"frames.{form.lower()}"] = stream.getvalue()
    for suffix in (".gz", ".xz", ".zst", ".bz2"):
        found[f"letters.txt{suffix}"] = packed(b"a" * 8_000_000, suffix)
        found[f"lines.txt{suffix}"] = packed(b"\n" * 400_000, suffix)
        found[f"deep.json{suffix}"] = packed(b"[" * 1_000_000, suffix)
        found[f"long.jsonl{suffix}"] = packed(b'{"text":"' + b"a" * 8_000_000 + b'"}', suffix)
        found[f"digits.json{suffix}"] = packed(b"[" + b"9" * 300_000 + b"]", suffix)
        found[f"cells.csv{suffix}"] = packed(b"," * 300_000, suffix)
    twice = packed(found["letters.txt.xz"], ".xz")
    return found | {"twice.txt.xz": twice}


@st.composite
def bomb_cases(draw: st.DrawFn) -> tuple[str, bytes]:
    """A bomb, whole or damaged."""
    name = draw(st.sampled_from(sorted(bombs())))
    data = bombs()[name]
    return name, data if draw(st.booleans()) else draw(damaged(lambda: [data]))


def read_bomb(case: tuple[str, bytes], folder: Path) -> None:
    """Read it as a picture of a caption, or as a corpus."""
    name, data = case
    write(folder, {name: data})
    if ".txt" in name or "json" in name or ".csv" in name:
        for example in Corpus.open([str(folder / name)], CorpusConfig()):
            assert len(example.text) <= 1_000_000
        return
    rows = json.dumps([{"image": name, "caption": "x"}])
    (folder / "pairs.json").write_text(rows)
    for pair in Pairs.open(folder / "pairs.json", PairsConfig()):
        assert pair.image.load().mode == "RGB"


# The index of a gallery.


@lru_cache(maxsize=1)
def gallery_files() -> Files:
    """A sound index of two pictures, one unreadable."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = GalleryStore(folder, 4)
        files = {f"{n}.png": (Stamp(n, n), bytes([n]) * 16) for n in range(3)}
        features = {bytes([n]) * 16: np.full(4, n, np.float16) for n in range(2)}
        store.save(files, features, {bytes([2]) * 16: "no picture"})
        store.snapshot()
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@st.composite
def gallery_cases(draw: st.DrawFn) -> tuple[str, bytes]:
    """One file of the index damaged."""
    name = draw(st.sampled_from(sorted(gallery_files())))
    return name, draw(anything(lambda: [gallery_files()[name]]))


def read_gallery(case: tuple[str, bytes], folder: Path) -> None:
    """Do what a search does with an index; a damaged one is made anew."""
    name, data = case
    write(folder, gallery_files() | {name: data})
    store = open_store(folder, 4)
    try:
        use_gallery(store)
    except DamagedIndex as error:
        use_gallery(renewed(folder, 4, error))


def use_gallery(store: GalleryStore) -> None:
    """Ask everything once, and write."""
    known = store.files()
    store.known([bytes(16)], readable=True)
    store.save({"9.png": (Stamp(9, 9), bytes([9]) * 16)}, {}, {bytes([9]) * 16: "bad"})
    store.forget(sorted(known)[:1])
    snapshot = store.snapshot()
    assert len(snapshot.features) == len(snapshot.paths)
    assert all(isinstance(reason, str) for reason in store.troubles())


# Image-text checkpoints.


@lru_cache(maxsize=1)
def image_text_files() -> Files:
    """A tiny image-text model with its tokenizer, and its weights as PyTorch saves them."""
    with TemporaryDirectory() as name:
        folder = save_tiny_image_text(Path(name))
        tensors = read_state_dict(folder)[0]
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        stream = io.BytesIO()
        torch.save({"model": tensors}, stream)
        return files | {"weights.pth": stream.getvalue()}


@st.composite
def image_text_cases(draw: st.DrawFn) -> tuple[str, bytes]:
    """One file of the folder damaged; settings with other values in them."""
    name = draw(st.sampled_from(sorted(image_text_files())))
    whole = image_text_files()[name]
    if name.endswith(".json") and draw(st.integers(0, 2)):
        return name, draw(hostile_json(lambda: whole))
    return name, draw(anything(lambda: [whole]))


def read_image_text(case: tuple[str, bytes], folder: Path) -> None:
    """Open it as a model, or import it as a checkpoint."""
    name, data = case
    write(folder, image_text_files() | {name: data})
    if name == "weights.pth":
        state, _ = read_state_dict(folder / name)
        import_state(state, read_described(folder), Given(text_heads=2, vision_heads=2))
    else:
        open_image_text(str(folder))


# Plug-ins.

PLUGIN = '''
import torch
class Mine:
    """Choose every place."""
    def select(self, batch, rate, draws):
        return torch.ones(3, dtype=torch.bool)
def make(settings=None):
    return Mine()
number, none, text = 3, None, "select"
'''


@st.composite
def plugin_cases(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of Python, damaged, and a name that is asked of it."""
    name = draw(st.sampled_from(["Mine", "make", "number", "none", "text", "torch", "missing"]))
    return name, draw(anything(lambda: [PLUGIN.encode()]))


def read_plugin(case: tuple[str, bytes], folder: Path) -> None:
    """Find it as `--policy FILE.py:NAME` does."""
    name, data = case
    write(folder, {"mine.py": data})
    POLICIES.find(f"{folder}/mine.py:{name}")
