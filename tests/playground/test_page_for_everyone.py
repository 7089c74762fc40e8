"""The page for people who see little, use no mouse, or hold a phone, and what it saves."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from accessible import assert_accessible
from browser import Visit, settle
from PIL import Image
from served import Client

TEXT = "the river stone, copper meadow."
MANY = "river stone cloud ember forest signal harbour lantern meadow thunder copper violet " * 2
CAPTION = "this is a red square of paper"
SIZE = {"width": 1000, "height": 900}


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    visit = Visit(browser, viewport=SIZE)
    yield visit.page
    # The browser writes every answer of 4xx into its console by itself.
    assert [text for text in visit.complaints if "422" not in text] == []
    visit.context.close()


def go(page: Any, client: Client, text: str, more: str = "") -> None:
    page.goto(f"{client.address}#t={quote(text)}{more}")
    settle(page)


def look_at(page: Any, pairs_run: Path) -> None:
    page.set_input_files("#picture-file", pairs_run.parent / "data" / "000.png")
    page.get_by_role("img", name="The picture 000.png").wait_for()
    settle(page)


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()
    settle(page)


@pytest.mark.parametrize("view", ["plain", "surprisal", "influence"])
def test_a_text_is_for_everyone(page: Any, alone: Client, view: str) -> None:
    go(page, alone, TEXT, f"&m=2&v={view}&w=river")
    assert_accessible(page)


def test_two_models_are_for_everyone(page: Any, client: Client) -> None:
    go(page, client, TEXT, "&m=1.4&v=surprisal")
    assert page.locator(".legend:visible").count() == 3
    assert_accessible(page)


@pytest.mark.parametrize("view", ["Where", "Wrong words"])
def test_a_picture_and_a_search_are_for_everyone(
    page: Any, seeing: Client, pairs_run: Path, view: str
) -> None:
    go(page, seeing, CAPTION, "&m=3")
    look_at(page, pairs_run)
    press(page, view)
    page.get_by_role("button", name="square", exact=True).focus()
    page.get_by_role("searchbox").fill("a red square")
    page.keyboard.press("Enter")
    page.locator("#search-hits img").first.wait_for()
    assert_accessible(page)


def test_errors_and_an_empty_text_are_for_everyone(page: Any, seeing: Client) -> None:
    go(page, seeing, "red " * 600, "&m=0")
    page.get_by_role("searchbox").press("Enter")
    assert page.get_by_role("alert").count() == 2
    assert_accessible(page)
    go(page, seeing, "")
    assert_accessible(page)


@pytest.mark.parametrize("view", ["plain", "surprisal", "influence"])
def test_24_masks_in_every_view(page: Any, client: Client, view: str) -> None:
    hidden = ".".join(map(str, range(24)))
    go(page, client, f"{MANY} and the", f"&m={hidden}&v={view}&k=3")
    page.locator(".joint").first.wait_for()
    assert page.locator(".mask-card").count() == 24
    assert not page.get_by_role("alert").is_visible()
    colours = page.locator("#words .heated").all_inner_texts()
    assert colours == ([] if view == "plain" else ["and", "the"])
    if view == "surprisal":
        assert_accessible(page)


def test_24_masks_beside_a_picture(page: Any, seeing: Client, pairs_run: Path) -> None:
    hidden = ".".join(map(str, range(24)))
    go(page, seeing, "red " * 24 + "square", f"&m={hidden}")
    look_at(page, pairs_run)
    for view in ("Wrong words", "Where"):
        press(page, view)
        page.locator("#heat-name:visible").wait_for()
        assert page.locator(".mask-card").count() == 24
        assert not page.get_by_role("alert").is_visible()


def test_no_note_outlives_its_text(page: Any, alone: Client) -> None:
    go(page, alone, TEXT)
    press(page, "stone")
    assert page.locator("#about-word").inner_text() == "hides “stone”"
    assert "hides “stone”" in page.locator("#answers").inner_text()
    press(page, "Write")
    assert page.locator("#answers").evaluate("box => box.inert") is False
    page.keyboard.type(" ember")
    assert page.locator("#answers").evaluate("box => box.inert") is True
    assert page.get_by_text("hides “stone”").locator("visible=true").count() == 0
    page.keyboard.press("Escape")
    settle(page)
    assert page.get_by_text("hides “").count() == 0
    # Nor do predictions, where there are none of the new text.
    go(page, alone, TEXT, "&m=2")
    go(page, alone, "river " * 40, "&m=2")
    assert "32 positions" in page.get_by_role("alert").inner_text()
    assert page.locator(".mask-card").count() == 0


def test_an_error_below_a_long_text_is_in_sight(page: Any, alone: Client) -> None:
    go(page, alone, "river " * 900, "&m=2")
    box = page.get_by_role("alert").bounding_box()
    assert page.evaluate("document.documentElement.scrollHeight") > 2 * SIZE["height"]
    assert page.evaluate("scrollY") == 0
    assert box["y"] + box["height"] <= SIZE["height"]


def test_bars_and_colours_say_their_scale(page: Any, alone: Client) -> None:
    go(page, alone, TEXT, "&m=2&v=influence")
    page.locator("#words .heated").first.wait_for()
    told = page.get_by_text("a full bar is").inner_text()
    full = float(told.removeprefix("a full bar is ").removesuffix("%"))
    for row in page.locator(".bars li").all()[:4]:
        track, bar = row.locator(".track").bounding_box(), row.locator(".track i").bounding_box()
        shown = float(row.locator(".share").inner_text().removesuffix("%"))
        assert bar["width"] / track["width"] == pytest.approx(shown / full, abs=0.01 + 0.05 / full)
    legend = page.locator(".legend").inner_text().split("\n")
    assert legend[0] == "0%"
    assert re.fullmatch(r"[\d.]+% of what “.+” hangs on", legend[-1])


def test_a_finger_reads_a_colour_before_it_hides(browser: Any, alone: Client) -> None:
    phone = {"width": 375, "height": 740}
    visit = Visit(browser, viewport=phone, has_touch=True, is_mobile=True)
    page = visit.page
    go(page, alone, TEXT)
    assert page.get_by_text("Tap a word to hide it; what a model").is_visible()
    shown = page.locator("body").inner_text().lower()
    assert not re.search(r"\b(click|hover|point|press|enter|esc)\b", shown)
    page.get_by_role("button", name="Surprisal").tap()
    page.locator("#words .heated").first.wait_for()
    stone = page.get_by_role("button", name="stone", exact=True)
    stone.tap()
    assert page.locator("#about-word").inner_text().startswith("stone: ")
    stone.tap()
    settle(page)
    assert page.locator("#words").inner_text() == TEXT.replace("stone", "mask")
    assert visit.complaints == []
    visit.context.close()


def test_errors_stand_where_they_were_made(
    page: Any, seeing: Client, alone: Client, tmp_path: Path
) -> None:
    go(page, seeing, CAPTION, "&m=3")
    page.get_by_role("searchbox").press("Enter")
    (alert,) = page.locator("#search").get_by_role("alert").all()
    assert alert.inner_text() == "describe what the pictures should show"
    page.get_by_role("searchbox").fill("red")
    assert not alert.is_visible()
    (tmp_path / "no.png").write_text("no picture")
    page.set_input_files("#picture-file", tmp_path / "no.png")
    page.locator("#picture").get_by_role("alert").wait_for()
    go(page, alone, TEXT, "&m=2")
    page.get_by_label("How likely is").fill("o" * 60)
    page.keyboard.press("Enter")
    page.locator(".ask").get_by_role("alert").wait_for()
    assert page.locator(".bars li").count() == 10  # the predictions stay


def test_pictures_by_keyboard_and_ear(page: Any, seeing: Client, pairs_run: Path) -> None:
    go(page, seeing, CAPTION)
    page.get_by_label("Choose a picture").focus()
    look_at(page, pairs_run)
    page.get_by_role("button", name="Where").focus()
    page.keyboard.press("Enter")
    page.locator("#heat-name:visible").wait_for()
    page.locator("#words .word").first.focus()
    page.keyboard.press("ArrowRight")
    note = page.locator("#about-word[aria-live=polite]").inner_text()
    assert re.fullmatch(r"is: the model looks \d+% from the left, \d+% from the top", note)
    heat = page.locator("#picture-heat")
    page.get_by_label("Strength of the colour").focus()
    page.keyboard.press("Home")
    assert heat.evaluate("heat => heat.style.opacity") == "0.1"
    page.get_by_role("button", name="Remove the picture").press("Enter")
    assert page.evaluate("document.activeElement.id") == "picture-file"
    page.get_by_role("searchbox").fill("a red square")
    page.keyboard.press("Enter")
    page.locator("#search-hits img").first.wait_for()
    said = page.locator("#search").get_by_role("status").inner_text()
    assert re.fullmatch(r"“a red square”: the best 12 of \d+, best first", said)
    tree = page.get_by_role("list", name="“a red square”").aria_snapshot()
    assert re.search(r"listitem: (score|similarity) .* \d+\.png", tree)


def test_what_is_shown_can_be_taken_along(page: Any, client: Client, tmp_path: Path) -> None:
    go(page, client, TEXT, "&m=1&v=surprisal&w=river")
    page.locator("#other-heats .reading").nth(1).wait_for()
    page.locator(".asked").wait_for()
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    saved.value.save_as(tmp_path / "shown.csv")
    assert "Saved" in page.get_by_role("status").first.inner_text()
    rows = list(csv.DictReader((tmp_path / "shown.csv").read_text("utf-8").splitlines()))
    found = [row for row in rows if row["what"] == "prediction"]
    assert len(found) == 20
    tokens = page.locator(".bars .token").all_inner_texts()
    assert [row["token"] for row in found] == tokens
    share = page.locator(".bars .share").first.inner_text()
    assert f"{100 * float(found[0]['value']):.1f}%" == share
    assert {(row["place"], row["word"]) for row in found} == {("2", "river")}
    told = [row for row in rows if row["what"] == "surprisal" and row["word"] == "stone"]
    assert len(told) == 3
    assert told[2]["model"] == "difference"
    assert float(told[2]["value"]) == pytest.approx(
        float(told[0]["value"]) - float(told[1]["value"])
    )
    with page.expect_download() as saved:
        page.get_by_role("button", name="PNG").click()
    saved.value.save_as(tmp_path / "shown.png")
    with Image.open(tmp_path / "shown.png") as image:
        assert image.width == 2 * SIZE["width"]
        pixels = np.asarray(image.convert("RGB"))
    # The pill of the mask is painted where it stands, in its colour.
    pill = page.locator(".word.mask").bounding_box()
    left, top = (round(2 * pill[side] + 12) for side in ("x", "y"))
    assert tuple(pixels[top, left]) == (0x35, 0x56, 0xC4)
