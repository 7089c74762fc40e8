"""The looks of drawn people, and the number of each.

People are dealt like cards, so that no two are alike and shares are exact. `OUTFITS` is one deck of
outfits; every run of `len(OUTFITS)` people is one shuffled deck. Inside an outfit the clothing
(colours of upper and lower garment and of the shoes) goes through all combinations, in random
order, before one repeats; then the hair differs. Bags, hats and build are drawn freely on top.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from maskery.core.errors import ConfigError
from maskery.core.random import Stream
from maskery.people.draws import draws, permutation


class Figure(Enum):
    """The outline: a woman's or a man's."""

    MAN = "man"
    WOMAN = "woman"


class Build(Enum):
    """The breadth of the body."""

    SLIM = "slim"
    AVERAGE = "average"
    BROAD = "broad"


class Upper(Enum):
    """The upper garment; a dress covers the lower body as well."""

    SHIRT = "shirt"
    SWEATER = "sweater"
    JACKET = "jacket"
    COAT = "coat"
    VEST = "vest"
    DRESS = "dress"


class Lower(Enum):
    """The lower garment."""

    TROUSERS = "trousers"
    SHORTS = "shorts"
    SKIRT = "skirt"


class Hair(Enum):
    """The length of the hair."""

    SHORT = "short"
    LONG = "long"
    BALD = "bald"


class Bag(Enum):
    """The bag that is carried, if any."""

    BACKPACK = "backpack"
    HANDBAG = "handbag"
    SHOULDER_BAG = "shoulder bag"


class Hat(Enum):
    """The hat, if any."""

    CAP = "cap"
    HAT = "hat"


class Colour(Enum):
    """Colours by the first of their names."""

    BLACK = "black"
    WHITE = "white"
    GREY = "grey"
    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"
    PURPLE = "purple"
    PINK = "pink"
    BROWN = "brown"
    BLONDE = "blonde"


GARMENT_COLOURS = tuple(colour for colour in Colour if colour is not Colour.BLONDE)
# Shoes, bags and hats are small: only colours that a few pixels can tell apart.
SMALL_COLOURS = tuple(map(Colour, ("black", "white", "red", "yellow", "green", "blue")))
HAIR_COLOURS = (Colour.BLACK, Colour.BROWN, Colour.BLONDE, Colour.RED, Colour.GREY)
HAIR_STYLES: dict[Figure, tuple[tuple[Hair, Colour | None], ...]] = {
    figure: tuple((hair, colour) for hair in (Hair.SHORT, Hair.LONG) for colour in HAIR_COLOURS)
    for figure in Figure
}
HAIR_STYLES[Figure.MAN] += ((Hair.BALD, None),)
SKIN_TONES = 4
BAG_SHARE, HAT_SHARE = 0.6, 0.3
MAX_CLOTHINGS = len(GARMENT_COLOURS) ** 2 * len(SMALL_COLOURS)


@dataclass(frozen=True)
class Outfit:
    """The kinds of garment that one part of the people wears."""

    figure: Figure
    upper: Upper
    lower: Lower | None


def _deck() -> tuple[Outfit, ...]:
    tops = (Upper.SHIRT, Upper.SWEATER, Upper.JACKET, Upper.VEST)
    man, woman = Figure.MAN, Figure.WOMAN
    cards = [Outfit(woman, upper, lower) for upper in tops for lower in Lower]
    cards += 2 * [Outfit(woman, Upper.COAT, lower) for lower in (Lower.TROUSERS, Lower.SKIRT)]
    cards += 4 * [Outfit(woman, Upper.DRESS, None)]
    trousers = (Lower.TROUSERS, Lower.SHORTS)
    cards += 2 * [Outfit(man, upper, lower) for upper in tops for lower in trousers]
    cards += 4 * [Outfit(man, Upper.COAT, Lower.TROUSERS)]
    return tuple(cards)


OUTFITS = _deck()
"""The deck: women and men in equal number. A coat would hide shorts, so nobody wears both."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One drawn person."""

    seed: int  # Of the dataset
    number: int  # From 0
    outfit: Outfit
    build: Build
    upper_colour: Colour
    lower_colour: Colour  # Of the lower garment; under a dress, of the belt
    shoes_colour: Colour
    hair: Hair
    hair_colour: Colour | None  # None for the bald
    bag: Bag | None
    bag_colour: Colour | None  # Never that of the upper garment, which would hide the bag
    bag_on_left: bool  # The person's own left hand or hip
    hat: Hat | None
    hat_colour: Colour | None
    skin: int  # Tone, from 0 (light) to `SKIN_TONES` - 1 (dark); never named
    stature: float  # Height relative to the others, about 1

    @property
    def looks(self) -> tuple[object, ...]:
        """Return the looks that never repeat within a dataset: outfit, its colours, and hair."""
        colours = self.upper_colour, self.lower_colour, self.shoes_colour
        return self.outfit, *colours, self.hair, self.hair_colour


