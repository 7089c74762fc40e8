"""The playground that `examples/space` serves to strangers: texts are answered, little else."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskery.playground.app import make_app
from maskery.playground.session import Session

APP = Path(__file__).parents[2] / "examples" / "space" / "app.py"
HOST = "maskery.example.org"
FILL = b'{"text": "the river meets the [MASK]"}'


@pytest.fixture(scope="module")
def space() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(APP)))


@pytest.fixture(scope="module")
def playground(models: list[Path]) -> Any:
    return make_app(Session(str(models[0])))


class Visitor:
    """Asks an application as its server would."""

    def __init__(self, page: Any, address: str = "198.51.100.7") -> None:
        self.page, self.address = page, address

    def __call__(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        given = {"host": HOST, "content-type": "application/json", **headers}
        given["content-length"] = str(len(body))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in given.items()],
            "server": ("10.0.0.1", 7860),
            "client": (self.address, 40_000),
        }
        told: list[dict[str, Any]] = []
        pieces: Iterator[dict[str, Any]] = iter([{"type": "http.request", "body": body}])

        async def receive() -> dict[str, Any]:
            piece = next(pieces, None)
            if piece is None:
                await asyncio.Event().wait()  # the visitor stays
            return piece or {}

        async def send(message: dict[str, Any]) -> None:
            told.append(message)

        asyncio.run(self.page(scope, receive, send))
        found = {name.decode(): value.decode() for name, value in told[0]["headers"]}
        return told[0]["status"], found, b"".join(part.get("body", b"") for part in told[1:])


def test_a_stranger_reads_the_page_and_asks(space: SimpleNamespace, playground: Any) -> None:
    ask = Visitor(space.Public(playground))
    assert ask("GET", "/")[0] == 200
    status, headers, body = ask("POST", "/api/fill", FILL, origin=f"https://{HOST}")
    assert (status, len(json.loads(body)["masks"])) == (200, 1)
    assert headers["x-frame-options"] == "DENY"


def test_what_a_stranger_may_not(space: SimpleNamespace, playground: Any) -> None:
    ask = Visitor(space.Public(playground))
    assert ask("PUT", "/api/picture", b"GIF89a", content_type="image/gif")[0] == 405
    assert ask("POST", "/api/fill", FILL, origin="https://elsewhere.example")[0] == 403
    assert ask("POST", "/api/fill", FILL, origin="null")[0] == 403
    assert ask("GET", "/../pyproject.toml")[0] == 404


def test_who_asks_too_often_waits_and_others_do_not(space: SimpleNamespace) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    page = space.Public(answer)
    ask, other = Visitor(page), Visitor(page, "203.0.113.9")
    assert {ask("POST", "/api/fill")[0] for _ in range(space.QUESTIONS)} == {200}
    status, headers, body = ask("POST", "/api/fill")
    assert (status, headers["retry-after"]) == (429, "60")
    assert b"wait" in body
    assert ask("GET", "/")[0] == 200
    assert other("POST", "/api/fill")[0] == 200
    # Behind a proxy the address is what the proxy wrote, not what the visitor claims.
    proxied = Visitor(space.Public(answer, proxied=True))
    claims = [f"192.0.2.{n}, 198.51.100.7" for n in range(space.QUESTIONS + 1)]
    seen = [proxied("POST", "/api/fill", x_forwarded_for=claim)[0] for claim in claims]
    assert (seen[-2], seen[-1]) == (200, 429)


def test_one_site_may_frame_the_page(space: SimpleNamespace, playground: Any) -> None:
    site = "https://huggingface.co"
    _, headers, _ = Visitor(space.Public(playground, framed_by=site))("GET", "/")
    assert f"frame-ancestors {site}" in headers["content-security-policy"]
    assert "x-frame-options" not in headers
