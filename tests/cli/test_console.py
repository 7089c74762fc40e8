from __future__ import annotations

import os
import socket
import threading

import pytest

from maskery.cli import main as console


def test_a_name_server_that_fails_or_never_answers_means_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()

    def never(*arguments: object) -> None:
        answered.wait()

    def failing(*arguments: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(console, "LOOKUP_SECONDS", 0.01)
    for look_up in (never, failing):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        console.go_offline_without_a_network()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    answered.set()


def test_a_network_that_answers_is_used_and_a_choice_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where: asked.append(where))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    console.go_offline_without_a_network()
    assert "HF_HUB_OFFLINE" not in os.environ
    assert asked == [("huggingface.co", 443)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    console.go_offline_without_a_network()
    assert len(asked) == 1
