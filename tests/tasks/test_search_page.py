"""The search page in a real browser: words and dropped pictures find pictures, in light and dark, on a narrow screen,
by keyboard, and hostile names stay text.
"""

from __future__ import annotations

import base64
import re
import shutil
import time

import pytest

from tests.toy_served import HOSTILE, served, write_gallery, write_run

for package in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason="pip install -r requirements-serve.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium; on Debian: apt-get install chromium")

DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type: "image/png"}));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""
CONTRAST = """(selector) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((c) => c / 255).map(
      (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const own = document.querySelector(selector);
  let back = own;
  while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
  const [a, b] = [getComputedStyle(own).color, getComputedStyle(back).backgroundColor].map(light);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_run(folder)
    return folder, write_gallery(folder)


@pytest.fixture(scope="module")
def address(gallery):
    with served(gallery[0], *gallery[1]) as (url, _, _):
        yield url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(request, browser, address):
    """A page that has shown its first pictures; everything that goes wrong in it is in `page.complaints`."""
    options = {"viewport": {"width": 1200, "height": 800}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    opened = context.new_page()
    opened.complaints = []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda asked: asked.url.startswith((address, "blob:")) or opened.complaints.append(asked.url))
    opened.goto(address)
    opened.wait_for_selector(".card")
    yield opened
    context.close()


def until(page, expression: str) -> None:
    """Wait until an expression is true; the page's policy forbids the browser's own way of asking again."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


def search(page, text: str) -> None:
    page.fill("#query", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".score")


def loaded_pictures(page) -> int:
    until(page, "[...document.querySelectorAll('.card img')].every((each) => each.complete)")
    return page.evaluate("[...document.querySelectorAll('.card img')].filter((each) => each.naturalWidth).length")


def test_words_show_pictures_with_captions_scores_and_latency(page):
    search(page, "红色 red colour")
    assert loaded_pictures(page) == 9 == page.locator(".score meter").count()
    assert re.fullmatch(r"9 of 9 pictures . \d+ ms . 9 of them re-ranked", page.inner_text("#status"))
    assert re.fullmatch(r"\d+\.\d %", page.inner_text(".score .value >> nth=0"))
    assert "图片" in page.inner_text(".card >> nth=0")  # the caption in the script of the query
    assert "q=" in page.url
    page.go_back()
    until(page, "!document.querySelector('.score')")
    assert page.complaints == []


def test_a_dropped_picture_finds_itself_and_leads_to_similar_ones(page, gallery):
    content = base64.b64encode((gallery[0] / "data/images/5.png").read_bytes()).decode()
    page.evaluate(DROP, ["mine.png", content])
    page.wait_for_selector(".score")
    assert page.is_visible("#asked") and page.is_hidden("#drop")
    page.click(".card >> nth=0")
    assert page.inner_text("#details-name") == "5.png" and "similarity 1.000" in page.inner_text("#details-score")
    page.click("#similar")
    until(page, "!document.querySelector('dialog').open")
    page.wait_for_selector(".score")
    assert page.complaints == []


def test_a_hostile_file_name_and_query_stay_text(page):
    search(page, HOSTILE)
    assert HOSTILE in page.inner_text("#title")
    page.locator(".card", has_text=HOSTILE).first.click()
    assert page.inner_text("#details-name") == HOSTILE
    assert page.evaluate("window.hacked") is None and page.locator("img[src='x']").count() == 0
    assert page.complaints == []


def test_the_keyboard_is_enough(page):
    page.locator("#query").blur()
    page.keyboard.press("/")
    page.keyboard.type("green")
    page.keyboard.press("Enter")
    page.wait_for_selector(".score")
    page.focus(".card")
    page.keyboard.press("Enter")
    assert page.is_visible("#details")
    page.keyboard.press("Escape")
    assert page.is_hidden("#details")
    assert page.evaluate("document.activeElement.className") == "card"


def test_everything_that_can_be_used_has_a_name(page):
    unnamed = """[...document.querySelectorAll('button, input, a, img')].filter((each) => each.checkVisibility()
      && !(each.innerText || each.getAttribute('aria-label') || each.labels?.length || each.hasAttribute('alt')))
      .map((each) => each.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.get_attribute("html", "lang") == "en" and page.get_attribute("#status", "aria-live") == "polite"


def test_re_ranking_can_be_switched_off(page):
    search(page, "blue")
    page.uncheck("#rerank")
    until(page, "!document.querySelector('#status').textContent.includes('re-ranked')")


def test_what_the_server_refuses_is_told(page):
    page.fill("#query", "?!")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert "nothing to look for" in page.inner_text("#problem")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    until(page, "document.querySelector('#problem').textContent.includes('cannot be read')")
    assert page.locator(".card").count() == 0 and not page.inner_text("#status")  # no answer to another search
    search(page, "red")
    assert page.is_hidden("#problem")


@pytest.mark.parametrize("page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_words_can_be_read_in_light_and_dark(page):
    shown = ("h1", ".about", "#hint", ".words", ".go", "#status", "footer a")
    contrast = {selector: page.evaluate(CONTRAST, selector) for selector in shown}
    assert {selector: ratio for selector, ratio in contrast.items() if ratio < 4.4} == {}  # WCAG AA
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    level = int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")).group())
    assert level < 50 if is_dark else level > 200


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_a_narrow_screen_shows_everything_without_scrolling_sideways(page):
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    search(page, "red colour")
    assert page.evaluate(wide) == 0
    boxes = [page.locator(".card").nth(number).bounding_box() for number in range(3)]
    assert boxes[0]["y"] == boxes[1]["y"] < boxes[2]["y"]  # two columns
    page.click(".card >> nth=0")
    assert page.locator("#details").bounding_box()["width"] <= 360
    page.click(".close")
    assert page.is_hidden("#details")
