"""The paint of each colour word."""

from maskery.people.attributes import Colour
from maskery.people.canvas import RGB

PAINTS: dict[Colour, RGB] = {
    Colour.BLACK: (30, 30, 34),
    Colour.WHITE: (245, 245, 243),
    Colour.GREY: (138, 140, 145),
    Colour.RED: (208, 30, 38),
    Colour.ORANGE: (245, 130, 20),
    Colour.YELLOW: (250, 220, 45),
    Colour.GREEN: (30, 140, 62),
    Colour.BLUE: (32, 84, 205),
    Colour.PURPLE: (122, 48, 160),
    Colour.PINK: (250, 150, 190),
    Colour.BROWN: (112, 66, 34),
}
HAIR_PAINTS: dict[Colour, RGB] = {
    Colour.BLACK: (28, 24, 26),
    Colour.BROWN: (112, 66, 34),
    Colour.BLONDE: (236, 200, 96),
    Colour.RED: (196, 74, 26),
    Colour.GREY: (176, 176, 180),
}
SKIN_PAINTS: tuple[RGB, ...] = ((246, 212, 186), (226, 178, 140), (184, 132, 94), (134, 90, 62))
PALE_CLOTH: RGB = (232, 230, 224)
DARK_CLOTH: RGB = (72, 76, 88)
