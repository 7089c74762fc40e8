"""The application: the page's own files and the JSON API, for this machine alone.

Files are read once, when the application is made, from a fixed list: no path of a request is ever
looked up on the disk. Every request is checked for who sent it and how much, one model call runs at
a time, and every answer tells the browser what to refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import logging
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from maskery.core.errors import MaskeryError
from maskery.core.registry import require
from maskery.playground.requests import (
    BODY_BYTES,
    PICTURE_BYTES,
    SCHEMAS,
    RequestError,
    parse,
)
from maskery.playground.session import Session

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    Handler = Callable[[Request], Awaitable[Response]]

log = logging.getLogger(__name__)

KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
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
BODY_SECONDS = 15.0
LOCAL_NAMES = ("127.0.0.1", "localhost")
# Requests that wait while one is computed, and the seconds that one may take.
QUEUE = 8
SECONDS = 30.0

ResultT = TypeVar("ResultT")


def make_app(session: Session, worker: Worker | None = None) -> Starlette:
    """Make the application of some models.

    Raises:
        MissingExtraError: starlette is not installed.
    """
    require("starlette", extra="playground", purpose="serve the playground")
    from starlette.applications import Starlette
    from starlette.routing import Route

    worker = worker or Worker()
    calls: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "fill": session.fill,
        "score": session.score,
        "saliency": session.saliency,
        "replaced": session.replaced,
        "explain": session.explain,
        "search": session.search,
    }
    routes = [Route("/api/info", guarded(partial(_info, session=session)), methods=["GET"])]
    for name, call in calls.items():
        handler = guarded(partial(_call, call=call, worker=worker, schema=SCHEMAS[name]))
        routes.append(Route(f"/api/{name}", handler, methods=["POST"]))
    handler = guarded(partial(_picture, session=session, worker=worker))
    routes.append(Route("/api/picture", handler, methods=["PUT"]))
    handler = guarded(partial(_thumbnail, session=session, worker=worker))
    routes.append(Route("/api/thumbnail/{number}", handler, methods=["GET"]))
    for path, (content, kind) in page_files().items():
        handler = guarded(partial(_file, content=content, kind=kind))
        routes.append(Route(path, handler, methods=["GET"]))
    return Starlette(
        routes=routes,
        exception_handlers={404: _refused, 405: _refused, 500: _failed},
    )


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the page's files and their content types, by path."""
    files = {}
    folder = importlib.resources.files("maskery.playground").joinpath("static")
    for entry in folder.iterdir():
        suffix = f".{entry.name.rpartition('.')[2]}"
        if suffix in KINDS:
            files[f"/{entry.name}"] = (entry.read_bytes(), KINDS[suffix])
    files["/"] = files["/index.html"]
    return files


def guarded(handler: Handler) -> Handler:
    """Wrap a handler: refuse strangers, turn errors into answers and add the headers."""

    async def handle(request: Request) -> Response:
        try:
            check_host(request)
            response = await handler(request)
        except RequestError as error:
            response = _answer({"error": str(error)}, error.status)
            if error.status == 503:
                response.headers["Retry-After"] = "1"
        except MaskeryError as error:
            response = _answer({"error": str(error)}, 422)
        response.headers.update(HEADERS)
        return response

    return handle


async def _info(request: Request, *, session: Session) -> Response:
    del request
    return _answer(session.info())


async def _call(
    request: Request,
    *,
    call: Callable[[dict[str, Any]], dict[str, Any]],
    worker: Worker,
    schema: Any,
) -> Response:
    values = parse(await read_body(request, BODY_BYTES, "application/json"), schema)
    return _answer(await worker.run(partial(call, values)))


async def _picture(request: Request, *, session: Session, worker: Worker) -> Response:
    data = await read_body(request, PICTURE_BYTES, "image/")
    return _answer(await worker.run(partial(session.add_picture, data)))


async def _thumbnail(request: Request, *, session: Session, worker: Worker) -> Response:
    from starlette.responses import Response

    number = request.path_params["number"]
    if not re.fullmatch("[0-9]{1,9}", number):
        raise RequestError("no such picture; search again", 404)
    image = await worker.run(partial(session.thumbnail, int(number)))
    return Response(image, media_type="image/jpeg")


async def _file(request: Request, *, content: bytes, kind: str) -> Response:
    from starlette.responses import Response

    del request
    return Response(content, media_type=kind)


async def _refused(request: Request, error: Exception) -> Response:
    del request
    status = int(getattr(error, "status_code", 404))
    response = _answer({"error": "there is nothing here under that address or method"}, status)
    response.headers.update(HEADERS)
    return response


async def _failed(request: Request, error: Exception) -> Response:
    del request
    log.error("a request failed", exc_info=error)
    response = _answer(
        {"error": "this should not have happened; the terminal has the details"}, 500
    )
    response.headers.update(HEADERS)
    return response


def _answer(data: dict[str, Any], status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(data, status_code=status)


def check_host(request: Request) -> None:
    """Refuse a request that was not meant for this address.

    A page elsewhere can make a browser ask 127.0.0.1 under a name of its own (DNS rebinding); the
    Host header then has that name. A form elsewhere names its Origin.

    Raises:
        RequestError: With status 421 or 403.
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
    """Read the body, if it is of the right kind, not too large and arrives in time.

    Args:
        request: The request.
        most: The most bytes of the body.
        kind: The start that its content type must have.

    Raises:
        RequestError: With status 408, 413 or 415.
    """
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not found.startswith(kind):
        raise RequestError(f"the content type must be {kind}", 415)
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:12]) > most:
        raise RequestError(f"the body may have at most {most:,} bytes", 413)
    try:
        return await asyncio.wait_for(_read(request, most), BODY_SECONDS)
    except TimeoutError as error:
        raise RequestError("the body did not arrive in time", 408) from error


async def _read(request: Request, most: int) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise RequestError(f"the body may have at most {most:,} bytes", 413)
    return bytes(data)


class Worker:
    """Run functions one after the other in a thread of their own.

    Args:
        queue: The most functions that wait.
        seconds: The longest that one may take, its waiting included.
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
        """Drop the functions that wait and let the last call end."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _done(self) -> None:
        self._pending -= 1
