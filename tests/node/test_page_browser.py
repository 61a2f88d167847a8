"""The page as people use it: headless Chromium on the demo series, checked against NumPy.

Above 300 lines: all share one browser and one page.
"""

import base64
import io
import os
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_page import DEMO, OUTPUT, TOKEN, VERSION, node_folder, node_sources, served

from cddnet.formats import read_volume
from cddnet.formats._parametric import PREDICTED_ERROR, write_parametric_map
from cddnet.intensity.window import to_grey
from cddnet.node.web.pairs import LocalPair
from cddnet.volume import Derivation

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")

from cddnet.node.web.access import Access  # noqa: E402
from cddnet.node.web.destinations import Changed, DestinationStatus  # noqa: E402
from cddnet.node.web.http import Figures, app  # noqa: E402

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {360: 740, 1280: 800, 1920: 1080}
PIXELS = "(id) => document.querySelector(`#${id} canvas`).toDataURL('image/png')"
NEXT_PAINTED = """() => { window.next = new Promise((done) => stage.addEventListener(
  "painted", () => done(Number(stage.dataset.ms)), { once: true })); }"""

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is not installed; tests marked net need it")
    with sync_api.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return node_folder(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def address(folder):
    with served(app(node_sources(folder), Access())) as url:
        yield url


@pytest.fixture(scope="module")
def hu(folder):
    return {"before": read_volume(DEMO).hu, "after": read_volume(folder / "outbox" / "a").hu}


@pytest.fixture
def watched(browser, address):
    """Opens pages; in the end no error was written and no request had left this host."""
    seen, errors, opened = [], [], []

    def open_page(path, width=1280):
        page = browser.new_page(viewport={"width": width, "height": SIZES[width]})
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda text: errors.append(text.text) if text.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}{path}")
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert errors == []
    assert seen
    assert [url for url in seen if not url.startswith(f"{address}/")] == []


@pytest.fixture
def viewer(watched):
    def open_viewer(width=1280):
        page = watched(f"/view#{OUTPUT}", width)
        page.wait_for_selector("#stage[data-painted='6']")
        return page

    return open_viewer


def pressed(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 60)))")
    return page


def on_slice(page, number):
    page.wait_for_selector(f"#stage[data-painted='{number}']")


def pixels(page, view):
    """What a canvas holds, (H, W, 4); PNG loses nothing."""
    _, _, packed = page.evaluate(PIXELS, view).partition(",")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))).convert("RGBA"))


def region_figures(page):
    cells = page.locator("#region td").all_inner_texts()
    return [float(text) for text in cells], page.inner_text("#region-facts")


@pytest.mark.parametrize(
    ("key", "window_hu"),
    [
        ("1", (-160, 240)),
        ("2", (-1350, 150)),
        ("3", (-500, 1300)),
        ("4", (0, 80)),
        ("5", (-1024, 3072)),
    ],
)
def test_windows_are_those_of_numpy(viewer, hu, key, window_hu):
    page = pressed(viewer(), key)
    for view, layer in (("view-a", "before"), ("view-b", "after")):
        drawn = pixels(page, view)
        expected = to_grey(hu[layer][6].astype(np.float64), window_hu, 8)
        # The window's fraction is float32 in Python: a level may fall to the other side of a half.
        assert np.abs(drawn[..., 0].astype(int) - expected).max() <= 1
        assert (drawn[..., 0] == expected).mean() > 0.999
        assert (drawn[..., 0] == drawn[..., 2]).all()
        assert (drawn[..., 3] == 255).all()


