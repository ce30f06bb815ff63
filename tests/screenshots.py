"""Pages as people see them, by the machine's own Chromium; nothing is downloaded.

``python tests/screenshots.py OUT`` writes a picture of each committed page at each width and prints how long and how
heavy it is.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "index.html",
    "paper-jpeg/index.html",
    "methods-jpeg/index.html",
    "methods-quick/index.html",
    "methods-jpeg/making.html",
)
WIDTHS = (1280, 400)


def chromium() -> str | None:
    """The program of the browser, where there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


NEEDS_BROWSER = pytest.mark.skipif(
    chromium() is None, reason="no Chromium to open the pages with: apt-get install chromium"
)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium; Playwright starts it without a sandbox, which root in a container cannot have."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium())
        yield started
        started.close()


class Watched:
    """A tab, and what went wrong or over the network in it."""

    def __init__(self, tab: Page):
        self.tab = tab
        self.faults: list[str] = []
        tab.on(
            "console",
            lambda message: self.faults.append(message.text) if message.type in ("error", "warning") else None,
        )
        tab.on("pageerror", lambda error: self.faults.append(str(error)))
        tab.on("requestfailed", lambda request: self.faults.append(f"not found: {request.url}"))
        tab.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else self.faults.append(request.url),
        )

    def open(self, page: Path, width: int = 1280, scheme: str = "light", anchor: str = "") -> Page:
        self.faults.clear()
        self.tab.set_viewport_size({"width": width, "height": 900})
        self.tab.emulate_media(color_scheme=scheme)
        self.tab.goto("about:blank")  # so that another anchor of the same page is a new visit, too
        self.tab.goto(page.as_uri() + anchor)
        return self.tab


def photograph(pages: list[Path], out: Path) -> None:
    """A PNG of every page at every width in full length."""
    out.mkdir(parents=True, exist_ok=True)
    with browser() as started:
        for width in WIDTHS:
            tab = started.new_page(viewport={"width": width, "height": 900})
            for page in pages:
                tab.goto(page.as_uri())
                length = tab.evaluate("document.documentElement.scrollHeight")
                name = str(page.relative_to(ROOT / "results").with_suffix("")).replace("/", "-")
                tab.screenshot(path=out / f"{name}-{width}.png", full_page=True)
                print(f"{name} at {width} px: {length} px long, {page.stat().st_size / 1000:.0f} kB of HTML")


if __name__ == "__main__":
    photograph([ROOT / "results" / page for page in PAGES], Path(sys.argv[1]))
