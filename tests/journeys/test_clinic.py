"""Notes of patients: adapt an encoder, see that it got better, compare runs, embed notes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny_text import WORDS, save_sentence_encoder

from maskery import open_run
from maskery.cli.main import main
from maskery.data.split import texts_of
from maskery.runs.text.prepare import TextRun

PATIENTS = 40
WARDS = {"heart": WORDS[:6], "bone": WORDS[6:]}
TRAINING = (
    *("--epochs", "30", "--max-steps", "40", "--batch-tokens", "512", "--learning-rate", "3e-3"),
    *("--head-first", "off", "--held-out-share", "0.25"),
)
COLUMNS = ("--text-column", "visit.note", "--group-column", "visit.patient")


def write_notes(folder: Path) -> list[tuple[str, str]]:
    """Three notes of each patient, who is named in each; a ward has words of its own."""
    draws = np.random.default_rng(0)
    rows, labels = [], []
    for patient in range(PATIENTS):
        ward = list(WARDS)[patient % 2]
        for _ in range(3):
            words = " ".join(draws.choice(WARDS[ward], 10))
            note = f"{words} number {patient}."
            rows.append({"visit": {"patient": f"P{patient}", "note": note}})
            labels.append((note, ward))
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "notes.jsonl").write_text(text, "utf-8")
    with (folder / "wards.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *labels])
    return labels


def patients_of(texts: list[str]) -> set[str]:
    return {text.rpartition("number ")[2].rstrip(" .") for text in texts}


def test_notes_of_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = write_notes(tmp_path)
    save_sentence_encoder(tmp_path / "encoder")

    def told(*command: str) -> Any:
        """Return what a command answers."""
        assert main([*command, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    looked = told("inspect", "notes.jsonl", "--model", "encoder", *COLUMNS)
    assert looked["lengths"]["examples"] == len(notes)

    # Adapt, with two seeds: it fills the notes of other patients better.
    for seed in ("0", "1"):
        command = ["train", "text", "notes.jsonl", "--model", "encoder", *COLUMNS, *TRAINING]
        result = told(*command, "--seed", seed, "--output", f"runs/{seed}")
        assert result["difference"]["loss"][2] < 0
    # No patient is on both sides.
    run = TextRun(open_run("runs/0").config, progress=False)
    tokenizer, sides = run.loaded.tokenizer, (run.train, run.held_out)
    train, held_out = (
        patients_of(list(texts_of(side.store, tokenizer, np.unique(side.windows.documents))))
        for side in sides
    )
    assert len(train) + len(held_out) == PATIENTS
    assert not train & held_out

    # Probe: the vectors tell the wards apart.
    probed = told("probe", "runs/0", "--against", "encoder", "--labels", "wards.csv")
    linear = next(figure for figure in probed["figures"] if figure["name"] == "linear probe")
    assert linear["models"]["runs/0"][0] > 0.9 > linear["chance"]

    # Compare: the two seeds are one row, with what luck does.
    rows = told("compare", "runs/0", "runs/1", "--csv", "runs.csv")["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1]]
    assert "loss" in (tmp_path / "runs.csv").read_text("utf-8")

    # Embed: a note's nearest is of its own ward.
    vectors = SentenceTransformer("runs/0/model").encode([text for text, _ in notes])
    near = vectors @ vectors.T
    np.fill_diagonal(near, -1)
    wards = np.array([ward for _, ward in notes])
    assert (wards[near.argmax(1)] == wards).mean() > 0.9
