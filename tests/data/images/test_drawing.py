from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskery.core.errors import DataError
from maskery.data.images.drawing import (
    FRAME,
    GAP,
    HEAT,
    PAPER,
    RIGHT,
    Cell,
    SheetRow,
    draw_sheet,
    heat_over,
)


def cell(colour: tuple[int, int, int], **settings: object) -> Cell:
    return Cell(image=Image.new("RGB", (20, 40), colour), **settings)  # type: ignore[arg-type]


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(axis=-1).sum())


def test_every_picture_is_there_at_its_size_and_the_right_ones_are_framed() -> None:
    rows = [
        SheetRow(heading="first", cells=[cell((200, 0, 0)), cell((0, 200, 0), frame=RIGHT)]),
        SheetRow(heading="second", cells=[cell((0, 0, 200), label=("1.  90%", "a/b.png"))]),
    ]
    sheet = draw_sheet(rows, height=80)
    for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200)):
        assert count(sheet, colour) == 40 * 80
    framed = (40 + 2 * FRAME) * (80 + 2 * FRAME) - 40 * 80
    assert count(sheet, RIGHT) == framed
    assert sheet.getpixel((0, 0)) == PAPER


def test_long_rows_go_on_below_and_long_labels_are_cut() -> None:
    cells = [cell((10 * n, 1, 2), label=("x" * 500,)) for n in range(7)]
    wide = draw_sheet([SheetRow(heading="many words " * 60, cells=cells)], height=80, columns=20)
    tall = draw_sheet([SheetRow(heading="many", cells=cells)], height=80, columns=3)
    assert tall.height > 3 * 80
    assert wide.width > 7 * 40
    for n in range(7):
        assert count(tall, (10 * n, 1, 2)) == 40 * 80


def test_very_wide_pictures_are_bounded_and_nothing_is_an_error() -> None:
    wide = Cell(image=Image.new("RGB", (4000, 10), (1, 2, 3)))
    assert draw_sheet([SheetRow(heading="", cells=[wide])], height=50).width <= 500
    with pytest.raises(DataError, match="no picture"):
        draw_sheet([SheetRow(heading="empty")])


def test_the_hottest_place_is_coloured_and_the_coldest_is_not() -> None:
    image = Image.new("RGB", (40, 80), (200, 200, 200))
    heat = np.zeros((4, 2), np.float32)
    heat[3, 0] = 0.02
    drawn = np.asarray(heat_over(image, heat))
    assert drawn.shape == (80, 40, 3)
    assert (drawn[:20, 20:] == 200).all()
    whole = np.asarray(heat_over(image, heat, strength=1.0))
    np.testing.assert_allclose(whole[78, 1], HEAT, atol=1)
    np.testing.assert_allclose(drawn[78, 1], 0.65 * np.array(HEAT) + 0.35 * 200, atol=1)


def test_even_heat_colours_nothing() -> None:
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    drawn = heat_over(image, np.full((2, 2), 0.7, np.float32))
    assert np.array_equal(np.asarray(drawn), np.asarray(image))


def test_a_picture_can_be_seen_under_its_heat_in_one_hue() -> None:
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 255
    heat = np.array([[1, 0], [1, 0]], np.float32)
    drawn = np.asarray(heat_over(Image.fromarray(stripes), heat)).astype(int)
    assert (np.abs(np.diff(drawn, axis=1)).max(axis=2) >= 85).all()  # a third of what there was
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    away = np.asarray(heat_over(grey, heat)).astype(float) - 128
    hue = np.array(HEAT) - 128.0
    share = (away @ hue) / (hue @ hue)
    np.testing.assert_allclose(away, share[..., None] * hue, atol=1)


def test_names_of_narrow_pictures_do_not_touch() -> None:
    name = "mmmmmmmmmm_a_long_name_of_a_picture.png"
    cells = [cell((9, 9, n), label=(name,)) for n in range(5)]
    sheet = draw_sheet([SheetRow(heading="", cells=cells)], height=80)
    lowest = np.asarray(sheet.convert("L"))[-40:]
    inked = np.flatnonzero((lowest < 200).any(axis=0))
    gaps = np.diff(inked)
    assert (gaps > GAP).sum() == 4  # between five names; letters stand closer
    assert sheet.width - inked[-1] > GAP
