"""A real Chromium without a window, driven by Playwright's core; skips where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """The browser's path: $MASKERY_CHROMIUM, or what is installed."""
    chosen = os.environ.get("MASKERY_CHROMIUM")
    return chosen or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A Playwright browser."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed; `make browser` installs it where it may")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page, and everything it complained about or asked for.

    Attributes:
        page: Playwright's.
        complaints: Console errors and warnings, uncaught errors, failed requests.
        requests: The addresses it asked for.
    """

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self._dialog)

    def shoot(self, path: Path) -> None:
        """Take a screenshot of the whole page."""
        self.page.screenshot(path=path, full_page=True)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


def settle(page: Any) -> None:
    """Wait until the playground has answered all that its text asks."""
    page.wait_for_selector("#answers[aria-busy=false]", state="attached")
