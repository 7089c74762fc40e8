"""Draw garments, shoes and bare limbs."""

from maskery.people.attributes import Identity, Lower, Upper
from maskery.people.body import ANKLE, HIP, KNEE, NECK, SHOULDER, SOLE, WAIST, Body, Limb
from maskery.people.canvas import RGB, Canvas, Point, is_light, mark_on, shade
from maskery.people.palette import DARK_CLOTH, PAINTS, PALE_CLOTH, SKIN_PAINTS
from maskery.people.scene import View

ARM_WIDTH, SLEEVE_WIDTH, LEG_WIDTH, TROUSER_WIDTH = 0.046, 0.066, 0.062, 0.09
HEMS = {
    Upper.SHIRT: 0.55,
    Upper.SWEATER: 0.56,
    Upper.JACKET: 0.55,
    Upper.COAT: 0.65,
    Upper.VEST: 0.55,
    Upper.DRESS: 0.73,
}


def between(start: Point, stop: Point, share: float) -> Point:
    """Return the point that lies `share` of the way from `start` to `stop`."""
    return start[0] + (stop[0] - start[0]) * share, start[1] + (stop[1] - start[1]) * share


def draw_legs(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw legs, shoes and the lower garment."""
    skin = SKIN_PAINTS[identity.skin]
    cloth = PAINTS[identity.lower_colour]
    for index, leg in enumerate(body.legs):
        far = view.is_side and index == 0
        if identity.outfit.lower is Lower.TROUSERS:
            colour = shade(cloth, 0.86) if far else cloth
            hem = between(leg.middle, leg.end, 0.86)
            canvas.limb((leg.root, leg.middle, hem), colour, TROUSER_WIDTH * body.breadth)
        else:
            canvas.limb(leg.points, shade(skin, 0.88) if far else skin, LEG_WIDTH * body.breadth)
        if identity.outfit.lower is Lower.SHORTS:
            knee = between(leg.root, leg.middle, 0.8)
            canvas.limb((leg.root, knee), cloth, 1.12 * TROUSER_WIDTH * body.breadth)
        _draw_shoe(canvas, leg, PAINTS[identity.shoes_colour], view)
    if identity.outfit.lower is Lower.SKIRT:
        reach = max(abs(leg.middle[0]) for leg in body.legs)
        bottom = max(body.hip + 0.045, reach + 0.06)
        _skirt(canvas, body.waist, bottom, WAIST, KNEE + 0.04, cloth)
    elif identity.outfit.lower is not None:
        hip, top, low = body.hip, HIP - 0.04, HIP + 0.03
        seat = [(-hip, top), (hip, top), (hip, low), (0, HIP + 0.055), (-hip, low)]
        canvas.polygon(seat, cloth, outline=False)


def _draw_shoe(canvas: Canvas, leg: Limb, colour: RGB, view: View) -> None:
    x, y = leg.end
    y += SOLE - ANKLE
    if view.is_side:
        canvas.ellipse((x + 0.026, y), (0.066, 0.034), colour)
    else:
        outwards = 0.008 if x > 0 else -0.008
        canvas.ellipse((x + outwards, y), (0.05, 0.038), colour)


def _skirt(
    canvas: Canvas, top: float, bottom: float, waist: float, hem: float, colour: RGB
) -> None:
    """Draw a flared piece with two folds."""
    canvas.polygon([(-top, waist), (top, waist), (bottom, hem), (-bottom, hem)], colour)
    fold = mark_on(colour, 0.78, shade(colour, 1.25))
    for side in (-0.4, 0.4):
        canvas.line([(side * top, waist + 0.09), (side * bottom, hem - 0.012)], fold, 0.01)


def _torso(body: Body, hem: float, bottom: float) -> list[Point]:
    right = [
        (0.042, NECK - 0.008),
        (body.shoulder - 0.012, SHOULDER),
        (body.shoulder, SHOULDER + 0.03),
        (body.waist, WAIST),
        (bottom, hem),
    ]
    return right + [(-x, y) for x, y in reversed(right)]


def draw_upper(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw the upper garment without its sleeves."""
    kind, colour = identity.outfit.upper, PAINTS[identity.upper_colour]
    hem = HEMS[kind]
    if kind is Upper.DRESS:
        _skirt(canvas, body.waist, body.hip + 0.06, WAIST, hem, colour)
        hem = WAIST + 0.02
    bottom = {Upper.COAT: body.hip + 0.03, Upper.DRESS: body.waist}.get(kind, body.hip + 0.008)
    canvas.polygon(_torso(body, hem, bottom), colour)
    DETAILS[kind](canvas, identity, body, view)


def _seam_on(colour: RGB) -> RGB:
    """Return a colour for seams that shows on `colour`."""
    return mark_on(colour, 0.6, (105, 105, 112))


def _stripe_on(colour: RGB) -> RGB:
    """Return a colour for stripes in strong contrast to `colour`."""
    return shade(colour, 0.5) if is_light(colour) else shade(colour, 2.4)


def _shirt(canvas: Canvas, identity: Identity, _body: Body, view: View) -> None:
    """Draw a round neck that shows skin."""
    if view is not View.BACK:
        offset = 0.02 if view.is_side else 0.0
        canvas.ellipse((offset, NECK), (0.036, 0.022), SKIN_PAINTS[identity.skin])


def _sweater(canvas: Canvas, identity: Identity, body: Body, _view: View) -> None:
    """Draw stripes around the chest."""
    stripe = _stripe_on(PAINTS[identity.upper_colour])
    rows = ((0.265, body.shoulder), (0.345, body.shoulder), (0.425, body.waist), (0.505, body.hip))
    for y, half in rows:
        canvas.line([(-0.94 * half, y), (0.94 * half, y)], stripe, 0.02)
    canvas.ellipse((0, NECK), (0.05, 0.02), PAINTS[identity.upper_colour])


def _jacket(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw a garment dark over the shoulders and at the hem, open over a shirt."""
    mark = _seam_on(PAINTS[identity.upper_colour])
    hem, yoke = HEMS[Upper.JACKET], 0.275
    shoulder = body.shoulder - 0.004
    neck, low = NECK - 0.004, yoke - 0.012
    right = [(0.042, neck), (shoulder, SHOULDER + 0.006), (shoulder, low)]
    left = [(-x, y) for x, y in reversed(right)]
    canvas.polygon([*right, (0, yoke), *left], mark, outline=False)
    canvas.line([(-body.hip, hem - 0.018), (body.hip, hem - 0.018)], mark, 0.036)
    if view is View.FRONT:
        opening = [(-0.04, NECK), (0.04, NECK), (0.028, hem), (-0.028, hem)]
        canvas.polygon(opening, _shirt_under(identity))
    canvas.ellipse((0, NECK), (0.058, 0.022), mark, outline=False)


def _coat(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw belt, buttons and a wide collar."""
    mark = _seam_on(PAINTS[identity.upper_colour])
    canvas.line([(-body.waist, WAIST + 0.015), (body.waist, WAIST + 0.015)], mark, 0.03)
    canvas.ellipse((0, NECK + 0.004), (0.066, 0.03), mark, outline=False)
    hem = HEMS[Upper.COAT]
    if view is View.FRONT:
        canvas.line([(0, NECK), (0, hem)], mark, 0.01)
        for y in (0.27, 0.34, 0.5, 0.57):
            canvas.ellipse((0.03, y), (0.013, 0.011), mark, outline=False)
    elif view is View.BACK:
        canvas.line([(0, WAIST), (0, hem)], mark, 0.01)


def _vest(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw a deep neck over the shirt, and a zip in front."""
    mark = _seam_on(PAINTS[identity.upper_colour])
    inner = _shirt_under(identity)
    if view is View.FRONT:
        canvas.polygon([(-0.055, NECK - 0.01), (0.055, NECK - 0.01), (0, 0.31)], inner)
        canvas.line([(0, 0.31), (0, HEMS[Upper.VEST])], mark, 0.012)
    elif view.is_side:
        canvas.polygon([(0.02, NECK - 0.01), (0.06, NECK), (body.shoulder, 0.3)], inner)


def _dress(canvas: Canvas, identity: Identity, body: Body, view: View) -> None:
    """Draw a round neck and the belt."""
    _shirt(canvas, identity, body, view)
    half, top, bottom = body.waist + 0.006, WAIST - 0.022, WAIST + 0.036
    belt = [(-half, top), (half, top), (half, bottom), (-half, bottom)]
    canvas.polygon(belt, PAINTS[identity.lower_colour])


DETAILS = {
    Upper.SHIRT: _shirt,
    Upper.SWEATER: _sweater,
    Upper.JACKET: _jacket,
    Upper.COAT: _coat,
    Upper.VEST: _vest,
    Upper.DRESS: _dress,
}


def _shirt_under(identity: Identity) -> RGB:
    """Draw the shirt under an open garment, in contrast to it."""
    return DARK_CLOTH if is_light(PAINTS[identity.upper_colour]) else PALE_CLOTH


def draw_arm(canvas: Canvas, identity: Identity, arm: Limb, *, far: bool) -> None:
    """Draw one arm with its sleeve."""
    kind, colour = identity.outfit.upper, PAINTS[identity.upper_colour]
    skin = SKIN_PAINTS[identity.skin]
    if far:
        colour, skin = shade(colour, 0.86), shade(skin, 0.88)
    canvas.limb(arm.points, skin, ARM_WIDTH)
    if kind in (Upper.SHIRT, Upper.DRESS):
        canvas.limb((arm.root, between(arm.root, arm.middle, 0.6)), colour, SLEEVE_WIDTH)
        return
    wrist = between(arm.middle, arm.end, 0.82)
    sleeve = _shirt_under(identity) if kind is Upper.VEST else colour
    canvas.limb((arm.root, arm.middle, wrist), sleeve, SLEEVE_WIDTH)
    if kind is Upper.JACKET:
        yoke = between(arm.root, arm.middle, 0.3)
        canvas.limb((arm.root, yoke), _seam_on(colour), SLEEVE_WIDTH)
    elif kind is Upper.SWEATER:
        for start, stop in ((arm.root, arm.middle), (arm.middle, wrist)):
            band = (between(start, stop, 0.42), between(start, stop, 0.58))
            canvas.line(band, _stripe_on(colour), SLEEVE_WIDTH * 0.9)
