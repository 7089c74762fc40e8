"""Pictures through the API: what the commands say, and nothing of a file but its look."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import Client, served
from tiny_pairs import save_tiny_pairs

from maskery.cli.main import main
from maskery.evaluation.image_text.explain import explain
from maskery.evaluation.image_text.image_fill import load_picture
from maskery.evaluation.image_text.opening import open_image_text
from maskery.playground import requests
from maskery.playground.session import Session

TEXT = "this is a [MASK] square of paper"
CAPTION = "this is a red square"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    save_tiny_pairs(folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    output = data.parent / "run"
    arguments = ["train", "pairs", str(data / "pairs.jsonl"), "--output", str(output)]
    assert main([*arguments, "--max-steps", "2", "--height", "16", "--width", "16"]) == 0
    return output


@pytest.fixture(scope="module")
def client(run: Path, data: Path) -> Iterator[Client]:
    with served(Session(str(run), gallery=data, cache_dir=data.parent / "cache")) as found:
        yield found


def send(client: Client, content: bytes, kind: str = "image/png") -> str:
    answer = client.request("PUT", "/api/picture", content, {"Content-Type": kind})
    assert answer.status == 200, answer
    return str(answer.json["picture"])


def test_fills_with_and_without_the_picture_are_the_commands(
    client: Client, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = data / "002.png"
    name = send(client, picture.read_bytes())
    for flags, question in (([], {}), (["--image", str(picture)], {"picture": name})):
        capsys.readouterr()
        assert main(["fill", str(run), TEXT, "--json", "--top-k", "4", *flags]) == 0
        (expected,) = json.loads(capsys.readouterr().out)
        found = client.ask("fill", {"text": TEXT, "top_k": 4, **question}).json
        assert [c["token"] for c in found["masks"][0]] == [c["token"] for c in expected["masks"][0]]
        assert [c["probability"] for c in found["masks"][0]] == pytest.approx(
            [c["probability"] for c in expected["masks"][0]], rel=1e-5
        )


def test_scores_and_replaced_words_look_at_the_picture(client: Client, data: Path) -> None:
    names = [send(client, (data / f"00{n}.png").read_bytes()) for n in (0, 3)]
    for name, key in (("score", "log_probability"), ("replaced", "probability")):
        answers = [client.ask(name, {"text": CAPTION, "picture": p}).json for p in (*names, None)]
        values = [[word[key] for word in answer["words"]] for answer in answers]
        assert len(values[0]) == 5
        assert values[0] != values[1] != values[2]
        for word in answers[0]["words"]:
            assert CAPTION[word["start"] : word["end"]] == word["word"]
    assert all(0 <= chance <= 1 for row in values for chance in row)


def test_where_the_model_looks_is_the_command(client: Client, run: Path, data: Path) -> None:
    content = (data / "001.png").read_bytes()
    found = client.ask("explain", {"text": CAPTION, "picture": send(client, content)}).json
    opened = open_image_text(str(run))
    expected = explain(opened, load_picture(content, opened.view.size), CAPTION)
    assert [word["word"] for word in found["words"]] == CAPTION.split()
    for own, word in zip(found["words"], expected.words, strict=True):
        assert CAPTION[own["start"] : own["end"]] == own["word"]
        heat = np.array(own["heat"])
        assert heat.shape == word.heat.shape
        assert heat.max() == pytest.approx(1.0) or word.heat.max() == 0
        assert heat == pytest.approx(word.heat / max(word.heat.max(), 1e-12), abs=1e-3)


def test_search_finds_what_the_command_finds(
    client: Client, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = ["search", str(run), CAPTION, "--gallery", str(data), "--top", "5", "--json"]
    arguments += ["--rerank", "16", "--cache-dir", str(data.parent / "cache")]
    assert main(arguments) == 0
    expected = json.loads(capsys.readouterr().out)["results"][0]["hits"]
    hits = client.ask("search", {"text": CAPTION, "top": 5}).json["hits"]
    assert [hit["name"] for hit in hits] == [hit["path"] for hit in expected]
    answer = client.request("GET", f"/api/thumbnail/{hits[0]['picture']}")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.body)) as shown, Image.open(data / hits[0]["name"]) as whole:
        difference = np.asarray(shown, float) - np.asarray(whole.convert("RGB"), float)
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize(
    "number", ["99999999", "-1", "x", "9" * 5000, "..%2f..%2fetc%2fpasswd", "1.5", "%00"]
)
def test_thumbnails_are_of_found_pictures_alone(client: Client, number: str) -> None:
    assert client.request("GET", f"/api/thumbnail/{number}").status == 404


def test_what_is_no_picture_is_refused(client: Client) -> None:
    def put(content: bytes, kind: str) -> int:
        return client.request("PUT", "/api/picture", content, {"Content-Type": kind}).status

    assert put(b"no picture", "image/png") == 422
    assert put(b"", "image/png") == 422
    assert put(b"x", "text/plain") == 415
    # Refused by what it announces, before any of it is read.
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    connection.putrequest("PUT", "/api/picture")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(requests.PICTURE_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert put(bomb.getvalue(), "image/png") == 422


def test_the_oldest_picture_is_forgotten_and_said_to_be(client: Client) -> None:
    names = []
    for shade in range(requests.PICTURES + 1):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (shade, 5, 9)).save(buffer, "PNG")
        names.append(send(client, buffer.getvalue()))
    assert client.ask("explain", {"text": CAPTION, "picture": names[-1]}).status == 200
    answer = client.ask("explain", {"text": CAPTION, "picture": names[0]})
    assert answer.status == 410
    assert "send it again" in answer.json["error"]


def test_questions_that_need_a_picture_say_so(client: Client) -> None:
    answer = client.ask("explain", {"text": CAPTION})
    assert (answer.status, "picture is needed" in answer.json["error"]) == (422, True)
