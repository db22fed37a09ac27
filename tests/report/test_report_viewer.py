"""The slice viewer in a real Chromium: what a reader does, and what the picture then holds."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Tab, chromium, opened

from volrec.report.page import page, section
from volrec.report.viewer import VIEWER_SCRIPT, VIEWER_STYLE, ViewerStudy, viewer_html

HOSTILE = "</script><b>x</b> \"q\" 'n' & Müller 肝"
BLOCK, SIDE, SLICES = 16, 4, 12  # a slice is 4 x 4 blocks of 16 x 16 voxels: the middle of each has no neighbours in it
POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:\">"
)

# Mean colour of the picture at the middle of every block, read from the canvas that the reader sees.
READ = """([side, wide, high]) => {
  const canvas = document.querySelector('.vr-stage canvas');
  // Of a copy: the picture's own canvas stays where the browser draws it.
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const pen = copy.getContext('2d', { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  const factor = Math.min(canvas.width / wide, canvas.height / high);
  const [left, top] = [(canvas.width - wide * factor) / 2, (canvas.height - high * factor) / 2];
  const found = [];
  for (let row = 0; row < side; row += 1) for (let column = 0; column < side; column += 1) {
    const x = Math.floor(left + ((column + 0.5) / side) * wide * factor);
    const y = Math.floor(top + ((row + 0.5) / side) * high * factor);
    found.push([...pen.getImageData(x, y, 1, 1).data].slice(0, 3));
  }
  return found;
}"""
CONTRAST = """(selector) => {
  const number = (text) => {
    const parts = text.match(/[0-9.]+/g).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    return [parts[0] * scale, parts[1] * scale, parts[2] * scale, parts.length > 3 ? parts[3] : 1];
  };
  const light = (colour) => colour.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const ratios = [...document.querySelectorAll(selector)].filter((found) => found.checkVisibility()).map((found) => {
    let below = [];
    for (let other = found; other; other = other.parentElement)
      below.push(number(getComputedStyle(other).backgroundColor));
    const ground = below.reverse().reduce((under, over) =>
      [0, 1, 2].map((part) => under[part] * (1 - over[3]) + over[part] * over[3]), [255, 255, 255]);
    const [one, two] = [light(number(getComputedStyle(found).color)), light(ground)].sort((a, b) => b - a);
    return (one + 0.05) / (two + 0.05);
  });
  return [ratios.length, Math.min(...ratios)];
}"""


def blocks(values: np.ndarray) -> np.ndarray:
    """Return (T, 64, 64) of values (T, 4, 4)."""
    return values.repeat(BLOCK, 1).repeat(BLOCK, 2)


RNG = np.random.default_rng(7)
UNITS = RNG.integers(-150, 250, (SLICES, SIDE, SIDE)).astype(np.int16)
WEIGHTS = RNG.uniform(0.1, 0.9, (SLICES, SIDE, SIDE)).astype(np.float32)
WEIGHTS[7, 1, 2] = 1.0
SCORES = np.linspace(0.05, 0.6, SLICES)
SCORES[7] = 0.95
SIGNED = RNG.uniform(-1, 1, (SLICES, SIDE, SIDE)).astype(np.float32)
FLOATS = (RNG.normal(size=(SLICES, SIDE, SIDE)) * 1e4).astype(np.float32)

CT = ViewerStudy(
    "liver-1",
    [("truth", "bad"), ("score", "0.93")],
    blocks(UNITS),
    (5.0, 0.7, 0.7),
    (("liver", 30, 150), ("lung", -600, 1500), ("bone", 400, 1800)),
    overlay=blocks(WEIGHTS),
    slice_scores=SCORES,
    slice_score_name="score of bad",
    group="best",
    unit="HU",
    origin=-20.0,
)
STUDIES = [
    CT,
    replace(CT, title=HOSTILE, facts=[(HOSTILE, HOSTILE)], overlay=blocks(SIGNED), signed=True, group="worst"),
    ViewerStudy("mr", [], blocks(FLOATS), (3.0, 1.0, 2.0), group="worst", plane="coronal"),
    replace(CT, group="most uncertain"),
]


def grey(plane: np.ndarray, level: float, width: float) -> np.ndarray:
    """What a window makes of values, 0 to 255."""
    return np.clip((plane.astype(np.float64) - (level - width / 2)) / width, 0, 1).ravel() * 255


def shown(tab: Tab, wide: float = 64 * 0.7, high: float = 64 * 0.7) -> np.ndarray:
    """(16, 3) colours that the canvas shows at the middles of the blocks."""
    return np.array(tab.page.evaluate(READ, [SIDE, wide, high]), dtype=float)


def check_grey(tab: Tab, plane: np.ndarray, level: float, width: float, **size: float) -> None:
    found = shown(tab, **size)
    expected = grey(plane, level, width)
    assert np.abs(found - expected[:, None]).max() <= 1.0


def corner(tab: Tab, name: str) -> str:
    return str(tab.page.locator(f".vr-{name}").inner_text())


def ready(tab: Tab) -> None:
    tab.page.wait_for_selector(".vr-viewer[data-state=ready]")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewer") / "report.html"
    body = section("Studies", viewer_html(STUDIES, identifier="studies"))
    text = page("viewer", body, style=VIEWER_STYLE, script=VIEWER_SCRIPT)
    # The strictest policy that a page with its own style and script can have: nothing from outside, no eval.
    path.write_text(text.replace('<meta charset="utf-8">', '<meta charset="utf-8">' + POLICY), encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Any, report: Path) -> Iterator[Tab]:
    """The report, just opened; whatever a test does, the console stays empty and nothing is asked for."""
    with opened(browser, report) as found:
        ready(found)
        yield found
        found.check_quiet()


def test_it_begins_at_the_strongest_slice_with_exact_grey_values_under_the_overlay(tab: Tab) -> None:
    assert corner(tab, "slice") == "slice 8 of 12\nH 15.0 mm"
    assert corner(tab, "window") == "L 30  W 150 HU\nliver"
    assert corner(tab, "study") == "liver-1" and corner(tab, "plane") == "axial"
    assert [corner(tab, side) for side in ("left", "right", "top", "bottom")] == ["R", "L", "A", "P"]
    mixed = shown(tab)
    tab.page.keyboard.press("Tab")
    tab.page.locator(".vr-stage").press("o")
    check_grey(tab, UNITS[7], 30, 150)
    # Over the same greys: the strongest block nearly the brightest yellow, at 60 %.
    place = 1 * SIDE + 2
    expected = 0.4 * grey(UNITS[7], 30, 150)[place] + 0.6 * np.array([255, 236, 110])
    assert np.abs(mixed[place] - expected).max() <= 2
    assert np.abs(mixed - shown(tab)).max() > 40


def test_wheel_keys_and_slider_scroll_and_down_goes_to_the_feet(tab: Tab) -> None:
    window = (30, 150)
    tab.page.locator(".vr-toggle").click()
    tab.page.locator(".vr-stage").hover()
    tab.page.mouse.wheel(0, 100)
    tab.page.locator(".vr-slice", has_text="slice 7 of").wait_for()
    check_grey(tab, UNITS[6], *window)
    tab.page.mouse.wheel(0, -100)
    tab.page.mouse.wheel(0, -100)
    tab.page.locator(".vr-slice", has_text="slice 9 of").wait_for()
    check_grey(tab, UNITS[8], *window)
    for key, number in (("ArrowUp", 10), ("ArrowDown", 9), ("End", 12), ("PageDown", 2), ("Home", 1), ("s", 8)):
        tab.page.locator(".vr-stage").press(key)
        assert corner(tab, "slice").startswith(f"slice {number} of"), key
        check_grey(tab, UNITS[number - 1], *window)
    slider = tab.page.get_by_label("Slice", exact=True)
    slider.fill("2")
    check_grey(tab, UNITS[2], *window)
    slider.press("ArrowUp")
    check_grey(tab, UNITS[3], *window)
    assert slider.get_attribute("aria-valuetext") == "slice 4 of 12, F 5.0 mm"


def test_windows_give_the_grey_values_that_numpy_gives(tab: Tab) -> None:
    tab.page.locator(".vr-toggle").click()
    for place, (name, level, width) in enumerate(CT.windows):
        if place % 2:
            tab.page.keyboard.press(str(place + 1))
        else:
            tab.page.get_by_role("button", name=name).click()
        check_grey(tab, UNITS[7], level, width)
        assert tab.page.get_by_role("button", name=name).get_attribute("aria-pressed") == "true"
        assert tab.page.locator(".vr-preset[aria-pressed=true]").count() == 1
        assert corner(tab, "window") == f"L {level}  W {width} HU\n{name}"


def test_dragging_sets_level_and_width_and_reset_takes_it_back(tab: Tab) -> None:
    tab.page.locator(".vr-toggle").click()
    box = tab.page.locator(".vr-stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + 100, y + 40, steps=4)
    tab.page.mouse.up()
    # 300 pixels are the width of the first window: 150 HU.
    assert corner(tab, "window") == "L 50  W 200 HU"
    check_grey(tab, UNITS[7], 50, 200)
    tab.page.mouse.move(x, y)  # the button is up
    assert corner(tab, "window") == "L 50  W 200 HU"
    tab.page.keyboard.press("r")
    assert corner(tab, "window") == "L 30  W 150 HU\nliver"
    assert tab.page.locator(".vr-toggle").get_attribute("aria-pressed") == "true"


def test_overlay_opacity_and_signed_colours(tab: Tab) -> None:
    tab.page.locator(".vr-stage").press("n")
    ready(tab)
    tab.page.get_by_label("Opacity").fill("100")
    strong = np.abs(SIGNED).reshape(SLICES, -1)
    at = int(strong.max(1).argmax())
    full = shown(tab)
    positive, negative = int(SIGNED[at].argmax()), int(SIGNED[at].argmin())
    assert full[positive, 0] > full[positive, 2] + 60  # orange for
    assert full[negative, 2] > full[negative, 0] + 60  # blue against
    assert tab.page.locator(".vr-legend").inner_text().split() == ["against", "for"]
    tab.page.get_by_label("Opacity").fill("0")
    check_grey(tab, UNITS[at], 30, 150)
    tab.page.locator(".vr-stage").press("]")
    assert tab.page.get_by_label("Opacity").input_value() == "10"


def test_studies_are_chosen_by_click_and_by_keys_with_their_own_values_and_shape(tab: Tab) -> None:
    options = tab.page.get_by_role("option")
    assert tab.page.locator(".vr-list h3").all_inner_texts() == ["Best", "Worst", "Most uncertain"]
    options.nth(2).click()
    ready(tab)
    assert corner(tab, "study") == "mr" and corner(tab, "plane") == "coronal"
    assert [corner(tab, side) for side in ("top", "bottom")] == ["H", "F"]
    assert corner(tab, "slice") == "slice 7 of 12\n18.0 mm from slice 1"
    assert not tab.page.locator(".vr-overlay").is_visible() and not tab.page.locator(".vr-curve").is_visible()
    tab.page.get_by_role("button", name="full range").click()
    low, high = float(FLOATS.min()), float(FLOATS.max())
    check_grey(tab, FLOATS[6], (low + high) / 2, high - low, wide=64 * 2.0, high=64 * 1.0)
    # Twice as wide as high: black above and below.
    ends = "c => [...c.getContext('2d').getImageData(c.width / 2, c.height * 0.2, 1, 1).data]"
    assert tab.page.locator(".vr-stage canvas").evaluate(ends) == [0, 0, 0, 255]
    listbox = tab.page.get_by_role("listbox", name="Studies")
    listbox.press("ArrowUp")
    ready(tab)
    assert corner(tab, "study") == HOSTILE
    assert tab.page.locator(".vr-facts dd").inner_text() == HOSTILE
    listbox.press("End")
    ready(tab)
    assert corner(tab, "study") == "liver-1"
    assert options.nth(3).get_attribute("aria-selected") == "true"
    assert listbox.get_attribute("aria-activedescendant") == options.nth(3).get_attribute("id")


def test_the_curve_follows_the_slice_and_a_click_on_it_jumps(tab: Tab) -> None:
    plot = tab.page.locator(".vr-plot")
    assert "0.950" in tab.page.locator(".vr-curve-name").inner_text()
    box = plot.bounding_box()
    plot.click(position={"x": box["width"] * 3 / 11, "y": 10})
    assert corner(tab, "slice").startswith("slice 4 of")
    cursor = tab.page.locator(".vr-plot .vr-cursor").get_attribute("d")
    assert float(re.match(r"M([\d.]+)", cursor).group(1)) == pytest.approx(600 * 3 / 11)
    # The line of the curve is where the scores are: 0 at the bottom of 80, 1 at the top.
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", tab.page.locator(".vr-plot .vr-line").get_attribute("d"))
    np.testing.assert_allclose([80 - float(y) for _, y in points], 80 * SCORES, atol=0.06)


def test_everything_is_reached_by_the_keyboard_alone(tab: Tab) -> None:
    keys = tab.page.keyboard
    seen = []
    for _ in range(16):
        keys.press("Tab")
        name, outline = tab.page.evaluate(
            "() => [document.activeElement.className, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if not name:
            break
        seen.append(name)
        assert outline != "none", name
    wanted = ["vr-list", "vr-stage", "vr-slider", "vr-preset", "vr-toggle", "vr-opacity", "vr-strongest", "vr-reset"]
    assert [name for name in dict.fromkeys(seen) if name in wanted] == wanted
    tab.page.reload()
    ready(tab)
    keys.press("Tab")
    keys.press("ArrowDown")
    ready(tab)
    assert corner(tab, "study") == HOSTILE
    keys.press("Tab")
    keys.press("Home")
    keys.press("ArrowUp")
    assert corner(tab, "slice").startswith("slice 2 of")
    before = shown(tab)
    keys.press("o")
    assert np.abs(before - shown(tab)).max() > 20
    keys.press("2")
    check_grey(tab, UNITS[1], -600, 1500)
    tab.page.locator(".vr-said", has_text="slice 2 of 12").wait_for()


def test_a_finger_scrolls_and_a_telephone_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    with opened(browser, report, size=(400, 800), has_touch=True) as tab:
        ready(tab)
        assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        stage = tab.page.locator(".vr-stage")
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        x, y = box["x"] + 200, box["y"] + 200
        session = tab.page.context.new_cdp_session(tab.page)
        for kind, points in (
            ("touchStart", [{"x": x, "y": y}]),
            ("touchMove", [{"x": x, "y": y + 15}]),
            ("touchMove", [{"x": x, "y": y + 30}]),
            ("touchEnd", []),
        ):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        tab.page.locator(".vr-slice", has_text="slice 5 of").wait_for()
        assert corner(tab, "window").endswith("liver")
        tab.check_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Any, report: Path, scheme: str) -> None:
    with opened(browser, report, scheme=scheme) as tab:
        ready(tab)
        tab.page.locator("summary").click()
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        levels = [int(part) for part in re.findall(r"\d+", ground)][:3]
        assert min(levels) > 240 if scheme == "light" else max(levels) < 50
        texts = ", ".join(
            f".vr-app {name}" for name in ("b", "span", "h3", "button", "dt", "dd", "label", "summary", "p")
        )
        count, lowest = tab.page.evaluate(CONTRAST, f"{texts}, .vr-corner, h2")
        assert count > 40
        assert lowest >= 4.5  # WCAG 2.2, AA
        tab.check_quiet()


def test_paper_shows_every_study_and_no_controls_in_dark_too(browser: Any, report: Path) -> None:
    with opened(browser, report, media="print", scheme="dark", size=(794, 1123)) as tab:
        assert tab.page.locator(".vr-static figure").count() == 3  # the fourth is the first in another group
        assert all(found.is_visible() for found in tab.page.locator(".vr-static figure").all())
        assert not tab.page.locator(".vr-app").is_visible()
        sizes = tab.page.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth / i.clientHeight])")
        assert [size[0] for size in sizes] == [64] * 5
        np.testing.assert_allclose([size[1] for size in sizes], [1, 1, 1, 1, 2], rtol=0.02)
        assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        _, lowest = tab.page.evaluate(CONTRAST, ".vr-static h3, .vr-static p, .vr-static figcaption")
        assert lowest >= 4.5
        tab.check_quiet()


def test_without_script_the_static_pictures_are_there(browser: Any, report: Path) -> None:
    with opened(browser, report, java_script_enabled=False) as tab:
        assert tab.page.locator(".vr-static figure").first.is_visible()
        assert not tab.page.locator(".vr-app").is_visible()
        assert not tab.page.locator(".vr-old").is_visible()


def test_an_old_browser_is_told_and_sees_the_static_pictures(browser: Any, report: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.html"
    script = "<script>delete window.DecompressionStream</script></head>"
    old.write_text(report.read_text(encoding="utf-8").replace("</head>", script), encoding="utf-8")
    with opened(browser, old) as tab:
        assert "too old" in tab.page.locator(".vr-old").inner_text()
        assert tab.page.locator(".vr-static figure").first.is_visible()
        assert not tab.page.locator(".vr-app").is_visible()
        tab.check_quiet()


def test_damaged_voxels_are_told_and_other_studies_open(browser: Any, report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8")
    packed = re.search(r'class="vr-voxels" data-number="0">([^<]*)<', text).group(1)
    ruined = base64.b64encode(base64.b64decode(packed)[:50]).decode()
    broken.write_text(text.replace(packed, ruined, 1), encoding="utf-8")
    with opened(browser, broken) as tab:
        ready(tab)
        assert "cannot be unpacked" in tab.page.locator(".vr-message").inner_text()
        tab.page.get_by_role("option").nth(1).click()
        ready(tab)
        assert tab.page.locator(".vr-message").inner_text() == ""
        tab.check_quiet()


def test_two_viewers_on_a_page_do_not_disturb_each_other(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.html"
    body = viewer_html([CT], identifier="one") + viewer_html([STUDIES[2]], identifier="two")
    path.write_text(page("two", body, style=VIEWER_STYLE, script=VIEWER_SCRIPT), encoding="utf-8")
    with opened(browser, path) as tab:
        tab.page.wait_for_selector("#one[data-state=ready]")
        tab.page.wait_for_selector("#two[data-state=ready]")
        tab.page.locator("#two .vr-stage").press("Home")
        assert tab.page.locator("#one .vr-slice").inner_text().startswith("slice 8 of")
        assert tab.page.locator("#two .vr-slice").inner_text().startswith("slice 1 of")
        tab.check_quiet()
