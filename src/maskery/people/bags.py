"""Draw bags."""

from maskery.people.attributes import Bag, Identity
from maskery.people.body import SHOULDER, Body
from maskery.people.canvas import RGB, Canvas, mark_on
from maskery.people.palette import PAINTS
from maskery.people.scene import View


def _strap(colour: RGB) -> RGB:
    return mark_on(colour, 0.7, (84, 84, 90))


def draw_bag_behind(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw the part of a bag behind the body: a backpack in profile."""
    if identity.bag is Bag.BACKPACK and identity.bag_colour and view.is_side:
        colour = PAINTS[identity.bag_colour]
        back = -body.shoulder
        canvas.rounded((back - 0.105, 0.215), (back + 0.03, 0.47), colour, radius=0.05)
        canvas.rounded((back - 0.125, 0.34), (back - 0.04, 0.45), colour, radius=0.03)


def draw_bag_before(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw the part before the body: straps, bags in hand or at the hip, a backpack from behind."""
    if identity.bag is None or identity.bag_colour is None:
        return
    colour = PAINTS[identity.bag_colour]
    if identity.bag is Bag.BACKPACK:
        _draw_backpack(canvas, body, colour, view)
    elif not view.is_side or body.bag_side > 0:
        if identity.bag is Bag.HANDBAG:
            _draw_handbag(canvas, body, colour)
        else:
            _draw_shoulder_bag(canvas, body, colour, view)


def _draw_backpack(canvas: Canvas, body: Body, colour: RGB, view: View) -> None:
    if view is View.BACK:
        half = 0.8 * body.shoulder
        canvas.rounded((-half, 0.215), (half, 0.48), colour, radius=0.04)
        canvas.rounded((-0.7 * half, 0.36), (0.7 * half, 0.455), colour, radius=0.02)
        canvas.line([(-half, 0.3), (half, 0.3)], _strap(colour), 0.012)
    elif view is View.FRONT:
        for side in (-1, 1):
            x = side * 0.64 * body.shoulder
            canvas.line([(x, SHOULDER - 0.005), (x, 0.38)], colour, 0.024)
    else:
        canvas.line([(-0.02, SHOULDER), (0.03, 0.29), (-0.03, 0.4)], colour, 0.022)


def _draw_handbag(canvas: Canvas, body: Body, colour: RGB) -> None:
    x, y = body.bag_arm.end
    strap = _strap(colour)
    canvas.line([(x - 0.035, y + 0.075), (x, y), (x + 0.035, y + 0.075)], strap, 0.014)
    top, bottom = y + 0.06, y + 0.165
    corners = [(x - 0.05, top), (x + 0.05, top), (x + 0.065, bottom), (x - 0.065, bottom)]
    canvas.polygon(corners, colour)


def _draw_shoulder_bag(canvas: Canvas, body: Body, colour: RGB, view: View) -> None:
    strap = _strap(colour)
    if view.is_side:
        canvas.line([(-0.01, SHOULDER), (-0.01, 0.46)], strap, 0.016)
        canvas.rounded((-0.085, 0.45), (0.065, 0.575), colour, radius=0.02)
        canvas.line([(-0.085, 0.5), (0.065, 0.5)], strap, 0.012)
        return
    side = body.bag_side
    hip = side * (body.hip - 0.01)
    canvas.line([(-side * 0.7 * body.shoulder, SHOULDER), (hip, 0.47)], strap, 0.018)
    canvas.rounded((hip - side * 0.055, 0.45), (hip + side * 0.085, 0.585), colour, radius=0.02)
    canvas.line([(hip - side * 0.05, 0.5), (hip + side * 0.08, 0.5)], strap, 0.012)
