"""Serve a model's playground to anyone, read-only and limited, behind a public address.

    maskery train text meditations.txt --model minilm --output runs/demo
    python examples/space/app.py runs/demo           # on every address of this machine, port 7860

The playground itself answers only its own machine. This wraps its application: questions about
texts pass, pictures are not taken, other sites' pages are refused, and an address that asks too
often is told to wait. Whoever asks learns nothing but what the model answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from maskery.playground.app import make_app
from maskery.playground.session import Session

Send = Callable[[dict[str, Any]], Awaitable[None]]
PORT = 7860
# A reader who clicks word after word asks about once a second; a page opens with some ten requests.
QUESTIONS, SECONDS = 60, 60.0
# Addresses remembered; the one that asked longest ago is forgotten first.
ADDRESSES = 10_000


class Public:
    """The playground's application, for strangers.

    Attributes:
        playground: The application that answers one machine.
        proxied: True where a proxy of the host writes the client's address last into
            X-Forwarded-For; elsewhere anyone could write it.
        framed_by: A site that may show the page in a frame, such as https://huggingface.co.
    """

    def __init__(self, playground: Any, *, proxied: bool = False, framed_by: str = "") -> None:
        self.playground, self.proxied, self.framed_by = playground, proxied, framed_by
        self._asked: OrderedDict[str, list[float]] = OrderedDict()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Refuse, or ask the playground as its own machine would."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refuse(send, *refusal)
            return
        local = b"127.0.0.1:%d" % PORT
        kept = [pair for pair in scope["headers"] if pair[0] not in (b"host", b"origin")]
        inner = {**scope, "server": ("127.0.0.1", PORT), "headers": [*kept, (b"host", local)]}
        await self.playground(inner, receive, self._framing(send))

    def _refusal(
        self, scope: dict[str, Any], headers: dict[bytes, bytes]
    ) -> tuple[int, str] | None:
        """Return the status and the reason for which a request is refused, or None."""
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "this page takes no pictures; run maskery playground on your own machine"
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if origin is not None and origin.partition(b"://")[2] != host:
            return 403, "requests from other pages are refused"
        if scope["method"] == "POST" and not self._may_ask(self._address(scope, headers)):
            return 429, f"more than {QUESTIONS} questions a minute; wait a little"
        return None

    def _address(self, scope: dict[str, Any], headers: dict[bytes, bytes]) -> str:
        """Return who asks."""
        if self.proxied:
            return (
                headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip().decode("latin-1")
            )
        return str((scope.get("client") or ("",))[0])

    def _may_ask(self, address: str) -> bool:
        """Count a question, unless there were too many in the last minute."""
        now = time.monotonic()
        times = [then for then in self._asked.pop(address, []) if now - then < SECONDS]
        allowed = len(times) < QUESTIONS
        self._asked[address] = [*times, now] if allowed else times
        while len(self._asked) > ADDRESSES:
            self._asked.popitem(last=False)
        return allowed

    def _framing(self, send: Send) -> Send:
        """Let one site show the page in a frame."""
        if not self.framed_by:
            return send

        async def framed(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, value.replace(b"frame-ancestors 'none'", self._ancestors()))
                    for name, value in message["headers"]
                    if name != b"x-frame-options"
                ]
            await send(message)

        return framed

    def _ancestors(self) -> bytes:
        return f"frame-ancestors {self.framed_by}".encode()


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answer as the playground does: one line that says what to change."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 429:
        headers.append((b"retry-after", b"%d" % SECONDS))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    import uvicorn

    page = Public(
        make_app(Session(*sys.argv[1:3])),
        proxied="SPACE_ID" in os.environ,
        framed_by=os.environ.get("FRAMED_BY", ""),
    )
    uvicorn.run(page, host="0.0.0.0", port=PORT, access_log=False, server_header=False)
