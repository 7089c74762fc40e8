from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from maskery.training.stepper import Prefetch


def prefetching() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_come_in_order() -> None:
    with Prefetch(iter(range(50))) as items:
        assert list(items) == list(range(50))
    assert prefetching() == 0


def test_no_items() -> None:
    with Prefetch(iter([])) as items:
        assert list(items) == []


def test_items_are_made_ahead_in_another_thread_and_not_without_bound() -> None:
    made: list[int] = []
    threads: set[int] = set()
    third = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            threads.add(threading.get_ident())
            if number == 2:
                third.set()
            yield number

    with Prefetch(numbers()) as items:
        assert next(items) == 0
        assert third.wait(10)
        # One taken, two waiting, one in hand.
        assert len(made) <= 4
    assert threading.get_ident() not in threads


def test_an_exception_comes_where_its_item_would() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third cannot be made")

    seen: list[int] = []

    def read() -> None:
        with Prefetch(numbers()) as items:
            seen.extend(items)

    with pytest.raises(ValueError, match=r"the third cannot be made") as caught:
        read()
    assert seen == [1, 2]
    # Where it was raised is still to be seen.
    assert any(entry.name == "numbers" for entry in caught.traceback)
    assert prefetching() == 0


def test_whoever_waits_may_give_up() -> None:
    released = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        released.wait()
        yield 2

    def give_up() -> bool:
        released.set()
        return True

    with Prefetch(numbers(), gives_up=give_up) as items:
        assert list(items) == [1]
    assert prefetching() == 0


def test_leaving_early_ends_the_thread() -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    with Prefetch(endless()) as items:
        for item in items:
            if item == 3:
                break
    assert prefetching() == 0


def test_an_exception_of_the_loop_ends_the_thread_and_is_kept() -> None:
    def loop() -> None:
        with Prefetch(iter(range(1000))) as items:
            for item in items:
                if item == 1:
                    raise KeyError("loop")

    with pytest.raises(KeyError, match=r"loop"):
        loop()
    assert prefetching() == 0
