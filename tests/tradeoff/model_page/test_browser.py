"""A model's page in a real browser: it opens without an error or a request, in every width, colour and on paper."""

from pathlib import Path
from typing import Any

import pytest
from pictures import HOSTILE, full_picture, full_record

from legibility.tradeoff.model_page import write_model_html


class Opened:
    """A page, and everything that went wrong on it."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}).new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(path.as_uri())

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.wrong.append(f"asked for {url}")


def test_it_opens_with_every_picture_drawn(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_model_html(full_record(), full_picture(), tmp_path / "model.html"))
    sizes = opened.page.evaluate("[...document.images].map((image) => image.naturalWidth * image.clientHeight)")
    assert len(sizes) >= 6 and min(sizes) > 0
    lines = opened.page.evaluate(
        "[...document.querySelectorAll('svg')].map((svg) => svg.getBoundingClientRect().height)"
    )
    assert len(lines) >= 5 and min(lines) > 20
    assert opened.page.title() == "plain: plain, seed 0"
    assert opened.wrong == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(browser: Any, tmp_path: Path, name: str) -> None:
    opened = Opened(browser, write_model_html(full_record(name), full_picture(name), tmp_path / "model.html"))
    assert opened.page.evaluate("window.broken") is None
    assert opened.page.locator("script, main a, img:not(.grid-image)").count() == 0
    assert name.strip("\u202e\u202c")[:8] in opened.page.locator("h2").inner_text()
    for width in (1280, 700, 360):
        opened.page.set_viewport_size({"width": width, "height": 800})
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    assert opened.wrong == []


def test_it_follows_the_readers_colours_and_prints(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_model_html(full_record(), full_picture(), tmp_path / "model.html"))
    colours = []
    for scheme in ("dark", "light"):
        opened.page.emulate_media(color_scheme=scheme)
        colours.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(20, 23, 27)", "rgb(252, 252, 251)"]
    file = tmp_path / "page.pdf"
    opened.page.pdf(path=file)
    assert file.read_bytes().startswith(b"%PDF") and opened.wrong == []
