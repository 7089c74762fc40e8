"""A handful of drawn emoji in the layout of npm's packages, and an `npm` that hands them out."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

ROLES = ("cook", "judge", "pilot", "singer", "farmer", "mage", "elf", "student")
PEOPLE = ("woman", "man")
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FF": "dark"}
SETS = {"google": 0, "twitter": 60, "facebook": 120}  # with what each adds to a colour
NPM = """#!/bin/sh
name=${2%@*}
test "$1" = pack && test -f STORE/$name.tgz && cp STORE/$name.tgz . && exit
echo "npm error 404 '$2' is not in this registry." >&2
exit 1
"""


def serve_npm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make packages, and put an `npm` that packs them first on the path."""
    store, programs = folder / "store", folder / "bin"
    store.mkdir(parents=True)
    programs.mkdir()
    for name, shift in SETS.items():
        listed = emoji_json()
        files = {
            f"img/{name}/64/{image}": png(number * 3, shift, 64)
            for number, image in enumerate(images(listed))
        }
        # The two flags look the same.
        files[f"img/{name}/64/f1.png"] = files[f"img/{name}/64/f2.png"]
        pack(store / f"emoji-datasource-{name}.tgz", {"emoji.json": dump(listed), **files})
    large = {"emoji.json": dump(emoji_json()), "img/apple/160/f1.png": png(1, 1, 160)}
    pack(store / "emoji-datasource-apple.tgz", large)
    for package, key in (("full", "annotations"), ("derived-full", "annotationsDerived")):
        tables = {f"{key}/{one}/annotations.json": dump(names(key, one)) for one in ("en", "de")}
        pack(store / f"cldr-annotations-{package}.tgz", tables)
    (programs / "npm").write_text(NPM.replace("STORE", str(store)))
    (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")


def emoji_json() -> list[dict[str, object]]:
    listed: list[dict[str, object]] = []
    for code, name in bases().items():
        variations = {
            tone: {"unified": f"{code}-{tone}-FE0F", "image": f"{code}-{tone}.png".lower()}
            for tone in TONES
        }
        entry = {"unified": code, "image": f"{code}.png".lower(), "short_name": name}
        listed.append({**entry, **({"skin_variations": variations} if " " in name else {})})
    return [
        *listed,
        {"unified": "F1", "image": "f1.png", "short_name": "flag-no"},
        {"unified": "F2", "image": "f2.png", "short_name": "flag-bv"},
        {"unified": "F3", "image": "f3.png", "short_name": "without-a-name"},
    ]


def bases() -> dict[str, str]:
    people = [f"{who} {role}" for role in ROLES for who in PEOPLE]
    return {f"1F{600 + i}": name for i, name in enumerate([*people, "strawberry", "anchor"])}


def images(listed: list[dict[str, object]]) -> list[str]:
    found = []
    for base in listed:
        variations = base.get("skin_variations", {})
        assert isinstance(variations, dict)
        found += [str(base["image"]), *(one["image"] for one in variations.values())]
    return found


def names(key: str, language: str) -> dict[str, object]:
    """Plain names lie in the one package; names with tones, and flags, in the other."""
    word, skin = {"en": ("", "skin tone"), "de": ("de-", "Hautfarbe")}[language]
    found: dict[str, dict[str, list[str]]] = {}
    for code, name in bases().items():
        text = chr(int(code, 16))
        if key == "annotations":
            found[text] = {"tts": [word + name], "default": ["work", *name.split()]}
        else:
            for tone, called in TONES.items():
                tts = f"{word}{name}: {called} {skin}"
                found[text + chr(int(tone, 16))] = {"tts": [tts], "default": [f"{called} {skin}"]}
    if key == "annotationsDerived":
        found |= {"\xf1": {"tts": ["flag: Norway"]}, "\xf2": {"tts": ["flag: Bouvet Island"]}}
    return {key: {"annotations": found}}


def png(red: int, green: int, side: int) -> bytes:
    picture = io.BytesIO()
    Image.new("RGBA", (side, side), (red % 256, green, 90, 255)).save(picture, "PNG")
    return picture.getvalue()


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
