"""Emoji as pairs: pictures that other people drew, with the names that Unicode's CLDR gives them.

The pictures are those of npm's `emoji-datasource-*` (a set is one artist's), the names those of its
`cldr-annotations-*`, in over a hundred languages. Without npm, Debian's `fonts-noto-color-emoji` is
drawn, and PyPI's `emoji` has the names. Pictures and names keep their owners' licences.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from maskery.core.errors import DataError
from maskery.core.registry import require
from maskery.data.corpus.examples import is_held_out
from maskery.data.images.loading import pillow
from maskery.data.pairs.pairs import group_ids_of
from maskery.runs.frame.run_folder import write_text

VERSIONS = {"emoji": "16.0.0", "cldr": "48.2.0"}  # Of npm's packages, by their first word
SETS = ("google", "twitter", "facebook", "apple")
NOTO = "noto"  # The set that is drawn from the font
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE, CANVAS, SIDE = 109, (136, 128), 64  # Pixels: the only size of the font; of our pictures
SOURCES = "SOURCES.txt"
# CLDR writes five tones with three words, and in "medium-light" each word would tell the other.
TONES = {"light": "pale", "medium-light": "fair", "medium": "tan", "medium-dark": "brown"}
TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone")
# What one picture of a concept shows and another does not, or many concepts share.
WORDS = (
    *("pale", "fair", "tan", "brown", "dark", "flag", "face", "left", "right", "up", "down"),
    *("woman", "man", "person", "women", "men", "people", "girl", "boy"),
)
PEOPLE = re.compile(
    r"\b(wo)?m[ae]n\b|\b(person|people|boy|girl|child|mrs|mx|santa)\b|\bmer(man|maid|person)\b|"
    r"(?<=\bprince)ss|\bfacing (left|right)\b|:(?<!\bflag:)(?<!\bkeycap:).*"
)


class Emoji(NamedTuple):
    """One emoji of a set."""

    file: str  # name of its picture, without the ending
    name: str
    keywords: str  # "" without any
    english: str
    picture: bytes  # PNG


def available_sets() -> tuple[str, ...]:
    """Return the sets that this machine can get; DataError without any."""
    if shutil.which("npm"):
        return SETS
    if FONT.is_file():
        _emoji_package()
        return (NOTO,)
    raise DataError(
        "emoji come from npm or from a font, and neither is here; install npm, or Debian's "
        "fonts-noto-color-emoji with PyPI's emoji"
    )


def write_emoji(folder: Path, name: str, language: str = "en") -> int:
    """Write the pictures of a set and three tables into a folder; returns how many pictures.

    `SET.jsonl` has all pairs, `train-SET.jsonl` and `test-SET.jsonl` those of concepts to train on
    and to hold out. Of pictures with the same bytes, as some flags are, one is kept.
    """
    emojis = (read_noto if name == NOTO else partial(read_npm, name))(language)
    unique = {emoji.picture: emoji for emoji in emojis}.values()
    (folder / name).mkdir(parents=True, exist_ok=True)
    write_text(folder / SOURCES, str(__doc__))
    tables: dict[str, list[str]] = {"": [], "train-": [], "test-": []}
    for emoji in unique:
        path, concept = f"{name}/{emoji.file}.png", concept_of(emoji.english)
        (folder / path).write_bytes(emoji.picture)
        captions = [text for text in (emoji.name, emoji.keywords) if text]
        row = {"image": path, "caption": captions, "name": emoji.name, "concept": concept}
        held = is_held_out(group_ids_of([concept]), 0.1).any()
        for table in ("", "test-" if held else "train-"):
            tables[table].append(f"{json.dumps(row, ensure_ascii=False)}\n")
    for table, lines in tables.items():
        write_text(folder / f"{table}{name}.jsonl", "".join(lines))
    return len(unique)


def concept_of(name: str) -> str:
    """Return an English name without tones, genders and directions; a flag's name whole."""
    return " ".join(re.findall(r"\w+", PEOPLE.sub("", TONE.sub("", name.lower())))) or "person"


def one_word_tones(text: str) -> str:
    """Return a text with each skin tone in one word."""
    return TONE.sub(lambda match: f"{TONES.get(match[1], match[1])} skin", text)


def read_npm(name: str, language: str) -> Iterator[Emoji]:
    """Yield the emoji of an artist from npm's packages."""
    files = npm_files(f"emoji-datasource-{name}", rf"emoji\.json|img/{name}/{SIDE}/.*\.png")
    listed = json.loads(files.pop("emoji.json"))
    if not files:
        raise DataError(f"emoji-datasource-{name} has no pictures of {SIDE} pixels; choose another")
    names, english = cldr_names(language), cldr_names("en")
    for base in listed:
        for one in (base, *base.get("skin_variations", {}).values()):
            text = "".join(chr(int(code, 16)) for code in one["unified"].split("-"))
            text, picture = (
                text.replace("\ufe0f", ""),
                files.get(f"img/{name}/{SIDE}/{one['image']}"),
            )
            if picture is not None and text in names and text in english:
                tones = re.findall("-1f3f[b-f]", one["image"])
                file = "".join((base["short_name"], *tones))
                yield Emoji(file, *names[text], english[text][0], picture)


@lru_cache
def cldr_names(language: str) -> dict[str, tuple[str, str]]:
    """Return each emoji's name and keywords in a language, by characters without selectors."""
    found = {}
    for package, folder in (("full", "annotations"), ("derived-full", "annotationsDerived")):
        files = npm_files(f"cldr-annotations-{package}", f"{folder}/{language}/annotations.json")
        if not files:
            raise DataError(f"CLDR names no emoji in '{language}'; give a code such as de or zh")
        for text, one in json.loads(*files.values())[folder]["annotations"].items():
            if "tts" in one:
                keywords = ", ".join(one.get("default", ()))
                found[text] = one_word_tones(one["tts"][0]), one_word_tones(keywords)
    return found


def npm_files(package: str, wanted: str) -> dict[str, bytes]:
    """Return the files of an npm package whose paths match a pattern."""
    command = [
        "npm",
        "pack",
        f"{package}@{VERSIONS[package.partition('-')[0]]}",
        "--prefer-offline",
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            why = " ".join(done.stderr.split())[:200]
            raise DataError(f"{' '.join(command)} failed ({why}); is there a network?")
        [archive] = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as members:
            read = ((m.name.removeprefix("package/"), members.extractfile(m)) for m in members)
            return {path: file.read() for path, file in read if file and re.fullmatch(wanted, path)}


def _emoji_package() -> Any:
    return require("emoji", extra="emoji", purpose="name the emoji of a font")


def read_noto(language: str) -> Iterator[Emoji]:
    """Yield the emoji of Debian's font, as PyPI's `emoji` names them."""
    package, font = _emoji_package(), pillow("ImageFont").truetype(str(FONT), FONT_SIZE)
    if language not in package.LANGUAGES:
        raise DataError(f"PyPI's emoji has no names in '{language}', but in {package.LANGUAGES}")
    package.config.load_language(language)
    for text, one in package.EMOJI_DATA.items():
        # One that the font lacks is drawn as its parts, side by side.
        if one["status"] > package.STATUS["fully_qualified"] or font.getbbox(text)[2:] != CANVAS:
            continue
        english, name = (
            one.get(key, one["en"]).strip(":").replace("_", " ") for key in ("en", language)
        )
        canvas, png = pillow().new("RGBA", CANVAS), io.BytesIO()
        pillow("ImageDraw").Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
        canvas.resize((SIDE, SIDE)).save(png, "PNG")
        yield Emoji(one["en"].strip(":"), one_word_tones(name), "", english, png.getvalue())
