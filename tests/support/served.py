"""A playground served in a thread, and a client that speaks plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from maskery.playground.app import listen, make_server
from maskery.playground.session import Session

TIMEOUT = 60.0


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Requests to 127.0.0.1, each over a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def ask(self, name: str, question: Any) -> Answer:
        body = json.dumps(question).encode()
        return self.request("POST", f"/api/{name}", body, {"Content-Type": "application/json"})


@contextmanager
def served(session: Session, port: int = 0) -> Iterator[Client]:
    """Serve until the block ends."""
    listener = listen(port)
    server = make_server(session)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + TIMEOUT
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert server.started
    try:
        yield Client(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)
        listener.close()
