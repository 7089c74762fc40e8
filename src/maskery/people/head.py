"""Draw head, face, hair and hats."""

from maskery.people.attributes import Hair, Hat, Identity
from maskery.people.body import CHIN, HEAD_CENTRE, HEAD_RADII, SHOULDER
from maskery.people.canvas import RGB, Canvas, mark_on, shade
from maskery.people.palette import HAIR_PAINTS, PAINTS, SKIN_PAINTS
from maskery.people.scene import View

LONG_HAIR_END = 0.33
EYE: RGB = (40, 34, 34)
HAIR_OF_A_SIDE = [
    *((0.05, 0.045), (0.036, 0.01), (0.0, -0.008), (-0.045, 0.008), (-0.076, 0.06)),
    *((-0.07, 0.13), (-0.03, 0.14), (-0.008, 0.1), (0.0, 0.055)),
]
HAIR_OF_A_FACE = [
    *((-0.074, 0.09), (-0.07, 0.035), (-0.035, 0.0), (0.0, -0.008), (0.035, 0.0), (0.07, 0.035)),
    *((0.074, 0.09), (0.052, 0.058), (0.02, 0.048), (-0.03, 0.052), (-0.054, 0.06)),
]


def draw_hair_behind(canvas: Canvas, identity: Identity, view: View) -> None:
    """Draw long hair that falls behind the shoulders, seen from the front."""
    if identity.hair is Hair.LONG and view is View.FRONT and identity.hair_colour:
        colour = HAIR_PAINTS[identity.hair_colour]
        canvas.rounded((-0.105, 0.04), (0.105, LONG_HAIR_END), colour, radius=0.06)


def draw_neck(canvas: Canvas, identity: Identity) -> None:
    """Draw the neck, under the garment."""
    colour = shade(SKIN_PAINTS[identity.skin], 0.9)
    top = CHIN - 0.03
    canvas.polygon([(-0.03, top), (0.03, top), (0.036, SHOULDER), (-0.036, SHOULDER)], colour)


def draw_head(canvas: Canvas, identity: Identity, view: View) -> None:
    """Draw head and face, then hair, then the hat."""
    skin = SKIN_PAINTS[identity.skin]
    canvas.ellipse((0, HEAD_CENTRE), HEAD_RADII, skin)
    if view is View.FRONT:
        for side in (-1, 1):
            canvas.ellipse((side * 0.026, 0.092), (0.009, 0.011), EYE, outline=False)
        canvas.line([(-0.02, 0.135), (0.02, 0.135)], shade(skin, 0.6), 0.01)
    elif view.is_side:
        canvas.ellipse((0.068, 0.1), (0.018, 0.014), skin)
        canvas.ellipse((0.042, 0.09), (0.009, 0.011), EYE, outline=False)
        canvas.line([(0.036, 0.138), (0.056, 0.136)], shade(skin, 0.6), 0.01)
    if identity.hair_colour:
        _draw_hair(canvas, identity.hair, HAIR_PAINTS[identity.hair_colour], view)
    if identity.hat and identity.hat_colour:
        HATS[identity.hat](canvas, PAINTS[identity.hat_colour], view)


def _draw_hair(canvas: Canvas, hair: Hair, colour: RGB, view: View) -> None:
    radius_x, radius_y = HEAD_RADII
    if view is View.BACK:
        canvas.ellipse((0, HEAD_CENTRE - 0.006), (radius_x + 0.008, radius_y + 0.002), colour)
        if hair is Hair.LONG:
            canvas.rounded((-0.085, 0.06), (0.085, LONG_HAIR_END), colour, radius=0.05)
            canvas.rounded((-0.06, 0.03), (0.06, 0.2), colour, radius=0.05)
        return
    if view.is_side:
        if hair is Hair.LONG:
            canvas.rounded((-0.095, 0.05), (-0.005, LONG_HAIR_END), colour, radius=0.04)
        canvas.polygon(HAIR_OF_A_SIDE, colour)
        return
    canvas.polygon(HAIR_OF_A_FACE, colour)
    if hair is Hair.LONG:
        for side in (-1, 1):
            lock = ((0.06, 0.045), (0.1, 0.08), (0.1, 0.27), (0.064, 0.26))
            canvas.polygon([(side * x, y) for x, y in lock], colour)


def _draw_cap(canvas: Canvas, colour: RGB, view: View) -> None:
    """Draw a round crown, with a peak to where the person looks."""
    right = [(0.04, -0.022), (0.072, 0.012), (0.078, 0.056)]
    canvas.polygon([*((-x, y) for x, y in reversed(right)), *right], colour)
    peak = mark_on(colour, 0.75)
    if view.is_side:
        canvas.polygon([(0.05, 0.036), (0.14, 0.056), (0.14, 0.07), (0.05, 0.06)], peak)
    elif view is View.FRONT:
        canvas.ellipse((0, 0.058), (0.078, 0.018), peak)


def _draw_brimmed(canvas: Canvas, colour: RGB, _view: View) -> None:
    """Draw a tall crown over a wide brim, the same from all sides."""
    canvas.polygon([(-0.066, 0.04), (-0.052, -0.05), (0.052, -0.05), (0.066, 0.04)], colour)
    canvas.ellipse((0, 0.044), (0.135, 0.021), colour)


HATS = {Hat.CAP: _draw_cap, Hat.HAT: _draw_brimmed}
