"""Folders of old letters: learn their words from scratch, look at them, take the figures away."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from served import served
from transformers import pipeline

from maskery.cli.main import main
from maskery.playground.session import Session

PLACES = ["München", "Köln", "Lübeck", "Görlitz"]
PEOPLE = ["Käthe", "Jörg", "Änne", "Günther"]
DEEDS = {"München": "malt", "Köln": "näht", "Lübeck": "fährt", "Görlitz": "brät"}


def write_letters(folder: Path) -> None:
    """Years of letters as they were typed over time: a place decides what is done there."""
    draws = np.random.default_rng(0)
    for number, encoding in enumerate(["cp1252", "utf-8-sig", "utf-16", "utf-8"] * 6):
        sentences = []
        for day in range(10):
            place, person = draws.choice(PLACES), draws.choice(PEOPLE)
            sentences.append(f"{person} {DEEDS[place]} in {place} am {day}. Tag {number}")
        path = folder / str(1840 + number // 4) / f"brief_{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("\r\n".join(sentences).encode(encoding))
    (folder / "1840" / ".DS_Store").write_bytes(b"\0\1")
    (folder / "1840" / "scan.png").write_bytes(b"\x89PNG")


def test_folders_of_old_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_letters(tmp_path / "letters")
    command = ["train", "text", "letters", "--model", "scratch:tiny", "--output", "runs/letters"]
    command += [
        "--vocab-size",
        "300",
        "--epochs",
        "40",
        "--max-steps",
        "120",
        "--held-out-share",
        "0.2",
    ]
    command += ["--batch-tokens", "1024", "--learning-rate", "3e-3", "--encoding", "auto"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["difference"]["loss"][2] < 0

    # What the letters say was read in every encoding, and learnt: a deed stands where one belongs.
    sentence = "Käthe [MASK] in Köln am 3. Tag 5"
    asked = list(DEEDS.values())
    assert main(["fill", "runs/letters", sentence, "--words", *asked, "--json"]) == 0
    (filled,) = json.loads(capsys.readouterr().out)
    assert filled["masks"][0][0]["token"] in asked
    # The page shows the same figures, and so does Transformers.
    with served(Session("runs/letters")) as client:
        shown = client.ask("fill", {"text": sentence, "words": asked, "top_k": 5}).json
    for name in ("masks", "words"):
        assert shown[name] == filled[name]
    best = pipeline("fill-mask", "runs/letters/model")(sentence)[0]
    assert best["token_str"] == filled["masks"][0][0]["token"]
    assert best["score"] == pytest.approx(filled["masks"][0][0]["probability"], abs=1e-4)

    # The figures of every sentence of a letter, for a spreadsheet; and the report, for others.
    assert main(["score", "runs/letters", "letters/1840/brief_3.txt", "--tsv"]) == 0
    table = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
    written = (tmp_path / "letters" / "1840" / "brief_3.txt").read_text("utf-8").splitlines()
    assert [row["text"] for row in rows] == written
    assert all(float(row["log_probability"]) < 0 for row in rows)
    assert "<svg" in (tmp_path / "runs" / "letters" / "report.html").read_text("utf-8")
