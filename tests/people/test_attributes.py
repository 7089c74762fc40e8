from __future__ import annotations

from collections import Counter

import pytest

from maskery.core.errors import ConfigError
from maskery.people.attributes import (
    BAG_SHARE,
    GARMENT_COLOURS,
    HAT_SHARE,
    OUTFITS,
    Bag,
    Figure,
    Hair,
    Identity,
    Lower,
    Upper,
    identity_at,
    max_people,
)


@pytest.fixture(scope="module")
def people() -> list[Identity]:
    return [identity_at(5, number) for number in range(100 * len(OUTFITS))]


def test_no_two_people_look_alike(people: list[Identity]) -> None:
    assert len({person.looks for person in people}) == len(people)


def test_no_two_people_look_alike_when_clothings_come_round_again() -> None:
    # A dress has 660 colourings and is dealt four times a deck: round two starts at deck 165.
    people = [identity_at(0, number) for number in range(190 * len(OUTFITS))]
    clothings = {person.looks[:4] for person in people}
    assert len(clothings) < len(people), "the test must reach a second round"
    assert len({person.looks for person in people}) == len(people)


def test_clothing_alone_tells_the_first_people_apart() -> None:
    people = [identity_at(1, number) for number in range(100 * len(OUTFITS))]
    assert len({person.looks[:4] for person in people}) == len(people)


def test_every_deck_deals_each_outfit_in_its_number(people: list[Identity]) -> None:
    for start in range(0, len(people), len(OUTFITS)):
        deck = Counter(person.outfit for person in people[start : start + len(OUTFITS)])
        assert deck == Counter(OUTFITS)


def test_decks_are_shuffled(people: list[Identity]) -> None:
    size = len(OUTFITS)
    assert [p.outfit for p in people[:size]] != [p.outfit for p in people[size : 2 * size]]


def test_half_are_women(people: list[Identity]) -> None:
    women = sum(person.outfit.figure is Figure.WOMAN for person in people)
    assert women == len(people) / 2


@pytest.mark.parametrize("attribute", ["upper_colour", "lower_colour"])
def test_garment_colours_are_equally_frequent(people: list[Identity], attribute: str) -> None:
    counts = Counter(getattr(person, attribute) for person in people)
    assert set(counts) == set(GARMENT_COLOURS)
    expected = len(people) / len(GARMENT_COLOURS)
    # Chi-squared with 10 degrees of freedom is above 29.6 once in a thousand.
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 29.6


def test_upper_and_lower_colours_are_independent(people: list[Identity]) -> None:
    two_piece = [person for person in people if person.outfit.lower]
    pairs = Counter((person.upper_colour, person.lower_colour) for person in two_piece)
    expected = len(two_piece) / len(GARMENT_COLOURS) ** 2
    # 100 degrees of freedom (the margins are nearly fixed): 149.4 once in a thousand.
    assert sum((pairs[a, b] - expected) ** 2 / expected for a in GARMENT_COLOURS
               for b in GARMENT_COLOURS) < 160  # fmt: skip


def test_bags_and_hats_have_their_shares(people: list[Identity]) -> None:
    bags = Counter(person.bag for person in people)
    hats = sum(person.hat is not None for person in people)
    # Four standard deviations of a binomial of 4,000.
    assert abs(bags[None] / len(people) - (1 - BAG_SHARE)) < 0.032
    assert abs(hats / len(people) - HAT_SHARE) < 0.03
    for bag in Bag:
        assert abs(bags[bag] / len(people) - BAG_SHARE / 3) < 0.027


def test_attributes_fit_together(people: list[Identity]) -> None:
    for person in people:
        upper, lower = person.outfit.upper, person.outfit.lower
        assert (upper is Upper.DRESS) == (lower is None)
        if lower is None:
            assert person.lower_colour is not person.upper_colour, "a belt must show"
        assert not (upper is Upper.COAT and lower is Lower.SHORTS)
        assert (person.hair is Hair.BALD) == (person.hair_colour is None)
        assert (person.bag is None) == (person.bag_colour is None)
        assert (person.hat is None) == (person.hat_colour is None)
        assert person.bag is None or person.bag_colour is not person.upper_colour


def test_people_depend_on_seed_and_number_alone() -> None:
    later = identity_at(3, 77)
    identity_at.cache_clear()
    assert identity_at(3, 77) == later
    assert identity_at(4, 77).looks != later.looks


def test_hair_is_not_bound_to_clothing_across_seeds() -> None:
    by_clothing: dict[tuple[object, ...], set[tuple[object, ...]]] = {}
    for seed in range(3):
        for number in range(1000):
            looks = identity_at(seed, number).looks
            by_clothing.setdefault(looks[:4], set()).add(looks[4:])
    repeated = [hair for hair in by_clothing.values() if len(hair) > 1]
    assert len(repeated) > 10


@pytest.mark.parametrize("number", [-1, max_people()])
def test_numbers_outside_are_refused(number: int) -> None:
    with pytest.raises(ConfigError, match=f"person {number} does not exist"):
        identity_at(0, number)


def test_the_last_person_exists() -> None:
    assert identity_at(0, max_people() - 1).number == max_people() - 1
