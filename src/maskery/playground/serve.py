"""Serve the playground on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from maskery.core.errors import ConfigError
from maskery.core.ranges import Range, check_ranges
from maskery.core.registry import require
from maskery.playground.connections import BACKLOG, connection_kind

if TYPE_CHECKING:
    from maskery.playground.session import Session

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class PlaygroundConfig:
    """A local web page to try a model on: it answers this machine alone."""

    port: Annotated[int, Range(0, 65_535)] = 8765
    """The port of the page, on 127.0.0.1; 0 for any free port."""

    def __post_init__(self) -> None:
        check_ranges(self)


def serve(session: Session, config: PlaygroundConfig, ready: Callable[[str], object]) -> None:
    """Serve until interrupted; `ready` is called with the address once it is known.

    Raises:
        ConfigError: The port is taken.
        MissingExtraError: uvicorn or starlette is not installed.
    """
    listener = listen(config.port)
    server = make_server(session)
    ready(f"http://{HOST}:{listener.getsockname()[1]}/")
    server.run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """Return a listening socket on 127.0.0.1."""
    try:
        return socket.create_server((HOST, port), backlog=64)
    except OSError as error:
        raise ConfigError(
            f"port {port} cannot be used ({os.strerror(error.errno or 0)}); name another with "
            f"--port, or 0 for any"
        ) from error


def make_server(session: Session) -> Any:
    """Return a uvicorn server with tight limits."""
    from maskery.playground.app import make_app

    uvicorn = require("uvicorn", extra="playground", purpose="serve the playground")
    return uvicorn.Server(
        uvicorn.Config(
            make_app(session),
            http=connection_kind(),
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
