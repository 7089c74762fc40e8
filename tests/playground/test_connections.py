"""Clients that keep the server waiting are let go, and never keep others from an answer."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from served import Client, served

from maskery.playground import app as connections
from maskery.playground.session import Session

HALF = "GET / HTTP/1.1\r\nHost: 127.0.0.1"
BODY = "POST /api/fill HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
BODY += 'Content-Length: 100\r\n\r\n{{"text":'
GONE = BODY.replace("100", "22").replace('{{"text":', '{{"text":"gone [MASK]"}}')
TEXT = {"model": 0, "text": "the [MASK] stone"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def begun(
    stack: ExitStack, client: Client, said: str = "", address: str = "127.0.0.1"
) -> socket.socket:
    """Open a connection that says something and then no more."""
    place = ("127.0.0.1", client.port)
    opened = socket.create_connection(place, timeout=30, source_address=(address, 0))
    stack.enter_context(opened)
    opened.sendall(said.format(port=client.port).encode())
    return opened


def is_ended(opened: socket.socket) -> bool:
    """Wait until the server ends a connection; what it still answers is read."""
    try:
        while opened.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def send_for_ever(opened: socket.socket, data: bytes) -> None:
    while True:
        opened.sendall(data)


@pytest.mark.parametrize("said", ["", HALF, BODY], ids=["silent", "half a head", "half a body"])
def test_a_crowd_that_waits_keeps_nobody_out(client: Client, stack: ExitStack, said: str) -> None:
    crowd = [begun(stack, client, said) for _ in range(connections.CONNECTIONS + 20)]
    assert client.ask("fill", TEXT).status == 200
    # Those that had waited longest were let go, and no others.
    assert all(is_ended(one) for one in crowd[:20])
    crowd[-1].settimeout(0.05)
    assert not is_ended(crowd[-1])


@pytest.mark.parametrize("said", ["", HALF, BODY], ids=["silent", "half a head", "half a body"])
def test_patience_ends(
    client: Client, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.1)
    assert is_ended(begun(stack, client, said))


def test_bytes_that_drip_do_not_lengthen_it(
    client: Client, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an answer, too: the next request must come whole and in time."""
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    opened = begun(stack, client, "GET /api/info HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    with pytest.raises(OSError, match=r"reset|pipe"):
        send_for_ever(opened, b"G")


def test_an_answer_that_nobody_takes_is_dropped(
    client: Client, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    opened = socket.socket()
    stack.enter_context(opened)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    opened.settimeout(30)
    opened.connect(("127.0.0.1", client.port))
    asked = f"GET /main.js HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode()
    # The server reads on only while its answers are taken.
    with pytest.raises(OSError, match=r"reset|pipe"):
        send_for_ever(opened, asked)


def test_the_address_with_the_crowd_gives_way(client: Client, stack: ExitStack) -> None:
    honest = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    stack.callback(honest.close)
    honest.request("GET", "/api/info")
    assert honest.getresponse().read()
    for _ in range(connections.CONNECTIONS + 20):
        begun(stack, client, address="127.0.0.3")
    # The connection that was opened first has waited longest, and still answers.
    honest.request("GET", "/api/info")
    assert honest.getresponse().status == 200


def test_requests_that_do_not_wait_for_their_turn_are_not_answered(
    client: Client, stack: ExitStack
) -> None:
    """Else a few clients with hundreds of requests each would keep all others waiting."""
    asked = "GET /api/info HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    opened, found = begun(stack, client, asked * 400), b""
    with contextlib.suppress(ConnectionResetError):
        while part := opened.recv(1 << 16):
            found += part
    assert found.count(b"HTTP/1.1 200") <= 2  # one that came in a later packet has waited


def test_whoever_leaves_gives_up_his_turn(models: list[Path], stack: ExitStack) -> None:
    session = Session(str(models[0]))
    started, go_on, filled = threading.Event(), threading.Event(), []

    def slow(values: dict[str, object]) -> dict[str, object]:
        filled.append(values["text"])
        started.set()
        assert go_on.wait(30)
        return {}

    session.fill = slow  # type: ignore[method-assign]
    threads = stack.enter_context(ThreadPoolExecutor())
    client = stack.enter_context(served(session))
    first = threads.submit(client.ask, "fill", {"text": "first [MASK]"})
    assert started.wait(30)
    opened = begun(stack, client, GONE)
    client.request("GET", "/api/info")  # what was sent before this has been read after it
    opened.close()
    for _ in range(20):  # each takes the server several turns: by then it has seen the end
        client.request("GET", "/api/info")
    go_on.set()
    assert [first.result().status, client.ask("fill", TEXT).status] == [200, 200]
    assert filled == ["first [MASK]", TEXT["text"]]
