"""The committed pages as people use them: in a browser, from disk, wide and narrow, light and dark."""

import csv
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from playwright.sync_api import Page
from screenshots import NEEDS_BROWSER, Watched, browser

pytestmark = NEEDS_BROWSER

RESULTS = ROOT / "results"
STUDIES = [page for page in sorted(RESULTS.glob("*/index.html")) if page.parent.name != "quick"]
VARIANTS = [min(found) for study in STUDIES if (found := list(study.parent.glob("runs/*/*.html")))]
MAKING = [page.with_name("making.html") for page in STUDIES]
RUN = RESULTS / "paper-jpeg/runs/mlp5-scratch/osciquant-3bit.html"
PAPER = RESULTS / "paper-jpeg/index.html"
VIEWS = {"wide and light": (1280, "light"), "narrow and dark": (400, "dark")}

OPEN_ALL = "document.querySelectorAll('details').forEach(details => details.open = true)"
# Only what an element and its table stand in: to lay out all that a page holds takes a while after every click.
OPEN_AROUND = """chooser => {
    document.querySelectorAll("details").forEach(details => details.open = false);
    for (const start of [chooser, document.getElementById(chooser.dataset.table)])
        for (let details = start; details; details = details.parentElement?.closest("details")) details.open = true;
}"""
# What reaches beyond the right edge and does not stand in something that scrolls; within a picture its own frame clips.
OVERFLOWING = """() => [...document.body.querySelectorAll("*:not(svg *)")].filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || box.right <= document.documentElement.clientWidth + 1) return false;
    for (let outer = element.parentElement; outer; outer = outer.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(outer).overflowX)) return false;
    return true;
}).map(element => element.outerHTML.slice(0, 120))"""
COLOURS = ["color-contrast", "link-in-text-block"]
# Rows built like an earlier one have its colours, and those of thousands take axe most of a minute.
HIDE_ALIKE = r"""() => {
    const seen = new Set();
    for (const row of document.querySelectorAll("tbody tr")) {
        const built = row.outerHTML.replace(/>[^<]+/g, ">").replace(/ (href|id|title|data-[a-z]+)="[^"]*"/g, "");
        row.hidden = seen.has(built);
        seen.add(built);
    }
}"""
# Clicks every header twice; what is wrong with the order of rows, by the words for it. Returns the number of clicks.
SORTING = """() => {
    const text = (row, column) => row.cells[column]?.dataset.sort ?? row.cells[column]?.textContent.trim() ?? "";
    const collator = new Intl.Collator("en", {numeric: true});
    const wrong = [];
    let clicks = 0;
    for (const table of document.querySelectorAll("table.sortable"))
        for (const header of table.tHead.rows[table.tHead.rows.length - 1].cells)
            for (const order of ["ascending", "descending"]) {
                const before = [...table.tBodies].map(body => new Set(body.rows));
                header.querySelector("button").click();
                clicks++;
                const say = what => wrong.push(`${table.id}, ${header.textContent.trim()}, ${order}: ${what}`);
                const marked = [...table.querySelectorAll("th[aria-sort]:not([aria-sort=none])")];
                if (marked.length != 1 || marked[0] !== header || header.ariaSort != order) say("aria-sort");
                [...table.tBodies].forEach((body, i) => {
                    const rows = [...body.rows];
                    if (rows.length != before[i].size || !rows.every(row => before[i].has(row))) say("other rows");
                    const cells = rows.map(row => text(row, header.cellIndex));
                    const filled = cells.filter(cell => cell !== "");
                    if (cells.slice(0, filled.length).includes("")) say("empty cells are not last");
                    const numbers = filled.map(parseFloat).filter(number => !isNaN(number));
                    const words = filled.filter(cell => isNaN(parseFloat(cell)));
                    const sign = order == "ascending" ? 1 : -1;
                    if (numbers.some((number, i) => i && sign * (number - numbers[i - 1]) < 0)) say(`numbers ${numbers}`);
                    if (words.some((word, i) => i && sign * collator.compare(word, words[i - 1]) < 0)) say(`words ${words}`);
                });
            }
    return [wrong, clicks];
}"""
ROWS = """id => [...document.querySelectorAll(`#${id} > tbody > tr`)].map(row =>
    [[...row.cells].map(cell => cell.textContent).join(" ").toLowerCase(), row.checkVisibility()])"""
