"""Prepare the next step in a thread while the current one is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
# Seconds to wait for the thread at the end; it may hang in a read that never returns.
PATIENCE = 5.0


class Prefetch(Generic[ItemT]):
    """Iterates over `items` one ahead, in a thread.

    An exception of the thread is raised where the item would have come, with a note of where it
    came from. Use as a context manager, so that the thread ends with the loop.

    Args:
        items: Prepared one after another in the thread.
        depth: How many prepared items may wait to be taken.
        gives_up: Called about once a second while an item is waited for; True ends the iteration.
    """

    def __init__(
        self,
        items: Iterator[ItemT],
        depth: int = 2,
        *,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._items, self._gives_up = items, gives_up
        self._queue: queue.Queue[tuple[ItemT | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Iterator[ItemT]:
        self._thread.start()
        return self._take()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        # A thread that still waits, as for a server that does not answer, is left behind.
        self._thread.join(PATIENCE)

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:
            error.add_note("raised in the thread that prepares the next steps")
            self._put((None, error))

    def _put(self, entry: tuple[ItemT | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _take(self) -> Iterator[ItemT]:
        while True:
            try:
                item, error = self._queue.get(timeout=1.0)
            except queue.Empty:
                # It puts a last entry whatever happens, unless the interpreter is going down.
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError(
                        "the thread that prepares the next steps has died without a word"
                    ) from None
                if self._gives_up():
                    return
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