def test_a_result_without_its_originals_is_shown_alone(browser, folder, hu):
    originals, away = folder / "inbox" / "a", folder / "away"
    originals.rename(away)
    originals.mkdir()
    try:
        with served(app(node_sources(folder), Access())) as url:
            page, errors = browser.new_page(viewport={"width": 1280, "height": 800}), []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"{url}/view#{OUTPUT}")
            on_slice(page, 6)
            # Keys that compare do nothing, and keys that measure still do.
            pressed(page, "d", "n", "a", "1", "r", "Enter")
            assert page.locator("#modes").is_hidden()
            assert page.locator("#view-a").is_hidden()
            drawn = pixels(page, "view-b")[..., 0].astype(int)
            expected = to_grey(hu["after"][6].astype(np.float64), (-160, 240), 8)
            assert np.abs(drawn - expected).max() <= 1
            assert page.locator("#row-before").is_hidden()
            _, sd = page.locator("#row-after td").all_inner_texts()
            assert float(sd) > 0
            assert "SD after" not in page.inner_text("#region-facts")
            page.close()
            assert errors == []
    finally:
        originals.rmdir()
        away.rename(originals)


def test_dragging_changes_the_window(viewer, hu):
    page = viewer()
    page.mouse.move(400, 400)
    page.mouse.down(button="right")
    page.mouse.move(460, 370, steps=4)
    page.mouse.up(button="right")
    pressed(page)
    level, width = (float(page.input_value(f"#{name}")) for name in ("level", "width"))
    assert (level, width) == (40 + 30 * 400 / 300, 400 + 60 * 400 / 300)
    expected = to_grey(
        hu["before"][6].astype(np.float64), (level - width / 2, level + width / 2), 8
    )
    assert np.abs(pixels(page, "view-a")[..., 0].astype(int) - expected).max() <= 1


def test_the_difference_has_its_sign_and_size(viewer, hu):
    drawn = pixels(pressed(viewer(), "d"), "view-b").astype(int)
    change = hu["after"][6] - hu["before"][6]
    assert (drawn[change == 0][:, :3] == 0).all()
    assert (drawn[change > 3][:, 0] > drawn[change > 3][:, 2]).all()
    assert (drawn[change < -3][:, 2] > drawn[change < -3][:, 0]).all()
    assert (change > 3).sum() > 1000


def test_the_noise_map_is_shown_with_its_range(viewer):
    page = pressed(viewer(), "n")
    page.wait_for_selector("#scale:not([hidden])", timeout=60_000)
    most = float(page.input_value("#range"))
    assert page.locator(".ends span").all_inner_texts()[2] == f"{most:g} HU"
    assert len(np.unique(pixels(page, "view-b")[..., 1])) > 10


def cubehelix(fraction):
    """Green, Bull. Astron. Soc. India 39:289, 2011: (..., 3) of 255; start 0.5, turns -1.5."""
    angle = 2 * np.pi * (0.5 / 3 + 1 - 1.5 * fraction)
    turned = np.stack([np.cos(angle), np.sin(angle)], axis=-1) @ np.array(
        [[-0.14861, -0.29227, 1.97294], [1.78277, -0.90649, 0]]
    )
    grey, amplitude = fraction[..., None], (fraction * (1 - fraction) / 2)[..., None]
    return np.clip(255 * (grey + amplitude * turned), 0, 255)


