"""Drawn pictures: contact sheets, heat maps over pictures, pictures for web pages.

Shapes: G x F the grid of the heat, H x W pixels.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from maskery.core.errors import DataError
from maskery.core.random import Float32Array
from maskery.data.images.loading import PAPER, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

Colour: TypeAlias = tuple[int, int, int]

# Of a sheet: headings, labels, and the frame of a picture that is right.
INK: Colour = (32, 33, 36)
FAINT: Colour = (110, 113, 118)
RIGHT: Colour = (24, 128, 56)
# Pixels.
FRAME, GAP, MARGIN = 4, 10, 16
HEADING_SIZE, LABEL_SIZE = 16, 12
# A column with names below its pictures: room for some fifteen letters.
NARROWEST = 112
# The one colour of heat; it is told from skin, grass and sky, in print too.
HEAT: Colour = (214, 40, 40)
STRENGTH = 0.65  # of the hottest place, in which the picture can still be seen
# Exponent of the cover; below 1 the colour covers more, as ALBEF draws it.
GAMMA = 0.7


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of a sheet."""

    image: Image  # RGB
    label: Sequence[str] = ()  # short lines below it
    frame: Colour | None = None  # the colour of its frame; None for none


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """A heading and the pictures below it."""

    heading: str
    cells: Sequence[Cell] = ()


def draw_sheet(rows: Sequence[SheetRow], *, height: int = 192, columns: int = 10) -> Image:
    """Lay rows of pictures, `height` pixels high, out on white paper, some columns side by side."""
    if not any(row.cells for row in rows):
        raise DataError("there is no picture to put on the sheet")
    widest = max(NARROWEST, *(scaled(cell.image, height)[0] for row in rows for cell in row.cells))
    across = min(columns, max(len(row.cells) for row in rows))
    # Headings need some room above a single narrow picture.
    width = max(360, 2 * MARGIN + across * (widest + 2 * FRAME + GAP) - GAP)
    painted = [_draw_row(row, height, widest, columns, width) for row in rows]
    total = 2 * MARGIN + sum(part.height for part in painted) + GAP * (len(painted) - 1)
    sheet: Image = pillow().new("RGB", (width, total), PAPER)
    top = MARGIN
    for part in painted:
        sheet.paste(part, (0, top))
        top += part.height + GAP
    return sheet


def scaled(image: Image, height: int) -> tuple[int, int]:
    """Return (width, height) of a picture at most so high, and at most twice as wide."""
    # One panorama would set the width of every column, or take all memory.
    factor = min(height / image.height, 2 * height / image.width)
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def _draw_row(row: SheetRow, height: int, widest: int, columns: int, width: int) -> Image:
    image_module, fonts = pillow(), pillow("ImageFont")
    # Pillow's own font: there is one on every machine.
    heading_font, label_font = map(fonts.load_default, (HEADING_SIZE, LABEL_SIZE))
    # At least eight letters a line, however narrow the sheet is.
    letters = max(8, int((width - 2 * MARGIN) / max(1.0, heading_font.getlength("n"))))
    lines = textwrap.wrap(row.heading, letters) or [""]
    line, small = HEADING_SIZE + 5, LABEL_SIZE + 4
    top = len(lines) * line + 6
    labels = max((len(cell.label) for cell in row.cells), default=0)
    step = (widest + 2 * FRAME + GAP, height + 2 * FRAME + labels * small + GAP)
    levels = -(-len(row.cells) // columns)
    part: Image = image_module.new("RGB", (width, top + levels * step[1]), PAPER)
    draw: Any = pillow("ImageDraw").Draw(part)
    for number, text in enumerate(lines):
        draw.text((MARGIN, number * line), text, fill=INK, font=heading_font)
    for number, cell in enumerate(row.cells):
        level, column = divmod(number, columns)
        left, upper = MARGIN + column * step[0], top + level * step[1]
        size = scaled(cell.image, height)
        resized = cell.image.resize(size, image_module.Resampling.LANCZOS)
        if cell.frame is not None:
            box = (left, upper, left + size[0] + 2 * FRAME - 1, upper + size[1] + 2 * FRAME - 1)
            draw.rectangle(box, fill=cell.frame)
        part.paste(resized, (left + FRAME, upper + FRAME))
        below = upper + size[1] + 2 * FRAME + 2
        for turn, text in enumerate(cell.label):
            shown = text
            while text and label_font.getlength(shown) > step[0] - FRAME - GAP:
                text = text[1:]  # the start goes: the end of a path says most
                shown = f"...{text}"
            draw.text((left + FRAME, below + turn * small), shown, fill=FAINT, font=label_font)
    return part


def heat_over(image: Image, heat: Float32Array, strength: float = STRENGTH) -> Image:
    """Colour the hottest places of an RGB picture, over which `heat` (G, F) is stretched.

    The hottest place is covered by `strength`, from 0 to 1. Each heat is scaled to its own range,
    so colours of two words cannot be compared.
    """
    module = pillow()
    span = float(heat.max() - heat.min())
    scaled = (heat - heat.min()) / span if span > 0 else np.zeros_like(heat)
    small = module.fromarray(scaled.astype(np.float32))
    large = np.clip(np.asarray(small.resize(image.size, module.Resampling.BICUBIC)), 0.0, 1.0)
    cover = strength * large[..., None] ** GAMMA
    mixed = (1.0 - cover) * np.asarray(image, np.float32) + cover * np.array(HEAT, np.float32)
    drawn: Image = module.fromarray(np.rint(mixed).astype(np.uint8))
    return drawn


def png_uri(image: Image, *, height: int = 240) -> str:
    """Return a picture as a PNG in a data URI, scaled down to `height` pixels if it is higher."""
    shown = image.copy()
    shown.thumbnail((4 * height, height))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