def _num_clothings(outfit: Outfit) -> int:
    """Return the number of colourings of an outfit; a belt never has its dress's colour."""
    lower = len(GARMENT_COLOURS) - (outfit.lower is None)
    return len(GARMENT_COLOURS) * lower * len(SMALL_COLOURS)


def max_people() -> int:
    """Return the number of people that can be drawn before two would look alike."""
    return min(
        _num_clothings(outfit) * len(HAIR_STYLES[outfit.figure]) // copies * len(OUTFITS)
        for outfit, copies in Counter(OUTFITS).items()
    )


def _clothing(outfit: Outfit, code: int) -> tuple[Colour, Colour, Colour]:
    """Return the colours of upper garment, lower garment (or belt) and shoes of a colouring."""
    rest, shoes = divmod(code, len(SMALL_COLOURS))
    lower, upper = divmod(rest, len(GARMENT_COLOURS))
    if outfit.lower is None:
        lower = (upper + 1 + lower) % len(GARMENT_COLOURS)
    return GARMENT_COLOURS[upper], GARMENT_COLOURS[lower], SMALL_COLOURS[shoes]


def _deal(seed: int, number: int) -> tuple[Outfit, int, tuple[Hair, Colour | None]]:
    """Return the outfit, colouring and hair of person `number`."""
    deck, place = divmod(number, len(OUTFITS))
    card = int(permutation(seed, Stream.ORDER, deck, len(OUTFITS))[place])
    outfit = OUTFITS[card]
    copies = [i for i, other in enumerate(OUTFITS) if other == outfit]
    round_, step = divmod(deck * len(copies) + copies.index(card), _num_clothings(outfit))
    order = permutation(seed, Stream.SELECT, copies[0], _num_clothings(outfit))
    code = int(order[step])
    # Each time a clothing comes round again, its wearer has the next style of hair.
    styles = HAIR_STYLES[outfit.figure]
    first = draws(seed, Stream.SPAN, copies[0] * MAX_CLOTHINGS + code).integer(len(styles))
    return outfit, code, styles[(first + round_) % len(styles)]


@lru_cache(maxsize=64)
def identity_at(seed: int, number: int) -> Identity:
    """Return person `number` of the dataset with this seed.

    Raises:
        ConfigError: `number` is negative, or so large that two people would look alike.
    """
    if not 0 <= number < max_people():
        raise ConfigError(
            f"person {number} does not exist: at most {max_people()} people look different; "
            f"draw fewer"
        )
    outfit, code, (hair, hair_colour) = _deal(seed, number)
    upper_colour, lower_colour, shoes_colour = _clothing(outfit, code)
    draw = draws(seed, Stream.SAMPLE, number)
    bag = draw.choice(tuple(Bag)) if draw.chance(BAG_SHARE) else None
    hat = draw.choice(tuple(Hat)) if draw.chance(HAT_SHARE) else None
    bag_colour = draw.choice([c for c in SMALL_COLOURS if c is not upper_colour])
    hat_colour = draw.choice(SMALL_COLOURS)
    return Identity(
        seed=seed,
        number=number,
        outfit=outfit,
        build=draw.choice(tuple(Build)),
        upper_colour=upper_colour,
        lower_colour=lower_colour,
        shoes_colour=shoes_colour,
        hair=hair,
        hair_colour=hair_colour,
        bag=bag,
        bag_colour=bag_colour if bag else None,
        bag_on_left=draw.chance(0.5),
        hat=hat,
        hat_colour=hat_colour if hat else None,
        skin=draw.integer(SKIN_TONES),
        stature=draw.uniform(0.94, 1.0),
    )
