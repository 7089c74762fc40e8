"""Draw the README's pictures into `docs/images/`: a run's report, the playground, a search.

    PYTHONPATH=tests/support python docs/draw_images.py runs/reference

Of `maskery quickstart person-search` the first search is shown, where its folder is beside the run.

Needs a Chromium (`make browser`) and playwright, which the extra `dev` brings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from browser import FLAGS, chromium
from PIL import Image
from playwright.sync_api import sync_playwright
from served import served

from maskery.playground.session import Session
from maskery.runs.person_search.quickstart import PICTURE

IMAGES = Path(__file__).resolve().parent / "images"
TEXT = (
    "A class definition defines a class object. If the primary is a list, the subscript must be an "
    "integer. The raise statement raises an exception."
)
HIDDEN = "6"
SEARCHES = 5  # rows of the picture that the quickstart draws


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    run = parser.parse_args().run
    path = chromium()
    if path is None:
        sys.exit("no Chromium is installed; run make browser, or name one in MASKERY_CHROMIUM")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as driver, served(Session(str(run))) as client:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        for scheme in ("light", "dark"):
            address = f"{client.address}#t={quote(TEXT)}&m={HIDDEN}&v=surprisal&k=8"
            draw_playground(browser, address, scheme, IMAGES / f"playground-{scheme}.png")
        report = (run / "report.html").resolve().as_uri()
        page = browser.new_page(viewport={"width": 1120, "height": 1180})
        page.goto(report)
        page.screenshot(path=IMAGES / "report.png")
        browser.close()
    shutil.copyfile(run / "curves.png", IMAGES / "curves.png")
    searches = run.parent / "quickstart-person-search" / PICTURE
    if searches.is_file():
        with Image.open(searches) as sheet:
            row = sheet.crop((0, 0, sheet.width, sheet.height // SEARCHES))
            row.save(IMAGES / "people.png", optimize=True)


def draw_playground(browser: Any, address: str, scheme: str, path: Path) -> None:
    """One picture of the page, once it has all its answers."""
    page = browser.new_page(viewport={"width": 1000, "height": 700}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector(".mask-card .bars li")
    page.wait_for_selector("#words .heated")
    page.wait_for_timeout(500)
    page.screenshot(path=path, full_page=True)
    page.close()


if __name__ == "__main__":
    main()
