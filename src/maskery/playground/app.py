"""Serve the page's own files and the JSON API, for this machine alone.

Files are read once, when the application is made, from a fixed list: no path of a request is ever
looked up on the disk. Every request is checked for who sent it and how much, one model call runs at
a time, and every answer tells the browser what to refuse. A connection waits for its client while
a request has not arrived whole, or an answer is not taken; whoever keeps the server waiting is let
go, so that no client locks others out.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from maskery.core.errors import ConfigError, MaskeryError
from maskery.core.registry import require
from maskery.playground.requests import BODY_BYTES, PICTURE_BYTES, SCHEMAS, RequestError, parse
from maskery.playground.session import Session

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:
    H11Protocol = object  # uvicorn is optional: `make_server` names it as the second parent

log = logging.getLogger(__name__)

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Everything the page needs comes from its own address; pictures may also be in memory.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
BODY_SECONDS = 15.0  # of a body from this machine; who takes longer holds a connection for nothing
LOCAL_NAMES = ("127.0.0.1", "localhost")  # a page of this machine asks by no other name
# Requests that wait while one is computed, and the seconds that one may take. Forty pages that ask
# without a pause must not turn others away: each fill takes some hundredths of a second.
QUEUE = 64
SECONDS = 30.0
# Seconds for a whole request, from the opening or from the last answer, and to take an answer in.
# More than `BODY_SECONDS`, which says what is late.
PATIENCE = 20.0
# Above this the longest wait ends, at the address with the most connections. Far below the 1,024
# files that a process may open by default.
CONNECTIONS = 256
# Connections taken in at once. A few such crowds fit into `CONNECTIONS`, so that the request of
# whoever came with them is read before others push him out.
BACKLOG = 64
HOST = "127.0.0.1"  # not 0.0.0.0: nothing is served to a network

ResultT = TypeVar("ResultT")
Content = dict[str, Any] | tuple[bytes, str]  # JSON, or bytes and their content type


def make_app(session: Session) -> Starlette:
    """Make the application of some models."""
    require("starlette", extra="playground", purpose="serve the playground")
    from starlette.applications import Starlette
    from starlette.routing import Route

    worker = Worker()

    def route(method: str, path: str, answer: Callable[[Request], Awaitable[Content]]) -> Route:
        async def handle(request: Request) -> Response:
            check_host(request)
            return respond(await answer(request))

        return Route(path, handle, methods=[method])

    async def info(_request: Request) -> Content:
        return session.info()

    async def ask(request: Request, name: str) -> Content:
        values = parse(await read_body(request, BODY_BYTES, "application/json"), SCHEMAS[name])
        return await while_there(request, worker.run(lambda: getattr(session, name)(values)))

    async def picture(request: Request) -> Content:
        data = await read_body(request, PICTURE_BYTES, "image/")
        return await while_there(request, worker.run(lambda: session.add_picture(data)))

    async def thumbnail(request: Request) -> Content:
        name = request.path_params["name"]
        found = worker.run(lambda: session.thumbnail(name))
        return await while_there(request, found), "image/jpeg"

    async def file(_request: Request, content: Content) -> Content:
        return content

    return Starlette(
        routes=[
            route("GET", "/api/info", info),
            *(route("POST", f"/api/{name}", partial(ask, name=name)) for name in SCHEMAS),
            route("PUT", "/api/picture", picture),
            route("GET", "/api/thumbnail/{name}", thumbnail),
            *(route("GET", path, partial(file, content=c)) for path, c in page_files().items()),
        ],
        exception_handlers={404: refuse, 405: refuse, MaskeryError: refuse, 500: fail},
    )


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the page's files and their content types, by path."""
    folder = importlib.resources.files("maskery.playground").joinpath("static")
    files = {
        f"/{entry.name}": (entry.read_bytes(), KINDS[kind])
        for entry in folder.iterdir()
        if (kind := entry.name.rpartition(".")[2]) in KINDS
    }
    return {**files, "/": files["/index.html"]}


def respond(content: Content, status: int = 200) -> Response:
    """Return an answer that tells the browser what to refuse."""
    from starlette.responses import JSONResponse, Response

    if isinstance(content, dict):
        return JSONResponse(content, status, headers=HEADERS)
    return Response(content[0], status, headers=HEADERS, media_type=content[1])


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer a request that is wrong, at an address that is not there, or too early."""
    status, message = getattr(error, "status", 422), str(error)
    if not isinstance(error, MaskeryError):  # raised by Starlette: 404 or 405
        status = int(getattr(error, "status_code", 404))
        message = "there is nothing here under that address or method"
    response = respond({"error": message}, status)
    if response.status_code == 503:
        response.headers["Retry-After"] = "1"
    return response


async def fail(_request: Request, error: Exception) -> Response:
    """Answer where the fault is ours."""
    log.error("a request failed", exc_info=error)
    return respond({"error": "this should not have happened; the terminal has the details"}, 500)


def check_host(request: Request) -> None:
    """Refuse a request that was not meant for this address.

    A page elsewhere can make a browser ask 127.0.0.1 under a name of its own (DNS rebinding); the
    Host header then has that name. A form elsewhere names its Origin.
    """
    server = request.scope.get("server") or ("", 0)
    allowed = {f"{name}:{server[1]}" for name in LOCAL_NAMES}
    if server[1] == 80:
        allowed |= set(LOCAL_NAMES)
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or hosts[0].lower() not in allowed:
        raise RequestError("this page answers only at 127.0.0.1 and localhost", 421)
    origin = request.headers.get("origin")
    if origin is not None and origin.lower() not in {f"http://{host}" for host in allowed}:
        raise RequestError("requests from other pages are refused", 403)


async def read_body(request: Request, most: int, kind: str) -> bytes:
    """Read a body of at most `most` bytes, whose content type must start with `kind`."""
    from starlette.requests import ClientDisconnect

    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not found.startswith(kind):
        raise RequestError(f"the content type must be {kind}", 415)
    too_large = RequestError(f"the body may have at most {most:,} bytes", 413)
    declared = request.headers.get("content-length", "0")
    # Cut, since Python refuses to read numbers of thousands of digits.
    if not declared.isdigit() or int(declared[:12]) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                data += part
                # A body may also come in chunks, and announce nothing.
                if len(data) > most:
                    raise too_large
    except TimeoutError as error:
        raise RequestError("the body did not arrive in time", 408) from error
    except ClientDisconnect as error:  # nobody reads this, and it is no fault of ours
        raise RequestError("the body did not arrive", 400) from error
    return bytes(data)


async def while_there(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await an answer; if its client goes first, its turn is given up."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.create_task(work), asyncio.create_task(leave())
    await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
    if not answer.done():
        answer.cancel()
        raise RequestError("the client has gone", 400)  # nobody reads this
    gone.cancel()
    return answer.result()


class Worker:
    """Runs functions in turn in a thread; `QUEUE` may wait, each takes `seconds` at most in all."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="maskery-model")
        self._places = threading.Semaphore(QUEUE + 1)  # of those that wait, and the one that runs

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Wait for a turn and for the result, unless too many wait or it takes too long."""
        if not self._places.acquire(blocking=False):
            raise RequestError("too many requests wait already; try again in a moment", 503)
        future = self._executor.submit(function)
        # A call that runs cannot be stopped: its place is free only when it is done.
        future.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
        except TimeoutError as error:
            problem = f"the answer took longer than {self.seconds:g} s"
            raise RequestError(f"{problem}; shorten the text", 504) from error


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

    config = uvicorn.Config(
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
    return uvicorn.Server(config)