HEADINGS = "id => [...document.querySelectorAll(`#${id} > tbody > tr`)].map(row => row.classList.contains('group'))"
# For every box of a chooser: its label, and before and after two clicks what is seen of the table: for every column
# whether its header is, and whether the cells under it agree. A call for each would take a minute.
CLICK_BOXES = """chooser => {
    const table = document.getElementById(chooser.dataset.table);
    const seen = () => [...table.tHead.rows[table.tHead.rows.length - 1].cells].map(header => [
        header.textContent.trim(), header.checkVisibility(),
        [...table.tBodies].flatMap(body => [...body.rows]).filter(row => row.cells.length == header.parentElement.cells.length)
            .every(row => row.cells[header.cellIndex].checkVisibility() == header.checkVisibility()),
    ]);
    return [...chooser.querySelectorAll("input[type=checkbox][data-column]")].map(box => [
        box.labels[0].textContent.trim(), seen(), [1, 2].map(() => { box.click(); return [box.checked, seen()]; }),
    ]);
}"""
# Links of a page to what is closed, or stands in something closed.
TO_CLOSED = """() => [...new Set([...document.querySelectorAll('a[href^="#"]')].map(link => link.getAttribute("href")))].filter(
    target => target.length > 1 && document.getElementById(decodeURIComponent(target.slice(1)))?.closest("details:not([open])"))"""
FOLLOW = """async target => {
    const found = document.getElementById(decodeURIComponent(target.slice(1)));
    const link = [...document.querySelectorAll("a")].find(link => link.getAttribute("href") == target);
    for (const time of [1, 2]) {  // the second click follows a link to where the address already is
        document.querySelectorAll("details").forEach(details => details.open = false);
        link.click();
        for (let i = 0; i < 100 && !(found.checkVisibility() && (found.open ?? true)); i++)
            await new Promise(resolve => setTimeout(resolve, 20));
        if (!found.checkVisibility() || !(found.open ?? true)) return `${target}: closed after click ${time}`;
    }
}"""


@pytest.fixture(scope="module")
def watched():
    with browser() as started:
        yield Watched(started.new_page())


def named(page: Path) -> str:
    return str(page.relative_to(RESULTS))


def violations(tab: Page, options: dict) -> list[str]:
    """What keeps somebody out of a page, by axe-core: serious and critical ones, as rule and element."""
    found = Axe().run(tab, options={"resultTypes": ["violations"]} | options).response["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {node['html'][:200]}" for fault in serious for node in fault["nodes"][:3]]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("page", [RESULTS / "index.html", *STUDIES, *MAKING, *sorted({RUN, *VARIANTS})], ids=named)
def test_a_page_opens_whole_in_its_width_and_scheme_for_everyone(watched, page, view):
    width, scheme = VIEWS[view]
    tab = watched.open(page, width, scheme)
    for state in ("as it opens", "all opened"):
        assert tab.evaluate(OVERFLOWING) == [], state
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, state
        tab.evaluate(OPEN_ALL)
    red, green, blue = tab.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert (red + green + blue < 3 * 64) if scheme == "dark" else (red + green + blue > 3 * 192)
    assert watched.faults == []
    assert violations(tab, {"rules": {rule: {"enabled": False} for rule in COLOURS}}) == []
    tab.evaluate(HIDE_ALIKE)
    assert violations(tab, {"runOnly": COLOURS}) == []


@pytest.mark.parametrize("page", STUDIES, ids=named)
def test_sorting_sorts(watched, page):
    wrong, clicks = watched.open(page).evaluate(SORTING)
    assert wrong == []
    assert clicks or page != PAPER
    assert watched.faults == []


def test_a_header_sorts_by_mouse_and_by_keyboard(watched):
    tab = watched.open(PAPER)
    table = tab.locator("table.sortable").first
    table.evaluate(
        "table => { for (let outer = table; outer = outer.closest('details:not([open])');) outer.open = true; }"
    )
    header = table.locator("th:has(button:visible)").first
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").press("Enter")
    assert header.get_attribute("aria-sort") == "descending"


def kept(headings: list[bool], rows: list[str], words: list[str]) -> list[tuple[str, bool]]:
    """Rows with all the words; a heading as long as a row under it is there."""
    shown = [all(word.lower() in row for word in words) for row in rows]
    for place in [place for place, heading in enumerate(headings) if heading]:
        end = next((later for later in range(place + 1, len(rows)) if headings[later]), len(rows))
        shown[place] = any(shown[place + 1 : end])
    return list(zip(rows, shown))


