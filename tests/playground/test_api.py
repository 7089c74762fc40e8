"""The API gives what the commands give, to this machine alone, and within its limits."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from served import Client, served

from maskery.cli.main import main
from maskery.evaluation.text.fill import Filler, saliency
from maskery.evaluation.text.opening import open_model
from maskery.evaluation.text.pseudo_likelihood import score
from maskery.playground.app import HOST, QUEUE, Worker, make_app, page_files
from maskery.playground.requests import BODY_BYTES
from maskery.playground.session import Session, Shifted

TEXT = "the river [MASK] cloud [MASK]"


@pytest.mark.parametrize("index", [0, 1])
def test_fill_is_the_command(
    client: Client, models: list[Path], index: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fill", str(models[index]), TEXT, "--top-k", "7", "--words", "stone", "foxes"]
    assert main([*arguments, "--json"]) == 0
    (expected,) = json.loads(capsys.readouterr().out)
    question = {"model": index, "text": TEXT, "top_k": 7, "words": ["stone", "foxes"]}
    answer = client.ask("fill", {**question, "together": True})
    assert answer.status == 200
    for name in ("masks", "completions", "words"):
        assert_close(answer.json[name], expected[name])
    assert client.ask("fill", question).json["completions"] == []


def assert_close(found: object, expected: object) -> None:
    """Equal but for the last digits of numbers."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name])
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == expected


def test_score_is_the_command(client: Client, models: list[Path]) -> None:
    text = "the river foxes, stone"
    (expected,) = score(models[1], text, method="original")
    found = client.ask("score", {"model": 1, "text": text, "method": "original"}).json
    assert found["log_probability"] == pytest.approx(expected.log_probability, rel=1e-5)
    assert [word["word"] for word in found["words"]] == [word.word for word in expected.words]
    for word in found["words"]:
        assert text[word["start"] : word["end"]] == word["word"]


def test_what_a_prediction_hangs_on_is_gradient_times_input(
    client: Client, models: list[Path]
) -> None:
    """Against a plain backward pass from the vectors of the words."""
    found = client.ask("saliency", {"text": TEXT, "mask": 1}).json
    opened = open_model(str(models[0]))
    filler = Filler(opened.model, opened.tokenizer)
    expected = saliency(filler, TEXT, mask=1)
    assert [word["weight"] for word in found["words"]] == pytest.approx(expected.weights, rel=1e-4)
    assert sum(expected.weights) == pytest.approx(1.0)
    assert [word["word"] for word in found["words"]] == ["the", "river", "cloud"]

    hf = opened.model.hf
    ids = torch.tensor([filler.encode(TEXT)])
    vectors = hf.get_input_embeddings()(ids).detach()
    place = int((ids[0] == filler.mask_id).nonzero()[1])

    def log_probability(inputs: torch.Tensor) -> torch.Tensor:
        return hf(inputs_embeds=inputs).logits[0, place].log_softmax(-1).max()

    # The norm of gradient times input, by a plain backward pass of the stock model.
    vectors.requires_grad_()
    (gradient,) = torch.autograd.grad(log_probability(vectors), vectors)
    norms = (gradient * vectors).norm(dim=-1)[0].detach().numpy()
    tokens = opened.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    chosen = np.array([norms[tokens.index(word)] for word in ("the", "river", "cloud")])
    assert expected.weights == pytest.approx(chosen / chosen.sum(), rel=1e-3)


def test_info_says_what_there_is_and_not_where(client: Client, models: list[Path]) -> None:
    info = client.request("GET", "/api/info").json
    assert [model["name"] for model in info["models"]] == [model.name for model in models]
    assert str(models[0].parent) not in json.dumps(info)
    assert info["mask"] == "[MASK]"


@pytest.mark.parametrize("path", sorted(page_files()))
def test_the_page_is_served_with_headers_that_refuse_everything_foreign(
    client: Client, path: str
) -> None:
    answer = client.request("GET", path)
    assert answer.status == 200
    assert answer.body == page_files()[path][0]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_nothing_outside_itself() -> None:
    for path, (content, _) in page_files().items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path
        assert "https://" not in text, path
        for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert unsafe not in text, path
        assert " style=" not in text, path


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/..%2fapp.py",
        "/static/main.js",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/session.py",
        "/main.js/",
        "/main.js%00.html",
        "/C:\\windows\\win.ini",
    ],
)
def test_no_file_outside_its_own_is_served(client: Client, path: str) -> None:
    answer = client.request("GET", path)
    assert answer.status in (404, 307)
    assert b"root:" not in answer.body
    assert b"def " not in answer.body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost.evil.example:{port}"}, 421),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "LOCALHOST:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:{port}"}, 200),
    ],
)
def test_only_this_machine_under_its_own_name_is_answered(
    client: Client, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(port=client.port) for name, value in headers.items()}
    for path in ("/api/info", "/"):
        assert client.request("GET", path, headers=sent).status == status


def test_it_listens_on_the_loopback_alone(client: Client) -> None:
    assert HOST == "127.0.0.1"
    connection = http.client.HTTPConnection("127.0.0.2", client.port, timeout=5)
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/")


