"""Check the page's requests: JSON objects with known keys, each within its limits."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from maskery.core.errors import MaskeryError

# Bytes of one request, whatever its content; a picture may have more.
BODY_BYTES = 64 * 1024
PICTURE_BYTES = 12 * 1024 * 1024
CHARACTERS = 6_000  # more than fit into the positions of an ordinary model
SCORED_TOKENS = 192  # scoring computes one copy of a text for each: the cost is their square
MASKS = 32  # the joint search goes through the model once for each
TOP_K, WORDS, WORD_CHARACTERS = 100, 16, 100  # more would not be read on a page
METHODS = ("within-word", "original")  # of scoring
PICTURES = 8  # pictures kept in memory at once, with all their bytes
FOUND = 60  # pictures of a search: more would not be looked at


class RequestError(MaskeryError):
    """A request that is refused, with an HTTP status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def text(name: str, value: Any, longest: int = CHARACTERS) -> str:
    """Check a text: its length, and that it holds no half of a character."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string")
    if len(value) > longest:
        raise RequestError(f"{name} has {len(value):,} characters; at most {longest:,} are taken")
    if not value.strip():
        raise RequestError(f"{name} is empty; write something")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} has half of a character (a lone surrogate)") from error
    return value


def words(name: str, value: Any) -> tuple[str, ...]:
    """Check a list of words."""
    if not isinstance(value, list) or len(value) > WORDS:
        raise RequestError(f"{name} must be a list of at most {WORDS} words")
    return tuple(text(name, word, WORD_CHARACTERS) for word in value)


def picture(name: str, value: Any) -> str | None:
    """Check the id of a picture that was sent before, or null."""
    return None if value is None else text(name, value, 64)


def flag(name: str, value: Any) -> bool:
    """Check a true or a false."""
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false")
    return value


def method(name: str, value: Any) -> str:
    """Check the name of a way to score."""
    if value not in METHODS or not isinstance(value, str):
        raise RequestError(f"{name} must be one of {', '.join(METHODS)}")
    return value


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    """Return a check that takes a whole number within bounds."""

    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise RequestError(f"{name} must be a whole number from {low} to {high}")
        return value

    return check


# The check of each key of a request, and its value where it is missing.
Schema = Mapping[str, tuple[Callable[[str, Any], Any], Any]]
REQUIRED = object()
TEXT = (text, REQUIRED)
ABOUT_A_TEXT: Schema = {"model": (whole(0, 1), 0), "text": TEXT, "picture": (picture, None)}
SCHEMAS: dict[str, Schema] = {
    "fill": {
        **ABOUT_A_TEXT,
        "top_k": (whole(1, TOP_K), 10),
        "words": (words, ()),
        "together": (flag, False),
        "pieces": (flag, False),
    },
    "score": {**ABOUT_A_TEXT, "method": (method, METHODS[0])},
    "saliency": {**ABOUT_A_TEXT, "mask": (whole(0, MASKS - 1), 0)},
    "explain": ABOUT_A_TEXT,
    "replaced": ABOUT_A_TEXT,
    "search": {"text": TEXT, "top": (whole(1, FOUND), 12)},
}


def parse(body: bytes, schema: Schema) -> dict[str, Any]:
    """Parse a request's body into checked values."""
    try:
        data = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError("the body must be JSON in UTF-8", 400) from error
    if not isinstance(data, dict):
        raise RequestError("the body must be a JSON object", 400)
    unknown = sorted(set(data) - set(schema))
    if unknown:
        raise RequestError(f"unknown key {ascii(unknown[0])[:40]}; known are {', '.join(schema)}")
    for name, (_, default) in schema.items():
        if default is REQUIRED and name not in data:
            raise RequestError(f"{name} is missing")
    return {
        name: check(name, data[name]) if name in data else default
        for name, (check, default) in schema.items()
    }
