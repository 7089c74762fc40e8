"""The page in a real Chromium: what people do with it, and what it must never do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from browser import Visit, settle
from PIL import Image
from served import Client, served

from maskery.cli.main import main
from maskery.playground.session import Session

TEXT = "the river stone, copper meadow."
SIZE = {"width": 1000, "height": 900}
PHONE = {"width": 360, "height": 740}


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    found = Visit(browser, viewport=SIZE)
    yield found
    assert found.complaints == []
    hosts = {re.sub(r"^(?:blob:)?(https?://[^/]+)/.*$", r"\1", url) for url in found.requests}
    assert len(hosts) <= 1, hosts
    found.context.close()


def bars(page: Any, card: int = 0, column: int = 0) -> list[tuple[str, str]]:
    """The words and shares of a list of predictions."""
    rows = page.locator(".mask-card").nth(card).locator(".columns > div").nth(column).locator("li")
    tokens = rows.locator(".token").all_inner_texts()
    shares = rows.locator(".share").all_inner_texts()
    return [(t, s.split()[0]) for t, s in zip(tokens, shares, strict=True)]


def commanded(model: Path, text: str, capsys: Any, *flags: str) -> Any:
    capsys.readouterr()
    assert main(["fill", str(model), text, "--top-k", "10", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)[0]


def as_shown(mask: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(c["token"], f"{100 * c['probability']:.1f}%") for c in mask]


def write(page: Any, text: str) -> None:
    page.get_by_role("button", name="Write").click()
    page.get_by_role("textbox", name="Text").fill(text)
    page.keyboard.press("Escape")


def test_write_hide_a_word_and_read_what_the_command_says(
    visit: Visit, alone: Client, models: list[Path], capsys: Any
) -> None:
    page = visit.page
    page.goto(f"{alone.address}#t=the")
    write(page, TEXT)
    page.get_by_role("button", name="stone", exact=True).click()
    settle(page)
    masked = TEXT.replace("stone", "[MASK]")
    assert bars(page) == as_shown(commanded(models[0], masked, capsys)["masks"][0])
    # A second mask: both cards, and the two filled together.
    page.get_by_role("button", name="copper", exact=True).click()
    settle(page)
    expected = commanded(models[0], masked.replace("copper", "[MASK]"), capsys)
    assert [bars(page, 0), bars(page, 1)] == [as_shown(mask) for mask in expected["masks"]]
    joint = page.locator(".joint li").first.inner_text()
    assert " · ".join(expected["completions"][0]["tokens"]) in joint
    # Again, and both are back.
    page.get_by_role("button", name="mask 1").click()
    page.get_by_role("button", name="mask", exact=True).click()
    settle(page)
    assert page.locator("#words").inner_text() == TEXT
    assert page.locator(".mask-card").count() == 0


def test_no_press_is_lost_while_the_page_still_loads(visit: Visit, alone: Client) -> None:
    page = visit.page
    held: list[Any] = []
    page.route("**/api/info", lambda route: held.append(route))
    with page.expect_request("**/api/info"):
        page.goto(f"{alone.address}#t=the")
    for name in ("Write", "Surprisal", "Copy link"):
        assert page.get_by_role("button", name=name).is_disabled()
    held[0].continue_()
    write(page, TEXT)
    assert page.get_by_role("button", name="Copy link").is_enabled()


def test_more_predictions_and_the_word_that_is_asked_for(
    visit: Visit, alone: Client, models: list[Path], capsys: Any
) -> None:
    page = visit.page
    page.goto(f"{alone.address}#t=the")
    write(page, TEXT)
    page.get_by_role("button", name="stone", exact=True).click()
    settle(page)
    page.get_by_role("button", name="More").click()
    settle(page)
    assert len(bars(page)) == 25
    page.get_by_label("How likely is").fill("foxes")
    page.keyboard.press("Enter")
    settle(page)
    masked = TEXT.replace("stone", "[MASK]")
    (word,) = commanded(models[0], masked, capsys, "--words", "foxes")["words"]
    assert word["probability"] < 1e-6
    assert "foxes <0.0001% (f ##o ##x ##e ##s)" in page.locator(".asked").inner_text()
    # A prediction is put into the text by pressing it.
    token = bars(page)[3][0]
    page.locator(".bars button").nth(3).click()
    settle(page)
    assert page.locator("#words").inner_text() == TEXT.replace("stone", token)


def test_two_models_stand_side_by_side(
    visit: Visit, client: Client, models: list[Path], capsys: Any
) -> None:
    page = visit.page
    page.goto(f"{client.address}#t=the")
    write(page, TEXT)
    page.get_by_role("button", name="river", exact=True).click()
    settle(page)
    masked = TEXT.replace("river", "[MASK]")
    for column, model in enumerate(models):
        expected = commanded(model, masked, capsys)["masks"][0]
        assert bars(page, 0, column) == as_shown(expected)
    assert page.locator(".columns > div").nth(1).locator(".change").count() == 10
    # The second model's name is an attempt to break out of the page: it stands there as text.
    assert models[1].name in page.locator("#models").inner_text()
    assert page.locator("#models img, .columns img").count() == 0
    # Surprisal: both texts and their difference.
    page.get_by_role("button", name="Surprisal").click()
    settle(page)
    assert page.locator(".heat-name:visible").count() == 3
    assert page.locator("#words .heated").count() >= 4
    assert page.locator("#other-heats .reading").count() == 2


def test_the_keyboard_does_everything(visit: Visit, alone: Client) -> None:
    page = visit.page
    page.goto(f"{alone.address}#t=the")
    write(page, TEXT)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "stone"
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("document.activeElement.textContent") == "mask"
    assert len(bars(page)) == 10
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Space")
    settle(page)
    assert page.evaluate("document.activeElement.textContent") == "stone"
    page.keyboard.press("e")
    assert page.get_by_role("textbox", name="Text").is_visible()
    page.keyboard.type(" ember")
    page.keyboard.press("Control+Enter")
    settle(page)
    assert page.locator("#words").inner_text() == f"{TEXT} ember"


def test_influence_and_a_link_show_the_same(visit: Visit, alone: Client, browser: Any) -> None:
    page = visit.page
    page.goto(f"{alone.address}#t=the")
    write(page, TEXT)
    page.get_by_role("button", name="copper", exact=True).click()
    page.get_by_role("button", name="Influence").click()
    settle(page)
    heated = page.locator("#words .heated").all_inner_texts()
    assert {"the", "river", "stone", "meadow"} <= set(heated)
    page.get_by_role("button", name="stone", exact=True).hover()
    assert "hangs on" in page.locator("#about-word").inner_text()
    again = Visit(browser, viewport=SIZE)
    again.page.goto(page.url)
    settle(again.page)
    assert again.page.locator("#words").inner_text() == page.locator("#words").inner_text()
    assert again.page.locator("#words .heated").all_inner_texts() == heated
    assert bars(again.page) == bars(page)
    assert again.complaints == []
    again.context.close()


def test_markup_in_a_text_and_in_a_link_stays_text(visit: Visit, alone: Client) -> None:
    page = visit.page
    hostile = "<img src=x onerror=a> <b>&</b> [MASK]"
    page.goto(f"{alone.address}#t={quote(hostile)}&m=0.1&v=surprisal&w={quote('<b>')}")
    settle(page)
    assert (
        page.locator("main script, main img:not(#picture-shown), main b:not(.asked b)").count() == 0
    )
    assert "onerror" in page.locator("#words").inner_text()
    page.goto(f"{alone.address}#v=none&m=99.-1.x&k=nine&t=%F0%9F%98%80%20river")
    page.locator("#words", has_text="😀 river").wait_for()
    assert page.locator("#words").inner_text() == "😀 river"


def test_words_beyond_the_first_plane_are_coloured_where_they_stand(
    visit: Visit, alone: Client
) -> None:
    page = visit.page
    page.goto(f"{alone.address}#t={quote('😀😀 river 😀 stone')}&v=surprisal")
    settle(page)
    page.get_by_role("button", name="stone", exact=True).hover()
    assert page.locator("#about-word").inner_text().startswith("stone: ")


def test_a_mistake_is_said_and_then_forgotten(visit: Visit, alone: Client) -> None:
    page = visit.page
    page.goto(f"{alone.address}#t=the")
    write(page, "river " * 40)
    page.get_by_role("button", name="river", exact=True).first.click()
    settle(page)
    assert "32 positions" in page.get_by_role("alert").inner_text()
    # The browser writes every answer of 4xx into its console by itself.
    assert all("422" in text for text in visit.complaints)
    visit.complaints.clear()
    write(page, TEXT)
    settle(page)
    assert not page.get_by_role("alert").is_visible()


def test_a_server_that_is_gone_is_told_and_comes_back_by_itself(
    visit: Visit, models: list[Path]
) -> None:
    page = visit.page
    with served(Session(str(models[0]))) as client:
        page.goto(f"{client.address}#t={quote(TEXT)}&m=1")
        settle(page)
        before = bars(page)
    page.get_by_role("button", name="copper", exact=True).click()
    page.get_by_role("alert").wait_for()
    told = page.get_by_role("alert").inner_text()
    again = f"maskery playground --port {client.port}"
    assert told.startswith(f"The server has stopped; start it again with {again}.")
    page.get_by_role("button", name="mask 2").click()
    with served(Session(str(models[0])), port=client.port):
        page.get_by_role("alert").wait_for(state="hidden")
        settle(page)
        assert bars(page) == before
    # The browser writes each failure to connect into its console by itself.
    assert all("ERR_CONNECTION_REFUSED" in text for text in visit.complaints)
    visit.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SIZE, PHONE], ids=["desk", "phone"])
def test_light_and_dark_at_desk_and_phone_width(
    browser: Any, client: Client, scheme: str, size: dict[str, int], tmp_path: Path
) -> None:
    visit = Visit(browser, viewport=size, color_scheme=scheme)
    page = visit.page
    page.goto(f"{client.address}#t={quote(TEXT)}&m=1.4&v=surprisal")
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    visit.shoot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        corner = image.convert("L").getpixel((2, 2))
    assert isinstance(corner, int)
    assert (corner > 200) == (scheme == "light")
    # Automatic, the other one, back, automatic again; the button says what comes next.
    other = {"light": "dark", "dark": "light"}[scheme]
    for theme, name in ((other, other), (scheme, scheme), ("auto", "automatic")):
        page.get_by_role("button", name=f"{name} theme: switch to it").click()
        assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert visit.complaints == []
    visit.context.close()


def test_a_dropped_picture_changes_what_is_predicted(
    visit: Visit, pairs_run: Path, seeing: Client, tmp_path: Path, capsys: Any
) -> None:
    picture, text = pairs_run.parent / "data" / "000.png", "this is a [MASK] square of paper"
    page, run = visit.page, pairs_run
    page.goto(f"{seeing.address}#t={quote(text)}")
    settle(page)
    assert bars(page) == as_shown(commanded(run, text, capsys)["masks"][0])
    page.set_input_files("#picture-file", picture)
    page.wait_for_selector("#picture-shown:visible")
    settle(page)
    seen = commanded(run, text, capsys, "--image", str(picture))
    assert bars(page, 0, 0) == as_shown(seen["masks"][0])
    assert bars(page, 0, 1) == as_shown(commanded(run, text, capsys)["masks"][0])
    page.get_by_role("button", name="Wrong words").click()
    settle(page)
    assert page.locator("#words .heated").count() >= 5
    page.get_by_role("button", name="Where").click()
    settle(page)
    page.get_by_role("button", name="square", exact=True).hover()
    page.wait_for_selector("#picture-heat:visible")
    page.get_by_role("searchbox").fill("a red square")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-hits img")
    assert page.locator("#search-hits li").count() == 12
    (tmp_path / "no.png").write_text("no picture")
    page.set_input_files("#picture-file", tmp_path / "no.png")
    page.wait_for_selector("#picture-error:visible")
    assert all("422" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