@pytest.mark.parametrize(
    ("name", "question", "message"),
    [
        ("fill", {"text": "nothing hidden"}, "nothing to fill"),
        ("fill", {}, "text is missing"),
        ("fill", {"text": 5}, "must be a string"),
        ("fill", {"text": "  "}, "is empty"),
        ("fill", {"text": "[MASK]", "topk": 5}, "unknown key"),
        ("fill", {"text": "[MASK]", "top_k": 0}, "from 1 to 100"),
        ("fill", {"text": "[MASK]", "top_k": True}, "whole number"),
        ("fill", {"text": "[MASK]", "top_k": 1e99}, "whole number"),
        ("fill", {"text": "[MASK]", "model": 2}, "from 0 to 1"),
        ("fill", {"text": "[MASK]" * 33}, "at most 32"),
        ("fill", {"text": "[MASK]" + "x" * 6000}, "at most 6,000"),
        ("fill", {"text": "[MASK] " + "river " * 50}, "32 positions"),
        ("fill", {"text": "[MASK]", "words": ["a"] * 17}, "at most 16"),
        ("fill", {"text": "[MASK]", "words": [""]}, "is empty"),
        ("fill", {"text": "[MASK] \ud800"}, "lone surrogate"),
        ("fill", {"text": "[MASK]", "picture": "0" * 32}, "reads text alone"),
        ("score", {"text": "river " * 40}, "32 positions"),
        ("score", {"text": "[MASK]"}, "no words"),
        ("score", {"text": "river", "method": "other"}, "one of within-word"),
        ("saliency", {"text": "[MASK]", "mask": 1}, "the text has 1"),
        ("replaced", {"text": "river"}, "reads text alone"),
    ],
)
def test_a_wrong_question_gets_one_clear_line(
    client: Client, name: str, question: dict[str, object], message: str
) -> None:
    answer = client.ask(name, question)
    assert answer.status == 422
    assert message in answer.json["error"]
    assert "\n" not in answer.json["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 50_000, "application/json", 400),
        (b'{"top_k": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"text": "x"}', "text/plain", 415),
        (b'{"text": "x"}', "application/x-www-form-urlencoded", 415),
        (b"x" * (BODY_BYTES + 1), "application/json", 413),
    ],
)
def test_bodies_that_are_not_read(client: Client, body: bytes, kind: str, status: int) -> None:
    assert client.request("POST", "/api/fill", body, {"Content-Type": kind}).status == status


def test_a_body_without_a_length_is_cut_off(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    connection.putrequest("POST", "/api/fill")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    chunk = b"x" * 8192
    try:
        for _ in range(64):
            connection.send(b"2000\r\n" + chunk + b"\r\n")
        assert connection.getresponse().status == 413
    except OSError:
        pass  # closed while we were sending
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/fill"), ("POST", "/"), ("GET", "/no")])
def test_other_methods_and_addresses(client: Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status in (404, 405)
    assert "error" in answer.json
    assert "content-security-policy" in answer.headers


def test_one_call_at_a_time_a_few_wait_and_the_rest_are_turned_away(models: list[Path]) -> None:
    session = Session(str(models[0]))
    started, go_on, running = threading.Event(), threading.Event(), []

    def slow(values: dict[str, object]) -> dict[str, object]:
        running.append(threading.current_thread().name)
        assert len(set(running)) == 1
        started.set()
        assert go_on.wait(30)
        return {"text": values["text"]}

    session.fill = slow  # type: ignore[method-assign]
    answers: list[int] = []
    turned_away = threading.Semaphore(0)
    with served(session) as client:

        def ask() -> None:
            status = client.ask("fill", {"text": "[MASK]"}).status
            answers.append(status)
            if status == 503:
                turned_away.release()

        threads = [threading.Thread(target=ask)]
        threads[0].start()
        assert started.wait(30)
        threads += [threading.Thread(target=ask) for _ in range(QUEUE + 4)]
        for thread in threads[1:]:
            thread.start()
        for _ in range(4):
            assert turned_away.acquire(timeout=30)
        go_on.set()
        for thread in threads:
            thread.join(30)
    assert sorted(answers) == [200] * (QUEUE + 1) + [503] * 4


def test_an_answer_that_takes_too_long_is_given_up(models: list[Path]) -> None:
    import asyncio

    from maskery.playground.requests import RequestError

    go_on = threading.Event()

    async def try_it() -> int:
        worker = Worker(seconds=0.05)
        try:
            await worker.run(lambda: go_on.wait(30))
        except RequestError as error:
            return error.status
        finally:
            go_on.set()
        return 200

    assert asyncio.run(try_it()) == 504


def test_a_fault_of_ours_is_500_without_its_details(models: list[Path]) -> None:
    session = Session(str(models[0]))

    def broken(values: object) -> dict[str, object]:
        raise ZeroDivisionError("secret")

    session.score = broken  # type: ignore[method-assign, assignment]
    assert make_app(session).routes
    with served(session) as client:
        answer = client.ask("score", {"text": "river"})
    assert answer.status == 500
    assert b"secret" not in answer.body


@pytest.mark.parametrize("token", ["<mask>", "<m>", "[MASK]", "<a-longer-mask>"])
def test_places_are_found_again_behind_masks_of_any_length(token: str) -> None:
    text = "one [MASK] two [MASK][MASK] three"
    read = Shifted(text, token)
    assert read.text == text.replace("[MASK]", token)
    for word in ("one", "two", "three"):
        assert read.back(read.text.index(word)) == text.index(word)
        assert read.back(read.text.index(word) + len(word)) == text.index(word) + len(word)
