from __future__ import annotations

from maskery.data.corpus.examples import Place, ReadingReport


def test_nothing_unusual_needs_no_line() -> None:
    assert ReadingReport(examples=5).describe() is None


def test_the_line_to_the_user() -> None:
    report = ReadingReport(examples=9, skipped=1, replaced=2000, cut=2, pieces=5, empty_files=1)
    assert report.describe() == (
        "skipped 1 text that cannot be read; replaced bad characters in 2,000 texts; "
        "cut 2 long texts into 5 examples; passed over 1 empty file"
    )


def test_places() -> None:
    assert str(Place(source="a.txt")) == "a.txt"
    assert str(Place(source="a.parquet", unit="row", number=3)) == "a.parquet, row 3"
