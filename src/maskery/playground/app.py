"""The application: the page's own files, and the JSON API.

Files are read once, when the application is made, from a fixed list: no path of a request is ever
looked up on the disk.
"""

from __future__ import annotations

import importlib.resources
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from maskery.core.errors import MaskeryError
from maskery.core.optional import require
from maskery.playground.config import BODY_BYTES, PICTURE_BYTES
from maskery.playground.guard import HEADERS, check_host, read_body
from maskery.playground.requests import SCHEMAS, RequestError, parse
from maskery.playground.session import Session
from maskery.playground.worker import Worker

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


def make_app(session: Session, worker: Worker | None = None) -> Starlette:
    """The playground of some models.

    Args:
        session: What answers.
        worker: Runs the model calls.

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
    """By path, the page's files and their content types."""
    files = {}
    folder = importlib.resources.files("maskery.playground").joinpath("static")
    for entry in folder.iterdir():
        suffix = f".{entry.name.rpartition('.')[2]}"
        if suffix in KINDS:
            files[f"/{entry.name}"] = (entry.read_bytes(), KINDS[suffix])
    files["/"] = files["/index.html"]
    return files


def guarded(handler: Handler) -> Handler:
    """A handler that refuses strangers, turns errors into answers and adds the headers."""

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
