"""One model call at a time, a few that wait, and nobody for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from maskery.playground.config import QUEUE, SECONDS
from maskery.playground.requests import RequestError

ResultT = TypeVar("ResultT")


class Worker:
    """Runs functions one after the other in a thread of its own.

    Args:
        queue: How many may wait.
        seconds: How long one may take, its waiting included.
    """

    def __init__(self, *, queue: int = QUEUE, seconds: float = SECONDS) -> None:
        self.queue, self.seconds = queue, seconds
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="maskery-model")
        self._pending = 0

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Wait for a turn and for the result.

        Raises:
            RequestError: Too many wait already (503), or it took too long (504).
        """
        if self._pending > self.queue:
            raise RequestError("too many requests wait already; try again in a moment", 503)
        self._pending += 1
        loop = asyncio.get_running_loop()

        def leave(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(self._done)

        future = self._executor.submit(function)
        # A call that runs cannot be stopped: its place is free only when it is done.
        future.add_done_callback(leave)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
        except TimeoutError as error:
            raise RequestError(
                f"the answer took longer than {self.seconds:g} s; shorten the text", 504
            ) from error

    def close(self) -> None:
        """Drop what waits and let the last call end."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _done(self) -> None:
        self._pending -= 1