@pytest.mark.parametrize("page", STUDIES, ids=named)
def test_filtering_filters(watched, page):
    tab = watched.open(page)
    tab.evaluate(OPEN_ALL)
    filters = tab.locator("input[type=search][data-filter]").all()
    assert filters or page != PAPER
    for field in filters:
        table = field.get_attribute("data-filter")
        rows = [row for row, _ in tab.evaluate(ROWS, table)]
        first, last = rows[0].split(), rows[-1].split()
        for words in (first[:1], last[:2][::-1], [first[0].upper()], ["no-row-says-this"], []):
            field.fill(" ".join(words))
            expected = kept(tab.evaluate(HEADINGS, table), rows, words)
            assert [tuple(row) for row in tab.evaluate(ROWS, table)] == expected, (table, words)
    assert watched.faults == []


@pytest.mark.parametrize("page", STUDIES, ids=named)
def test_columns_are_chosen(watched, page):
    tab = watched.open(page)
    choosers = tab.locator("details.columns[data-table]").all()
    assert choosers or page != PAPER
    for chooser in choosers:
        chooser.evaluate(OPEN_AROUND)
        table = chooser.get_attribute("data-table")
        box = chooser.locator("input[type=checkbox][data-column]").first
        for _ in range(2):
            box.set_checked(not box.is_checked())  # as a hand does
        clicked = chooser.evaluate(CLICK_BOXES)
        assert clicked, table
        for label, before, clicks in clicked:
            for shown, after in clicks:
                assert all(cells_agree for _, _, cells_agree in after), (table, label)
                assert [name for old, (name, visible, _) in zip(before, after) if old[1] != visible] in ([label], [])
                assert [visible for name, visible, _ in after if name == label] == [shown], (table, label)
            assert clicks[1][1] == before, (table, label)
    assert watched.faults == []


def test_a_runs_curves_open_from_its_study(watched):
    tab = watched.open(PAPER)
    tab.evaluate(OPEN_ALL)
    tab.locator(f'a[href="{RUN.relative_to(PAPER.parent)}"]:visible').first.click()
    assert tab.url == RUN.as_uri()
    tab.evaluate(OPEN_ALL)
    for curves in tab.locator("figure.curves svg[role=img]").all():
        assert curves.evaluate(
            "svg => svg.ariaLabel || svg.getAttribute('aria-labelledby') || svg.querySelector('title')?.textContent"
        )
    drawn = "svg => [...svg.querySelectorAll('path, polyline')].filter(line => line.getTotalLength() > 20).length"
    assert sum(curves.evaluate(drawn) for curves in tab.locator("figure.curves svg[role=img]:visible").all())
    assert watched.faults == []


def test_a_claims_address_opens_it(watched):
    claims = [row["claim"] for row in csv.DictReader((PAPER.parent / "claims.csv").open())]
    for claim in (claims[0], claims[-1]):
        tab = watched.open(PAPER, anchor=f"#{claim}")
        tab.locator(f"details.claim#{claim}[open]").wait_for()
        assert tab.locator(f"#{claim}").evaluate("claim => claim.getBoundingClientRect().top < innerHeight")
    assert tab.locator("#claims details.claim").evaluate_all("claims => claims.map(claim => claim.id)") == claims


@pytest.mark.parametrize("page", STUDIES, ids=named)
def test_links_to_what_is_closed_open_it(watched, page):
    tab = watched.open(page)
    closed = tab.evaluate(TO_CLOSED)
    assert closed or page != PAPER
    assert [fault for target in closed if (fault := tab.evaluate(FOLLOW, target))] == []


def test_the_paper_is_short_and_every_page_light(watched):
    """Collapsed as it opens; pictures stand apart."""
    assert watched.open(PAPER).evaluate("document.documentElement.scrollHeight") <= 9000
    assert all(page.stat().st_size < 300_000 for page in [RESULTS / "index.html", *STUDIES, *MAKING, *VARIANTS])


@pytest.mark.parametrize("page", STUDIES, ids=named)
def test_a_phone_shows_the_accuracy_without_scrolling_sideways(watched, page):
    tab = watched.open(page, width=400)
    ends = tab.evaluate(
        """() => [...document.querySelectorAll("table[id^=t-table], table[id^=t-comparison]")].map(table => {
            const heads = [...table.tHead.rows[0].cells].map(head => head.textContent.trim());
            const column = heads.includes("Reproduced") ? heads.indexOf("Reproduced") : 1;
            return table.rows[0].cells[column].getBoundingClientRect().right;
        })"""
    )
    assert all(end <= 400 for end in ends), ends


def test_the_first_screen_reads_without_script(watched):
    plain = watched.tab.context.browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    tab = plain.new_page()
    tab.goto(PAPER.as_uri())
    for text in ("What was found", "published cells have run"):
        assert tab.get_by_text(text).first.is_visible()
    plain.close()
