"""The committed pages as people see them, by the machine's own Chromium; nothing is downloaded.

``python tests/screenshots.py OUT`` writes a picture of each page at each width and prints how long and how heavy it is.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

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


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium; Playwright starts it without a sandbox, which root in a container cannot have."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium())
        yield started
        started.close()


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
