"""Charts: places by hand, the same text for the same numbers, and nothing outside of the drawing."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nncift.runs import report
from nncift.runs.report.charts import LETTER, Axis, Dot, Line, Sheet, intervals, lines, span, style, ticks
from nncift.selection.controls import CONTROLS

pytestmark = pytest.mark.usefixtures("hastened")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.02, 0.013), (0, 56), (3.0, 3.0001), (-1e-9, 1e-9), (0, 2e5)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    assert len(set(found)) == len(found)


def test_a_range_is_never_empty() -> None:
    for values in ([], [0.0], [5.0, 5.0], [float("nan")], [-1.0, 2.0]):
        low, high = span(values)
        assert low < high


def test_places_on_plain_and_logarithmic_axes() -> None:
    assert [Axis(2, 4, 100, 0).at(value) for value in (2, 3, 4)] == [100, 50, 0]
    log = Axis(1, 1000, 0, 300, log=True)
    assert [log.at(value) for value in (1, 10, 1000)] == [0, 100, 300]
    assert log.ticks == [1, 10, 100, 1000]
    assert Axis(3, 60, 0, 1, log=True).ticks == [5, 10, 20, 50]


def drawn(names: list[str], plain: tuple[str, ...] = ()) -> str:
    found = [Line(name, [1.0, 10.0], [0.1, 0.2], [0.05, 0.0]) for name in names]
    found += [Line(name, [1.0, 10.0], [0.0, 0.0], plain=True) for name in plain]
    return Sheet({"left": lines("all", found, ("x", "y"), log_x=True)}, names=names, plain=plain).svg()


def test_a_figure_is_the_same_for_the_same_numbers_and_one_document() -> None:
    first = drawn(["one", "<two>"], ("plain",))
    assert first == drawn(["one", "<two>"], ("plain",))
    texts = [node.text for node in ET.fromstring(first).iter(f"{SVG}text")]
    assert {"left", "x", "y", "one", "<two>", "plain"} <= set(texts)
    # A colour per line, in the chart and in the legend alike.
    for kind in ("s0", "s1", "plain"):
        assert first.count(f'"curve series {kind}"') == 2


def test_the_band_is_the_deviation() -> None:
    text = lines("one", [Line("one", [0.0, 1.0], [1.0, 1.0], [1.0, 0.0])], ("x", "y")).__html__()
    (band,) = re.findall(r'<polygon class="band s0" points="([^"]+)"', text)
    ys = [float(point.split(",")[1]) for point in band.split()]
    # Up by one and down by one at the first point, nothing at the second.
    assert ys[1] == ys[2] == pytest.approx((ys[0] + ys[3]) / 2, abs=0.1)
    assert ys[0] < ys[1] < ys[3]


@pytest.mark.parametrize("names", [[f"{n} hidden" for n in range(1, 6)], ["labels 20000, probe, active, towers"] * 2])
def test_a_legend_stays_inside_its_figure(names: list[str]) -> None:
    names = [f"{name} {at}" for at, name in enumerate(names)]
    document = ET.fromstring(drawn(names))
    _, _, width, height = map(float, document.attrib["viewBox"].split())
    found = [node for node in document.iter(f"{SVG}text") if node.attrib["class"] == "legend"]
    assert [node.text for node in found] == names
    for node in found:
        assert float(node.attrib["x"]) + LETTER * 0.8 * len(str(node.text)) < width
        assert float(node.attrib["y"]) < height


def test_intervals_stand_beside_their_names() -> None:
    chart = intervals("all", [Dot("a row", 0.5, (0.4, 0.6), "better"), Dot("b", 0.4)], "value", reference=0.4)
    text = chart.__html__()
    (x,) = map(float, re.findall(r'<circle class="better" cx="([\d.]+)"', text))
    (first, last) = map(float, re.findall(r'class="span better" x1="([\d.]+)" x2="([\d.]+)"', text)[0])
    (zero,) = map(float, re.findall(r'class="zero" x1="([\d.]+)"', text))
    assert x == pytest.approx((first + last) / 2, abs=0.1)
    assert zero == first == float(re.findall(r'<circle class="open" cx="([\d.]+)"', text)[0])
    assert ">a row<" in text


def test_every_selection_of_the_coverage_chart_has_a_colour() -> None:
    page = (Path(report.__file__).parent / "page.css").read_text("utf-8")
    for name in ("selected", *CONTROLS):
        assert f".c-{name}{{stroke:var(" in style(), name
        assert f".swatch.c-{name}{{background:var(" in page, name
