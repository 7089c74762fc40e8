"""Who may ask, how much at once, and what every answer tells the browser to refuse."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from maskery.playground.requests import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request

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


def check_host(request: Request) -> None:
    """Refuse what was not meant for this address.

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
    """The body, if it is of the right kind, not too large and arrives in time.

    Args:
        request: The request.
        most: Bytes.
        kind: Its content type must start so.

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
