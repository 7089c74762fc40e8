"""Whether people who see little, use no mouse, or hold a phone can read and use a page.

axe-core is no part of this repository: `make pages` fetches it from npm.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Where `make pages` puts what npm fetches.
CACHED = Path.home() / ".cache" / "maskery-pages" / "package" / "axe.min.js"
# Level AA, which the laws of many countries ask for; contrast of text is one of its rules.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# Pixels: a phone, a tablet, a laptop.
WIDTHS = (375, 768, 1440)
SCHEMES = ("light", "dark")

RUN_AXE = """async rules => {
  const found = await axe.run(document, { runOnly: rules, resultTypes: ["violations"] });
  return found.violations.flatMap(one => one.nodes.map(
    node => `${one.id} at ${node.target.join(" ")}: ${node.failureSummary}`));
}"""
# What sticks out, for the message; scrolling boxes may hold more than they show.
OVERFLOW = """() => {
  const root = document.documentElement, wide = root.clientWidth;
  if (root.scrollWidth <= wide) return [];
  const out = [...document.body.querySelectorAll("*")]
    .filter(node => node.getBoundingClientRect().right > wide + 1)
    .map(node => `${node.tagName.toLowerCase()}.${node.className} ends at ` +
      `${Math.round(node.getBoundingClientRect().right)} of ${wide} px`);
  return out.length ? out : [`the page is ${root.scrollWidth} px wide, of ${wide}`];
}"""
FOCUSED = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return null;
  const style = getComputedStyle(node), again = node.dataset.focusSeen !== undefined;
  node.dataset.focusSeen = "";
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
  return { node: node.outerHTML.slice(0, 120), again, seen: ring || style.boxShadow !== "none" };
}"""
MOST_STOPS = 80  # of the Tab key; a test is no longer than it must be


def axe_core() -> Path:
    """The path of axe.min.js: $MASKERY_AXE, or what `make pages` fetched; skips without it."""
    path = Path(os.environ.get("MASKERY_AXE") or CACHED)
    if not path.is_file():
        pytest.skip("no axe-core is here: `make pages` fetches it, or name one in MASKERY_AXE")
    return path


def violations(page: Any) -> list[str]:
    """The rules of WCAG 2.1, A and AA, that the page breaks as it stands, one line a place."""
    # Not as a <script>: a page's policy may forbid those.
    page.evaluate(axe_core().read_text("utf-8"))
    found: list[str] = page.evaluate(RUN_AXE, RULES)
    return found


def nameless(page: Any) -> list[str]:
    """What the keyboard reaches and a screen reader has no name for, by Chromium's own tree."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    found = []
    for node in nodes:
        states = {one["name"]: one["value"].get("value") for one in node.get("properties", ())}
        role = node.get("role", {}).get("value")
        name = str(node.get("name", {}).get("value", "")).strip()
        if states.get("focusable") and role != "RootWebArea" and not name:
            found.append(f"{role} {states}")
    return found


def overflowing(page: Any) -> list[str]:
    """What makes the page scroll sideways."""
    found: list[str] = page.evaluate(OVERFLOW)
    return found


def unseen_focus(page: Any) -> list[str]:
    """What the Tab key reaches without a visible sign of it."""
    found = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop is None or stop["again"]:
            break
        if not stop["seen"]:
            found.append(stop["node"])
    return found


def assert_accessible(page: Any) -> None:
    """Check the page as it stands, in light and dark and at every width; leaves it at the last.

    axe-core reads it once in each scheme, in light as a phone shows it and in dark as a laptop.
    """
    for scheme, read_at in zip(SCHEMES, (WIDTHS[0], WIDTHS[-1]), strict=True):
        # Without motion, or axe-core reads a colour on its way from one scheme to the other.
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            _require_none(overflowing(page), f"sideways overflow at {width} px, {scheme}")
            if width == read_at:
                _require_none(violations(page), f"axe-core at {width} px, {scheme}")
    _require_none(nameless(page), "no name")
    _require_none(unseen_focus(page), "focus is not seen")


def _require_none(found: list[str], what: str) -> None:
    if found:
        pytest.fail(f"{what}:\n" + "\n".join(found), pytrace=False)
