"""What a playground serves, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from maskery.core.errors import ConfigError

HOST = "127.0.0.1"
# Of one request, whatever its content; a picture may have more.
BODY_BYTES = 64 * 1024
PICTURE_BYTES = 12 * 1024 * 1024
CHARACTERS = 6_000
# Scoring a text computes one copy of it for each token.
SCORED_TOKENS = 192
MASKS = 12
TOP_K = 100
WORDS = 16
WORD_CHARACTERS = 100
PICTURES = 8
FOUND = 60
# Requests that wait while one is computed.
QUEUE = 8
SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class PlaygroundConfig:
    """A local web page to try a model on: it answers this machine alone."""

    port: int = 8765
    """Where the page is served, on 127.0.0.1; 0 for any free port."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise ConfigError(f"port is {self.port}: it must be from 0 to 65535")
