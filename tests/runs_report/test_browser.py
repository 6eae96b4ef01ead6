"""The report as a reader sees it: headless Chromium at desktop and phone width, light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    assert page.locator(".curve").count() == 5
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
    assert page.locator("#list details").count() == 6
    page.locator("#list summary").first.click()
    page.locator("#list .inside").first.wait_for()
    assert "<script>document.title = 'broken in'</script>" in page.locator("#list details").first.inner_text()
    for point in page.locator("#map circle").all():
        point.dispatch_event("click")
    page.wait_for_timeout(100)
    assert page.title() == "nncift report: alpaca"
    assert page.locator("main img").count() == 0


def test_search_finds_rows_by_words_and_by_kind(opened: Any) -> None:
    page = opened()
    assert page.locator("#found").inner_text() == "60 of 60 rows"
    assert page.locator("#list details").count() == 40
    page.click("#more")
    assert page.locator("#list details").count() == 60
    page.fill("#search", "row-07")
    assert page.locator("#found").inner_text().startswith("1 of 60")
    page.fill("#search", "")
    page.check("#only")
    assert page.locator("#found").inner_text() == "18 of 60 rows"
    page.locator("#list summary").first.click()
    page.locator("#list .inside").first.wait_for()
    assert "Chosen at rank 1 of 18" in page.locator("#list details").first.inner_text()
    assert "Serves best:" in page.locator("#list details").first.inner_text()
    page.fill("#search", "no such words anywhere")
    assert page.locator("#list details").count() == 0


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
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#list details[open] .inside").wait_for()


def test_a_tap_on_a_phone_shows_the_row(opened: Any) -> None:
    page = opened("phone")
    page.locator("#map circle.chosen").last.click(force=True)
    assert "Chosen at rank" in page.locator("#seen").inner_text()
