"""Serve the playground on this machine, and let no client lock others out.

A connection waits for its client while a request has not arrived whole, or an answer is not taken;
whoever keeps the server waiting is let go.
"""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from maskery.core.errors import ConfigError
from maskery.core.registry import require
from maskery.playground.app import make_app
from maskery.playground.session import Session

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:
    H11Protocol = object  # uvicorn is optional: `make_server` names it as the second parent

# Seconds for a whole request, from the opening or from the last answer, and to take an answer in.
# More than `BODY_SECONDS` of the application, which says what is late.
PATIENCE = 20.0
# Above this the longest wait ends, at the address with the most connections. Far below the 1,024
# files that a process may open by default.
CONNECTIONS = 256
# Connections taken in at once. A few such crowds fit into `CONNECTIONS`, so that the request of
# whoever came with them is read before others push him out.
BACKLOG = 64
HOST = "127.0.0.1"  # not 0.0.0.0: nothing is served to a network


class Impatient(H11Protocol):
    """A connection of uvicorn that ends when its client keeps it waiting."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait, and let others go if there are too many."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._watch()
        open_now: set[Any] = self.connections
        by_address = Counter(one.address for one in open_now)
        while len(open_now) > CONNECTIONS:
            waiting = [one for one in open_now if one._waits is not None]
            longest = max(waiting, key=lambda one: (by_address[one.address], -one._waits.when()))
            by_address[longest.address] -= 1
            longest.drop()

    def drop(self) -> None:
        """End the connection, whatever is still to be sent."""
        self.connections.discard(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Answer requests that have arrived."""
        before = self.cycle
        super().handle_events()
        self._watch(again=self.cycle is not before)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request; one that was sent before its turn ends it all."""
        # No browser does that, and a few clients with hundreds each would keep others waiting.
        if self.conn.trailing_data[0]:
            self.transport.close()
        super().on_response_complete()
        self._watch(again=True)

    def pause_writing(self) -> None:
        """Begin to wait until the answer is taken."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Go on; the answer was taken."""
        super().resume_writing()
        self._watch()

    def _watch(self, *, again: bool = False) -> None:
        """Wait for the client, from now on if `again`; stop where it waits for us."""
        cycle = self.cycle
        ours = cycle is not None and not cycle.response_complete and not cycle.more_body
        ours = ours and not self.flow.write_paused
        if again or ours:
            self._stop()
        if self._waits is None and not ours:
            self._waits = self.loop.call_later(PATIENCE, self.drop)

    def _stop(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None


def serve(session: Session, port: int, ready: Callable[[str], object]) -> None:
    """Serve until interrupted; `ready` is called with the address once it is known."""
    listener = listen(port)
    server = make_server(session)
    ready(f"http://{HOST}:{listener.getsockname()[1]}/")
    server.run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """Return a listening socket on 127.0.0.1."""
    try:
        return socket.create_server((HOST, port), backlog=64)
    except OSError as error:
        problem = f"port {port} cannot be used ({os.strerror(error.errno or 0)})"
        raise ConfigError(f"{problem}; name another with --port, or 0 for any") from error


def make_server(session: Session) -> Any:
    """Return a uvicorn server with tight limits."""
    uvicorn = require("uvicorn", extra="playground", purpose="serve the playground")
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return uvicorn.Server(
        uvicorn.Config(
            make_app(session),
            http=type("Connection", (Impatient, H11Protocol), {}),
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=16 * 1024,
        )
    )
