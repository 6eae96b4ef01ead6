"""The report as a reader sees it: headless Chromium at desktop and phone width, light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("hastened")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture
def opened(browser: Any, done: Path) -> Iterator[Any]:
    """Return a function that opens the report and collects what the console says and the network is asked."""
    contexts = []

    def open_page(size: str = "desktop", scheme: str = "light") -> Any:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((done / "report.html").as_uri())
        page.locator("#table tbody tr").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_renders_without_errors_and_without_overflow(opened: Any, size: str, scheme: str) -> None:
    page = opened(size, scheme)
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (red > 200) == (scheme == "light")


def test_charts_are_not_empty(opened: Any) -> None:
    page = opened()
    assert page.locator("#coverage .curve").count() == 5
    assert page.locator("circle.pair").count() > 10
    assert page.locator("rect.bar").count() > 5
    assert page.locator("#map circle").count() == 60
    for chart in page.locator("svg.chart").all():
        box = chart.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 150
    points = page.evaluate(
        "[...document.querySelectorAll('svg.chart circle, svg.chart rect')].every(n => ['cx','cy','x','y']"
        ".every(a => !n.hasAttribute(a) || Number.isFinite(Number(n.getAttribute(a)))))"
    )
    assert points


def test_a_row_that_holds_markup_stays_text(opened: Any) -> None:
    page = opened()
    page.fill("#search", "<script>")
    assert page.locator("#table tbody tr").count() == 6
    page.locator("#table .open").first.click()
    page.locator("#table .inside").first.wait_for()
    assert "<script>document.title = 'broken in'</script>" in page.locator("#table .inside").first.inner_text()
    for point in page.locator("#map circle").all():
        point.dispatch_event("click")
    page.wait_for_timeout(100)
    assert page.title() == "nncift report: alpaca"
    assert page.locator("main img").count() == 0


def test_search_finds_rows_by_words_and_filters_by_kind_and_source(opened: Any) -> None:
    page = opened()
    found = page.locator("#found")
    assert found.inner_text() == "60 of 60 rows"
    assert page.locator("#table tbody tr").count() == 50
    page.click("#after")
    assert page.locator("#page").inner_text() == "page 2 of 2"
    assert page.locator("#table tbody tr").count() == 10
    page.fill("#search", "row-07")
    assert found.inner_text().startswith("1 of 60")
    page.fill("#search", "")
    page.select_option("#by-kind", "chosen")
    assert found.inner_text() == "18 of 60 rows"
    page.select_option("#by-source", label="second")
    in_second = int(found.inner_text().split()[0])
    assert 0 < in_second < 18
    page.select_option("#by-kind", "all")
    assert found.inner_text() == "20 of 60 rows"
    page.select_option("#by-source", "")
    page.locator("#table .open").first.click()
    assert "Chosen at rank 1 of 18" in page.locator("#table .inside").first.inner_text()
    assert "Serves best:" in page.locator("#table .inside").first.inner_text()
    page.fill("#search", "no such words anywhere")
    assert page.locator("#table tbody tr").count() == 0


def test_a_column_sorts_both_ways(opened: Any) -> None:
    page = opened()
    for wanted in ("descending", "ascending"):
        page.click("#table th[data-by=score] button")
        assert page.locator("#table th[data-by=score]").get_attribute("aria-sort") == wanted
        values = [float(text) for text in page.locator("#table td[data-label=score]").all_inner_texts()]
        assert values == sorted(values, reverse=wanted == "descending")
    page.click("#table th[data-by=rank] button")
    assert page.locator("#table tbody tr").first.inner_text().startswith("rank 1")


def test_ticks_make_files_of_ids_and_a_command(opened: Any) -> None:
    page = opened()
    assert page.locator("#save-in").is_disabled()
    for nth, way in ((0, "in"), (3, "in"), (1, "out")):
        page.locator(f"#table input[data-way={way}]").nth(nth).check()
    # In and out at once cannot be.
    page.locator("#table input[data-way=out]").nth(3).check()
    page.locator("#table input[data-way=in]").nth(3).check()
    assert page.locator("#ticked").inner_text() == "2 in, 1 out"
    assert page.locator("#command-text").inner_text().endswith("--include include.txt --exclude exclude.txt")
    with page.expect_download() as event:
        page.click("#save-in")
    assert event.value.suggested_filename == "include.txt"
    ids = Path(event.value.path()).read_text().split()
    page.select_option("#by-kind", "ticked")
    assert page.locator("#found").inner_text() == "3 of 60 rows"
    assert len(ids) == 2
    assert all(item.startswith("row-") for item in ids)


def test_a_target_is_named_by_its_text_and_leads_to_its_row(opened: Any) -> None:
    page = opened()
    page.locator("#table .open").first.click()
    link = page.locator("#table .inside a").first
    text = link.inner_text()
    link.click()
    page.locator("#table tr.detail").wait_for()
    opened_row = page.locator("#table .open[aria-expanded=true]")
    assert opened_row.inner_text().startswith(text[:20])
    assert page.evaluate("document.activeElement.className") == "open"


def test_the_map_is_coloured_and_zoomed(opened: Any) -> None:
    page = opened()
    assert page.locator("#map circle.chosen").count() == 18
    page.select_option("#colour", "source")
    assert page.locator("#map circle.p0").count() == 40
    assert page.locator("#map circle.ring").count() == 18
    page.select_option("#colour", "score")
    assert page.locator("#map circle.h0").count() >= 10
    before = page.locator("#map").get_attribute("viewBox")
    page.click("#nearer")
    assert page.locator("#map").get_attribute("viewBox") != before
    page.click("#farther")
    assert page.locator("#map").get_attribute("viewBox") == before


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length && (colour.length < 4 || colour[3] === 1)) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION", "TITLE"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    if (style.visibility === "hidden" || !node.getClientRects().length || node.closest("button:disabled, .skip")) continue;
    const svg = node.namespaceURI.endsWith("svg");
    const pair = [light(parse(svg ? style.fill : style.color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05), large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) bad.push([node.tagName, node.className, text.slice(0, 30), ratio.toFixed(2)].join(" "));
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_as_wcag_aa_asks(opened: Any, scheme: str) -> None:
    page = opened(scheme=scheme)
    page.locator("#table .open").first.click()
    assert page.evaluate(CONTRAST) == []


def test_it_prints_without_its_controls(opened: Any) -> None:
    page = opened()
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    # On paper it is light, whatever the screen showed.
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    for gone in ("nav", "#theme", ".ticks", ".pages", "#table thead th:last-child"):
        assert not page.locator(gone).first.is_visible()
    assert page.locator("#verdict").is_visible()
    assert page.locator("#table").is_visible()


def test_pointing_at_the_map_shows_the_row(opened: Any) -> None:
    page = opened()
    point = page.locator("#map circle.chosen").last
    point.hover(force=True)
    assert "Chosen at rank" in page.locator("#seen").inner_text()


def test_the_map_is_walked_by_arrow_keys(opened: Any) -> None:
    page = opened()
    page.focus("#map")
    seen = set()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
        seen.add(page.locator("#seen").inner_text())
    assert len(seen) > 2
    assert page.locator("#map circle.here").count() == 1


def test_everything_is_reached_by_the_keyboard(opened: Any) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.focus("#search")
    page.keyboard.type("row-07")
    page.focus("#table .open")
    page.keyboard.press("Enter")
    page.locator("#table .inside").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#table') !== null")


def test_a_tap_on_a_phone_shows_the_row(opened: Any) -> None:
    page = opened("phone")
    page.locator("#map circle.chosen").last.click(force=True)
    assert "Chosen at rank" in page.locator("#seen").inner_text()
