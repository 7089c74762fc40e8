"""Captions of drawn people: a small grammar with synonyms.

A caption names upper and lower garment with their colours, and some of what else the picture shows;
never anything that the picture hides, and never left or right, so that pictures may be mirrored.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from maskery.core.random import Stream
from maskery.people.attributes import Bag, Build, Colour, Figure, Hat, Identity, Lower, Upper
from maskery.people.draws import Draws, draw_rows
from maskery.people.scene import Scene, View, scene_of, visible

COLOUR_NAMES: dict[Colour, tuple[str, ...]] = {colour: (colour.value,) for colour in Colour} | {
    Colour.GREY: ("grey", "gray"),
    Colour.PURPLE: ("purple", "violet"),
    Colour.BLONDE: ("blonde", "blond"),
}
UPPER_NAMES: dict[Upper, tuple[str, ...]] = {kind: (kind.value,) for kind in Upper} | {
    Upper.SHIRT: ("shirt", "top", "tee"),
    Upper.SWEATER: ("sweater", "jumper"),
    Upper.DRESS: ("dress", "gown"),
}
LOWER_NAMES: dict[Lower, tuple[str, ...]] = {
    Lower.TROUSERS: ("trousers", "pants", "slacks"),
    Lower.SHORTS: ("shorts",),
    Lower.SKIRT: ("skirt",),
}
SHOE_NAMES = ("shoes", "sneakers")
BELT_NAMES = ("belt", "sash")
HAT_NAMES = {kind: (kind.value,) for kind in Hat}
BAG_NAMES = {
    Bag.BACKPACK: ("backpack", "rucksack"),
    Bag.HANDBAG: ("handbag", "purse"),
    Bag.SHOULDER_BAG: ("shoulder bag", "satchel"),
}
FIGURE_NAMES = {
    Figure.MAN: ("man", "guy", "gentleman", "person"),
    Figure.WOMAN: ("woman", "lady", "girl", "person"),
}
BUILD_NAMES = {Build.SLIM: ("slim", "thin"), Build.AVERAGE: (), Build.BROAD: ("broad", "stout")}
VIEW_PHRASES = {
    View.FRONT: ("facing the camera", "seen from the front"),
    View.BACK: ("seen from behind", "facing away"),
    View.LEFT: ("seen from the side", "in profile"),
    View.RIGHT: ("seen from the side", "in profile"),
}
EXTRA_SHARE = 0.7  # Of the captions, that name each thing beyond the two garments
FIRST_NAME_SHARE = 0.6  # The probability of the first of several synonyms


def _synonyms(groups: Iterable[tuple[str, ...]]) -> dict[str, frozenset[str]]:
    # Of a name of two words, the last is the noun: "shoulder bag" is a bag.
    sets = [frozenset(name.split()[-1] for name in group) for group in groups]
    return {word: group for group in sets for word in group}


_COLOURS = _synonyms(COLOUR_NAMES.values())
_GARMENTS = _synonyms(
    [*UPPER_NAMES.values(), *LOWER_NAMES.values(), *HAT_NAMES.values(), SHOE_NAMES, BELT_NAMES]
)
_BAGS = _synonyms(BAG_NAMES.values())
# All words, in lower case: for colours of garments, bags, hats and hair; for things that are worn;
# for bags. Then for each of them the words that name the same thing, itself among them.
COLOUR_WORDS, GARMENT_WORDS, BAG_WORDS = map(frozenset[str], (_COLOURS, _GARMENTS, _BAGS))
SYNONYMS = _COLOURS | _GARMENTS | _BAGS


@dataclass(frozen=True, kw_only=True)
class _Phrases:
    """The parts that a caption is put together from."""

    noun: str  # "slim woman"
    pronoun: str  # "she"
    possessive: str  # "her"
    upper: tuple[str, str]  # Colour and noun
    lower: tuple[str, str]  # The same of the lower garment or the belt
    belted: bool  # True if `lower` is a belt
    worn: tuple[str, ...]  # Further things worn, as noun phrases with article
    hair: str  # "long brown hair", or empty
    bag: str  # Noun phrase with article, or empty
    view: str  # "seen from behind", or empty
    pose: str  # "walking"


def _name(draw: Draws, names: tuple[str, ...]) -> str:
    """Return one of several synonyms; always takes two random words."""
    first, other = draw.chance(FIRST_NAME_SHARE), draw.choice(names[1:] or names)
    return names[0] if first else other


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _one(colour: str, noun: str, *, pair: bool) -> str:
    """Return the noun phrase with its article: "a red coat", "(a pair of) blue shorts"."""
    if noun.endswith("s") and noun != "dress":
        return f"a pair of {colour} {noun}" if pair else f"{colour} {noun}"
    return _article(f"{colour} {noun}")


def _list(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _phrases(identity: Identity, scene: Scene, draw: Draws) -> _Phrases:
    outfit, seen = identity.outfit, visible(identity, scene)

    def colour(of: Colour) -> str:
        return _name(draw, COLOUR_NAMES[of])

    upper = colour(identity.upper_colour), _name(draw, UPPER_NAMES[outfit.upper])
    lower_names = LOWER_NAMES[outfit.lower] if outfit.lower else BELT_NAMES
    lower = colour(identity.lower_colour), _name(draw, lower_names)
    worn, hair, bag = [], "", ""
    if seen.shoes and draw.chance(EXTRA_SHARE):
        shoes = _name(draw, SHOE_NAMES)
        worn.append(_one(colour(identity.shoes_colour), shoes, pair=draw.chance(0.2)))
    if identity.hat and identity.hat_colour and draw.chance(EXTRA_SHARE):
        hat = _name(draw, HAT_NAMES[identity.hat])
        worn.append(_one(colour(identity.hat_colour), hat, pair=False))
    if seen.hair and draw.chance(EXTRA_SHARE):
        hair = "a bald head"
        if identity.hair_colour:
            hair = f"{identity.hair.value} {colour(identity.hair_colour)} hair"
    if seen.bag and identity.bag and identity.bag_colour and draw.chance(EXTRA_SHARE):
        name = _name(draw, BAG_NAMES[identity.bag])
        bag = _one(colour(identity.bag_colour), name, pair=False)
    noun = _name(draw, FIGURE_NAMES[outfit.figure])
    build = BUILD_NAMES[identity.build]
    if build and draw.chance(0.25):
        noun = f"{_name(draw, build)} {noun}"
    view = draw.choice(VIEW_PHRASES[scene.view]) if draw.chance(0.3) else ""
    woman = outfit.figure is Figure.WOMAN
    return _Phrases(
        noun=noun,
        pronoun="she" if woman else "he",
        possessive="her" if woman else "his",
        upper=upper,
        lower=lower,
        belted=outfit.lower is None,
        worn=tuple(worn),
        hair=hair,
        bag=bag,
        view=view,
        pose=scene.pose.value,
    )


def _carried(phrases: _Phrases, draw: Draws) -> str:
    """Return a sentence about the bag, or nothing."""
    verb = draw.choice(("carries", "has", "is carrying"))
    return f"{phrases.pronoun} {verb} {phrases.bag}." if phrases.bag else ""


def _clothes(phrases: _Phrases, draw: Draws) -> list[str]:
    """Return the two garments and the other things worn, each with its article."""
    pair = draw.chance(0.2)
    upper = _one(*phrases.upper, pair=False)
    lower = _one(*phrases.lower, pair=pair)
    garments = [f"{upper} with {lower}"] if phrases.belted else [upper, lower]
    return garments + list(phrases.worn)


def _wears(phrases: _Phrases, draw: Draws) -> list[str]:
    """Write: A woman with long hair wears a red coat, blue trousers and white shoes."""
    hair = f" with {phrases.hair}" if phrases.hair else ""
    view = f", {phrases.view}," if phrases.view else ""
    verb = draw.choice(("wears", "is wearing", "is dressed in"))
    first = f"{_article(phrases.noun)}{hair}{view} {verb} {_list(_clothes(phrases, draw))}."
    return [first, _carried(phrases, draw)]


def _doing(phrases: _Phrases, draw: Draws) -> list[str]:
    """Write: The man is walking in a red coat and blue trousers. He has short hair."""
    opening = f"{phrases.view}, " if phrases.view else ""
    which = draw.choice(("the", "this"))
    clothes = _list(_clothes(phrases, draw))
    sentences = [f"{opening}{which} {phrases.noun} is {phrases.pose} in {clothes}."]
    has = [part for part in (phrases.hair, phrases.bag) if part]
    return [*sentences, f"{phrases.pronoun} has {_list(has)}." if has else ""]


def _wearing(phrases: _Phrases, draw: Draws) -> list[str]:
    """Write: Wearing a red coat and blue trousers, a man carries a green bag. ..."""
    subject = _article(phrases.noun)
    view = f" {phrases.view}" if phrases.view else ""
    clothes = _list(_clothes(phrases, draw))
    doing = f"carries {phrases.bag}" if phrases.bag else f"is {phrases.pose}"
    hair = f"{phrases.pronoun} has {phrases.hair}." if phrases.hair else ""
    return [f"wearing {clothes}, {subject}{view} {doing}.", hair]


def _told(phrases: _Phrases, draw: Draws) -> list[str]:
    """Write: The coat of the man is red and his trousers are blue."""
    colour, upper = phrases.upper
    lower_colour, lower = phrases.lower
    verb = "are" if lower.endswith("s") else "is"
    sentences = [
        f"the {upper} of the {phrases.noun} is {colour} "
        f"and {phrases.possessive} {lower} {verb} {lower_colour}."
    ]
    rest = [*([phrases.hair] if phrases.hair else []), *phrases.worn]
    sentences.append(f"{phrases.pronoun} has {_list(rest)}." if rest else "")
    return [*sentences, _carried(phrases, draw)]


def _picture(phrases: _Phrases, draw: Draws) -> list[str]:
    """Write: A picture of a woman in a red coat and blue trousers, with long hair."""
    view = f" {phrases.view}" if phrases.view else ""
    opening = draw.choice(("a picture of", "there is", "we see"))
    clothes = _list(_clothes(phrases, draw))
    has = [part for part in (phrases.hair, phrases.bag) if part]
    tail = f", with {_list(has)}" if has else ""
    return [f"{opening} {_article(phrases.noun)}{view} in {clothes}{tail}."]


Shape: TypeAlias = Callable[[_Phrases, Draws], list[str]]  # Returns the sentences of a caption
SHAPES: tuple[Shape, ...] = (_wears, _doing, _wearing, _told, _picture)


def captions_of(identity: Identity, image_index: int, count: int = 2) -> tuple[str, ...]:
    """Return captions of picture `image_index` of a person, each of another sentence shape.

    Args:
        identity: From `identity_at`.
        image_index: From 0.
        count: How many, at most `len(SHAPES)`.

    Returns:
        English sentences that begin with a capital letter and end with a full stop.
    """
    if not 1 <= count <= len(SHAPES):
        raise ValueError(f"count is {count}: it must be from 1 to {len(SHAPES)}")
    scene = scene_of(identity, image_index)
    # Identities have numbers below 2**32; the caption's number, from 1, stands above.
    numbers = [caption << 32 | identity.number for caption in range(count + 1)]
    order, *rows = draw_rows(identity.seed, Stream.CAPTION, numbers, image_index)
    shapes = order.shuffled(SHAPES)[:count]
    return tuple(
        _caption(identity, scene, shape, draw) for shape, draw in zip(shapes, rows, strict=True)
    )


def _caption(identity: Identity, scene: Scene, shape: Shape, draw: Draws) -> str:
    sentences = shape(_phrases(identity, scene, draw), draw)
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences if sentence)