def test_the_expected_error_has_the_pixels_and_figures_of_numpy(browser, folder, hu, tmp_path, rng):
    error_hu = rng.uniform(0.5, 23, hu["before"].shape[1:]).astype(np.float32)
    step = Derivation(label="error", description="A test", parameters=(), version="0")
    maps = read_volume(DEMO).derived(lambda index: error_hu + np.float32(index), step)
    write_parametric_map(maps, tmp_path / "error.dcm", PREDICTED_ERROR)
    local = LocalPair(DEMO, folder / "outbox" / "a", error=tmp_path / "error.dcm")
    with served(app(local, Access())) as url:
        page, errors = browser.new_page(viewport={"width": 1280, "height": 800}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        on_slice(page, 6)
        page.click("text=Expected error")
        page.wait_for_selector("#scale:not([hidden])")
        assert page.inner_text("#scale legend") == "Expected error (SD)"
        assert page.locator(".ends span").all_inner_texts() == ["0 HU", "15 HU", "30 HU"]
        expected_hu = np.rint(10 * (error_hu + 6)) / 10
        drawn = pixels(page, "view-b")[..., :3]
        assert np.abs(drawn - cubehelix(expected_hu / 30)).max() <= 1
        page.fill("#range", "40")
        page.press("#range", "Enter")
        pressed(page)
        drawn = pixels(page, "view-b")[..., :3]
        assert np.abs(drawn - cubehelix(expected_hu / 40)).max() <= 1
        frame = page.locator("#view-b .frame").bounding_box()
        row, column = 210, 301
        page.mouse.move(
            frame["x"] + (column + 0.5) / 512 * frame["width"],
            frame["y"] + (row + 0.5) / 512 * frame["height"],
        )
        before, after = (round(float(hu[name][6, row, column])) for name in ("before", "after"))
        told = f"{before} \u2192 {after} HU, expected error (SD) {expected_hu[row, column]:.1f} HU"
        assert page.inner_text("#readout") == told
        page.locator("#stage").focus()
        pressed(page, "a")
        assert page.locator("#scale").is_hidden()
        pressed(page, "u")
        assert page.get_attribute("#stage", "data-mode") == "error"
        page.close()
        assert errors == []


def test_without_a_map_the_expected_error_is_not_offered(viewer):
    page = pressed(viewer(), "u", "h")
    assert page.get_attribute("#stage", "data-mode") == "wipe"
    assert page.locator("[data-mode=error]").is_hidden()
    assert page.locator("#error-key").is_hidden()


def test_the_wipe_shows_each_side(viewer):
    page = viewer()
    frame = page.locator("#view-a .frame").bounding_box()
    box = page.locator("#divider").bounding_box()
    page.mouse.move(box["x"] + 22, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.25 * frame["width"], box["y"] + 300, steps=3)
    page.mouse.up()
    assert page.get_attribute("#divider", "aria-valuenow") == "25"
    stage = page.locator("#stage").bounding_box()
    border = frame["x"] - stage["x"] + 0.25 * frame["width"]
    clip = page.evaluate("() => document.getElementById('view-b').style.clipPath")
    assert float(clip.split()[-1].removesuffix("px)")) == pytest.approx(border, abs=0.6)
    pressed(page, ",", ",")
    assert page.get_attribute("#divider", "aria-valuenow") == "21"


@pytest.mark.parametrize("kind", ["Rectangle", "Ellipse"])
def test_a_drawn_region_has_the_figures_of_numpy(viewer, hu, kind):
    page = viewer()
    page.click(f"text={kind}")
    frame = page.locator("#view-a .frame").bounding_box()
    first, last = (201, 143), (240, 199)

    def at(row, column):
        return (
            frame["x"] + (column + 0.5) / 512 * frame["width"],
            frame["y"] + (row + 0.5) / 512 * frame["height"],
        )

    page.mouse.move(*at(*first))
    page.mouse.down()
    page.mouse.move(*at(*last), steps=5)
    page.mouse.up()
    rows, columns = np.mgrid[: last[0] - first[0] + 1, : last[1] - first[1] + 1] + 0.5
    inside = np.ones(rows.shape, bool)
    if kind == "Ellipse":
        half = np.array(rows.shape) / 2
        inside = ((rows - half[0]) / half[0]) ** 2 + ((columns - half[1]) / half[1]) ** 2 <= 1
    figures, facts = region_figures(page)
    expected = []
    for layer in ("before", "after"):
        values = hu[layer][6][first[0] : last[0] + 1, first[1] : last[1] + 1][inside]
        expected += [values.mean(dtype=np.float64), values.std(dtype=np.float64)]
    assert np.abs(np.array(figures) - expected).max() <= 0.051
    assert f"n = {inside.sum()} pixels" in facts
    assert f"{inside.sum() * 0.796875**2:.1f} mm" in facts
    assert f"{expected[3] / expected[1]:.2f}" in facts
    assert abs(expected[3] - expected[1]) > 0.1


def test_everything_by_keys(viewer, hu):
    page = viewer()
    for keys, number in (
        (["ArrowDown"], 7),
        (["PageUp", "PageUp"], 5),
        (["Home"], 0),
        (["End"], 11),
    ):
        pressed(page, *keys)
        on_slice(page, number)
    assert "12 of 12, 55.0 mm" in page.inner_text("#place")
    for key, mode in (("l", "side"), ("b", "blink"), ("d", "difference"), ("a", "wipe")):
        pressed(page, key)
        assert page.get_attribute("#stage", "data-mode") == mode
    pressed(page, "b")
    seen = page.locator("#view-a, #view-b").evaluate_all("all => all.map((v) => v.hidden)")
    pressed(page, "b")
    assert (
        page.locator("#view-a, #view-b").evaluate_all("all => all.map((v) => v.hidden)")
        == seen[::-1]
    )
    pressed(page, "r", "Enter", "ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowRight")
    values = hu["before"][11][236:279, 235:280]
    figures, facts = region_figures(page)
    assert figures[:2] == pytest.approx([values.mean(), values.std()], abs=0.051)
    assert f"n = {43 * 45} " in facts
    pressed(page, "Delete")
    assert page.locator("#region-facts").is_hidden()
    pressed(page, "w", "ArrowUp", "ArrowRight")
    assert page.input_value("#level") == "53"
    pressed(page, "h")
    assert page.locator("#help").is_visible()
    pressed(page, "Escape")
    assert page.locator("#help").is_hidden()


def test_every_control_is_reached_by_tab_and_has_a_name(viewer):
    page = viewer()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.outerHTML.slice(0, 90)"))
    assert (
        len(reached) >= page.locator("button:visible, input:visible, #stage, #divider").count() - 2
    )
    for width in SIZES:
        page.set_viewport_size({"width": width, "height": SIZES[width]})
        page.keyboard.press("Tab")
        ring = "() => getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(ring) == "solid"
    unnamed = page.locator("button:visible, input:visible").evaluate_all(
        "all => all.filter((c) => !(c.ariaLabel || c.textContent || c.labels?.length)).length"
    )
    assert unnamed == 0


def test_fingers_scroll_and_window(browser, address):
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    page = context.new_page()
    page.goto(f"{address}/view#{OUTPUT}")
    page.wait_for_selector("#stage[data-painted='6']")
    session = context.new_cdp_session(page)

    def touch(kind, *points):
        told = [{"x": x, "y": y, "id": order} for order, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": told})

    touch("touchStart", (90, 150))
    for down in (15, 30, 45):
        touch("touchMove", (90, 150 + down))
    touch("touchEnd")
    on_slice(page, 9)
    touch("touchStart", (90, 150))
    touch("touchStart", (90, 150), (140, 150))
    touch("touchMove", (120, 150), (170, 150))
    touch("touchEnd")
    pressed(page)
    assert page.input_value("#width") == "440"
    assert page.get_attribute("#stage", "data-painted") == "9"
    context.close()


def test_a_slice_changes_within_a_tenth_of_a_second(viewer):
    page = viewer()
    took_ms = []
    for key in ["Home", *["PageDown"] * 11, *["PageUp"] * 11]:
        page.evaluate(NEXT_PAINTED)
        page.keyboard.press(key)
        took_ms.append(page.evaluate("() => window.next"))
    assert statistics.median(took_ms) < 100, took_ms


@pytest.mark.parametrize("width", SIZES)
def test_pages_fit_and_are_pictured(viewer, watched, tmp_path_factory, width):
    folder = tmp_path_factory.getbasetemp()
    page = viewer(width)
    for key in ("a", "l", "d"):
        pressed(page, key).screenshot(path=folder / f"viewer_{key}_{width}.png")
    queue = watched("/", width)
    queue.wait_for_selector("#series:not([hidden])")
    queue.screenshot(path=folder / f"queue_{width}.png", full_page=True)
    for opened in (page, queue):
        assert opened.evaluate("() => document.documentElement.scrollWidth") <= width
        assert opened.locator("text=Research use only").first.is_visible()


def test_the_queue_retries_uploads_and_downloads(watched):
    page = watched("/")
    page.wait_for_selector("#series:not([hidden])")
    assert page.locator("#series tbody tr").count() == 4
    removed = page.locator("tr:has-text('images removed after their time')")
    assert "archive: all sent" in removed.inner_text()
    assert removed.locator("a").count() == 0
    with page.expect_response(lambda answer: answer.url.endswith(f"/{'b' * 16}/retry")) as told:
        page.click("button:has-text('Retry')")
    assert told.value.status == 200
    page.set_input_files("#files", [DEMO / "0001.dcm", Path(__file__)])
    page.wait_for_selector("text=1 slice taken")
    assert "1 not taken" in page.inner_text("#upload-problems")
    with page.expect_download() as download:
        page.click("a:has-text('Download')")
    assert download.value.suggested_filename == f"denoised-{VERSION}.zip"


class Places:
    """Destinations, one of which is not configured any more."""

    def __init__(self):
        self.changes = []
        self.items = [
            DestinationStatus(name="pacs", configured=True, queued=2, failed=0, problem=""),
            DestinationStatus(name="web", configured=True, queued=0, failed=1, problem="it is off"),
            DestinationStatus(name="old <b>", configured=False, queued=3, failed=0, problem=""),
        ]

    def view(self):
        return self.items

    def change(self, change):
        self.changes.append((change.name, change.to))
        self.items = self.items[:2]
        return Changed(objects=3)


@pytest.mark.parametrize(("button", "to"), [("Send to web", "web"), ("Drop", None)])
def test_what_a_destination_of_before_has_not_got_is_shown_and_put_right(
    browser, tmp_path, button, to
):
    sources, places = node_sources(node_folder(tmp_path / "node")), Places()
    sources.destinations = places
    figures = Figures(lambda: "", lambda: {"status": "ok", "set_aside": 2})
    with served(app(sources, Access(), figures=figures)) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#destinations li")
        shown = page.locator("#destinations li").all_inner_texts()
        assert [text.split()[0] for text in shown] == ["web", "old"]
        assert "it is off" in shown[0]
        assert "old <b> 3 queued" in shown[1]
        assert "2 files" in page.inner_text("#aside")
        page.click(f"button:has-text('{button}')")
        page.wait_for_function("() => document.querySelectorAll('#destinations li').length === 1")
        assert places.changes == [("old <b>", to)]
        page.close()


def test_a_result_that_was_made_twice_is_offered_twice(browser, tmp_path):
    sources = node_sources(node_folder(tmp_path))
    done = sources._journal.rows[0]
    twice = replace(done.outputs[0], versions={f"{OUTPUT}-11112222": 12, VERSION: 11})
    sources._journal.rows = [replace(done, outputs=(twice,))]
    with served(app(sources, Access())) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#series:not([hidden])")
        links = page.locator("a:has-text('View')")
        assert links.all_inner_texts() == ["View newest (12)", "View older (11)"]
        assert links.nth(1).get_attribute("href") == f"/view#{VERSION}"
        links.nth(1).click()
        page.wait_for_selector("#stage[data-painted='6']")
        page.close()


def test_the_token_is_asked_and_let_in(browser, tmp_path):
    with served(app(node_sources(node_folder(tmp_path)), Access(token=TOKEN))) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("dialog.login[open]")
        assert page.locator("#series").is_hidden()
        page.fill("input[name=token]", "not the token")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=the token is wrong")
        page.fill("input[name=token]", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#series:not([hidden])")
        assert [cookie["httpOnly"] for cookie in context.cookies()] == [True]
        context.close()
