"""Whatever the API is asked, it answers: never with 500, and nothing from data becomes markup."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Client

from maskery.playground.requests import SCHEMAS

HOSTILE = [
    "<script>alert(1)</script>",
    "[MASK]</script><script>alert(1)</script>",
    "[MASK] \u2028\u202e\x00\ud800 ${7*7} {{7*7}}",
    "[CLS] [SEP] [PAD] [UNK] [MASK]",
    "the [MASK] stone",
    "\U0001f600[MASK]\U0001f600 é́ ﷽",
]
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    st.lists(st.sampled_from([*HOSTILE, "river", " ", "[MASK]"]), max_size=5).map("".join),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
STATUSES = {200, 400, 404, 405, 408, 410, 413, 415, 421, 422, 503}
LENIENT = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def questions(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly right, with some keys wrong."""
    right = {
        "text": texts,
        "model": st.integers(-1, 2),
        "picture": st.one_of(st.none(), texts),
        "top_k": st.integers(-1, 120),
        "top": st.integers(-1, 70),
        "words": st.lists(texts, max_size=3),
        "together": st.booleans(),
        "pieces": st.booleans(),
        "method": st.sampled_from(["original", "within-word", "x"]),
        "mask": st.integers(-1, 13),
    }
    keys = {key: st.one_of(right[key], right[key], values) for key in SCHEMAS[name]}
    return st.fixed_dictionaries({}, optional={**keys, "other": values})


def check(client: Client, name: str, question: object) -> None:
    body = json.dumps(question, ensure_ascii=True).encode("utf-8", "surrogatepass")
    answer = client.request("POST", f"/api/{name}", body, {"Content-Type": "application/json"})
    assert answer.status in STATUSES, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert isinstance(answer.json, dict)
    if answer.status != 200:
        assert set(answer.json) == {"error"}


@given(st.data())
@LENIENT
def test_questions(client: Client, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SCHEMAS)))
    check(client, name, data.draw(questions(name)))


@given(st.sampled_from(sorted(SCHEMAS)), values)
@LENIENT
def test_any_json(client: Client, name: str, question: object) -> None:
    check(client, name, question)


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
    st.binary(max_size=60),
    st.sampled_from(["application/json", "image/png", "text/html", "", "multipart/form-data"]),
)
@LENIENT
def test_any_bytes_at_any_address(
    client: Client, method: str, path: str, body: bytes, kind: str
) -> None:
    for address in (f"/{path}", f"/api/{path}", "/api/picture", "/api/fill"):
        answer = client.request(method, address, body, {"Content-Type": kind})
        assert answer.status in {*STATUSES, 301, 307}, (address, answer)
